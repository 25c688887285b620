"""From each kind of input to predictions, by the real commands; the fast tests stop before training."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ad.conversion import laseg, mmwhs, mnms, synapse
from nnunet_ad.conversion.command_line import Converter, run
from nnunet_ad.conversion.hospital.command_line import main as convert_hospital_data
from nnunet_ad.planning.small_plans import write_small_plans
from nnunet_ad.testing.benchmark_trees.laseg import write_laseg_tree
from nnunet_ad.testing.benchmark_trees.mmwhs import write_mmwhs_tree
from nnunet_ad.testing.benchmark_trees.mnms import write_mnms_tree
from nnunet_ad.testing.benchmark_trees.synapse import write_synapse_tree
from nnunet_ad.testing.hospital_folder import write_hospital_folder

PLANS, CONFIGURATION = "nnUNetPlansTiny", "3d_fullres"


@dataclass(frozen=True)
class Kind:
    """One kind of input: how it is made and converted, and what must come out."""

    dataset: str
    convert: Callable[[Path], int]
    counts: tuple[int, int, int, int]  # train, val, unlabeled, test


def converter(module_converter: Converter, write: Callable[[Path], object], *options: str) -> Callable[[Path], int]:
    def convert(folder: Path) -> int:
        write(folder)
        return run(module_converter, ["-i", str(folder), *options])

    return convert


def hospital(folder: Path) -> int:
    write_hospital_folder(folder, seed=0, num_labeled=3, num_unlabeled=3, num_test=2, shape=(20, 24, 22))
    roles = [argument for role in ("labeled", "unlabeled", "test") for argument in (f"--{role}", str(folder / role))]
    tables = ["--labels", str(folder / "labels.json"), "--domains", str(folder / "domains.csv")]
    return convert_hospital_data(["-d", "501", "-n", "Made", *roles, *tables])


KINDS = {
    "LASeg": Kind(
        "Dataset101_LASeg",
        converter(
            laseg.CONVERTER, lambda folder: write_laseg_tree(folder, shape=(24, 20, 18)), "--labeled", "4", "--val", "2"
        ),
        (4, 2, 74, 20),
    ),
    "Synapse": Kind(
        "Dataset102_Synapse",
        converter(synapse.CONVERTER, lambda folder: write_synapse_tree(folder, shape=(20, 28, 24))),
        (4, 4, 16, 6),
    ),
    "MM-WHS": Kind(
        "Dataset104_MMWHS_CT2MR",
        converter(mmwhs.CONVERTER, lambda folder: write_mmwhs_tree(folder, shape=(20, 28, 24)), "--direction", "ct2mr"),
        (16, 16, 13, 4),
    ),
    "M&Ms": Kind(
        "Dataset111_MnMs_C_5pct",
        converter(
            mnms.CONVERTER,
            lambda folder: write_mnms_tree(folder, shape=(20, 18, 6), num_frames=2),
            *("--target", "C", "--labeled", "5pct"),
        ),
        (30, 30, 510, 100),
    ),
    "hospital": Kind("Dataset501_Made", hospital, (3, 3, 3, 2)),
}


QUICK = "hospital"


@pytest.fixture(params=[kind if kind == QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS])
def planned(request, tmp_path, monkeypatch):
    """A kind of input and the folder in which it was converted, planned and preprocessed."""
    kind = KINDS[request.param]
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    assert kind.convert(tmp_path / "input") == 0
    command(
        "nnUNetv2_plan_and_preprocess", "-d", dataset_id(kind), "-c", CONFIGURATION, "-npfp", "1", "-np", "1",
        "--verify_dataset_integrity",
    )  # fmt: skip
    return kind, tmp_path


def dataset_id(kind: Kind) -> str:
    return kind.dataset[len("Dataset") : len("Dataset") + 3]


def command(name: str, *arguments: str) -> str:
    """Run an installed command and return what it printed."""
    path = Path(sys.executable).parent / name
    done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=900, env=os.environ)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_planning_takes_the_dataset_and_sees_labelled_cases_only(planned):
    kind, root = planned
    raw, preprocessed = (root / name / kind.dataset for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    (split,) = json.loads((preprocessed / "splits_final.json").read_text())
    counts = [len(split[role]) for role in ("train", "val", "unlabeled")]
    assert (*counts, len(list((raw / "imagesTs").iterdir()))) == kind.counts
    labeled = set(split["train"]) | set(split["val"])
    images = preprocessed / f"nnUNetPlans_{CONFIGURATION}"
    assert {path.stem for path in images.glob("*.pkl")} == labeled
    fingerprint = json.loads((preprocessed / "dataset_fingerprint.json").read_text())
    assert len(fingerprint["spacings"]) == len(labeled)


@pytest.mark.slow
def test_a_short_training_predicts_on_the_grids_of_the_images(planned, monkeypatch):
    kind, root = planned
    monkeypatch.setenv("NNUNET_AD_ITERATIONS", "2")
    write_small_plans(root / "nnUNet_preprocessed" / kind.dataset, CONFIGURATION, 4, (12, 16, 16), 2, PLANS)
    images, predictions = root / "nnUNet_raw" / kind.dataset / "imagesTs", root / "predictions"
    model = ["-tr", "nnUNetTrainerAD_1epoch", "-p", PLANS, "-device", "cpu"]
    log = command("nnUNetv2_train", dataset_id(kind), CONFIGURATION, "0", *model)
    assert f"{kind.counts[2]} unlabelled cases: " in log
    command(
        "nnUNetv2_predict", "-d", dataset_id(kind), "-i", str(images), "-o", str(predictions), "-c", CONFIGURATION,
        "-f", "0", *model, "-npp", "1", "-nps", "1",
    )  # fmt: skip
    written = sorted(predictions.glob("*.nii.gz"))
    assert len(written) == kind.counts[3]
    labels = set(json.loads((images.parent / "dataset.json").read_text())["labels"].values())
    for path in written:
        prediction, image = sitk.ReadImage(path), sitk.ReadImage(images / path.name.replace(".nii", "_0000.nii"))
        assert set(np.unique(sitk.GetArrayViewFromImage(prediction)).tolist()) <= labels
        for part in ("Size", "Spacing", "Origin", "Direction"):
            np.testing.assert_allclose(getattr(prediction, f"Get{part}")(), getattr(image, f"Get{part}")(), atol=1e-4)
