"""SGD: a GPU's kernel takes the steps of torch's plain one, and none where the gradient scaler finds an overflow."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from nnunet_ad.trainer.optimizer import sgd

CUDA = torch.device("cuda")  # only names the kernel here: torch's is there for a CPU, too


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Conv3d(3, 4, 3).to(memory_format=torch.channels_last_3d)


def groups(net: nn.Module) -> list[dict]:
    return [{"params": [net.weight]}, {"params": [net.bias], "lr": 0.3}]


def step(net: nn.Module, optimizer: torch.optim.Optimizer, scaler, overflow: bool, seed: int) -> None:
    image = torch.randn((2, 3, 6, 6, 6), generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    loss = net(image).square().mean() * (torch.inf if overflow else 1)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


def test_momentum_begins_as_zero():
    optimizer = sgd(groups(network()), 0.1, 0.9, 0.01, CUDA)
    assert len(optimizer.state) == 2
    assert all((state["momentum_buffer"] == 0).all() for state in optimizer.state.values())


def test_parameters_that_learn_nothing_have_no_momentum():
    net = network()
    net.bias.requires_grad_(False)
    assert list(sgd(groups(net), 0.1, 0.9, 0.01, CUDA).state) == [net.weight]


def test_momentum_is_laid_out_as_the_weights_are():
    net = network()
    optimizer = sgd(groups(net), 0.1, 0.9, 0.01, CUDA)
    saved = optimizer.state_dict()
    momentum = torch.randn(net.weight.shape)
    saved["state"][0]["momentum_buffer"] = momentum
    optimizer.load_state_dict(saved)
    loaded = optimizer.state[net.weight]["momentum_buffer"]
    assert loaded.stride() == net.weight.stride() != momentum.stride()
    assert torch.equal(loaded, momentum)


@pytest.mark.parametrize("overflows", [(), (0,), (0, 1, 3), (2,)])
@pytest.mark.parametrize("reload_before", [None, 0, 2])
def test_the_kernel_takes_the_steps_of_the_plain_one(overflows, reload_before):
    plain, fused = network(), network()
    plain_optimizer = torch.optim.SGD(groups(plain), 0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    optimizer = sgd(groups(fused), 0.1, 0.9, 0.01, CUDA)
    scalers = [torch.amp.GradScaler("cpu", init_scale=4.0) for _ in range(2)]
    for i in range(5):
        if i == reload_before:  # the checkpoint of a training on a CPU
            saved = deepcopy(plain_optimizer.state_dict())
            optimizer = sgd(groups(fused), 0.1, 0.9, 0.01, CUDA)
            optimizer.load_state_dict(saved)
        step(plain, plain_optimizer, scalers[0], i in overflows, seed=i)
        step(fused, optimizer, scalers[1], i in overflows, seed=i)
        torch.testing.assert_close(fused.weight, plain.weight, rtol=0, atol=1e-6)
        torch.testing.assert_close(fused.bias, plain.bias, rtol=0, atol=1e-6)
    assert all(group["fused"] for group in optimizer.param_groups)


def test_no_overflow_is_read_back(monkeypatch):
    """A tensor that does not say its value stands for one on a device that is not waited for."""
    net = network()
    optimizer = sgd(groups(net), 0.1, 0.9, 0.01, CUDA)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    step(net, optimizer, scaler, overflow=False, seed=0)
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: pytest.fail("a value was read back"))
    step(net, optimizer, scaler, overflow=True, seed=1)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_on_a_cpu_the_step_is_torchs_own_after_a_checkpoint_of_a_gpu_too(momentum):
    net = network()
    optimizer = sgd(groups(net), 0.1, momentum, 0.01, torch.device("cpu"))
    assert not optimizer.state
    optimizer.load_state_dict(sgd(groups(net), 0.1, momentum, 0.01, CUDA).state_dict())
    assert all(group["fused"] is None and group["foreach"] is None for group in optimizer.param_groups)
    step(net, optimizer, torch.amp.GradScaler("cpu", init_scale=4.0), overflow=False, seed=0)
