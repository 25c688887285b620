"""Stochastic gradient descent; on a GPU nothing of a step is read back."""

import torch


def sgd(
    groups: list[dict], learning_rate: float, momentum: float, weight_decay: float, device: torch.device
) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum for groups of parameters on a device.

    On CUDA a step is one kernel for many parameters, which itself changes nothing where the host's gradient scaler has
    found an overflow. Otherwise the scaler reads that back before each step, and the device waits for the next one.
    A checkpoint of another device can be loaded.
    """
    fused = device.type == "cuda"
    optimizer = torch.optim.SGD(
        groups, learning_rate, momentum, weight_decay=weight_decay, nesterov=momentum > 0, fused=fused or None
    )

    def step_as_on_this_device(optimizer: torch.optim.SGD) -> None:
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = fused or None, None
            if fused and group["momentum"]:
                _prepare_momentum(optimizer, [p for p in group["params"] if p.requires_grad])

    step_as_on_this_device(optimizer)
    optimizer.register_load_state_dict_post_hook(step_as_on_this_device)
    return optimizer


def _prepare_momentum(optimizer: torch.optim.SGD, parameters: list[torch.Tensor]) -> None:
    """Store momentum as the kernel needs it: laid out in memory as the parameter is, and zero before the first step.

    torch's own begins as whatever memory holds if the first step overflows.
    """
    for parameter in parameters:
        state, momentum = optimizer.state[parameter], torch.zeros_like(parameter)
        if state.get("momentum_buffer") is not None:
            momentum.copy_(state["momentum_buffer"])
        state["momentum_buffer"] = momentum
