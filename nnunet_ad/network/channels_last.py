"""Channels last in memory: where tensors enter the network, in its normalisations, and in weights."""

import pydoc

import torch
from torch import Tensor, nn

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
# Where convolutions are faster with channels last, by measurement (docs/benchmarks/train_step.md).
_DEVICES = frozenset({"cpu", "cuda"})
# For torch.compile: its own choice of layouts knows 2-D convolutions only, and would not keep channels last of others.
COMPILER_OPTIONS = {"options": {"layout_optimization": False}}


def channels_last(x: Tensor) -> Tensor:
    """Return x (B, C, *spatial) with the channels last in memory on devices that are faster so, else as it is."""
    if x.device.type not in _DEVICES or x.ndim not in _CHANNELS_LAST:
        return x
    # Unlike ``contiguous``, this sets the strides of a single channel, too, by which convolutions choose their layout.
    return x.to(memory_format=_CHANNELS_LAST[x.ndim])


def keep_weights_channels_last(network: nn.Module) -> None:
    """Store the weights of convolutions as :func:`channels_last` does inputs, or each call would convert them."""
    for parameter in network.parameters():
        parameter.data = channels_last(parameter.data)


class InstanceNorm2d(nn.InstanceNorm2d):
    """``torch.nn.InstanceNorm2d`` that keeps channels last, see :func:`normalise_each_sample`."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each sample of x (B, C, *spatial)."""
        return normalise_each_sample(x, self) if x.device.type in _DEVICES else super().forward(x)


class InstanceNorm3d(nn.InstanceNorm3d):
    """``torch.nn.InstanceNorm3d`` that keeps channels last, see :func:`normalise_each_sample`."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each sample of x (B, C, *spatial)."""
        return normalise_each_sample(x, self) if x.device.type in _DEVICES else super().forward(x)


def normalise_each_sample(x: Tensor, norm: nn.InstanceNorm2d | nn.InstanceNorm3d) -> Tensor:
    """Return what an instance normalisation without running statistics makes of x, with the channels last in memory.

    torch's own copies to channels first and back. Normalising one sample over its voxels is batch normalisation of that
    sample alone, which torch computes in either layout. A compiler fuses the plain formula better.
    """
    if torch.compiler.is_compiling():
        return _normalise_by_formula(x, norm)
    samples = [
        nn.functional.batch_norm(sample, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
        for sample in channels_last(x).split(1)
    ]
    return samples[0] if len(samples) == 1 else torch.cat(samples)


def _normalise_by_formula(x: Tensor, norm: nn.InstanceNorm2d | nn.InstanceNorm3d) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, tuple(range(2, x.ndim)), correction=0, keepdim=True)
    normalised = (wide - mean) * (variance + norm.eps).rsqrt()
    if norm.affine:
        shape = (-1, *[1] * (x.ndim - 2))
        normalised = norm.weight.view(shape) * normalised + norm.bias.view(shape)
    return normalised.to(x.dtype)


def fast_norm(norm_op: str | None) -> str | None:
    """Return the import path of the normalisation to build for the one that plans name.

    ``ADEncoder`` refuses running statistics, which are not kept here.
    """
    ours = {nn.InstanceNorm2d: InstanceNorm2d, nn.InstanceNorm3d: InstanceNorm3d}
    named = pydoc.locate(norm_op) if norm_op else None
    return f"{__name__}.{ours[named].__name__}" if named in ours else norm_op
