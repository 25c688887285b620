"""Averages of weights over the iterations, and which weights training and inference use."""

import pytest
import torch
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from torch import nn

from nnunet_ad.network.averaging import MovingAverage, exponential, polynomial
from nnunet_ad.network.checkpoint import inference_weights
from nnunet_ad.network.network import ADNetwork


def line() -> nn.ModuleDict:
    return nn.ModuleDict({"line": nn.Linear(1, 1, bias=False)})


def averages(weight, values, skip=None) -> list[float]:
    network = line()
    average, found = MovingAverage(weight, line=network["line"]), []
    for i, value in enumerate(values):
        nn.init.constant_(network["line"].weight, value)
        average.follow(network, None if skip is None else torch.tensor(skip[i]))
        found.append(average["line"].weight.item())
    return found


def test_a_share_of_one_is_the_plain_mean():
    assert averages(polynomial(1.0), [1, 2, 6]) == pytest.approx([1, 1.5, 3])


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_the_age_of_the_average_is_a_share_of_any_number_of_iterations(share):
    """The mean age of the averaged values is share / (1 + share) of the iterations."""
    for num in (1000, 4000):
        lag = num - averages(polynomial(share), range(1, num + 1))[-1]
        assert lag / num == pytest.approx(share / (1 + share), rel=0.1)


@pytest.mark.parametrize("share", [-0.1, 0, 1.1])
def test_a_share_beyond_its_range_is_refused(share):
    with pytest.raises(ValueError, match="expected above 0 and at most 1"):
        polynomial(share)


def test_the_exponential_average_begins_as_a_plain_mean():
    values = [3.0, 5.0, 1.0, 2.0, 8.0]
    expected, found = None, averages(exponential(0.6), values)
    for n, value in enumerate(values, 1):
        weight = max(1 / n, 0.4)
        expected = value if n == 1 else (1 - weight) * expected + weight * value
        assert found[n - 1] == pytest.approx(expected)


def test_skipped_iterations_do_not_count():
    kept = averages(polynomial(0.5), [1, 2, 6])
    found = averages(polynomial(0.5), [1, 100, 2, 100, 6], skip=[False, True, False, True, False])
    assert found == pytest.approx([kept[0], kept[0], kept[1], kept[1], kept[2]])


def make_network() -> ADNetwork:
    encoder = PlainConvEncoder(
        1, 2, [4, 6], nn.Conv3d, 3, [1, 2], 1, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU, return_skips=True,
    )  # fmt: skip
    return ADNetwork(encoder, 3, [1], averaging=0.5)


@pytest.fixture
def averaging() -> ADNetwork:
    """A network after two iterations, in the second of which all weights had changed."""
    network = make_network()
    network.update_average()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    network.update_average()
    return network


def test_training_uses_the_present_weights_and_inference_the_averages(averaging):
    x = torch.randn(1, 1, 8, 8, 8)
    averaging.train()
    torch.testing.assert_close(averaging(x), averaging.unlabeled_decoder(averaging.encoder(x)))
    averaging.eval()
    encoder, decoder = averaging.inference_path
    torch.testing.assert_close(averaging(x), decoder(encoder(x)))
    assert not torch.allclose(averaging(x), averaging.unlabeled_decoder(averaging.encoder(x)))


def test_compiled_parts_average_what_they_averaged(averaging):
    network = averaging.eval().double()
    x = torch.randn(1, 1, 8, 8, 8).double()
    expected = network(x)
    network.compile_parts(backend="eager")
    torch.testing.assert_close(network(x), expected)
    network.update_average()
    assert not torch.allclose(network(x), expected)


def test_averages_are_of_what_inference_uses_and_learn_nothing(averaging):
    own = dict(averaging.named_parameters())
    copies = dict(averaging.average.named_parameters())
    used = inference_weights({name: weight for name, weight in own.items() if not name.startswith("average.")})
    assert set(copies) == set(used)
    assert not any(copy.requires_grad for copy in copies.values())


def test_the_averages_are_what_is_exported(averaging):
    x = torch.randn(1, 1, 8, 8, 8)
    weights = inference_weights(averaging.state_dict())
    receiver = make_network()
    receiver.load_state_dict(weights)
    torch.testing.assert_close(receiver.eval()(x), averaging.eval()(x))
    assert not any(name.startswith("average") for name in receiver.state_dict())


def test_a_checkpoint_keeps_the_averages_and_how_many_iterations_they_are_of(averaging):
    again = make_network()
    again.load_state_dict(averaging.state_dict())
    assert int(again.average.num_iterations) == 2
    for network in (averaging, again):
        network.update_average()
    for first, second in zip(averaging.average.parameters(), again.average.parameters(), strict=True):
        torch.testing.assert_close(first, second)


def test_an_average_that_begins_again_forgets_what_came_before():
    network = line()
    average = MovingAverage(polynomial(1.0), line=network["line"])
    for value in (1.0, 2.0):
        nn.init.constant_(network["line"].weight, value)
        average.follow(network)
    average.begin()
    nn.init.constant_(network["line"].weight, 7.0)
    average.follow(network)
    assert average["line"].weight.item() == 7.0
