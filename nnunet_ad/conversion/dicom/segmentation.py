"""The segments of a DICOM-SEG, and their place on the grid of an image.

highdicom unpacks the bits, sorts the frames and fills in those that were left out because they are empty.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import SimpleITK as sitk
from highdicom.seg import Segmentation

from nnunet_ad.conversion.dicom.files import (
    PARSER_ERRORS,
    check_modality,
    number_of,
    numbers_of,
    quiet,
    read_dataset,
    text_of,
)
from nnunet_ad.conversion.dicom.planes import position_tolerance
from nnunet_ad.conversion.dicom.references import referenced_series
from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.volumes import GEOMETRY_TOLERANCE

_FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
LATTICE_TOLERANCE = 0.02  # voxels of the image, for every voxel of the mask


def segment_names(path: Path) -> list[str]:
    """Return the labels of all segments of a DICOM-SEG, the background of a label map apart, without its frames.

    Raises:
        ConversionError: The file cannot be read or is no DICOM-SEG, or describes no segment.
    """
    return list(dict.fromkeys(_labels(read_dataset(path, ("Modality", "SegmentSequence"))).values()))


def read_segmentation(
    path: Path, names: Collection[str] | None = None, grid: sitk.Image | None = None
) -> Iterator[tuple[str, sitk.Image]]:
    """Read the segments of a DICOM-SEG, binary or as a label map, one by one, as there may be a hundred large ones.

    Args:
        path: The file.
        names: Labels of the segments to read; None for all.
        grid: A volume on the grid of the image; its values do not matter. If all frames lie in slices of it, up to the
            rounding of positions that is allowed there, they are put exactly there. None leaves them where they are.

    Yields:
        Each segment's label and a uint8 volume of 0 and 1, all on the grid of the segmentation. Frames that the file
        leaves out are 0. Segments may overlap; those with the same label are united, and a segment for the background
        of a label map is left out.

    Raises:
        ConversionError: The file cannot be read, is no DICOM-SEG or a fractional one, its frames make no regular grid,
            or it holds values that no segment describes.
    """
    dataset = read_dataset(path, pixels=True)
    labels = _labels(dataset)
    kind = text_of(dataset, "SegmentationType")
    if kind not in ("BINARY", "LABELMAP"):
        stated = "fractional" if kind == "FRACTIONAL" else "of no known type"
        raise ConversionError(
            f"the segmentation is {stated}, expected a binary one or a label map; export it again as such"
        )
    if "PixelData" not in dataset:
        raise ConversionError("the segmentation holds no pixel data, it may be truncated; get it again from its source")
    if grid is not None:
        with _decoding():
            _put_in_slices(dataset, grid)
    segmentation, used = _decode(dataset)
    if not used <= {0, *labels}:
        raise ConversionError(
            f"the segmentation holds segments {sorted(used - {0, *labels})[:5]} that it does not describe, expected "
            f"only {sorted(labels)[:5]}; export it again"
        )
    for wanted in dict.fromkeys(label for label in labels.values() if names is None or label in names):
        volumes = [_volume(segmentation, number) for number, label in labels.items() if label == wanted]
        yield wanted, reduce(sitk.Or, volumes)


def skips_empty_slices(path: Path, series: str) -> bool:
    """Return whether slices of a DICOM-SEG that lie apart are slices of the image, between which others are empty.

    So it is if it was drawn on the series of the image (SeriesInstanceUID) and does not state the distance of its
    slices: highdicom then takes the smallest one between those that are marked.

    Raises:
        ConversionError: The file cannot be read.
    """
    groups = read_dataset(path, _FUNCTIONAL_GROUPS)
    measures = _group_items(groups, "PixelMeasuresSequence")
    is_stated = any(text_of(item, "SpacingBetweenSlices") for item in measures)
    return not is_stated and referenced_series(path) == series


def place_on_grid(
    mask: sitk.Image, grid: sitk.Image, resample: bool, skips_empty: Callable[[], bool] = lambda: False
) -> sitk.Image:
    """Return a mask on the grid of an image.

    Args:
        mask: Volume of 0 and 1.
        grid: A volume on the grid of the image; its values do not matter.
        resample: Bring a mask from another lattice onto that of the image, nearest neighbour.
        skips_empty: Called where slices of the mask lie several of the grid's apart; returns whether those between
            are empty, see :func:`skips_empty_slices`.

    Returns:
        A uint8 volume on ``grid``. If the voxels of the mask are voxels of the grid, also when it covers fewer slices
        or runs through its axes in another order or direction, they are copied one by one.

    Raises:
        ConversionError: The mask lies on another lattice and must not be resampled, or marks something outside the
            image.
    """
    steps, offset = _in_voxels_of(mask, grid)
    rounded_steps, rounded_offset = np.rint(steps).astype(int), np.rint(offset).astype(int)
    reach = np.array(mask.GetSize()) - 1
    error = np.abs(offset - rounded_offset).max() + (np.abs(steps - rounded_steps) * reach).sum(axis=1).max()
    lengths = np.abs(rounded_steps).sum(axis=0)
    lengths[reach == 0] = 1  # an axis with one slice has no step of its own
    if lengths[2] > 1 and np.count_nonzero(rounded_steps[:, 2]) == 1 and skips_empty():
        lengths[2] = 1
    placed = np.zeros(grid.GetSize()[::-1], dtype=np.uint8)
    marked_inside = []
    if error <= LATTICE_TOLERANCE and (lengths == 1).all():
        for number, mask_slice in enumerate(sitk.GetArrayViewFromImage(mask)):
            rows, columns = np.nonzero(mask_slice)
            marked = np.column_stack([columns, rows, np.full(len(rows), number)])
            indices = marked @ rounded_steps.T + rounded_offset
            inside = ((indices >= 0) & (indices < grid.GetSize())).all(axis=1)
            placed[tuple(indices[inside].T[::-1])] = 1
            marked_inside.append(inside)
        are_inside = np.concatenate(marked_inside)
        if not are_inside.all():
            raise ConversionError(
                f"{np.count_nonzero(~are_inside)} of {len(are_inside)} marked voxels lie outside the image, expected "
                "none; find the image that belongs to the mask"
            )
        image = sitk.GetImageFromArray(placed)
        image.CopyInformation(grid)
        return image
    if not resample:
        raise ConversionError(
            f"the mask lies on another grid than the image: {_describe(mask)}, expected {_describe(grid)} or a part of "
            "it; find the right partner, or add --resample-masks"
        )
    image = sitk.Resample(mask, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    if sitk.GetArrayViewFromImage(mask).any() and not sitk.GetArrayViewFromImage(image).any():
        raise ConversionError("the mask marks nothing inside the image; find the image that belongs to the mask")
    return image


def _labels(dataset: pydicom.Dataset) -> dict[int, str]:
    """Return the label of each segment by its number, the background of a label map apart."""
    check_modality(dataset, "SEG")
    numbers = [(number_of(segment, "SegmentNumber"), segment) for segment in dataset.get("SegmentSequence") or []]
    labels = {number: text_of(segment, "SegmentLabel") for number, segment in numbers if number}
    if not labels:
        raise ConversionError("the segmentation describes no segment, it may be truncated; get it again")
    return labels


def _group_items(dataset: pydicom.Dataset, keyword: str) -> list[pydicom.Dataset]:
    """Return the items of a functional group, shared and of each frame."""
    groups = [group for each in _FUNCTIONAL_GROUPS for group in dataset.get(each) or []]
    return [item for group in groups for item in group.get(keyword) or []]


def _put_in_slices(dataset: pydicom.Dataset, grid: sitk.Image) -> None:
    """Move frames into the slices of an image that they lie in up to the tolerance for slices, if all do.

    Highdicom takes the distance of slices that are rounded to a tenth of a millimetre for irregular.
    """
    planes, turned = _group_items(dataset, "PlanePositionSequence"), _group_items(dataset, "PlaneOrientationSequence")
    positions = [numbers_of(plane, "ImagePositionPatient", 3) or () for plane in planes]
    orientations = [numbers_of(each, "ImageOrientationPatient", 6) or () for each in turned]
    if not positions or not orientations or () in (*positions, *orientations):
        return
    normal, step = np.reshape(grid.GetDirection(), (3, 3))[:, 2], grid.GetSpacing()[2]
    are_parallel = np.abs(np.reshape(orientations, (-1, 3)) @ normal).max() <= GEOMETRY_TOLERANCE
    slices = np.subtract(positions, grid.GetOrigin()) @ normal / step
    errors = (slices - np.rint(slices)) * step
    if not are_parallel or np.abs(errors).max() > position_tolerance(step):
        return
    for plane, moved in zip(planes, positions - np.outer(errors, normal), strict=True):
        plane.ImagePositionPatient = moved.round(6).tolist()
    for item in _group_items(dataset, "PixelMeasuresSequence"):
        if abs(_distance(item) - step) <= position_tolerance(step):
            item.SpacingBetweenSlices = step


def _distance(measures: pydicom.Dataset) -> float:
    """Return the distance of slices that is stated, or NaN."""
    try:
        return float(text_of(measures, "SpacingBetweenSlices") or np.nan)
    except ValueError:
        return np.nan


def _decode(dataset: pydicom.Dataset) -> tuple[Segmentation, set[int]]:
    """Return the segmentation, and the numbers of all segments that are used."""
    num_frames, described = number_of(dataset, "NumberOfFrames") or 1, dataset.get("PerFrameFunctionalGroupsSequence")
    if num_frames != len(described or ()):
        raise ConversionError(
            f"the segmentation has {num_frames} frame(s), but describes {len(described or ())}; get it again from its "
            "source"
        )
    with _decoding():
        if text_of(dataset, "SegmentationType") == "LABELMAP":
            used = set(np.unique(dataset.pixel_array).tolist()) - {dataset.get("PixelPaddingValue")}
        else:
            items = _group_items(dataset, "SegmentIdentificationSequence")
            used = {int(item.ReferencedSegmentNumber) for item in items}
        segmentation = Segmentation.from_dataset(dataset, copy=False)
        is_regular = segmentation.get_volume_geometry() is not None
    if not is_regular:
        raise ConversionError(
            "the frames of the segmentation lie at positions that make no regular grid, expected slices of the image "
            "or an even distance; export it on the grid of the image series"
        )
    return segmentation, used


def _volume(segmentation: Segmentation, number: int) -> sitk.Image:
    with _decoding():
        return _to_image(segmentation.get_volume(segment_numbers=[number], dtype=np.uint8))


@contextmanager
def _decoding() -> Iterator[None]:
    try:
        with quiet():
            yield
    except (*PARSER_ERRORS, RuntimeError):
        raise ConversionError(
            "the frames of the segmentation cannot be decoded, the file may be truncated; get it again from its source"
        ) from None


def _to_image(volume: highdicom.Volume) -> sitk.Image:
    """Return a volume of highdicom, axes (slice, row, column, segment), with slices along their normal."""
    array, affine = volume.array[..., 0], np.array(volume.affine)
    axes = affine[:3, [2, 1, 0]]  # mm for a step in column, row, slice
    if np.linalg.det(axes) < 0:
        affine[:3, 3] += axes[:, 2] * (len(array) - 1)
        axes[:, 2] *= -1
        array = array[::-1]
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    spacing = np.linalg.norm(axes, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((axes / spacing).ravel().tolist())
    return image


def _in_voxels_of(mask: sitk.Image, grid: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps of the mask's axes (columns) and its origin in voxels of the grid, both in the order x, y, z."""
    to_voxels = np.linalg.inv(_axes(grid))
    return to_voxels @ _axes(mask), to_voxels @ np.subtract(mask.GetOrigin(), grid.GetOrigin())


def _axes(image: sitk.Image) -> np.ndarray:
    """Return mm for a step along each axis, as columns."""
    return np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())


def _describe(image: sitk.Image) -> str:
    size = " x ".join(map(str, image.GetSize()))
    spacing, origin, direction = (
        "(" + ", ".join(f"{round(number, 4) + 0.0:g}" for number in numbers) + ")"
        for numbers in (image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    )
    return f"{size} voxels of {spacing} mm, origin {origin}, direction {direction}"
