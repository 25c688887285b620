"""Reads label maps and checks that two of them lie on one grid."""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.volume_files import check_intact, image_suffix
from nnunet_ad.evaluation.metrics import bounding_box

Labels: TypeAlias = NDArray[Any]
Box: TypeAlias = tuple[slice, ...]

MAX_LABEL = 65535
# Corners of two grids may lie this far apart, as a part of the smallest voxel spacing: what headers lose by rounding.
GRID_TOLERANCE = 0.1


@dataclass(frozen=True)
class LabelVolume:
    """A label map with its geometry.

    Attributes:
        labels: label values, integer array of shape ([z,] y, x).
        spacing: voxel spacing in mm in the order of the array's axes.
        origin: position of the first voxel in mm, in the order (x, y[, z]) of SimpleITK.
        corners: positions in mm of the corner voxels, shape (2^dimensions, dimensions).
    """

    labels: Labels
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    corners: NDArray[np.float64]


def read_labels(path: Path, checksum: bool = True) -> LabelVolume:
    """Read a label map.

    Args:
        path: the file.
        checksum: compare the file's checksum, which takes as long as reading it; without it, damage that leaves the
            file readable goes unnoticed.

    Raises:
        ValueError: the file cannot be read, is truncated or damaged, is not a 2-D or 3-D image of one channel, or has
            values that are no labels.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file.")
    try:
        if checksum and image_suffix(path):
            check_intact(path)
        image = _without_palette(sitk.ReadImage(str(path)), path)
    except ConversionError as error:
        raise ValueError(f"{path}: {error}.") from None
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        remedy = "; its axes are not perpendicular, resample it" if "orthonormal" in reason else ""
        raise ValueError(f"{path} cannot be read as an image: {reason}{remedy}") from None
    if image.GetDimension() not in (2, 3) or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(
            f"{path} has {image.GetDimension()} dimensions and {image.GetNumberOfComponentsPerPixel()} channels; "
            "a label map is 2-D or 3-D and has one channel."
        )
    return LabelVolume(
        labels=_as_labels(sitk.GetArrayFromImage(image), path),
        spacing=tuple(image.GetSpacing()[::-1]),
        origin=tuple(image.GetOrigin()),
        corners=np.array(
            [
                image.TransformIndexToPhysicalPoint(corner)
                for corner in product(*((0, length - 1) for length in image.GetSize()))
            ]
        ),
    )


def check_same_grid(case: str, prediction: LabelVolume, reference: LabelVolume) -> None:
    """Check that prediction and reference have one shape, spacing, origin and direction.

    Raises:
        ValueError: they differ.
    """
    if prediction.labels.shape != reference.labels.shape:
        raise ValueError(
            f"case {case}: the prediction has {prediction.labels.shape} voxels (z, y, x) and the reference "
            f"{reference.labels.shape}. Predict on the image that belongs to the reference, or resample one of them."
        )
    shift = float(np.linalg.norm(prediction.corners - reference.corners, axis=1).max())
    if shift > GRID_TOLERANCE * min(reference.spacing):
        raise ValueError(
            f"case {case}: prediction and reference lie on different grids, up to {shift:.4g} mm apart: "
            f"spacing {_rounded(prediction.spacing)} and {_rounded(reference.spacing)} mm (z, y, x), "
            f"origin {_rounded(prediction.origin)} and {_rounded(reference.origin)} mm (x, y, z)"
            + ("" if _same_frame(prediction, reference) else "; their directions differ")
            + ". Copy the geometry of the image into the wrong file, or resample it."
        )


def without_single_slice(volume: LabelVolume) -> LabelVolume:
    """Return a 3-D label map of one slice as the 2-D one that it is, any other as it is."""
    if volume.labels.ndim < 3 or 1 not in volume.labels.shape:
        return volume
    axis = volume.labels.shape.index(1)
    spacing = tuple(each for index, each in enumerate(volume.spacing) if index != axis)
    return replace(volume, labels=volume.labels.squeeze(axis), spacing=spacing)


def boxes_of_labels(labels: Labels) -> dict[int, Box]:
    """Return the bounding box of every label value but 0 that occurs."""
    around_all = bounding_box(labels)
    if around_all is None:
        return {}
    return {
        value: tuple(
            slice(outer.start + inner.start, outer.start + inner.stop)
            for outer, inner in zip(around_all, box, strict=True)
        )
        for value, box in enumerate(ndimage.find_objects(labels[around_all]), start=1)
        if box is not None
    }


def _without_palette(image: sitk.Image, path: Path) -> sitk.Image:
    """Return the grey values of a BMP, which nnU-Net writes with a palette, read as three equal channels."""
    if path.suffix.lower() != ".bmp" or image.GetNumberOfComponentsPerPixel() != 3:
        return image
    values = sitk.GetArrayViewFromImage(image)
    are_equal = (values == values[..., :1]).all()
    return sitk.VectorIndexSelectionCast(image, 0) if are_equal else image


def _as_labels(values: Labels, path: Path) -> Labels:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= MAX_LABEL):
        raise ValueError(f"{path} has values from {low} to {high}; label values are integers from 0 to {MAX_LABEL}.")
    labels = values.astype(np.uint8 if high <= 255 else np.uint16, copy=False)
    if values.dtype.kind == "f" and not np.array_equal(labels, values):
        raise ValueError(f"{path} has values that are not integers; pass label maps, not probabilities.")
    return labels


def _rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)


def _same_frame(prediction: LabelVolume, reference: LabelVolume) -> bool:
    """Return whether nothing but spacing and origin differs."""
    return bool(np.allclose(_directions(prediction.corners), _directions(reference.corners), atol=1e-3))


def _directions(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    edges = corners[[1 << axis for axis in range(corners.shape[1])]] - corners[0]
    return edges / np.maximum(np.linalg.norm(edges, axis=1, keepdims=True), 1e-12)
