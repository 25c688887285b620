from copy import deepcopy

import pytest
import torch
from torch import nn

from nnunet_ad.distillation import distill_


def make_module(channels: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, channels, 3), nn.InstanceNorm2d(channels, affine=True), nn.Conv2d(channels, 2, 1))


def test_moves_towards_the_mean_of_the_teachers():
    theta, xi, psi = make_module(), make_module(), make_module()
    before = deepcopy(theta)
    distill_(theta, xi, psi, momentum=0.9)
    for new, old, a, b in zip(theta.parameters(), before.parameters(), xi.parameters(), psi.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * (a + b) / 2)


def test_leaves_teachers_gradients_and_the_graph_alone():
    theta, xi, psi = make_module(), make_module(), make_module()
    teachers = deepcopy([xi, psi])
    theta(torch.randn(1, 2, 8, 8)).sum().backward()
    gradients = [p.grad.clone() for p in theta.parameters()]
    distill_(theta, xi, psi)
    for teacher, copy in zip([xi, psi], teachers, strict=True):
        for a, b in zip(teacher.parameters(), copy.parameters(), strict=True):
            torch.testing.assert_close(a, b)
    for parameter, gradient in zip(theta.parameters(), gradients, strict=True):
        assert parameter.is_leaf
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_the_ends_of_the_range(momentum):
    theta, xi, psi = make_module(), make_module(), make_module()
    before = deepcopy(theta)
    distill_(theta, xi, psi, momentum)
    for new, old, a, b in zip(theta.parameters(), before.parameters(), xi.parameters(), psi.parameters(), strict=True):
        torch.testing.assert_close(new, old if momentum else (a + b) / 2)


def test_parameters_of_another_shape_or_name_stay():
    theta, xi, psi = make_module(3), make_module(3), make_module(4)
    before = deepcopy(theta)
    distill_(theta, xi, psi, momentum=0.5)
    changed = {
        n for (n, a), b in zip(theta.named_parameters(), before.parameters(), strict=True) if not torch.equal(a, b)
    }
    assert changed <= {"2.bias"}
    torch.testing.assert_close(theta[2].bias, 0.5 * before[2].bias + 0.25 * (xi[2].bias + psi[2].bias))


def test_momentum_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"momentum is 1\.5"):
        distill_(make_module(), make_module(), make_module(), 1.5)


def test_a_skipped_distillation_changes_nothing_and_another_one_is_as_usual():
    theta, xi, psi = make_module(), make_module(), make_module()
    skipped, usual = deepcopy(theta), deepcopy(theta)
    distill_(skipped, xi, psi, 0.9, skip=torch.tensor(True))
    assert all(torch.equal(a, b) for a, b in zip(skipped.parameters(), theta.parameters(), strict=True))
    distill_(usual, xi, psi, 0.9, skip=torch.tensor(False))
    distill_(theta, xi, psi, 0.9)
    for a, b in zip(usual.parameters(), theta.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_parameters_that_a_teacher_lacks_stay():
    theta, xi, psi = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    bias, weight = theta.bias.clone(), theta.weight.clone()
    distill_(theta, xi, psi, momentum=0.5)
    assert torch.equal(theta.bias, bias)
    assert not torch.equal(theta.weight, weight)
    distill_(theta, nn.ReLU(), psi, momentum=0.5)  # nothing is shared
    assert torch.equal(theta.bias, bias)
