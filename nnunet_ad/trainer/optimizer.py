"""Stochastic gradient descent; on a GPU nothing of a step is read back."""

import torch


def sgd(
    groups: list[dict], learning_rate: float, momentum: float, weight_decay: float, device: torch.device
) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum for groups of parameters on a device.

    On CUDA a step is one kernel for many parameters, which itself changes nothing where the host's gradient scaler has
    found an overflow. Otherwise the scaler reads that back before each step, and the device waits for the next one.
    """
    fused = device.type == "cuda"
    optimizer = torch.optim.SGD(
        groups, learning_rate, momentum, weight_decay=weight_decay, nesterov=momentum > 0, fused=fused
    )
    if fused:
        _prepare_fused(optimizer)
        # A checkpoint brings its own way to step along, and no momentum if it is of before the first step.
        optimizer.register_load_state_dict_post_hook(_prepare_fused)
    return optimizer


def _prepare_fused(optimizer: torch.optim.SGD) -> None:
    """Let momentum begin as zero: torch's would begin as whatever memory holds if the first step overflows."""
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = True, False
        for parameter in group["params"]:
            if parameter.requires_grad and group["momentum"]:
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
