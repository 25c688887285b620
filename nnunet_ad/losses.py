"""The losses of the three flows (Eqs. 2, 6, 8) and the weight of the unsupervised one (Eq. 9)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_SMOOTH = 1e-5


def dice_ce(
    logits: Tensor,
    target: Tensor,
    class_weights: Tensor | None = None,
    ignore_label: int | None = None,
    joint_sum: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return DiceCE = ½(CE + Dice loss), the loss of Eqs. 2, 6 and 8.

    CE is torch's class-weighted mean over the valid voxels. Dice loss = Σ_k w_k (1 - D_k) / Σ_k w_k over all K classes
    with D_k = (2·tp + 1e-5) / (2·tp + fp + fn + 1e-5), tp, fp and fn summed over the joint batch.

    Args:
        logits: (B, K, *spatial); computed in float32 at least, whatever the dtype.
        target: (B, *spatial), integer, values in [0, K) or ``ignore_label``.
        class_weights: w (K,), Eq. 6; ``None`` is weights of one.
        ignore_label: Voxels of this value take no part.
        joint_sum: Adds up sums over voxels (2 + 3·K,) over the processes that have parts of the joint batch.

    Returns:
        Scalar in [0, ∞); with no valid voxel at all, 0 with a gradient of 0.
    """
    # Public code: the Dice part is not halved. Here it is, as in the paper's DiceCE = ½(CE + Dice).
    logits = logits if logits.dtype == torch.float64 else logits.float()
    target = target.long()
    weights = logits.new_ones(logits.shape[1]) if class_weights is None else class_weights.to(logits)
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_label is None else target != ignore_label
    target = torch.where(valid, target, 0)
    log_p = logits.log_softmax(dim=1)
    sums = torch.cat((_cross_entropy_sums(log_p, target, weights, valid), _overlap_sums(log_p.exp(), target, valid)))
    if joint_sum is not None:
        sums = joint_sum(sums)
    nll, voxel_weights = sums[:2]
    return 0.5 * (nll / _nonzero(voxel_weights) + _dice_loss(sums[2:], weights))


def _cross_entropy_sums(log_p: Tensor, target: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
    """Return the sums over voxels of w·(-log p) and of w, (2,)."""
    voxel_weights = weights[target] * valid
    nll = F.nll_loss(log_p, target, reduction="none")
    return torch.stack(((voxel_weights * nll).sum(), voxel_weights.sum()))


def _overlap_sums(p: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the sums over voxels of each class's tp, prediction and label, (3·K,)."""
    axes = [0, *range(2, p.ndim)]
    classes = torch.arange(p.shape[1], device=p.device).view(-1, *[1] * (p.ndim - 2))
    of_class = (target[:, None] == classes) & valid[:, None]
    tp = (p * of_class).sum(axes)
    predicted, labelled = (p * valid[:, None]).sum(axes), of_class.sum(axes)
    return torch.cat((tp, predicted, labelled.to(p)))


def _dice_loss(sums: Tensor, weights: Tensor) -> Tensor:
    tp, predicted, labelled = sums.chunk(3)
    dice = (2 * tp + _SMOOTH) / (predicted + labelled + _SMOOTH)  # 2·tp + fp + fn = predicted + labelled
    # Without a valid voxel every Dice is smooth / smooth = 1.
    return (weights * (1 - dice)).sum() / _nonzero(weights.sum())


def _nonzero(x: Tensor) -> Tensor:
    return x.clamp_min(torch.finfo(x.dtype).tiny)


def unsupervised_weight(epoch: float, rampup_epochs: float, mu: float = 10.0) -> float:
    """Return the weight of the unsupervised loss, μ·exp(-5(1 - min(e, R)/R)²) (Eq. 9).

    Args:
        epoch: e, from 0.
        rampup_epochs: R; at or below 0 there is no ramp-up.
        mu: μ, the weight after the ramp-up.
    """
    if rampup_epochs <= 0:
        return mu
    return mu * math.exp(-5 * (1 - min(epoch, rampup_epochs) / rampup_epochs) ** 2)
