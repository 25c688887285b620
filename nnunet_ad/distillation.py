"""Distillation of the two labelled decoders into the unlabelled one."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def distill_(
    theta: nn.Module, xi: nn.Module, psi: nn.Module, momentum: float = 0.99, skip: Tensor | None = None
) -> None:
    """Move θ towards the mean of its teachers, in place: θ ← w·θ + (1 - w)·(ξ + ψ)/2.

    Parameters that have the same name and shape in all three modules take part; others and buffers stay.

    Args:
        theta: The unlabelled decoder; changed.
        xi: The denoising decoder.
        psi: The difficulty decoder.
        momentum: w, in [0, 1].
        skip: Bool (), on the device: where it holds θ stays. ``None``: never.

    Raises:
        ValueError: If ``momentum`` is outside [0, 1].
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum is {momentum}; expected 0 to 1")
    of_xi, of_psi = dict(xi.named_parameters()), dict(psi.named_parameters())
    shared = [
        (parameter, of_xi[name], of_psi[name])
        for name, parameter in theta.named_parameters()
        if name in of_xi
        and name in of_psi
        and parameter.shape == of_xi[name].shape
        and parameter.shape == of_psi[name].shape
    ]
    if not shared:
        return
    students, first, second = (list(parameters) for parameters in zip(*shared, strict=True))
    teachers = torch._foreach_add(first, second)
    if skip is None:
        torch._foreach_mul_(students, momentum)
        torch._foreach_add_(students, teachers, alpha=(1 - momentum) / 2)
        return
    torch._foreach_mul_(students, torch.where(skip, 1.0, momentum))
    torch._foreach_mul_(teachers, torch.where(skip, 0.0, (1 - momentum) / 2))
    torch._foreach_add_(students, teachers)
