"""Reading volumes, and the checks that every volume passes before it is written."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.volume_files import check_intact, image_suffix, read_file

GEOMETRY_TOLERANCE = 1e-3  # mm for origins and spacings, absolute for direction cosines


def read_volume(path: Path) -> sitk.Image:
    """Read a scalar 3-D volume with the geometry its file states.

    Raises:
        ConversionError: There is no such file, it is truncated or damaged (see
            :func:`~nnunet_ad.conversion.volume_files.check_intact`), or it holds something other than one scalar 3-D
            volume.
    """
    if not path.is_file():
        raise ConversionError("there is no such file; add it")
    if image_suffix(path):
        check_intact(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return read_file(path, None)  # whose axes may be a little off a right angle; else it says what is wrong
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ConversionError(
            f"found {image.GetDimension()} dimensions and {image.GetNumberOfComponentsPerPixel()} value(s) a voxel, "
            "expected one scalar 3-D volume; give a file with a single volume"
        )
    return image


def has_default_geometry(image: sitk.Image | sitk.ImageFileReader) -> bool:
    """Return whether spacing, origin and direction are those of a file that stores none."""
    return (
        image.GetSpacing() == (1.0, 1.0, 1.0)
        and image.GetOrigin() == (0.0, 0.0, 0.0)
        and np.array_equal(image.GetDirection(), np.eye(3).ravel())
    )


def check_image(image: sitk.Image) -> sitk.Image:
    """Return an image in float32 after checking its values.

    Raises:
        ConversionError: A value is not finite, or all values are equal.
    """
    image = sitk.Cast(image, sitk.sitkFloat32)
    values = sitk.GetArrayViewFromImage(image)
    num_bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if num_bad:
        raise ConversionError(
            f"the image has {num_bad} NaN or infinite value(s), expected finite ones; repair or replace the file"
        )
    if values.min() == values.max():
        raise ConversionError(f"every voxel of the image is {values.flat[0]:g}; replace the file")
    return image


def in_int16_if_equal(image: sitk.Image) -> sitk.Image:
    """Return an image in int16 if no value changes by that, as those of scanners: it is compressed in half the time."""
    with np.errstate(invalid="ignore"):  # values beyond the range of int16, which become others
        if all(np.array_equal(plane, plane.astype(np.int16)) for plane in sitk.GetArrayViewFromImage(image)):
            return sitk.Cast(image, sitk.sitkInt16)
    return image


def map_label_values(label: sitk.Image, mapping: dict[int, int]) -> sitk.Image:
    """Return a label map in uint8 with every value replaced.

    Args:
        label: Label map with values of any type.
        mapping: New value for each value that may occur.

    Raises:
        ConversionError: A value is not in the mapping, or the new values are all 0, hence no structure is left.
    """
    values = sitk.GetArrayViewFromImage(label)
    found = np.unique(values)
    if not set(found.tolist()) <= set(mapping):
        raise ConversionError(
            f"the label has the values {_shorten(f'{value:g}' for value in found.tolist())}, "
            f"expected only {sorted(mapping)}; repair or replace the label file"
        )
    new_values = np.zeros(values.shape, dtype=np.uint8)
    for old, new in mapping.items():
        new_values[values == old] = new
    if not new_values.any():
        raise ConversionError("the label is empty, every voxel is background; repair or replace the label file")
    mapped = sitk.GetImageFromArray(new_values)
    mapped.CopyInformation(label)
    return mapped


def check_same_grid(image: sitk.Image, reference: sitk.Image, what: str, what_reference: str) -> None:
    """Check that two volumes lie on one voxel grid.

    Args:
        image: The volume to check.
        reference: The volume whose grid is right.
        what: What the first is, for the message.
        what_reference: What the second is, for the message.

    Raises:
        ConversionError: Size, spacing, origin or direction differ.
    """
    if image.GetSize() != reference.GetSize():
        raise ConversionError(
            f"{what} has {_by(image.GetSize())} voxels, but {what_reference} has {_by(reference.GetSize())}; "
            "both must have the same grid, so find the right partner"
        )
    for property_name in ("Spacing", "Origin", "Direction"):
        found, expected = (getattr(volume, f"Get{property_name}")() for volume in (image, reference))
        if not np.allclose(found, expected, rtol=0, atol=GEOMETRY_TOLERANCE):
            raise ConversionError(
                f"{what} has the {property_name.lower()} {np.round(found, 4).tolist()}, but {what_reference} has "
                f"{np.round(expected, 4).tolist()}; both must have the same grid, so find the right partner"
            )


def without_metadata(image: sitk.Image) -> sitk.Image:
    """Return the volume without its file's header entries, which may hold what must not be written."""
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    return image


def _by(size: Iterable[int]) -> str:
    return " x ".join(str(extent) for extent in size)


def _shorten(items: Iterable[str], limit: int = 5) -> str:
    """Return the first items as a list in brackets, with an ellipsis where more follow."""
    items = list(items)
    return f"[{', '.join(items[:limit])}{', ...' if len(items) > limit else ''}]"
