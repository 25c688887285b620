from copy import deepcopy

import pytest
import torch
from torch import nn

from nnunet_ad.network.onednn import Conv3d, let_onednn_convolve

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


def operators(network: nn.Module, x: torch.Tensor) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        network(x)
    return {event.key for event in profile.key_averages()}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.Conv3d(4, 3, (1, 3, 3), stride=(1, 2, 2), bias=False))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_a_single_sample_gives_the_same_by_another_way(network, layout):
    x = torch.randn(1, 2, 6, 8, 10).contiguous(memory_format=layout)
    ours = deepcopy(network)
    let_onednn_convolve(ours)
    assert all(type(module) is Conv3d for module in ours)
    assert list(ours.state_dict()) == list(network.state_dict())
    results = []
    for net in (network, ours):
        image = x.clone(memory_format=torch.preserve_format).requires_grad_()
        output = net(image)
        output.square().sum().backward()
        results.append([output, image.grad, *(p.grad for p in net.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    assert any("slow_conv3d" in name for name in operators(network, x))
    assert not any("slow_conv3d" in name for name in operators(ours, x))


@pytest.mark.parametrize("size", [(2, 2, 6, 8, 10), (1, 2, 6, 8, 10)])
def test_other_types_and_batches_are_torchs_own(network, size):
    x = torch.randn(size, dtype=torch.float64 if size[0] == 1 else torch.float32)
    network = network.to(x.dtype)
    expected = network(x)
    let_onednn_convolve(network)
    assert torch.equal(network(x), expected)


def test_the_compiler_reads_it_in_one_piece(network):
    torch._dynamo.reset()
    explanation = torch._dynamo.explain(let_onednn_convolve(network).eval())(torch.randn(1, 2, 6, 8, 10))
    assert explanation.graph_break_count == 0
