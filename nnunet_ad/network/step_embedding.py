"""The diffusion step as a vector, and how it enters the encoder."""

import math

import torch
from torch import Tensor, nn

_MAX_PERIOD = 10_000.0


class StepEmbedding(nn.Module):
    """Sinusoidal embedding of the step followed by a two-layer perceptron.

    Args:
        dim: Width of the embedding, even.
    """

    frequencies: Tensor

    def __init__(self, dim: int):
        super().__init__()
        exponents = torch.arange(dim // 2) / (dim // 2)
        self.register_buffer("frequencies", torch.exp(-math.log(_MAX_PERIOD) * exponents), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())

    def forward(self, t: Tensor) -> Tensor:
        """Map steps (B,), integer, to embeddings (B, dim)."""
        angles = t[:, None].float() * self.frequencies
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=1))


class StepModulation(nn.Module):
    """Scale and shift of each channel by the step: x·(1 + scale) + shift.

    It belongs between a normalisation and the nonlinearity: a shift in front of convolution and instance
    normalisation would be erased by the normalisation.

    Args:
        dim: Width of the step embedding.
        num_channels: Channels of what is modulated.
    """

    def __init__(self, dim: int, num_channels: int):
        super().__init__()
        self.linear = nn.Linear(dim, 2 * num_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Modulate x (B, C, *spatial) by the embedding (B, dim)."""
        scale, shift = self.linear(embedding).view(*embedding.shape[:1], -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        return x * (1 + scale.to(x.dtype)) + shift.to(x.dtype)
