"""The label maps of the decoders θ, ψ and ξ for a whole image, by nnU-Net's own sliding window."""

from collections.abc import Callable

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor, nn

from nnunet_ad.diffusion import GaussianDiffusion
from nnunet_ad.network.network import ADNetwork
from nnunet_ad.ranking.model import TrainedModel
from nnunet_ad.trainer.precision import forward_precision

DECODERS = ("theta", "psi", "xi")


class ImageBranch(nn.Module):
    """D(E(x)): the encoder with a decoder that sees the image only.

    Args:
        encoder: E.
        decoder: D.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, *spatial), float32, for windows (B, C, *spatial)."""
        with forward_precision(image.device):
            return self.decoder(self.encoder(image)).float()


class DenoisingBranch(nn.Module):
    """ξ by DDIM: each window starts from noise of its own and is denoised in S steps.

    The noise is drawn on the CPU in the order of the windows, so that it is the same on every device. Where windows
    overlap, nnU-Net averages the logits of their last steps.

    Args:
        network: The trained network.
        diffusion: Noise schedule of the training.
        num_sampling_steps: S.

    Raises:
        ValueError: If ``num_sampling_steps`` is not in [1, T].
    """

    def __init__(self, network: ADNetwork, diffusion: GaussianDiffusion, num_sampling_steps: int):
        super().__init__()
        diffusion.ddim_timesteps(num_sampling_steps)
        self.network = network
        self.diffusion = diffusion
        self.num_sampling_steps = num_sampling_steps
        self.generator = torch.Generator()

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, *spatial), float32, for windows (B, C, *spatial)."""
        shape = (len(image), self.network.num_classes, *image.shape[2:])
        y_T = torch.randn(shape, generator=self.generator).to(image.device)
        with forward_precision(image.device):
            return self.diffusion.ddim_sample(self.network.denoiser(image), y_T, self.num_sampling_steps)


class ThreeDecoders:
    """Predicts the label maps of θ, ψ and ξ.

    Three passes over the windows and not one: the shared encoder pass is small beside DDIM, and the logits of one
    decoder at a time need a third of the memory.

    Args:
        model: The training.
        num_sampling_steps: S of DDIM, or ``None`` for that of the training.
        seed: Of the noise of ξ; every case starts from it, so that its result depends on no other case.

    Attributes:
        description: How ξ predicts, in one line.
        transpose_forward: Order of the axes of preprocessed images, from the plans.

    Raises:
        ValueError: If ``num_sampling_steps`` is not in [1, T].
    """

    def __init__(self, model: TrainedModel, num_sampling_steps: int | None = None, seed: int = 0):
        network, config = model.network, model.config
        self.predictor: nnUNetPredictor = model.predictor
        self.transpose_forward: list[int] = model.predictor.plans_manager.transpose_forward
        self.seed = seed
        diffusion = GaussianDiffusion.of(config)
        steps = config.num_sampling_steps if num_sampling_steps is None else num_sampling_steps
        self.description = f"ξ by {steps} DDIM steps, seed {seed}" if config.diffusion else "ξ without diffusion"
        self.branches: dict[str, nn.Module] = {
            "theta": ImageBranch(*network.inference_path),
            "psi": ImageBranch(network.encoder, network.difficulty_decoder),
            "xi": DenoisingBranch(network, diffusion, steps)
            if config.diffusion
            else ImageBranch(network.encoder, network.denoising_decoder),
        }

    def predict(self, image: np.ndarray, on_progress: Callable[[], object] = lambda: None) -> np.ndarray:
        """Return the label maps of a preprocessed image.

        Args:
            image: (C, *spatial), preprocessed.
            on_progress: Called after each decoder.

        Returns:
            uint8 or, beyond 256 classes, uint16 (3, *spatial), in the order of ``DECODERS``.
        """
        maps = []
        for name in DECODERS:
            maps.append(self._label_map(self.branches[name], torch.from_numpy(image)))
            on_progress()
        return np.stack(maps)

    def _label_map(self, branch: nn.Module, image: Tensor) -> np.ndarray:
        if isinstance(branch, DenoisingBranch):
            branch.generator.manual_seed(self.seed)
        self.predictor.network = branch
        logits = self.predictor.predict_sliding_window_return_logits(image)
        dtype = np.uint8 if len(logits) <= 256 else np.uint16
        return logits.argmax(0).cpu().numpy().astype(dtype)
