"""One slice of a case with the outlines of its structures, small enough to show hundreds on a page."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

MAX_EDGE = 200  # pixels
MIN_SPACING_RATIO = 1.5  # of the axis across the slices to the others
NUM_COLOURS = 96
# Told apart by people with colour blindness (Okabe and Ito), on a dark ground.
COLOURS = ("#56b4e9", "#e69f00", "#f0e442", "#cc79a7", "#00c08b", "#ff7f32", "#9aa7ff")


def draw_thumbnail(image: sitk.Image, mask: sitk.Image | None) -> bytes:
    """Draw the slice with most of the mask, or the middle one, as a radiologist looks at it.

    Slices are those of the acquisition, across the axis with the largest spacing; axial if no axis stands out.

    Args:
        image: The image.
        mask: Its label map on the same grid, if there is one.

    Returns:
        A PNG file.
    """
    oriented = sitk.DICOMOrient(image, "LPS")
    values = sitk.GetArrayViewFromImage(oriented)
    labels = sitk.GetArrayFromImage(sitk.DICOMOrient(mask, "LPS")) if mask is not None else None
    spacing = oriented.GetSpacing()[::-1]
    axis = _slice_axis(spacing)
    others = tuple(each for each in range(3) if each != axis)
    index = values.shape[axis] // 2 if labels is None else int(np.argmax(np.count_nonzero(labels, axis=others)))
    height, width = (values.shape[each] * spacing[each] for each in others)
    scale = MAX_EDGE / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(_grey(_slice(values, axis, index))).resize(size, Image.Resampling.BILINEAR)
    pixels = np.array(picture.convert("RGB"))
    if labels is not None:
        marked = Image.fromarray(_slice(labels, axis, index)).resize(size, Image.Resampling.NEAREST)
        _draw_outlines(pixels, np.array(marked))
    file = io.BytesIO()
    Image.fromarray(pixels).quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _slice_axis(spacing: Sequence[float]) -> int:
    """Return the axis of (z, y, x) whose spacing stands out, else z."""
    axis = int(np.argmax(spacing))
    others = [each for index, each in enumerate(spacing) if index != axis]
    return axis if spacing[axis] > MIN_SPACING_RATIO * max(others) else 0


def _slice(values: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
    """Return a slice with the head on top, or the front in an axial one."""
    plane = np.take(values, index, axis)
    return np.ascontiguousarray(plane if axis == 0 else plane[::-1])


def colour_of(number: int) -> str:
    """Return the colour of a structure by its number in the dataset, from 1."""
    return COLOURS[(number - 1) % len(COLOURS)]


def _draw_outlines(pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    for number in np.unique(labels[labels > 0]).tolist():
        inside = labels == number
        outline = inside & ~ndimage.binary_erosion(inside)
        pixels[outline] = tuple(bytes.fromhex(colour_of(number)[1:]))


def _grey(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    finite = np.nan_to_num(np.asarray(values, dtype=np.float64), posinf=0.0, neginf=0.0)
    low, high = np.percentile(finite, [0.5, 99.5])
    return np.asarray(255 * np.clip((finite - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)
