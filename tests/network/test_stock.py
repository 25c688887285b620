"""The network as nnU-Net's own: the same function, whatever the plans."""

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet, ResidualUNet
from torch import nn

from nnunet_ad.network.network import ADNetwork
from nnunet_ad.network.stock import copy_into_stock, with_added_skips

ARCHITECTURES = {
    PlainConvUNet: {"n_conv_per_stage": [1, 2, 2], "n_conv_per_stage_decoder": [2, 1]},
    ResidualEncoderUNet: {"n_blocks_per_stage": [1, 2, 1], "n_conv_per_stage_decoder": [1, 2]},
    ResidualUNet: {"n_blocks_per_stage": [1, 1, 1], "n_conv_per_stage_decoder": [1, 1]},
}


def build(architecture: type[nn.Module], dim: int = 3, **more) -> nn.Module:
    conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dim == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    return architecture(
        input_channels=2, n_stages=3, features_per_stage=[4, 6, 8], conv_op=conv, kernel_sizes=3, strides=[1, 2, 2],
        num_classes=3, conv_bias=True, norm_op=norm, norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True}, deep_supervision=False, **(ARCHITECTURES[architecture] | more),
    )  # fmt: skip


def trained(architecture: type[nn.Module], averaging: float = 0.0, **options) -> ADNetwork:
    """A network with three decoders that differ, and averages of no present weights."""
    num_convs = ARCHITECTURES[architecture]["n_conv_per_stage_decoder"]
    network = ADNetwork(build(architecture, **options).encoder, 3, num_convs, averaging=averaging)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return network.eval()


@pytest.mark.parametrize("averaging", [0.0, 0.5], ids=["present", "averaged"])
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("architecture", [PlainConvUNet, ResidualEncoderUNet])
def test_nnunets_network_computes_the_same(architecture, dim, averaging):
    network, stock = trained(architecture, averaging, dim=dim), build(architecture, dim).eval()
    x = torch.randn(2, 2, *[16] * dim)
    expected = network(x)
    assert not torch.allclose(stock(x), expected, atol=0.1)
    copy_into_stock(network, stock)
    torch.testing.assert_close(stock.double()(x.double()), network.double()(x.double()))
    torch.testing.assert_close(stock.float()(x), expected, atol=1e-4, rtol=1e-4)


def test_it_does_so_with_dropout_in_the_plans():
    dropout = {"dropout_op": nn.Dropout3d, "dropout_op_kwargs": {"p": 0.5}}
    network, stock = trained(PlainConvUNet, **dropout), build(PlainConvUNet, **dropout).eval()
    copy_into_stock(network, stock)
    x = torch.randn(1, 2, 16, 16, 16)
    torch.testing.assert_close(stock(x), network(x), atol=1e-4, rtol=1e-4)


def test_nothing_is_left_of_how_the_other_network_was_drawn():
    """Heads of deep supervision, which are never used, would make each file another one."""
    network = trained(PlainConvUNet)
    first, second = build(PlainConvUNet), build(PlainConvUNet)
    for stock in (first, second):
        copy_into_stock(network, stock)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name


@pytest.mark.parametrize("architecture", [PlainConvUNet, ResidualEncoderUNet])
def test_the_kernels_are_found_again(architecture):
    network, stock = trained(architecture), build(architecture)
    copy_into_stock(network, stock)
    found = with_added_skips(stock.state_dict())
    decoder = network.unlabeled_decoder
    for name, weight in decoder.stages.state_dict().items():
        assert torch.equal(found[f"decoder.stages.{name}"], weight), name
    for name, weight in network.encoder.image_encoder.state_dict().items():
        assert torch.equal(found[f"encoder.{name}"], weight), name


def test_a_decoder_of_another_kind_is_refused():
    network = trained(ResidualUNet)
    with pytest.raises(ValueError, match="the plans name ResidualUNet, whose decoder in nnU-Net computes something"):
        copy_into_stock(network, build(ResidualUNet))
