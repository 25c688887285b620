"""How much several label maps of one image disagree; pure formulas, no label of a doctor is involved.

For a class k and label maps m_1 … m_D, with M_ik the voxels that map i gives to class k:

    Dice_ij(k) = 2·|M_ik ∩ M_jk| / (|M_ik| + |M_jk|),  1 where both are empty
    disagreement(k) = 1 - mean over pairs i < j of Dice_ij(k),  undefined (NaN) where every M_ik is empty
    disagreement = mean of disagreement(k) over the classes for which it is defined

Dice is relative to the size of a structure, so that a small one counts as much as a large one. A class that no map has
says nothing and is left out. One map of three against two equal ones gives 2/3, whether it alone has the class or it
alone lacks it.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np


def disagreement_per_class(label_maps: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Return the disagreement on each class.

    Args:
        label_maps: (D, *spatial), integer, D >= 2.
        classes: Label values to look at, usually without background.

    Returns:
        float64 (len(classes),), each from 0 (all maps equal) to 1 (no two overlap), NaN where no map has the class.

    Raises:
        ValueError: If there are fewer than two label maps.
    """
    if len(label_maps) < 2:
        raise ValueError(f"got {len(label_maps)} label map(s); disagreement needs at least two")
    return np.array([_disagreement_of_masks(label_maps == k) for k in classes], dtype=float)


def mean_disagreement(per_class: np.ndarray) -> float:
    """Return the mean over the classes that some map has; NaN where no map has any."""
    defined = per_class[np.isfinite(per_class)]
    return float(defined.mean()) if len(defined) else float("nan")


def most_contested_slice(label_maps: np.ndarray, classes: Sequence[int]) -> int:
    """Return the slice along the first spatial axis that holds the largest share of the disagreement.

    For each class the voxels of a slice that some maps give it and others do not are divided by the voxels that any map
    gives it in the whole image, so that a small structure counts as much as a large one; the shares are summed over the
    classes.

    Args:
        label_maps: (D, slices, height, width), integer.
        classes: Label values to look at.

    Returns:
        Index of the slice; where all maps agree, the one with most foreground, or the middle one if there is none.
    """
    contested, agreed = np.zeros((2, label_maps.shape[1]))
    for k in classes:
        masks = label_maps == k
        union, common = (mask.sum(axis=(1, 2)) for mask in (masks.any(axis=0), masks.all(axis=0)))
        if union.any():
            contested += (union - common) / union.sum()
            agreed += common
    for shares in (contested, agreed):
        if shares.any():
            return int(shares.argmax())
    return label_maps.shape[1] // 2


def _disagreement_of_masks(masks: np.ndarray) -> float:
    """Return 1 - mean pairwise Dice of boolean masks (D, *spatial), NaN where all are empty."""
    sizes = [int(np.count_nonzero(mask)) for mask in masks]
    if not any(sizes):
        return float("nan")
    return 1 - float(np.mean([_dice(masks[i], masks[j], sizes[i] + sizes[j]) for i, j in _pairs(len(masks))]))


def _dice(first: np.ndarray, second: np.ndarray, total: int) -> float:
    return 2 * int(np.count_nonzero(first & second)) / total if total else 1.0


def _pairs(number: int) -> combinations:
    return combinations(range(number), 2)
