"""Averages of a network's parameters over the iterations: they generalise better than those of any one iteration."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

Weight = Callable[[Tensor], Tensor]


def exponential(decay: float) -> Weight:
    """Return the weight max(1/n, 1 - decay) of iteration n: a plain mean at first, then an exponential average."""
    return lambda n: (1 / n).clamp_min(1 - decay)


def polynomial(share: float) -> Weight:
    """Return the weight 1 / (1 + share·(n - 1)) of iteration n: the mean age of the average is share/(1 + share)·n.

    Polynomial-decay averaging (Shamir & Zhang, ICML 2013). A share of 1 is the plain mean, near 0 the last iteration.
    The age grows with the training, so that one share fits trainings of any length.

    Raises:
        ValueError: If ``share`` is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of iterations to average over is {share}; expected above 0 and at most 1")
    return lambda n: 1 / (1 + share * (n - 1))


class MovingAverage(nn.ModuleDict):
    """Copies of some parts of a network, whose parameters are averaged over the iterations.

    At each iteration the average moves by the weight of the iteration from itself to the present parameters. A part is
    called here what it is called in the network, so that parameters have the same names.

    Args:
        weight: Of iteration n, from 1, as an integer tensor () on the device; 1 for the first.
        parts: Parts of the network by their names in it.
    """

    num_iterations: Tensor

    def __init__(self, weight: Weight, **parts: nn.Module):
        super().__init__({name: deepcopy(part).requires_grad_(False) for name, part in parts.items()})
        self.weight = weight
        self.register_buffer("num_iterations", torch.zeros((), dtype=torch.long))

    def begin(self) -> None:
        """Forget how many iterations came before: the average is of those from now on."""
        self.num_iterations.zero_()

    @torch.no_grad()
    def follow(self, network: nn.Module, skip: Tensor | None = None) -> None:
        """Move towards the parameters of the network; nothing is read back from the device for it.

        Args:
            network: Has the parts by their names.
            skip: Bool (), on the device: where it holds the iteration does not count. ``None``: it counts.
        """
        counts = torch.ones_like(self.num_iterations) if skip is None else ~skip
        self.num_iterations += counts
        weight = torch.where(counts.bool(), self.weight(self.num_iterations), 0.0)
        present, averages = dict(network.named_parameters()), dict(self.named_parameters())
        steps = torch._foreach_sub([present[name] for name in averages], list(averages.values()))
        torch._foreach_mul_(steps, weight)
        torch._foreach_add_(list(averages.values()), steps)
