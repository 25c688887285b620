"""D_θ(E(x)) as nnU-Net's own network, which any installation of nnU-Net builds: the same function, other weights."""

import re
from collections.abc import Mapping

import torch
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor, nn

from nnunet_ad.network.network import ADNetwork

_FIRST_CONVOLUTION = re.compile(r"decoder\.stages\.\d+\.convs\.0\.(conv|all_modules\.0)\.weight")


@torch.no_grad()
def copy_into_stock(network: ADNetwork, stock: nn.Module) -> None:
    """Give nnU-Net's network the weights with which it computes what ``network`` does in evaluation.

    nnU-Net concatenates what comes from below, x, and the skip, s, where our decoder adds them. A convolution of a
    concatenation is the sum of two convolutions, so that it is the same with our kernel W for either:
    [W, W] * [x, s] = W * x + W * s = W * (x + s). Results differ by rounding only.

    Args:
        network: What is trained.
        stock: Of the same plans; its heads at lower resolutions, which only deep supervision uses, become zeros.

    Raises:
        ValueError: If ``stock`` has a decoder of another kind.
    """
    if not isinstance(stock.decoder, UNetDecoder):
        raise ValueError(
            f"the plans name {type(stock).__name__}, whose decoder in nnU-Net computes something else than ours does"
        )
    encoder, decoder = network.inference_path
    stock.encoder.load_state_dict(encoder.image_encoder.state_dict())
    stock.decoder.transpconvs.load_state_dict(decoder.upsamplings.state_dict())
    stages = decoder.stages.state_dict()
    for name, theirs in stock.decoder.stages.state_dict().items():
        if theirs.shape != stages[name].shape:
            stages[name] = torch.cat((stages[name], stages[name]), 1)
    stock.decoder.stages.load_state_dict(stages)
    *others, last = stock.decoder.seg_layers
    last.load_state_dict(decoder.classifier.state_dict())
    for head in others:
        for parameter in head.parameters():
            parameter.zero_()


def with_added_skips(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of :func:`copy_into_stock` with the kernels that they were made of, once."""
    return {
        name: weight[:, : weight.shape[1] // 2] if _FIRST_CONVOLUTION.fullmatch(name) else weight
        for name, weight in weights.items()
    }
