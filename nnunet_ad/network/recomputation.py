"""What a stage keeps for its backward pass: everything, or its input only."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint


class Stages(nn.Module):
    """Base of networks that run stage by stage, and may compute what is inside a stage again when they go back.

    Known as activation checkpointing (Chen et al. 2016): less memory for one more forward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recomputes = False

    def run(self, stage: Callable, *inputs: Any) -> Any:
        """Call a stage, of which only inputs and output are kept if this network recomputes."""
        return checkpoint(stage, *inputs, use_reentrant=False) if self.recomputes else stage(*inputs)


def recompute_activations(network: nn.Module) -> None:
    """Let all parts of a network that run stage by stage compute what is inside of the stages again."""
    for module in network.modules():
        if isinstance(module, Stages):
            module.recomputes = True
        elif isinstance(module, _DropoutNd):
            module.inplace = False  # or the second pass would start from values that are already dropped
