"""Channels last in memory, on the CPU: where tensors enter the network, and in its normalisations."""

import pydoc

import torch
from torch import Tensor, nn

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last_on_cpu(x: Tensor) -> Tensor:
    """Return x (B, C, *spatial) with the channels last in memory if it is on the CPU, else as it is.

    The CPU's convolutions and transposed convolutions of few channels take half the time, or less, with channels last.
    """
    if x.device.type != "cpu" or x.ndim not in _CHANNELS_LAST:
        return x
    return x.contiguous(memory_format=_CHANNELS_LAST[x.ndim])


class InstanceNorm2d(nn.InstanceNorm2d):
    """``torch.nn.InstanceNorm2d`` that on the CPU keeps the channels last, see :func:`normalise_each_sample`."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each sample of x (B, C, *spatial)."""
        return super().forward(x) if x.device.type != "cpu" else normalise_each_sample(x, self)


class InstanceNorm3d(nn.InstanceNorm3d):
    """``torch.nn.InstanceNorm3d`` that on the CPU keeps the channels last, see :func:`normalise_each_sample`."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each sample of x (B, C, *spatial)."""
        return super().forward(x) if x.device.type != "cpu" else normalise_each_sample(x, self)


def normalise_each_sample(x: Tensor, norm: nn.InstanceNorm2d | nn.InstanceNorm3d) -> Tensor:
    """Return what an instance normalisation without running statistics makes of x, with the channels last in memory.

    torch's own copies to channels first and back. Normalising one sample over its voxels is batch normalisation of that
    sample alone, which torch computes in either layout.
    """
    samples = [
        nn.functional.batch_norm(sample, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
        for sample in channels_last_on_cpu(x).split(1)
    ]
    return samples[0] if len(samples) == 1 else torch.cat(samples)


def fast_norm(norm_op: str | None, norm_op_kwargs: dict | None) -> str | None:
    """Return the import path of the normalisation to build for the one that plans name."""
    ours = {nn.InstanceNorm2d: InstanceNorm2d, nn.InstanceNorm3d: InstanceNorm3d}
    named = pydoc.locate(norm_op) if norm_op else None
    if named not in ours or (norm_op_kwargs or {}).get("track_running_stats"):
        return norm_op
    return f"{__name__}.{ours[named].__name__}"
