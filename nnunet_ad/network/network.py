"""The network: one encoder, three decoders."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
import torch._functorch.config
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from nnunet_ad.network.averaging import MovingAverage, polynomial
from nnunet_ad.network.checkpoint import inference_weights, is_for_inference_only
from nnunet_ad.network.decoder import ADDecoder
from nnunet_ad.network.encoder import ADEncoder
from nnunet_ad.network.onednn import let_onednn_convolve
from nnunet_ad.network.shared_encoding import SharedEncoding


class ADNetwork(nn.Module):
    """E, D(·; ξ), D(·; ψ) and D(·; θ) of Aggregating & Decoupling.

    Called with an image it is what inference needs, D_θ(E(x)); a train step calls its parts. In evaluation E and D_θ
    are the averaged ones, where weights are averaged.

    Args:
        image_encoder: nnU-Net's encoder with image-only stem.
        num_classes: K.
        num_convs_per_decoder_stage: As in the plans, lowest resolution first.
        shared_stem: See :class:`ADEncoder`.
        averaging: Share of the iterations that the averages of E and D_θ are old, see :func:`polynomial`; 0 is none.

    Attributes:
        encoder: E(·; ξ), shared.
        denoising_decoder: D(·; ξ).
        difficulty_decoder: D(·; ψ).
        unlabeled_decoder: D(·; θ).
        has_dropout: Whether the plans ask for dropout, so that training and prediction differ.
        average: The averages of ``encoder``, without what only the denoising flow uses, and of ``unlabeled_decoder``.
    """

    def __init__(
        self,
        image_encoder: PlainConvEncoder | ResidualEncoder,
        num_classes: int,
        num_convs_per_decoder_stage: Sequence[int],
        shared_stem: bool = True,
        averaging: float = 0.0,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.encoder = ADEncoder(image_encoder, num_classes, shared_stem)
        self.denoising_decoder = ADDecoder(image_encoder, num_classes, num_convs_per_decoder_stage)
        self.encoder.label_conv.apply(InitWeights_He(1e-2))
        self.denoising_decoder.apply(InitWeights_He(1e-2))
        # Distillation averages parameters, which makes sense only if the decoders start from the same ones.
        self.difficulty_decoder = deepcopy(self.denoising_decoder)
        self.unlabeled_decoder = deepcopy(self.denoising_decoder)
        self.average: MovingAverage | None = None
        if averaging:
            self.average = MovingAverage(
                polynomial(averaging), encoder=self.encoder, unlabeled_decoder=self.unlabeled_decoder
            )
            cast(ADEncoder, self.average["encoder"]).keep_image_parts()
        self.has_dropout = any(isinstance(module, _DropoutNd) and module.p > 0 for module in self.modules())
        let_onednn_convolve(self)

    def initialize_decoders_apart(self) -> None:
        """Draw parameters of their own for D_ψ and D_θ, for who wants to see what the common ones are good for."""
        for decoder in (self.difficulty_decoder, self.unlabeled_decoder):
            decoder.apply(InitWeights_He(1e-2))

    @property
    def inference_path(self) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder θ that inference uses: the averaged ones, where weights are averaged."""
        owner = self if self.average is None else self.average
        return owner.get_submodule("encoder"), owner.get_submodule("unlabeled_decoder")

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's, for all weights or those for inference only, which leave of the network what inference needs."""
        if is_for_inference_only(state_dict):
            self._keep_inference_parts()
        elif not hasattr(self, "denoising_decoder"):  # an earlier fold of an ensemble came for inference only
            state_dict = inference_weights(state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def _keep_inference_parts(self) -> None:
        self.average = None
        self.encoder.keep_image_parts()
        for decoder in ("denoising_decoder", "difficulty_decoder"):
            if hasattr(self, decoder):
                delattr(self, decoder)

    def forward(self, image: Tensor) -> Tensor:
        """Return D_θ(E(x)), logits (B, K, *spatial), for images (B, C, *spatial)."""
        encoder, decoder = (self.encoder, self.unlabeled_decoder) if self.training else self.inference_path
        return decoder(encoder(image))

    def update_average(self, skip: Tensor | None = None) -> None:
        """Let the averages follow, once an iteration, except where ``skip``, a bool () on the device, holds.

        Without averaging there is nothing to do.
        """
        if self.average is not None:
            self.average.follow(self, skip)

    def encode(self, *images: Tensor) -> SharedEncoding:
        """Return E(x) of several batches of images (B_i, C, *spatial) from one call."""
        return SharedEncoding(self.encoder, *images)

    def denoise(self, image: Tensor, noisy_label: Tensor | None, t: Tensor | None) -> Tensor:
        """Return D_ξ(E([x, y_t], t)), logits (B, K, *spatial); D_ξ(E(x)) without a noisy label."""
        return self.denoising_decoder(self.encoder(image, noisy_label, t))

    def denoiser(self, image: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return :meth:`denoise` for one image and many noisy labels: what depends on the image only is done once."""
        image_part = self.encoder.image_part(image)
        return lambda noisy_label, t: self._denoise_prepared(image_part, noisy_label, t)

    def _denoise_prepared(self, image_part: Tensor, noisy_label: Tensor, t: Tensor) -> Tensor:
        return self.denoising_decoder(self.encoder.encode_noisy(image_part, noisy_label, t))

    def compile_parts(self, **options) -> None:
        """Compile what train step and inference call, in place; parameters keep their names.

        Args:
            options: Of ``torch.compile``.
        """
        # The gradients of the flows are measured by going back through the encoder twice.
        torch._functorch.config.donated_buffer = False
        decoders = (self.denoising_decoder, self.difficulty_decoder, self.unlabeled_decoder)
        averages = () if self.average is None else self.inference_path
        for part in (self.encoder, *decoders, *averages):
            part.compile(**options)
        self.compile_denoiser(**options)

    def compile_denoiser(self, **options) -> None:
        """Compile what :meth:`denoiser` repeats at each step of DDIM; arguments as :meth:`compile_parts`."""
        self._denoise_prepared = torch.compile(self._denoise_prepared, **options)  # type: ignore[method-assign]
