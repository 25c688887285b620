"""3-D convolutions of a single sample on the CPU: through oneDNN, as those of larger batches are."""

import torch
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """``torch.nn.Conv3d`` that lets oneDNN compute small inputs of a single sample in float32, too.

    torch takes a plain loop for them, which costs inference on the CPU, one window at a time, most of its time.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._is_left_to_a_loop(input):
            return super()._conv_forward(input, weight, bias)
        return torch.mkldnn_convolution(input, weight, bias, self.padding, self.stride, self.dilation, self.groups)

    def _is_left_to_a_loop(self, input: Tensor) -> bool:
        return (
            not torch.compiler.is_compiling()  # first, as the compiler can't read what asks for oneDNN
            and input.device.type == "cpu"
            and input.dtype == torch.float32
            and input.ndim == 5
            and len(input) == 1
            and torch.backends.mkldnn.is_available()
            and torch.backends.mkldnn.enabled
            and not torch.is_autocast_enabled("cpu")
        )


def let_onednn_convolve(network: nn.Module) -> nn.Module:
    """Make all 3-D convolutions of a network, which pad by numbers of zeros, :class:`Conv3d`; names stay.

    Returns:
        The network itself, changed.
    """
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = Conv3d
    return network
