"""CutMix of patches: the network must label a place by what it sees there, whatever is around it."""

from collections.abc import Sequence

import torch
from torch import Tensor

_EDGE = (0.5, 0.9)  # of the box, as a share of the patch's


def cutmix(
    images: Tensor,
    labels: Tensor,
    donors: Tensor,
    donor_labels: Tensor,
    probability: float,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Paste a box of its donor, at the same place and with its labels, into each patch, or leave it as it is.

    After Yun et al., CutMix, ICCV 2019.

    Args:
        images: (B, C, *spatial).
        labels: (B, *spatial), integer.
        donors: (B, C, *spatial), what boxes of are pasted, patch by patch.
        donor_labels: (B, *spatial), integer.
        probability: That a patch is changed, in [0, 1].
        generator: Random state on the device of the images; ``None`` is torch's own.

    Returns:
        New images and labels of the same shapes.
    """
    inside = _random_boxes(len(images), images.shape[2:], probability, generator, images.device)
    return (
        torch.where(inside[:, None], donors, images),
        torch.where(inside, donor_labels.to(labels.dtype), labels),
    )


def _random_boxes(
    num: int, size: Sequence[int], probability: float, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Return which voxels are in a random box, bool (num, *size), or in none. Nothing is read back from the device."""

    def uniform() -> Tensor:
        return torch.rand((num, *[1] * len(size)), generator=generator, device=device)

    inside = uniform() < probability
    for axis, length in enumerate(size):
        edge = length * (_EDGE[0] + (_EDGE[1] - _EDGE[0]) * uniform())
        start = (length - edge) * uniform()
        shape = [length if i == axis else 1 for i in range(len(size))]
        center = 0.5 + torch.arange(length, device=device).view(1, *shape)
        inside = inside & (center >= start) & (center < start + edge)
    return inside
