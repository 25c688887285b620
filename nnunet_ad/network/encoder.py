"""The encoder that all flows share: nnU-Net's own, with a second way in for an image with a noisy label."""

from copy import deepcopy

from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.residual import BasicBlockD, BottleneckD
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from torch import Tensor, nn

from nnunet_ad.network.channels_last import channels_last
from nnunet_ad.network.recomputation import Stages
from nnunet_ad.network.step_embedding import StepEmbedding, StepModulation

_EMBEDDING_DIM = 128
_DENOISING_PARTS = ("label_conv", "separate_stem", "step_embedding", "modulations")


class ADEncoder(Stages):
    """E(·; ξ): an encoder from nnU-Net plans with two stems, conditioned on the step in the denoising flow only.

    ``encoder(image)`` is exactly what nnU-Net's encoder computes. ``encoder(image, y_t, t)`` enters by the noisy stem
    and passes the same stages; the step enters after the first normalisation of the stem and of each further stage.
    The noisy stem convolves image and noisy label together, which is a convolution of either and a sum. Where it shares
    the image's part, and all behind the sum, with the image-only stem, what the unlabelled flow teaches the first
    features of an image reaches the denoising flow, too.

    Args:
        image_encoder: nnU-Net's encoder of either kind; its stem is the image-only one.
        num_classes: K, channels of a noisy label.
        shared_stem: Whether the noisy stem is the image-only one with a convolution of the noisy label added.

    Raises:
        ValueError: If the encoder is of another kind, normalises over the batch or by running statistics, or normalises
            after the nonlinearity.
    """

    def __init__(self, image_encoder: PlainConvEncoder | ResidualEncoder, num_classes: int, shared_stem: bool = True):
        super().__init__()
        if not isinstance(image_encoder, (PlainConvEncoder, ResidualEncoder)):
            raise ValueError(
                f"the plans name an encoder {type(image_encoder).__name__}; "
                "nnUNetTrainerAD needs plans of a PlainConvUNet or a ResidualEncoderUNet"
            )
        if issubclass(image_encoder.norm_op or nn.Identity, nn.modules.batchnorm._BatchNorm):
            # Public code: batch statistics mix labelled, unlabelled and noisy inputs.
            raise ValueError(
                "the plans normalise over the batch, which would mix the statistics of labelled, unlabelled and noisy "
                "inputs; use plans with instance normalisation (nnU-Net's default)"
            )
        if any(getattr(module, "track_running_stats", False) for module in image_encoder.modules()):
            raise ValueError(
                "the plans keep running statistics of the normalisation (track_running_stats), which would mix those "
                "of labelled, unlabelled and noisy inputs; use plans with instance normalisation without running "
                "statistics (nnU-Net's default)"
            )
        image_stem = _first_unit(image_encoder)
        if image_encoder.norm_op is not None and isinstance(image_stem.all_modules[-1], image_encoder.norm_op):
            raise ValueError(
                "the plans put the nonlinearity in front of the normalisation (nonlin_first), so that the diffusion "
                "step could not enter between them; use plans with the normalisation first (nnU-Net's default)"
            )
        self.image_encoder = image_encoder
        conv = image_stem.conv
        self.label_conv = type(conv)(
            num_classes, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False
        )
        self.separate_stem = None if shared_stem else deepcopy(image_stem)
        self.step_embedding = StepEmbedding(_EMBEDDING_DIM)
        channels = [image_stem.output_channels]
        channels += [_first_unit(stage).output_channels for stage in image_encoder.stages[1:]]
        self.modulations = nn.ModuleList(StepModulation(_EMBEDDING_DIM, c) for c in channels)

    @property
    def denoising_parts(self) -> list[nn.Module]:
        """What only the denoising flow uses."""
        return [part for name in _DENOISING_PARTS if (part := getattr(self, name)) is not None]

    def keep_image_parts(self) -> None:
        """Drop what only the denoising flow uses."""
        for name in _DENOISING_PARTS:
            if hasattr(self, name):
                delattr(self, name)

    @property
    def noisy_stem(self) -> ConvDropoutNormReLU:
        """What convolves the image in the denoising flow, and normalises the sum with the convolved noisy label."""
        return self.image_stem if self.separate_stem is None else self.separate_stem

    @property
    def image_stem(self) -> ConvDropoutNormReLU:
        """The first convolution of nnU-Net's encoder, with normalisation and nonlinearity."""
        return _first_unit(self.image_encoder)

    def forward(self, image: Tensor, noisy_label: Tensor | None = None, t: Tensor | None = None) -> list[Tensor]:
        """Return the features of each stage, full resolution first.

        Args:
            image: x (B, C, *spatial).
            noisy_label: y_t (B, K, *spatial); given in the denoising flow only.
            t: Steps (B,), integer; given in the denoising flow only.
        """
        if noisy_label is None:
            return self._encode_image(channels_last(image))
        return self.encode_noisy(self.image_part(image), noisy_label, t)

    def image_part(self, image: Tensor) -> Tensor:
        """Return what the noisy stem's convolution makes of x (B, C, *spatial), the same at all steps."""
        return self.noisy_stem.conv(channels_last(image))

    def encode_noisy(self, image_part: Tensor, noisy_label: Tensor, t: Tensor) -> list[Tensor]:
        """Return the features of :meth:`forward` from :meth:`image_part` of the image."""
        return self.encode_convolved(image_part + self.label_conv(channels_last(noisy_label)), t)

    def encode_convolved(self, x: Tensor, t: Tensor) -> list[Tensor]:
        """Return the features of :meth:`forward` from what the noisy stem's convolution makes of [x, y_t]."""
        embedding = self.step_embedding(t)
        stem_modulation, *modulations = self.modulations
        skips = [self.run(self._finish_first_stage, x, stem_modulation, embedding)]
        for stage, modulation in zip(self.image_encoder.stages[1:], modulations, strict=True):
            skips.append(self.run(_run_modulated, stage, skips[-1], modulation, embedding))
        return skips

    def _encode_image(self, x: Tensor) -> list[Tensor]:
        stem = getattr(self.image_encoder, "stem", None)
        if stem is not None:
            x = self.run(stem, x)
        skips = []
        for stage in self.image_encoder.stages:
            x = self.run(stage, x)
            skips.append(x)
        return skips

    def _finish_first_stage(self, x: Tensor, modulation: StepModulation, embedding: Tensor) -> Tensor:
        x = _run_behind_convolution(self.noisy_stem, x, modulation, embedding)
        return _run_units(_units_after_stem(self.image_encoder), x)


Unit = ConvDropoutNormReLU | BasicBlockD | BottleneckD


def _units(module: nn.Module) -> list[Unit]:
    """Return the blocks of a stage (or of several) in the order of computation."""
    units: list[Unit] = []
    for child in module.children():
        units += [child] if isinstance(child, Unit) else _units(child)
    return units


def _first_unit(module: nn.Module) -> ConvDropoutNormReLU:
    """Return the first convolution with normalisation and nonlinearity."""
    stem = getattr(module, "stem", None)
    unit = _units(stem if stem is not None else module)[0]
    return unit if isinstance(unit, ConvDropoutNormReLU) else unit.conv1


def _units_after_stem(encoder: PlainConvEncoder | ResidualEncoder) -> list[Unit]:
    units = _units(encoder.stages[0])
    return units if isinstance(encoder, ResidualEncoder) else units[1:]


def _run_units(units: list[Unit], x: Tensor) -> Tensor:
    for unit in units:
        x = unit(x)
    return x


def _run_modulated(stage: nn.Module, x: Tensor, modulation: StepModulation, embedding: Tensor) -> Tensor:
    """Run a stage with the modulation in its first block."""
    first, *others = _units(stage)
    return _run_units(others, _run_unit(first, x, modulation, embedding))


def _run_unit(unit: Unit, x: Tensor, modulation: StepModulation, embedding: Tensor) -> Tensor:
    """Run a block with the modulation between its first normalisation and the nonlinearity behind it."""
    if isinstance(unit, ConvDropoutNormReLU):
        return _run_behind_convolution(unit, unit.conv(x), modulation, embedding)
    residual = unit.skip(x)
    out = unit.conv2(_run_unit(unit.conv1, x, modulation, embedding))
    if isinstance(unit, BottleneckD):
        return unit.nonlin3(unit.conv3(out) + residual)
    return unit.nonlin2(out + residual)


def _run_behind_convolution(
    unit: ConvDropoutNormReLU, x: Tensor, modulation: StepModulation, embedding: Tensor
) -> Tensor:
    _, *until_norm, nonlinearity = unit.all_modules
    for module in until_norm:
        x = module(x)
    return nonlinearity(modulation(x, embedding))
