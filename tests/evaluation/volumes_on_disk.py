"""Small label maps on disk for the tests of evaluation."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk

SHAPE = (8, 10, 12)  # z, y, x
SPACING = (3.0, 1.0, 0.5)  # mm


def write_labels(
    path: Path,
    labels: np.ndarray,
    spacing: tuple[float, ...] = SPACING,
    origin: tuple[float, ...] | None = None,
    direction: tuple[float, ...] | None = None,
) -> Path:
    """Write an array (z, y, x) with its spacing in the same order."""
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(spacing[::-1])
    if origin is not None:
        image.SetOrigin(origin)
    if direction is not None:
        image.SetDirection(direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def box(values: Mapping[int, tuple[slice, ...]], shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Return labels with one box for each value."""
    labels = np.zeros(shape, np.uint8)
    for value, region in values.items():
        labels[region] = value
    return labels


LEFT = (slice(2, 6), slice(2, 6), slice(1, 5))
LEFT_SHIFTED = (slice(3, 7), slice(2, 6), slice(1, 5))  # one voxel, 3 mm, along z
RIGHT = (slice(2, 6), slice(2, 6), slice(7, 11))


def write_dataset(
    folder: Path, labels: Mapping[str, object], domains: Mapping[str, str] | None = None, name: str = "Dataset007_Toy"
) -> Path:
    """Write dataset.json and, with domains, the sidecar."""
    dataset = folder / name
    dataset.mkdir(parents=True, exist_ok=True)
    (dataset / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))
    if domains is not None:
        (dataset / "nnunet_ad.json").write_text(json.dumps({"format_version": 1, "domains": domains}))
    return dataset
