"""What the processes of a distributed training do together.

Each process has a part of the joint batch and computes what its own part gives to the gradient of a loss over the joint
batch; the sum over the processes is then the gradient that one process would have computed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

_PATIENCE = timedelta(days=7)


class _JointSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


def joint_sum(own: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes, whose gradient goes to this process's own part."""
    return _JointSum.apply(own)


def add_over_processes_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over the processes, in place.

    The host's wrapper averages gradients in the backward pass of its one forward pass; a train step here has several.
    """
    for work in [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
        work.wait()


def own_device(device: torch.device) -> torch.device:
    """Return where this process computes: the GPU that it was started with, or the device itself if it is not a GPU."""
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device


@contextmanager
def first_process_first() -> Iterator[None]:
    """Let the first process go through a block before the others start on it, however long that takes.

    The processes wait in a group of their own, since GPUs would give up waiting after ten minutes. If the first one
    dies, the others' connection breaks, and they fail, too.
    """
    if not distributed.is_initialized():
        yield
        return
    group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    if distributed.get_rank() != 0:
        distributed.barrier(group)
    yield
    if distributed.get_rank() == 0:
        distributed.barrier(group)
    distributed.destroy_process_group(group)
