import pytest
import torch
from torch import nn

from nnunet_ad.network.channels_last import (
    InstanceNorm2d,
    InstanceNorm3d,
    channels_last,
    fast_norm,
    keep_weights_channels_last,
)

MODULE = "torch.nn.modules.instancenorm"
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}
SIZES = {2: (3, 4, 12, 10), 3: (3, 4, 6, 8, 10)}


def norms(dim: int) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    ours = {2: InstanceNorm2d, 3: InstanceNorm3d}[dim](4, eps=1e-5, affine=True)
    theirs = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dim](4, eps=1e-5, affine=True)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_values_and_gradients_are_those_of_torch(dim, layout):
    ours, theirs = norms(dim)
    x = 3 * torch.randn(SIZES[dim]) + 7
    if layout == "channels last":
        x = x.contiguous(memory_format=FORMATS[dim])
    upstream = torch.randn(SIZES[dim])
    results = []
    for norm in (ours, theirs):
        image = x.clone(memory_format=torch.preserve_format).requires_grad_()
        output = norm(image)
        output.backward(upstream)
        results.append((output.detach(), image.grad, norm.weight.grad, norm.bias.grad))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dim", [2, 3])
def test_a_compiler_sees_a_formula_with_the_same_values(dim):
    ours, theirs = norms(dim)
    x = (3 * torch.randn(SIZES[dim]) + 7).contiguous(memory_format=FORMATS[dim])
    operations = []

    def record(graph, _):
        operations.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    compiled = torch.compile(ours, backend=record)(x)
    torch.testing.assert_close(compiled, theirs(x), rtol=1e-4, atol=2e-5)
    assert compiled.is_contiguous(memory_format=FORMATS[dim])
    assert torch.var_mean in operations and nn.functional.batch_norm not in operations


@pytest.mark.parametrize("dim", [2, 3])
def test_the_output_has_its_channels_last(dim):
    ours, _ = norms(dim)
    assert ours(torch.randn(SIZES[dim])).is_contiguous(memory_format=FORMATS[dim])


def test_a_large_mean_does_not_swallow_the_variance():
    ours = InstanceNorm3d(4, affine=True)
    x = torch.randn(1, 4, 16, 32, 32) + 300
    expected = nn.functional.instance_norm(x.double())
    assert (ours(x) - expected).abs().max() < 1e-2


def test_bfloat16_stays_bfloat16():
    ours, theirs = norms(3)
    x = torch.randn(SIZES[3]).bfloat16()
    assert ours(x).dtype == torch.bfloat16
    torch.testing.assert_close(ours(x).float(), theirs(x.float()), rtol=0.05, atol=0.05)


def test_tensors_on_other_devices_are_left_alone():
    x = torch.empty(1, 2, 4, 4, 4, device="meta")
    assert channels_last(x) is x


@pytest.mark.parametrize(
    ("named", "built"),
    [
        (f"{MODULE}.InstanceNorm3d", "nnunet_ad.network.channels_last.InstanceNorm3d"),
        ("torch.nn.InstanceNorm2d", "nnunet_ad.network.channels_last.InstanceNorm2d"),
        ("torch.nn.BatchNorm3d", "torch.nn.BatchNorm3d"),
        (None, None),
    ],
)
def test_which_normalisation_is_built(named, built):
    assert fast_norm(named) == built


@pytest.mark.parametrize("dim", [2, 3])
def test_weights_are_stored_channels_last_and_stay_the_same_parameters(dim):
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dim](3, 4, 3, padding=1)
    x = torch.randn(1, 3, *[8] * dim)
    expected, weight, values = conv(x), conv.weight, conv.weight.detach().clone()
    keep_weights_channels_last(conv)
    assert conv.weight is weight and weight.is_contiguous(memory_format=FORMATS[dim])
    torch.testing.assert_close(weight, values, rtol=0, atol=0)
    torch.testing.assert_close(conv(x), expected)
    conv.load_state_dict(nn.Module.state_dict({2: nn.Conv2d, 3: nn.Conv3d}[dim](3, 4, 3)))
    assert conv.weight.is_contiguous(memory_format=FORMATS[dim])  # loading keeps it so
