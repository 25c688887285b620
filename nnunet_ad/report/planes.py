"""Cuts a case into axial, coronal and sagittal slices, each as a radiologist looks at it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

MARGIN_MM = 12.0  # shown around the structures


@dataclass(frozen=True)
class Plane:
    """One slice. All arrays have shape (rows, columns), first row on top.

    Attributes:
        name: axial, coronal or sagittal; "" for an image of two dimensions.
        image: intensities.
        reference: label values.
        prediction: label values.
        spacing: of rows and columns in mm.
        letters: body side at the left and right, top and bottom edge; empty where unknown.
    """

    name: str
    image: NDArray[Any]
    reference: NDArray[Any]
    prediction: NDArray[Any]
    spacing: tuple[float, float]
    letters: tuple[str, ...]

    @property
    def aspect(self) -> float:
        """Width over height in mm."""
        rows, columns = self.image.shape
        return (columns * self.spacing[1]) / (rows * self.spacing[0])


# Name, axis that the slice is across, whether its rows go upwards, and its letters. Axes (z, y, x) of an LPS grid run
# towards head, back and the patient's left.
_VIEWS = (
    ("axial", 0, False, ("R", "L", "A", "P")),
    ("coronal", 1, True, ("R", "L", "S", "I")),
    ("sagittal", 2, True, ("A", "P", "S", "I")),
)


def cut_planes(image: Path, reference: Path, prediction: Path, values: Sequence[int]) -> list[Plane]:
    """Return three slices of a case, or one of a picture of two dimensions.

    Each slice is the one in which prediction and reference differ most, cut to the surroundings of the structures.

    Args:
        image: file of the image.
        reference: file of the reference label map on the same grid.
        prediction: file of the prediction, likewise.
        values: label values that count.

    Raises:
        ValueError: a file cannot be read, or the image has another shape than the label maps.
    """
    files = [_read(path) for path in (image, reference, prediction)]
    arrays = [_as_array(each) for each in files]
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(f"{image.name} has {arrays[0].shape} voxels, its label map {arrays[1].shape}.")
    spacing = files[0].GetSpacing()[::-1]
    labels = [np.where(np.isin(array, values), array, 0) for array in arrays[1:]]
    intensities = arrays[0]
    if intensities.ndim == 2:
        box = _box(labels, spacing)
        return [Plane("", intensities[box], labels[0][box], labels[1][box], (spacing[0], spacing[1]), ())]
    index = _most_telling(*labels)
    box = _box(labels, spacing)
    return [
        _slice(view, index[view[1]], box, intensities, labels, spacing)
        for view in _VIEWS
        if min(np.delete(intensities.shape, view[1])) > 1
    ]


def _slice(view: Any, index: int, box: tuple[slice, ...], image: Any, labels: Any, spacing: Sequence[float]) -> Plane:
    name, axis, upwards, letters = view
    where = tuple(index if each == axis else box[each] for each in range(3))
    parts = [array[where] for array in (image, *labels)]
    if upwards:
        parts = [part[::-1] for part in parts]
    rows, columns = (spacing[each] for each in range(3) if each != axis)
    return Plane(name, parts[0], parts[1], parts[2], (rows, columns), letters)


def _most_telling(reference: NDArray[Any], prediction: NDArray[Any]) -> list[int]:
    """Return for each axis the slice with most voxels that differ, or if none does, with most of the reference."""
    marked = reference != prediction
    if not marked.any():
        marked = reference > 0
    if not marked.any():
        return [length // 2 for length in marked.shape]
    others = [tuple(each for each in range(3) if each != axis) for axis in range(3)]
    return [int(np.argmax(np.count_nonzero(marked, axis=axes))) for axes in others]


def _box(labels: Sequence[NDArray[Any]], spacing: Sequence[float]) -> tuple[slice, ...]:
    """Return the box around all structures with a margin of a quarter of its length, or of `MARGIN_MM`."""
    marked = np.logical_or.reduce([label > 0 for label in labels])
    box = []
    for axis in range(marked.ndim):
        found = np.flatnonzero(marked.any(axis=tuple(each for each in range(marked.ndim) if each != axis)))
        if not found.size:
            box.append(slice(None))
            continue
        margin = ceil(max(MARGIN_MM / spacing[axis], 0.25 * (found[-1] - found[0] + 1)))
        box.append(slice(max(0, found[0] - margin), found[-1] + 1 + margin))
    return tuple(box)


def _read(path: Path) -> sitk.Image:
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read as an image: {str(error).strip().splitlines()[-1]}") from None
    return sitk.DICOMOrient(image, "LPS") if image.GetDimension() == 3 else image


def _as_array(image: sitk.Image) -> NDArray[Any]:
    """Return the voxels; colours become their mean."""
    array = sitk.GetArrayFromImage(image)
    return array.mean(axis=-1) if image.GetNumberOfComponentsPerPixel() > 1 else array
