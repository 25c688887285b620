"""What a train step is watched by: hard Dice, its dependence on t, and properties of pseudo-labels.

All of it stays on the device, so that watching costs no synchronisation.
"""

from typing import NamedTuple

import torch
from torch import Tensor

NUM_T_BINS = 5


class Overlap(NamedTuple):
    """Voxel counts of hard labels against a reference, float32 (B, K) or, summed over the batch, (K,).

    Attributes:
        intersection: Voxels of the class in both.
        total: Voxels of the class in one plus voxels in the other.
    """

    intersection: Tensor
    total: Tensor

    def dice(self) -> Tensor:
        """Return the Dice of each class; 0 where a class is in neither."""
        return 2 * self.intersection / self.total.clamp_min(1)

    def present(self) -> Tensor:
        """Return which classes are in prediction or reference."""
        return self.total > 0

    def over_batch(self) -> "Overlap":
        """Sum over the batch."""
        return Overlap(self.intersection.sum(0), self.total.sum(0))


@torch.no_grad()
def overlap(prediction: Tensor, target: Tensor, num_classes: int, ignore_label: int | None = None) -> Overlap:
    """Count for each sample and class; ``prediction`` and ``target`` are label maps (B, *spatial)."""
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_label is None else target != ignore_label
    axes = list(range(1, target.ndim))
    intersection, total = [], []
    for k in range(num_classes):
        predicted, labelled = (prediction == k) & valid, (target == k) & valid
        intersection.append((predicted & labelled).sum(axes))
        total.append(predicted.sum(axes) + labelled.sum(axes))
    return Overlap(torch.stack(intersection, 1).float(), torch.stack(total, 1).float())


@torch.no_grad()
def dice_by_t(samples: Overlap, t: Tensor | None, num_steps: int) -> dict[str, Tensor]:
    """Return sums and counts (5,) of the mean foreground Dice of samples whose step t lies in each quintile.

    Args:
        samples: (B, K), background first.
        t: Steps (B,), or ``None`` without diffusion: zeros are returned.
        num_steps: T.
    """
    sums, counts = samples.total.new_zeros(2, NUM_T_BINS)
    if t is None:
        return {"dice_by_t_sums": sums, "dice_by_t_counts": counts}
    present = samples.present()[:, 1:]
    mean_dice = (samples.dice()[:, 1:] * present).sum(1) / present.sum(1).clamp_min(1)
    counted = present.any(1).float()
    quintile = (t * NUM_T_BINS) // num_steps
    return {
        "dice_by_t_sums": sums.scatter_add(0, quintile, mean_dice * counted),
        "dice_by_t_counts": counts.scatter_add(0, quintile, counted),
    }


@torch.no_grad()
def agreement(first: Tensor, second: Tensor) -> Tensor:
    """Return the share of voxels with equal label among those that either label map calls foreground; 1 if none is."""
    foreground = (first > 0) | (second > 0)
    count = foreground.sum()
    equal = ((first == second) & foreground).sum()
    return torch.where(count > 0, equal / count.clamp_min(1), 1.0)


def joint_norm(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of all elements of some tensors, in float32; 0 where there are none."""
    if not tensors:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack([tensor.float().norm() for tensor in tensors]))
