"""The contours of an RTSTRUCT as masks."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from skimage.draw import polygon2mask

from nnunet_ad.conversion.dicom.files import check_modality, number_of, read_dataset, text_of
from nnunet_ad.conversion.errors import ConversionError

XOR = "CLOSEDPLANAR_XOR"
CLOSED = ("CLOSED_PLANAR", XOR)
NO_AREA = ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")
# A contour nowhere further from another one than this is the same, written again, be it rounded or with fewer points.
# In voxels, and in mm, as walls of organs are thicker than that where voxels are coarse.
REPEAT_TOLERANCE, REPEAT_TOLERANCE_MM = 0.5, 0.5
PLANE_TOLERANCE = 0.2  # of the slice spacing; contours are often rounded to a tenth of a millimetre
MIN_PLANES = 3  # contoured slices of a structure that show how far apart they are

_TAGS = ("Modality", "StructureSetROISequence", "ROIContourSequence")


def structure_names(path: Path) -> list[str]:
    """Return the names of all structures (ROIs) of an RTSTRUCT, without its contours.

    Raises:
        ConversionError: The file cannot be read or is no RTSTRUCT, or names no structure.
    """
    return list(dict.fromkeys(_names(_read(path, ("Modality", "StructureSetROISequence"))).values()))


def read_rtstruct(
    path: Path, grid: sitk.Image, names: Collection[str] | None = None
) -> Iterator[tuple[str, sitk.Image]]:
    """Read the contours of an RTSTRUCT as masks, one by one, as there may be a hundred large ones.

    A voxel belongs to a structure if its centre lies inside one of its contours. A contour within another one is a
    hole in it, one within that an island, and so on; contours that overlap in part are united, as are holes, and one
    that is there twice, up to half a voxel and half a millimetre, counts once. If all contours of a structure are of
    the type CLOSEDPLANAR_XOR, a voxel belongs to it if its centre lies inside an odd number of them, as DICOM defines
    that type.

    Args:
        path: The file.
        grid: A volume on the grid of the image that was contoured; its values do not matter.
        names: The structures to read; None for all. Contours of others may be as wrong as they like.

    Yields:
        Each structure's name (ROI) and a uint8 volume of 0 and 1 on ``grid``. A structure without contours, or with
        points and open lines only, is empty; structures with the same name are united.

    Raises:
        ConversionError: The file cannot be read or is no RTSTRUCT, a contour is damaged, does not lie in a slice of the
            grid or lies outside it, slices between the contours were left out, or a structure has closed contours and
            others.
    """
    dataset = _read(path, _TAGS)
    all_names = _names(dataset)
    if "ROIContourSequence" not in dataset:
        raise ConversionError("the RTSTRUCT has no contours, it may be truncated; get it again from its source")
    wanted = {number: name for number, name in all_names.items() if names is None or name in names}
    contours: dict[int | None, list[NDArray[np.float64]]] = {number: [] for number in wanted}
    by_xor = set()
    for item in dataset.get("ROIContourSequence") or []:
        number = number_of(item, "ReferencedROINumber")
        if number not in all_names:
            raise ConversionError(
                f"there are contours of the structure number {number}, which has no name; export the RTSTRUCT again"
            )
        if number in wanted:
            contours[number] += [_in_voxels(points, grid, number) for points in _closed_contours(item, number)]
            if _are_combined_by_xor(item):
                by_xor.add(number)
    axis = _slice_axis([points for each in contours.values() for points in each])
    for name in dict.fromkeys(wanted.values()):
        numbers = [number for number in wanted if wanted[number] == name]
        masks = [_fill(contours[number], axis, grid, number, number in by_xor) for number in numbers]
        yield name, _to_image(np.logical_or.reduce(masks), grid)


def _read(path: Path, tags: Sequence[str]) -> pydicom.Dataset:
    dataset = read_dataset(path, tags)
    check_modality(dataset, "RTSTRUCT")
    return dataset


def _names(dataset: pydicom.Dataset) -> dict[int | None, str]:
    """Return the name of each structure by its number."""
    names = {
        number_of(roi, "ROINumber"): text_of(roi, "ROIName") for roi in dataset.get("StructureSetROISequence") or []
    }
    if not names:
        raise ConversionError("the RTSTRUCT names no structure, it may be truncated; get it again from its source")
    return names


def _closed_contours(item: pydicom.Dataset, number: int | None) -> list[NDArray[np.float64]]:
    """Return the points of each closed contour of a structure, (points, 3) in mm."""
    contours, kinds = [], set()
    for contour in item.get("ContourSequence") or []:
        kind = text_of(contour, "ContourGeometricType")
        kinds.add(kind)
        if kind in NO_AREA:
            continue
        data = contour.get("ContourData")
        try:
            points = np.array(data if data is not None else [], dtype=np.float64)
        except (TypeError, ValueError):
            points = np.array([np.nan])
        stated = number_of(contour, "NumberOfContourPoints")
        if kind not in CLOSED or points.ndim != 1 or len(points) % 3 or not np.isfinite(points).all():
            raise ConversionError(
                f"a contour of the structure number {number} is damaged, expected a closed contour of points with "
                "three coordinates; export the RTSTRUCT again"
            )
        if stated is not None and stated != len(points) // 3:
            raise ConversionError(
                f"a contour of the structure number {number} has {len(points) // 3} points, but states {stated}; "
                "export the RTSTRUCT again"
            )
        if len(points) >= 9:  # fewer than three points enclose nothing
            contours.append(points.reshape(-1, 3))
    if contours and kinds & set(NO_AREA):
        raise ConversionError(
            f"the structure number {number} has closed contours and points or open lines, expected closed contours "
            "only; remove the others and export the RTSTRUCT again"
        )
    return contours


def _are_combined_by_xor(item: pydicom.Dataset) -> bool:
    """Return whether all contours of a structure are of the type that stands for exclusive or."""
    return {text_of(contour, "ContourGeometricType") for contour in item.get("ContourSequence") or []} == {XOR}


def _in_voxels(points: NDArray[np.float64], grid: sitk.Image, number: int | None) -> NDArray[np.float64]:
    """Return points (points, 3) in mm as voxel coordinates in the order x, y, z."""
    axes = np.reshape(grid.GetDirection(), (3, 3)) * np.array(grid.GetSpacing())
    voxels = (points - grid.GetOrigin()) @ np.linalg.inv(axes).T
    lowest, highest = voxels.min(axis=0), voxels.max(axis=0)
    if (highest < -0.5).any() or (lowest > np.array(grid.GetSize()) - 0.5).any():
        raise ConversionError(
            f"a contour of the structure number {number} lies outside the image, between {_vector(points.min(axis=0))} "
            f"and {_vector(points.max(axis=0))} mm; choose the series that was contoured"
        )
    return voxels


def _slice_axis(contours: Sequence[NDArray[np.float64]]) -> int:
    """Return the axis of the grid along which the contours are flat; any will do without contours."""
    return int(np.argmin(sum((np.ptp(points, axis=0) for points in contours), np.zeros(3))))


def _fill(
    contours: Sequence[NDArray[np.float64]], axis: int, grid: sitk.Image, number: int | None, by_xor: bool
) -> NDArray[np.bool_]:
    """Return the voxels (z, y, x) inside the contours, which are given in voxel coordinates.

    Args:
        contours: Points (points, 3) of each contour.
        axis: The axis along which the contours are flat.
        grid: The grid of the voxels.
        number: Number of the structure, for messages.
        by_xor: Combine the contours of a slice by exclusive or; otherwise as nested ones.
    """
    mask = np.zeros(grid.GetSize(), dtype=bool)
    by_slice = np.moveaxis(mask, axis, 0)
    in_plane = [each for each in range(3) if each != axis]
    spacing = grid.GetSpacing()[axis]
    tolerance = min(REPEAT_TOLERANCE, REPEAT_TOLERANCE_MM / max(grid.GetSpacing()[each] for each in in_plane))
    slices = defaultdict(list)
    for points in contours:
        heights = points[:, axis]
        index = round(float(heights.mean()))
        error = float(np.abs(heights - index).max())
        if error > PLANE_TOLERANCE:
            raise ConversionError(
                f"a contour of the structure number {number} lies {error * spacing:.2f} mm off the nearest slice of "
                f"the image (spacing {spacing:g} mm), expected contours in the slices; choose the series that was "
                "contoured"
            )
        slices[index].append(points[:, in_plane])
    for index, polygons in slices.items():
        distinct = polygons if by_xor else _without_repeats(polygons, tolerance)
        masks = [polygon2mask(by_slice[index].shape, polygon) for polygon in distinct]
        by_slice[index] = np.logical_xor.reduce(masks) if by_xor else _nest(masks)
    _check_every_slice(by_slice, sorted(slices), number)
    return mask.T


def _without_repeats(polygons: Sequence[NDArray[np.float64]], tolerance: float) -> list[NDArray[np.float64]]:
    """Return polygons (points, 2) from the largest to the smallest, without those that are another one once more."""
    kept: list[NDArray[np.float64]] = []
    for polygon in sorted(polygons, key=_area, reverse=True):
        if not any(_is_repeat(polygon, other, tolerance) for other in kept):
            kept.append(polygon)
    return kept


def _is_repeat(polygon: NDArray[np.float64], other: NDArray[np.float64], tolerance: float) -> bool:
    """Return whether two polygons are nowhere further from each other than the tolerance."""
    corners, others = (np.array([points.min(0), points.max(0)]) for points in (polygon, other))
    if np.abs(corners - others).max() > tolerance:  # nearly always, and far cheaper
        return False
    return max(_distance_from(polygon, other), _distance_from(other, polygon)) <= tolerance


def _area(polygon: NDArray[np.float64]) -> float:
    x, y = polygon.T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def _distance_from(points: NDArray[np.float64], polygon: NDArray[np.float64]) -> float:
    """Return how far points (points, 2) are at most from the line of a polygon, which may close itself."""
    edges = np.roll(polygon, -1, axis=0) - polygon
    lengths = np.maximum((edges**2).sum(-1), np.finfo(float).tiny)
    furthest = 0.0
    for point in points:  # one by one, since all pairs of two contours of thousands of points take gigabytes
        from_start = point - polygon
        along = np.clip((from_start * edges).sum(-1) / lengths, 0, 1)
        furthest = max(furthest, float(np.linalg.norm(from_start - along[:, None] * edges, axis=-1).min()))
    return furthest


def _nest(masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Return what contours enclose, of which one within another is a hole in it, one within that an island, and so on.

    Args:
        masks: What each contour encloses by itself, from the largest to the smallest.
    """
    boxes = [_box(mask) for mask in masks]
    depths: list[int] = []
    areas = [mask.copy() for mask in masks]
    for number, mask in enumerate(masks):
        around = [
            outer
            for outer in range(number)
            if _is_within(boxes[number], boxes[outer]) and masks[outer][mask].all()  # the first is far cheaper
        ]
        depths.append(max((depths[outer] + 1 for outer in around), default=0))
        for outer in around:
            if depths[outer] == depths[number] - 1:
                areas[outer] &= ~mask
    solid = [area for area, depth in zip(areas, depths, strict=True) if depth % 2 == 0]
    return np.logical_or.reduce(solid)


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the first row and column of a mask, and the negated last ones, so that those of a part are no less."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return (rows[0], columns[0], -rows[-1], -columns[-1]) if len(rows) else (0, 0, 0, 0)


def _is_within(inner: tuple[int, ...], outer: tuple[int, ...]) -> bool:
    return all(a >= b for a, b in zip(inner, outer, strict=True))


def _check_every_slice(by_slice: NDArray[np.bool_], indices: Sequence[int], number: int | None) -> None:
    """Check that contours do not leave out slices in turn, as when another series was contoured.

    A slice is left out where the contours before and after it enclose the same place, since tissue lies between then;
    separate small lesions do not.

    Args:
        by_slice: The filled contours, slice by slice.
        indices: The contoured slices in order.
        number: Number of the structure, for messages.

    Raises:
        ConversionError: No two contoured slices are neighbours, or slices are left out more often than not.
    """
    pairs = list(pairwise(indices))
    dense = sum(after - before == 1 for before, after in pairs)
    left_out = sum(after - before > 1 and (by_slice[before] & by_slice[after]).any() for before, after in pairs)
    if len(indices) >= MIN_PLANES and (dense == 0 or left_out > dense):
        found = "no two are neighbours"
        if dense:
            found = f"{dense} pair(s) are neighbours, while slices between {left_out} pair(s) are left out"
        raise ConversionError(
            f"the contours of the structure number {number} lie in {len(indices)} slices, of which {found}, expected "
            "contours in every slice of a structure; choose the series that was contoured, or interpolate between the "
            "contours"
        )


def _to_image(mask: NDArray[np.bool_], grid: sitk.Image) -> sitk.Image:
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.CopyInformation(grid)
    return image


def _vector(numbers: NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{number:.1f}" for number in numbers) + ")"
