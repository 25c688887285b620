"""A small dataset, predictions and a training folder as the trainer leaves it, made without training."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ad.testing.made_dataset import write_made_dataset

DATASET = "Dataset500_Made"
MODEL = "nnUNetTrainerAD__nnUNetPlans__3d_fullres"
NUM_EPOCHS = 30
VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@dataclass(frozen=True)
class Made:
    """Folders of a made dataset with predictions of 5 cases, and of a training that validated on them."""

    root: Path
    raw: Path
    preprocessed: Path
    training: Path

    @property
    def predictions(self) -> Path:
        return self.training / "validation"

    @property
    def references(self) -> Path:
        return self.preprocessed / "gt_segmentations"

    @property
    def images(self) -> Path:
        return self.raw / "imagesTr"

    @property
    def cases(self) -> list[str]:
        return [path.name.removesuffix(".nii.gz") for path in sorted(self.predictions.glob("*.nii.gz"))]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Made:
    return make(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def training_page(made_once, tmp_path_factory) -> Path:
    """The report on the training, nothing left out."""
    from nnunet_ad.report.report import write_report

    output = tmp_path_factory.mktemp("page") / "new folder" / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.setenv(name, str(made_once.root / name))
        write_report(made_once.training, output, processes=1, progress=False)
    return output


@pytest.fixture
def made(made_once, tmp_path, monkeypatch) -> Made:
    """A copy that a test may change; nnU-Net's variables point to it."""
    shutil.copytree(made_once.root, tmp_path, dirs_exist_ok=True)
    for name in VARIABLES:
        monkeypatch.setenv(name, str(tmp_path / name))
    return folders_in(tmp_path)


def folders_in(root: Path) -> Made:
    return Made(
        root,
        root / "nnUNet_raw" / DATASET,
        root / "nnUNet_preprocessed" / DATASET,
        root / "nnUNet_results" / DATASET / MODEL / "fold_0",
    )


def make(root: Path, shape=(24, 32, 32), num_val=5) -> Made:
    made = folders_in(root)
    write_made_dataset(made.raw.parent, shape=shape, num_labeled=2, num_val=num_val, num_unlabeled=1, num_test=0)
    made.preprocessed.mkdir(parents=True)
    shutil.copytree(made.raw / "labelsTr", made.references)
    for name in ("splits_final.json", "dataset.json"):
        shutil.copy(made.raw / name, made.preprocessed)
    made.training.mkdir(parents=True)
    shutil.copy(made.raw / "dataset.json", made.training.parent)
    plans = {"dataset_name": DATASET, "configurations": {"3d_fullres": {"spacing": [2.5, 2.0, 2.0]}}}
    (made.training.parent / "plans.json").write_text(json.dumps(plans))
    write_predictions(made)
    write_progress(made.training)
    write_snapshots(made)
    return made


def write_predictions(made: Made) -> None:
    """Write each validation case shifted by some voxels; the first lacks the vessel (label 2)."""
    made.predictions.mkdir()
    (split,) = json.loads((made.raw / "splits_final.json").read_text())
    for number, case in enumerate(split["val"]):
        reference = sitk.ReadImage(str(made.references / f"{case}.nii.gz"))
        labels = sitk.GetArrayFromImage(reference)
        labels = np.roll(labels, (len(split["val"]) - number) // 2, axis=2)
        labels = np.roll(labels, (len(split["val"]) - number) % 2, axis=1)
        if number == 0:
            labels[labels == 2] = 0
        prediction = sitk.GetImageFromArray(labels)
        prediction.CopyInformation(reference)
        sitk.WriteImage(prediction, str(made.predictions / f"{case}.nii.gz"))


def write_progress(training: Path, num_epochs: int = NUM_EPOCHS) -> None:
    epochs = np.arange(num_epochs)
    noise = np.random.default_rng(0).normal(0, 0.015, (num_epochs, 12))
    rising = 1 - np.exp(-4 * epochs / num_epochs)
    curves = {
        "mu": 10 * np.exp(-5 * (1 - np.minimum(epochs / (num_epochs / 3), 1)) ** 2),
        **{f"loss_{name}": 1.1 - 0.9 * rising + noise[:, i]
           for i, name in enumerate(("denoising", "difficulty", "unlabeled"))},
        **{f"gradient_{name}": 10.0 ** (i - 1 - rising)
           for i, name in enumerate(("denoising", "difficulty", "unlabeled"))},
        "class_weights": np.stack([np.ones(num_epochs), 0.8 + noise[:, 3], 1.2 - noise[:, 3]], 1),
        "pseudo_foreground": 0.1 * rising,
        "agreement": 0.9 * rising,
        "dice_by_t": np.stack([0.95 * rising - 0.05 * i for i in range(5)], 1),
        **{f"val_dice_{name}": (0.9 - 0.05 * i) * rising + noise[:, 4 + i]
           for i, name in enumerate(("theta", "psi", "xi"))},
        "val_dice_per_class_theta": np.stack([0.92 * rising, 0.7 * rising], 1),
    }  # fmt: skip
    curves = {name: values.tolist() for name, values in curves.items()}
    curves["dice_by_t"][0][2] = None
    content = {"learning_rate": [0.01 * (1 - e / num_epochs) ** 0.9 for e in epochs], "curves": curves}
    (training / "progress_ad.json").write_text(json.dumps(content))


def write_snapshots(made: Made, epochs=(1, 2, 5, 10, 20, 30)) -> None:
    folder = made.training / "snapshots"
    folder.mkdir()
    case = "Made_007"
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(next((made.raw / "imagesUnlabeled").glob("*.nii.gz")))))
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(made.references / "Made_000.nii.gz")))
    generator = np.random.default_rng(1)
    for epoch in epochs:
        share = math.exp(-epoch / 8)

        def noisy(truth=truth, share=share):
            return np.where(generator.random(truth.shape) < share, generator.integers(0, 3, truth.shape), truth)

        maps = {name: noisy().astype(np.uint8) for name in ("xi", "psi", "pseudo_label", "theta")}
        np.savez_compressed(folder / f"epoch_{epoch:04d}.npz", case=case, image=image[None].astype(np.float32), **maps)
