"""Overlap and surface distances of two masks.

Every function takes a prediction and a reference, boolean arrays of one shape (2-D or 3-D), and the spacing of their
voxels in mm, one number an axis in the order of the arrays' axes.

The surface of a mask is its voxels with a face (in 2-D: edge) neighbour outside the mask; what lies beyond the array is
outside. Distances are measured between voxel centres. These are the conventions of ``medpy.metric.binary`` with
``connectivity=1``, and results agree with it wherever both masks have voxels.

Empty masks, where medpy raises an error or returns a number:

| prediction | reference | Dice, Jaccard | distances |
|---|---|---|---|
| empty | empty | NaN: nothing to score | NaN |
| one of them empty | | 0 | infinity: no finite distance describes a missed structure |

Infinity and not NaN for the second row, because a NaN would be dropped by the means that drop the first row, and a
method would look better for every structure it misses. A mean over infinity is visibly infinite; ``nnunet_ad evaluate``
counts such cases as missed and keeps them out of the mean of the distances.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

Mask: TypeAlias = NDArray[np.bool_]
Distances: TypeAlias = NDArray[np.float64]

# A nearest-neighbour query of a k-d tree costs at most about as much as this many voxels of a distance transform.
_VOXELS_PER_QUERY = 15


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between the surfaces of two masks, in mm.

    Attributes:
        prediction_to_reference: for each surface voxel of the prediction, the distance to the closest surface voxel of
            the reference, shape (number of surface voxels,).
        reference_to_prediction: the same from the reference to the prediction.
    """

    prediction_to_reference: Distances
    reference_to_prediction: Distances

    @property
    def hd95(self) -> float:
        """95th percentile of the distances of both directions together."""
        return float(np.percentile(self._both(), 95))

    @property
    def asd(self) -> float:
        """Mean distance from the prediction's surface to the reference's."""
        return float(self.prediction_to_reference.mean())

    @property
    def assd(self) -> float:
        """Mean of the distances of both directions together."""
        return float(self._both().mean())

    def _both(self) -> Distances:
        return np.concatenate([self.prediction_to_reference, self.reference_to_prediction])


def dice(prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float] | None = None) -> float:
    """Return the Dice coefficient 2·|P ∩ R| / (|P| + |R|).

    Args:
        prediction: boolean array, 2-D or 3-D.
        reference: boolean array of the same shape.
        spacing: voxel spacing in mm; checked, but without influence on an overlap.

    Returns:
        A number in [0, 1]; 0 where one mask is empty, NaN where both are.

    Raises:
        ValueError: the arrays are not boolean, not 2-D or 3-D or differ in shape, or the spacing does not fit them.
    """
    prediction, reference = _checked_masks(prediction, reference, spacing)
    sizes = np.count_nonzero(prediction) + np.count_nonzero(reference)
    return float(2 * np.count_nonzero(prediction & reference) / sizes) if sizes else math.nan


def jaccard(prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float] | None = None) -> float:
    """Return the Jaccard index |P ∩ R| / |P ∪ R|.

    Args:
        prediction: boolean array, 2-D or 3-D.
        reference: boolean array of the same shape.
        spacing: voxel spacing in mm; checked, but without influence on an overlap.

    Returns:
        A number in [0, 1]; 0 where one mask is empty, NaN where both are.

    Raises:
        ValueError: as for `dice`.
    """
    prediction, reference = _checked_masks(prediction, reference, spacing)
    union = np.count_nonzero(prediction | reference)
    return float(np.count_nonzero(prediction & reference) / union) if union else math.nan


def hd95(prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float]) -> float:
    """Return the 95 % Hausdorff distance.

    This is the 95th percentile of the surface distances of both directions taken together, as in medpy; some other
    packages take the larger one of two percentiles.

    Args:
        prediction: boolean array, 2-D or 3-D.
        reference: boolean array of the same shape.
        spacing: voxel spacing in mm, one number an axis.

    Returns:
        A distance in mm; infinity where one mask is empty, NaN where both are.

    Raises:
        ValueError: as for `dice`.
    """
    return _distance(prediction, reference, spacing, "hd95")


def asd(prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float]) -> float:
    """Return the mean distance from the prediction's surface to the reference's, which is not symmetric.

    Args:
        prediction: boolean array, 2-D or 3-D.
        reference: boolean array of the same shape.
        spacing: voxel spacing in mm, one number an axis.

    Returns:
        A distance in mm; infinity where one mask is empty, NaN where both are.

    Raises:
        ValueError: as for `dice`.
    """
    return _distance(prediction, reference, spacing, "asd")


def assd(prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float]) -> float:
    """Return the average symmetric surface distance, the mean over the surface voxels of both masks.

    Args:
        prediction: boolean array, 2-D or 3-D.
        reference: boolean array of the same shape.
        spacing: voxel spacing in mm, one number an axis.

    Returns:
        A distance in mm; infinity where one mask is empty, NaN where both are.

    Raises:
        ValueError: as for `dice`.
    """
    return _distance(prediction, reference, spacing, "assd")


def surface_distances(prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float]) -> SurfaceDistances:
    """Return all surface distances of two masks, from which `hd95`, `asd` and `assd` come at once.

    Args:
        prediction: boolean array, 2-D or 3-D, not empty.
        reference: boolean array of the same shape, not empty.
        spacing: voxel spacing in mm, one number an axis.

    Raises:
        ValueError: as for `dice`, or one of the masks is empty.
    """
    prediction, reference = _checked_masks(prediction, reference, spacing)
    box = bounding_box(prediction, reference, margin=1)
    if box is None or not prediction[box].any() or not reference[box].any():
        raise ValueError("a surface distance needs two masks with voxels; one of these is empty.")
    # Neither surface leaves the joint box, so cropping changes no distance; the margin of one voxel keeps the
    # surroundings of every surface voxel that has any.
    prediction_surface, reference_surface = _surface(prediction[box]), _surface(reference[box])
    scale = np.asarray(spacing, dtype=np.float64)
    return SurfaceDistances(
        prediction_to_reference=_nearest(prediction_surface, reference_surface, scale),
        reference_to_prediction=_nearest(reference_surface, prediction_surface, scale),
    )


def bounding_box(*arrays: NDArray[Any], margin: int = 0) -> tuple[slice, ...] | None:
    """Return the smallest box around all that is not zero in any of the arrays; None if all are empty.

    Args:
        arrays: masks or label maps of one shape.
        margin: widens the box by so many voxels on each side.
    """
    box: list[slice] = []
    for axis in range(arrays[0].ndim):
        others = tuple(other for other in range(arrays[0].ndim) if other != axis)
        # Axes already done are narrowed to their range, which keeps the passes over large arrays short.
        done = tuple(box)
        occupied = np.flatnonzero(np.any([array[done].any(axis=others) for array in arrays], axis=0))
        if not occupied.size:
            return None
        box.append(slice(max(int(occupied[0]) - margin, 0), int(occupied[-1]) + 1 + margin))
    return tuple(box)


def _checked_masks(prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float] | None) -> tuple[Mask, Mask]:
    masks = {"prediction": np.asarray(prediction), "reference": np.asarray(reference)}
    for name, mask in masks.items():
        if mask.dtype != np.bool_:
            raise ValueError(f"{name} has dtype {mask.dtype}; pass a boolean array, such as labels == 1.")
        if mask.ndim not in (2, 3):
            raise ValueError(f"{name} has {mask.ndim} dimensions, shape {mask.shape}; masks are 2-D or 3-D.")
    if masks["prediction"].shape != masks["reference"].shape:
        raise ValueError(
            f"prediction has shape {masks['prediction'].shape} and reference {masks['reference'].shape}; "
            "both masks must lie on the same grid."
        )
    if spacing is not None:
        _check_spacing(spacing, masks["prediction"].ndim)
    return masks["prediction"], masks["reference"]


def _check_spacing(spacing: Any, dimensions: int) -> None:
    values = np.asarray(spacing)
    is_valid = values.shape == (dimensions,) and values.dtype.kind in "iuf"
    if not is_valid or not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(
            f"spacing is {spacing!r}; a {dimensions}-D mask needs {dimensions} positive numbers, in mm, "
            "in the order of the array's axes."
        )


def _distance(prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float], metric: str) -> float:
    if spacing is None:
        raise ValueError("spacing is None; a distance in mm needs the voxel spacing.")
    prediction, reference = _checked_masks(prediction, reference, spacing)
    filled = int(prediction.any()) + int(reference.any())
    if filled < 2:
        return math.inf if filled else math.nan
    return float(getattr(surface_distances(prediction, reference, spacing), metric))


def _surface(mask: Mask) -> Mask:
    """Return the voxels of ``mask`` with a face neighbour outside of it."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        mask_slices, inner_slices = np.moveaxis(mask, axis, 0), np.moveaxis(inner, axis, 0)
        inner_slices[1:] &= mask_slices[:-1]
        inner_slices[:-1] &= mask_slices[1:]
        inner_slices[[0, -1]] = False
    return mask & ~inner


def _nearest(points: Mask, targets: Mask, scale: Distances) -> Distances:
    """Return for each voxel of ``points`` the distance to the closest voxel of ``targets``.

    Organs have few surface voxels for their box, and a k-d tree over these is several times as fast as a distance
    transform of the box; scattered masks have many, and the transform's cost is bounded by the box. Both are exact.
    """
    where = np.argwhere(points)
    if len(where) * _VOXELS_PER_QUERY <= points.size:
        tree = cKDTree(np.argwhere(targets) * scale, leafsize=32, balanced_tree=False, compact_nodes=False)
        return np.asarray(tree.query(where * scale)[0], dtype=np.float64)
    # Only the indices of the closest voxels: 12 bytes a voxel, where scipy's distances take 48.
    closest = ndimage.distance_transform_edt(~targets, sampling=scale, return_distances=False, return_indices=True)[
        :, points
    ].T
    return np.sqrt((((where - closest) * scale) ** 2).sum(axis=1))
