"""The slices of a volume in space, and whether they make a regular grid.

Positions and directions are in the patient coordinate system of DICOM and ITK (left, posterior, superior), in mm.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.volumes import GEOMETRY_TOLERANCE

MIN_SLICES = 3  # with two, nothing says whether slices are missing
MIN_STEP = 0.01  # mm; slices that are closer lie at one position
STEP_TOLERANCE = 0.02  # of the slice spacing, for the place of a slice
STEP_ROUNDING = 0.1  # mm, since positions may be rounded to a tenth of a millimetre,
MAX_STEP_ROUNDING = 0.2  # but no more than this part of the slice spacing
SIDEWAYS_TOLERANCE = 0.1  # of a pixel, over the whole volume


@dataclass(frozen=True)
class Plane:
    """Where one slice lies.

    Attributes:
        position: Centre of the first pixel.
        orientation: Direction of the column index, then of the row index.
        spacing: Distance of rows, then of columns, in the order of ``PixelSpacing``.
        size: Rows, then columns.
    """

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    size: tuple[int, int]

    @property
    def normal(self) -> NDArray[np.float64]:
        """The direction from slice to slice of an upright volume."""
        return np.cross(self.orientation[:3], self.orientation[3:])


@dataclass(frozen=True)
class Stack:
    """The grid that the slices make, with axes in the order of SimpleITK."""

    spacing: tuple[float, float, float]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    def apply(self, image: sitk.Image) -> sitk.Image:
        """Give a volume this geometry where it has another one."""
        for name in ("Spacing", "Origin", "Direction"):
            if not np.allclose(getattr(image, f"Get{name}")(), getattr(self, name.lower()), rtol=0, atol=1e-5):
                getattr(image, f"Set{name}")(getattr(self, name.lower()))
        return image


def position_tolerance(step: float) -> float:
    """Return how far in mm a slice may lie from its place along the normal, by the distance of slices."""
    return max(STEP_TOLERANCE * step, min(STEP_ROUNDING, MAX_STEP_ROUNDING * step))


def order_along_normal(planes: Sequence[Plane]) -> list[int]:
    """Return the numbers of the slices, sorted along the normal of the first."""
    normal = planes[0].normal
    along = [float(np.dot(plane.position, normal)) for plane in planes]
    return sorted(range(len(planes)), key=along.__getitem__)


def stack_of(planes: Sequence[Plane]) -> Stack:
    """Return the grid of slices that are sorted along their normal.

    Raises:
        ConversionError: The slices differ in size, pixel spacing or orientation, are too few, lie on one another, are
            not evenly spaced, or are sheared, as by a tilted gantry.
    """
    _check_alike(planes)
    if len(planes) < MIN_SLICES:
        raise ConversionError(
            f"found {len(planes)} slice(s), expected at least {MIN_SLICES}, since fewer do not show whether slices are "
            "missing; add the missing slices, or choose another series"
        )
    offsets = np.subtract([plane.position for plane in planes], planes[0].position)
    normal = planes[0].normal / np.linalg.norm(planes[0].normal)
    along = offsets @ normal
    origin_along = float(np.dot(planes[0].position, normal))
    _check_single(along, origin_along)
    _check_upright(offsets - np.outer(along, normal), along, min(planes[0].spacing))
    _check_even(along, origin_along)
    row_spacing, column_spacing = planes[0].spacing
    slice_spacing = float(along[-1]) / (len(planes) - 1)
    row, column = np.reshape(planes[0].orientation, (2, 3))
    direction = np.stack([row, column, normal], axis=1)
    return Stack((column_spacing, row_spacing, slice_spacing), planes[0].position, tuple(direction.ravel().tolist()))


def _check_alike(planes: Sequence[Plane]) -> None:
    for index, plane in enumerate(planes):
        axes = np.reshape(plane.orientation, (2, 3))
        if not np.allclose(axes @ axes.T, np.eye(2), rtol=0, atol=GEOMETRY_TOLERANCE):
            raise ConversionError(
                f"slice {index + 1} of {len(planes)} states the orientation {_vector(plane.orientation)}, expected two "
                "orthogonal vectors of length 1; export the series again"
            )
        if min(plane.spacing) <= 0 or min(plane.size) < 1:
            raise ConversionError(
                f"slice {index + 1} of {len(planes)} states {plane.size[0]} x {plane.size[1]} pixels of "
                f"{_vector(plane.spacing)} mm, expected positive numbers; export the series again"
            )
    for what, values in (
        ("orientations", [plane.orientation for plane in planes]),
        ("sizes in pixels", [plane.size for plane in planes]),
        ("pixel spacings in mm", [plane.spacing for plane in planes]),
    ):
        groups = _group(values)
        if len(groups) > 1:
            raise ConversionError(_mixed(what, groups))


def _group(values: Sequence[Sequence[float]]) -> Counter[str]:
    """Count vectors that are the same up to the tolerance, under the first of each kind."""
    firsts: list[Sequence[float]] = []
    counts: Counter[str] = Counter()
    for value in values:
        for first in firsts:
            if np.allclose(value, first, rtol=0, atol=GEOMETRY_TOLERANCE):
                break
        else:
            firsts.append(first := value)
        counts[_vector(first)] += 1
    return counts


def _mixed(what: str, counts: Counter[str]) -> str:
    listed = " and ".join(f"{kind} in {count} slice(s)" for kind, count in counts.most_common(3))
    more = ", among others" if len(counts) > 3 else ""
    return (
        f"the slices have {len(counts)} {what}, {listed}{more}, expected one; leave out localizers, and give each "
        "volume a case of its own"
    )


def _check_single(along: NDArray[np.float64], origin: float) -> None:
    close = np.flatnonzero(np.diff(along) < MIN_STEP)
    if len(close):
        raise ConversionError(
            f"{len(close)} slice(s) lie where another one does, the first at {origin + along[close[0]]:.2f} mm along "
            "the slice normal, expected one slice a position; leave out copies, and leave one volume (time point, "
            "echo, phase) in the folder of the case, or give each a case of its own"
        )


def _check_upright(sideways: NDArray[np.float64], along: NDArray[np.float64], pixel: float) -> None:
    """Check that slices are stacked along their normal; ``sideways`` is (slices, 3)."""
    shifts = np.linalg.norm(sideways, axis=1)
    tolerance = SIDEWAYS_TOLERANCE * pixel
    if shifts.max() <= tolerance:
        return
    slope = along @ sideways / (along @ along)  # mm sideways for each mm along the normal
    if np.linalg.norm(sideways - np.outer(along, slope), axis=1).max() > tolerance:
        raise ConversionError(
            f"the slices are shifted sideways against each other by up to {shifts.max():.2f} mm, expected them in one "
            "straight stack; export the series again"
        )
    angle = np.degrees(np.arctan(np.linalg.norm(slope)))
    raise ConversionError(
        f"the slices are sheared by {angle:.2f} degrees against their normal, as by a tilted gantry, expected 0, since "
        "nnU-Net knows no sheared grids; resample the series onto a straight grid first (gantry tilt correction)"
    )


def _check_even(along: NDArray[np.float64], origin: float) -> None:
    steps = np.diff(along)
    usual = float(np.median(steps))
    errors = np.abs(along - np.linspace(0, along[-1], len(along)))
    if errors.max() <= position_tolerance(usual):
        return
    wide = np.flatnonzero(steps > 1.5 * usual)
    if len(wide):
        first = wide[0]
        start, end = origin + along[first], origin + along[first + 1]
        raise ConversionError(
            f"slices are missing: from {start:.2f} to {end:.2f} mm along the slice normal there is a gap of "
            f"{steps[first]:.2f} mm, expected {usual:.2f} mm as elsewhere"
            f"{f'; {len(wide) - 1} more gap(s) follow' if len(wide) > 1 else ''}; add the missing slices"
        )
    raise ConversionError(
        f"the slices are not evenly spaced: their distances run from {steps.min():.2f} to {steps.max():.2f} mm between "
        f"{origin:.2f} and {origin + along[-1]:.2f} mm along the slice normal, expected one distance; add missing "
        "slices, or resample the series onto an even grid first"
    )


def _vector(numbers: Sequence[float]) -> str:
    return "(" + ", ".join(f"{round(number, 4) + 0.0:g}" for number in numbers) + ")"
