"""A made dataset, written straight into the data contract.

>>> folder = write_made_dataset(Path("nnUNet_raw"), dataset_id=500, seed=0)
>>> folder.name, sorted(path.name for path in folder.iterdir() if path.is_dir())
('Dataset500_Made', ['imagesTr', 'imagesTs', 'imagesUnlabeled', 'labelsTr', 'labelsTs'])
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK

import nnunet_ad
from nnunet_ad.conversion.folds import Fold
from nnunet_ad.conversion.sidecar import FORMAT_VERSION
from nnunet_ad.testing.made_volume import DOMAINS, ORGAN, VESSEL, Domain, draw_anatomy, label_map, render_image

FILE_ENDING = ".nii.gz"
DESCRIPTION = "Made volumes: an organ and a small vessel in two intensity domains."
IGNORE = 3
SPACING = (2.0, 2.0, 2.5)  # mm along x, y, z
ORIGIN = (-61.5, 40.25, -310.0)  # mm
_TILT = np.deg2rad(12)
DIRECTION = (-1.0, 0.0, 0.0, 0.0, -np.cos(_TILT), np.sin(_TILT), 0.0, np.sin(_TILT), np.cos(_TILT))  # oblique axial


@dataclass(frozen=True)
class MadeCase:
    """One case: its identifier, its domain, and its number in the stream of random anatomies."""

    name: str
    domain: Domain
    number: int


@dataclass(frozen=True)
class MadeCases:
    """The cases of a made dataset by role; only ``train`` and ``val`` have labels in ``labelsTr``."""

    train: list[MadeCase]
    val: list[MadeCase]
    unlabeled: list[MadeCase]
    test: list[MadeCase]

    def all(self) -> list[MadeCase]:
        """Return every case, in the order of their numbers."""
        return [*self.train, *self.val, *self.unlabeled, *self.test]

    @property
    def fold(self) -> Fold:
        """The only fold; without cases kept aside, the labelled ones are ``val``."""
        return Fold(
            *(tuple(case.name for case in role) for role in (self.train, self.val or self.train, self.unlabeled))
        )


def write_made_dataset(
    raw_folder: Path,
    dataset_id: int = 500,
    name: str = "Made",
    *,
    seed: int = 0,
    shape: tuple[int, int, int] = (48, 64, 64),
    num_labeled: int = 4,
    num_unlabeled: int = 12,
    num_test: int = 4,
    num_val: int = 0,
    num_channels: int = 1,
    ignore_label: bool = False,
    region_labels: bool = False,
) -> Path:
    """Write a seeded dataset of 3-D volumes with two foreground structures and two intensity domains.

    Labelled training cases are of domain A; all other roles alternate between the domains A and B. A case's anatomy
    depends on the seed and on its number only.

    Args:
        raw_folder: nnU-Net's raw folder; created if missing.
        dataset_id: Three-digit number of the dataset.
        name: Name of the dataset after ``DatasetXXX_``.
        seed: Seed of everything random.
        shape: Voxels along z, y, x; at least 16 each.
        num_labeled: Labelled training cases.
        num_unlabeled: Cases in ``imagesUnlabeled``.
        num_test: Held-out cases, with labels in ``labelsTs``.
        num_val: Further labelled cases, ``val`` of the split; with 0, ``val`` is the labelled training cases.
        num_channels: Images a case.
        ignore_label: Mark the first quarter of the slices of training labels as ignored (label 3).
        region_labels: Declare ``whole`` (organ and vessel) and ``vessel`` as overlapping regions.

    Returns:
        The folder of the dataset.

    Raises:
        FileExistsError: The folder of the dataset exists.
        ValueError: A volume is too small, or there is no labelled case or channel.
    """
    if num_labeled < 1 or num_channels < 1:
        raise ValueError(
            f"need a labelled case and a channel, got num_labeled={num_labeled}, num_channels={num_channels}"
        )
    folder = Path(raw_folder) / f"Dataset{dataset_id:03d}_{name}"
    folder.mkdir(parents=True)
    cases = _name_cases(name, num_labeled, num_val, num_unlabeled, num_test)
    for role, images, labels in (
        (cases.train + cases.val, "imagesTr", "labelsTr"),
        (cases.unlabeled, "imagesUnlabeled", None),
        (cases.test, "imagesTs", "labelsTs"),
    ):
        for case in role:
            tissues = draw_anatomy(np.random.default_rng([seed, case.number]), shape)
            _write_images(folder / images, case, tissues, seed, num_channels)
            if labels is not None:
                hide = ignore_label and labels == "labelsTr"
                _write_label(folder / labels, case, label_map(tissues), hide)
    _write_json(folder / "dataset.json", _dataset_json(name, cases, num_channels, ignore_label, region_labels))
    _write_json(folder / "splits_final.json", [cases.fold.as_json()])
    _write_json(folder / "nnunet_ad.json", _sidecar(name, cases, seed))
    return folder


def _name_cases(name: str, num_labeled: int, num_val: int, num_unlabeled: int, num_test: int) -> MadeCases:
    roles, number = [], 0
    for role, count in enumerate((num_labeled, num_val, num_unlabeled, num_test)):
        domains = [DOMAINS[0 if role == 0 else i % len(DOMAINS)] for i in range(count)]
        roles.append([MadeCase(f"{name}_{number + i:03d}", domain, number + i) for i, domain in enumerate(domains)])
        number += count
    return MadeCases(*roles)


def _write_images(folder: Path, case: MadeCase, tissues: np.ndarray, seed: int, num_channels: int) -> None:
    folder.mkdir(exist_ok=True)
    for channel in range(num_channels):
        image = render_image(np.random.default_rng([seed, case.number, channel]), tissues, case.domain, channel)
        _write_nifti(folder / f"{case.name}_{channel:04d}{FILE_ENDING}", image)


def _write_label(folder: Path, case: MadeCase, label: np.ndarray, hide_first_quarter: bool) -> None:
    folder.mkdir(exist_ok=True)
    if hide_first_quarter:
        label[: len(label) // 4] = IGNORE
    _write_nifti(folder / f"{case.name}{FILE_ENDING}", label)


def _write_nifti(path: Path, array: np.ndarray) -> None:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(DIRECTION)
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def _dataset_json(name: str, cases: MadeCases, num_channels: int, ignore_label: bool, region_labels: bool) -> dict:
    labels: dict = {"background": 0, "organ": ORGAN, "vessel": VESSEL}
    if region_labels:
        labels = {"background": 0, "whole": [ORGAN, VESSEL], "vessel": [VESSEL]}
    if ignore_label:
        labels["ignore"] = IGNORE
    content = {
        "name": name,
        "description": DESCRIPTION,
        "channel_names": {str(channel): f"MR{channel}" for channel in range(num_channels)},
        "labels": labels,
        "numTraining": len(cases.train) + len(cases.val),
        "file_ending": FILE_ENDING,
    }
    if region_labels:
        content["regions_class_order"] = [ORGAN, VESSEL]
    return content


def _sidecar(name: str, cases: MadeCases, seed: int) -> dict:
    """Return the content of ``nnunet_ad.json``, in the format that :mod:`nnunet_ad.conversion.sidecar` documents."""
    return {
        "format_version": FORMAT_VERSION,
        "converter": {"package": nnunet_ad.__name__, "version": nnunet_ad.__version__},
        "provenance": {"name": name, "description": DESCRIPTION, "url": "", "citation": ""},
        "protocol": {
            "setting": "semi-supervised, unlabelled and test cases of two domains",
            "num_labeled": len(cases.fold.train),
            "num_unlabeled": len(cases.fold.unlabeled),
            "num_val": len(cases.fold.val),
            "num_test": len(cases.test),
            "validation": cases.fold.validation,
        },
        "domains": {case.name: case.domain.name for case in cases.all()},
        "notes": [f"made with seed {seed}"],
    }


def _write_json(path: Path, content: dict | list) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
