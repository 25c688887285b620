"""One decoder: transposed convolutions with additive skips, from nnU-Net's blocks."""

from collections.abc import Sequence

from dynamic_network_architectures.building_blocks.helper import get_matching_convtransp
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from torch import Tensor, nn

from nnunet_ad.network.recomputation import Stages


class ADDecoder(Stages):
    """D(·): from the features of all stages to logits at full resolution.

    As in V-Net, and unlike in nnU-Net, what comes from below and what comes from the skip are added, not concatenated.

    Args:
        encoder: The encoder whose features come in; read for its sizes and operators, not kept.
        num_classes: K.
        num_convs_per_stage: Convolutions of each stage, lowest resolution first (as in the plans).
    """

    def __init__(
        self, encoder: PlainConvEncoder | ResidualEncoder, num_classes: int, num_convs_per_stage: Sequence[int]
    ):
        super().__init__()
        upsample = get_matching_convtransp(conv_op=encoder.conv_op)
        channels = list(encoder.output_channels)
        self.upsamplings, self.stages = nn.ModuleList(), nn.ModuleList()
        for i, num_convs in zip(reversed(range(len(channels) - 1)), num_convs_per_stage, strict=True):
            stride = encoder.strides[i + 1]
            self.upsamplings.append(upsample(channels[i + 1], channels[i], stride, stride, bias=encoder.conv_bias))
            self.stages.append(
                StackedConvBlocks(
                    num_convs,
                    encoder.conv_op,
                    channels[i],
                    channels[i],
                    encoder.kernel_sizes[i],
                    1,
                    encoder.conv_bias,
                    encoder.norm_op,
                    encoder.norm_op_kwargs,
                    encoder.dropout_op,
                    encoder.dropout_op_kwargs,
                    encoder.nonlin,
                    encoder.nonlin_kwargs,
                )
            )
        self.classifier = encoder.conv_op(channels[0], num_classes, 1, bias=True)

    def forward(self, skips: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K, *spatial) from the features of each stage, full resolution first."""
        *skips, x = skips
        for upsampling, stage, skip in zip(self.upsamplings, self.stages, reversed(skips), strict=True):
            x = self.run(_run_stage, upsampling, stage, x, skip)
        return self.classifier(x)


def _run_stage(upsampling: nn.Module, stage: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
    return stage(upsampling(x) + skip)
