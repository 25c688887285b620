"""One encoder pass for several batches, with each decoder's backward pass by itself."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class SharedEncoding:
    """Features of several batches from one pass of an encoder, whose backward pass waits for those of the decoders.

    A decoder's backward pass ends at the features and frees what the decoder kept for it, so that one decoder's
    activations are held at a time; :meth:`backward` then goes on through the encoder, once for all.

    Args:
        encoder: Gives the features of each stage (B, C_s, *spatial_s) for images (B, C, *spatial); each sample must be
            normalised by itself.
        images: Batches of images (B_i, C, *spatial).

    Attributes:
        features: For each batch the features of all stages; their gradients gather here.
    """

    def __init__(self, encoder: Callable[[Tensor], list[Tensor]], *images: Tensor):
        sizes = [len(batch) for batch in images]
        stages = encoder(torch.cat(images))
        self._outputs = list(zip(*(stage.split(sizes) for stage in stages), strict=True))
        self.features = [[stage.detach().requires_grad_() for stage in batch] for batch in self._outputs]

    def backward(self) -> None:
        """Give the encoder's parameters the gradient of everything that went back to the features."""
        torch.autograd.backward(*self._gathered(range(len(self.features))))

    def gradient(self, i: int, parameters: list[nn.Parameter]) -> list[Tensor]:
        """Return the gradient that what went back to the features of batch ``i`` gives to some parameters.

        Parameters without influence are left out; :meth:`backward` can still be called.
        """
        outputs, gradients = self._gathered([i])
        found = torch.autograd.grad(outputs, parameters, gradients, retain_graph=True, allow_unused=True)
        return [gradient for gradient in found if gradient is not None]

    def _gathered(self, batches) -> tuple[list[Tensor], list[Tensor]]:
        pairs = [
            (output, leaf.grad)
            for i in batches
            for output, leaf in zip(self._outputs[i], self.features[i], strict=True)
            if leaf.grad is not None
        ]
        return [output for output, _ in pairs], [gradient for _, gradient in pairs]
