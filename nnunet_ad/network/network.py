"""The network: one encoder, three decoders."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from nnunet_ad.network.decoder import ADDecoder
from nnunet_ad.network.encoder import ADEncoder


class FlowLogits(NamedTuple):
    """Logits (B, K, *spatial) of the flows of one train step.

    Attributes:
        xi: D_ξ(E([x_l, y_t], t)), denoising flow.
        psi: D_ψ(E(x_l)), difficulty-aware flow.
        theta: D_θ(E(x_u)), unlabelled flow.
        psi_unlabeled: D_ψ(E(x_u)), which pseudo-labels are made from; has no gradient.
        theta_labeled: D_θ(E(x_l)), or ``None`` unless asked for (ablation NoDecoupling).
    """

    xi: Tensor
    psi: Tensor
    theta: Tensor
    psi_unlabeled: Tensor
    theta_labeled: Tensor | None = None


class ADNetwork(nn.Module):
    """E, D(·; ξ), D(·; ψ) and D(·; θ) of Aggregating & Decoupling.

    Called with one image it is what inference needs, D_θ(E(x)). Called with the inputs of a train step it runs all
    three flows in one forward pass, as compilation and distributed training want it.

    Args:
        image_encoder: nnU-Net's encoder with image-only stem.
        num_classes: K.
        num_convs_per_decoder_stage: As in the plans, lowest resolution first.

    Attributes:
        encoder: E(·; ξ), shared.
        denoising_decoder: D(·; ξ).
        difficulty_decoder: D(·; ψ).
        unlabeled_decoder: D(·; θ).
    """

    def __init__(
        self,
        image_encoder: PlainConvEncoder | ResidualEncoder,
        num_classes: int,
        num_convs_per_decoder_stage: Sequence[int],
    ):
        super().__init__()
        self.num_classes = num_classes
        self.encoder = ADEncoder(image_encoder, num_classes)
        self.denoising_decoder = ADDecoder(image_encoder, num_classes, num_convs_per_decoder_stage)
        self.encoder.noisy_stem.apply(InitWeights_He(1e-2))
        self.denoising_decoder.apply(InitWeights_He(1e-2))
        # Distillation averages parameters, which makes sense only if the decoders start from the same ones.
        self.difficulty_decoder = deepcopy(self.denoising_decoder)
        self.unlabeled_decoder = deepcopy(self.denoising_decoder)

    @property
    def has_dropout(self) -> bool:
        """Whether the plans ask for dropout, so that training and prediction differ."""
        return any(isinstance(module, _DropoutNd) and module.p > 0 for module in self.modules())

    def forward(
        self,
        image: Tensor,
        noisy_label: Tensor | None = None,
        t: Tensor | None = None,
        unlabeled_image: Tensor | None = None,
        decoupled: bool = True,
    ) -> Tensor | FlowLogits:
        """Return D_θ(E(image)), or with ``unlabeled_image`` the logits of the three flows.

        Args:
            image: x, or x_l in a train step; (B, C, *spatial).
            noisy_label: y_t (B, K, *spatial), or ``None`` for a denoising decoder that sees the image only.
            t: Steps (B,), integer.
            unlabeled_image: x_u (B, C, *spatial).
            decoupled: ``False`` runs θ on labelled patches, too.
        """
        if unlabeled_image is None:
            return self.unlabeled_decoder(self.encoder(image))
        # Each sample is normalised by itself, so one call does for labelled and unlabelled patches.
        features = self.encoder(torch.cat((image, unlabeled_image)))
        labeled_features, unlabeled_features = (
            list(part) for part in zip(*(f.split((len(image), len(unlabeled_image))) for f in features), strict=True)
        )
        noisy_features = labeled_features if noisy_label is None else self.encoder(image, noisy_label, t)
        psi = self.difficulty_decoder(labeled_features)
        with torch.no_grad():
            psi_unlabeled = self.difficulty_decoder(unlabeled_features)
        return FlowLogits(
            xi=self.denoising_decoder(noisy_features),
            psi=psi,
            theta=self.unlabeled_decoder(unlabeled_features),
            psi_unlabeled=psi_unlabeled,
            theta_labeled=None if decoupled else self.unlabeled_decoder(labeled_features),
        )

    def denoise(self, image: Tensor, noisy_label: Tensor, t: Tensor) -> Tensor:
        """Return D_ξ(E([x, y_t], t)), logits (B, K, *spatial)."""
        return self.denoising_decoder(self.encoder(image, noisy_label, t))

    def denoiser(self, image: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return :meth:`denoise` for one image and many noisy labels: what depends on the image only is done once."""
        image_part = self.encoder.image_part(image)
        return lambda noisy_label, t: self.denoising_decoder(self.encoder.encode_noisy(image_part, noisy_label, t))
