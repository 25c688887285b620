"""Aggregating & Decoupling: Algorithm 1 inside nnU-Net's trainer."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, distributed, nn

from nnunet_ad.augmentation.cutmix import cutmix
from nnunet_ad.difficulty import DifficultyWeights
from nnunet_ad.diffusion import GaussianDiffusion, encode_labels
from nnunet_ad.distillation import distill_
from nnunet_ad.network.channels_last import COMPILER_OPTIONS, keep_weights_channels_last
from nnunet_ad.network.from_plans import build_network
from nnunet_ad.network.network import ADNetwork
from nnunet_ad.network.recomputation import recompute_activations
from nnunet_ad.network.shared_encoding import SharedEncoding
from nnunet_ad.pseudo_label import ensemble, hard_labels, plain_sum
from nnunet_ad.trainer import snapshots
from nnunet_ad.trainer.measures import Overlap, agreement, dice_by_t, joint_norm, overlap
from nnunet_ad.trainer.precision import forward_precision
from nnunet_ad.trainer.processes import add_over_processes_
from nnunet_ad.trainer.randomness import Stream
from nnunet_ad.trainer.semi_supervised import nnUNetTrainerSemiSupervised


class nnUNetTrainerAD(nnUNetTrainerSemiSupervised):
    """Aggregating & Decoupling (Wang & Li, NeurIPS 2023) for semi-supervised, adaptive, generalising segmentation.

    Labelled cases come from nnU-Net's folders, unlabelled ones from ``imagesUnlabeled/``. Beyond the paper, boxes of
    labelled patches are pasted into the unlabelled ones that θ learns from (``ADConfig.cutmix``), patches are turned
    and scaled as rarely as by nnU-Net (``spatial_probability``), ξ reads noisy labels in a way that noise does not
    drown the image (``shrink_noisy_labels``, ``shared_stem``, ``label_scale``), ξ and ψ learn at a rate of their own
    (``labeled_rate``), and weights are averaged (``weight_averaging``). What ``nnUNetv2_predict`` uses is the encoder
    with the unlabelled decoder, averaged over the last iterations.

    Attributes:
        diffusion: Noise schedule and DDIM.
        difficulty: Class weights of the foreground; part of the checkpoint.

    Raises:
        ValueError: For regions whose label values have a gap. On ``initialize``: for the second stage of a cascade, or
            for plans whose network A&D can't be built from. On training: for faults of the splits or of unlabelled
            cases.
    """

    network: ADNetwork
    _measure_gradients = False

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (the host inspects this very signature)
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        config = self.config
        self.diffusion = GaussianDiffusion.of(config)
        self.difficulty = DifficultyWeights(
            max(1, self.num_classes - 1), config.difficulty_window, config.difficulty_exponent
        ).to(self.device)
        self.ensemble = ensemble if config.reweighted_sampling else plain_sum

    def train_step(self, batch: dict) -> dict[str, Tensor]:
        """One iteration of Algorithm 1; returns what :meth:`on_train_epoch_end` logs, on the device."""
        x_l, y, x_u = self.to_device(batch["data"], batch["target"][:, 0], batch["unlabeled_data"])
        network = self.bare_network
        self.optimizer.zero_grad(set_to_none=True)

        y_t, t = self.noise_labels(y)  # Eq. 1
        logits_xi = self.forward(network.denoise, x_l, y_t, t)
        loss_deno = self.backward(self.dice_ce(logits_xi, y))  # Eq. 2
        samples = overlap(hard_labels(logits_xi), y, self.num_classes, self.ignore_label)  # λ
        w = self.update_class_weights(samples)  # Eqs. 3-5
        if self.config.cutmix:  # θ learns from other images than its teachers label
            y_u, quality = self.pseudo_label(x_u)  # Eq. 7
            x_u, y_u = cutmix(x_u, y_u, x_l, y, self.config.cutmix, self.generator)
        encoding = self.forward(network.encode, x_l, x_u)
        e_l, e_u = encoding.features
        loss_diff = self.backward(self.dice_ce(self.forward(network.difficulty_decoder, e_l), y, w))  # Eq. 6

        if not self.config.cutmix:
            y_u, quality = self.pseudo_label(x_u, e_u)  # Eq. 7
        loss_u = self.backward(self.dice_ce(self.forward(network.unlabeled_decoder, e_u), y_u), self.mu)  # Eqs. 8, 9
        gradients = self._encoder_gradients_once_an_epoch(encoding)
        if not self.config.decoupling:
            self.backward(self.dice_ce(self.forward(network.unlabeled_decoder, e_l), y))
        encoding.backward()
        self.descend()
        self.distill()
        network.update_average(self.faults.skipped)
        return {
            "loss": loss_deno + loss_diff + self.mu * loss_u,
            "loss_denoising": loss_deno,
            "loss_difficulty": loss_diff,
            "loss_unlabeled": loss_u,
            "numerical_faults": self.faults.fault,
            **gradients,
            **dice_by_t(samples, t, self.diffusion.num_steps),
            "class_weights": w,
            **quality,
        }

    def noise_labels(self, y: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return y_t (Eq. 1) as ξ reads it, and uniform t, for labels (B, *spatial); none in ablation NoDiffusion."""
        if not self.config.diffusion:
            return None, None
        y_0 = self.diffusion.label_scale * encode_labels(y, self.num_classes, self.ignore_label)
        t = torch.randint(self.diffusion.num_steps, (len(y),), generator=self.generator, device=self.device)
        y_t = self.diffusion.noise_labels(y_0, t, self._normal(y_0.shape))
        return self.diffusion.network_input(y_t, t), t

    def pseudo_label(self, image: Tensor, features: list[Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the pseudo-label (B, *spatial) of Eq. 7, and what is logged of it.

        Args:
            image: x_u (B, C, *spatial).
            features: E(x_u), see :meth:`predict_psi`.
        """
        p_xi, p_psi = self.sample_xi(image), self.predict_psi(image, features)
        # θ's loss can't show it: NaN has an argmax, too, and CutMix may paste over its cause.
        self.faults.watch(self.joint_mean(torch.stack((p_xi.float().mean(), p_psi.float().mean()))))
        y_u = self.ensemble(p_xi, p_psi, self.generator)
        return y_u, {
            "pseudo_foreground": (y_u > 0).float().mean(),
            "agreement": agreement(hard_labels(p_xi), hard_labels(p_psi)),
        }

    def sample_xi(self, image: Tensor) -> Tensor:
        """Return the logits of ξ by DDIM for images (B, C, *spatial), without noise in ablation NoDiffusion."""
        with self._predicting() as network:
            if not self.config.diffusion:
                return network.denoising_decoder(network.encoder(image))
            y_T = self._normal((len(image), self.num_classes, *image.shape[2:]))
            return self.diffusion.ddim_sample(network.denoiser(image), y_T, self.config.num_sampling_steps)

    def predict_psi(self, image: Tensor, features: list[Tensor] | None = None) -> Tensor:
        """Return the logits of ψ for images (B, C, *spatial).

        Args:
            image: x.
            features: E(x) from the train step; not used where the encoder drops out in training.
        """
        with self._predicting() as network:
            if features is None or network.has_dropout:
                features = network.encoder(image)
            return network.difficulty_decoder(features)

    @contextmanager
    def _predicting(self) -> Iterator[ADNetwork]:
        """Give the network without dropout and gradients.

        A precision context of its own: autocast may keep the half-precision weights made here, which know no gradient.
        """
        network, was_training = self.bare_network, self.network.training
        if network.has_dropout:  # going through all modules costs milliseconds
            network.eval()
        try:
            with torch.inference_mode(), forward_precision(self.device):
                yield network
        finally:
            if network.has_dropout:
                network.train(was_training)

    def update_class_weights(self, samples: Overlap) -> Tensor:
        """Take in λ of this iteration and return w (K,), 1 for the background (Eqs. 3-5)."""
        if not self.config.difficulty_weighting:
            return torch.ones(self.num_classes, device=self.device)
        batch = samples.over_batch()
        if self.is_ddp:
            for counts in batch:
                distributed.all_reduce(counts)
        weights = self.difficulty.update(batch.dice()[1:], batch.present()[1:])
        # A background weight near zero would make ψ call everything foreground.
        return torch.cat((weights.new_ones(1), weights))

    def distill(self) -> None:
        """Move θ towards the mean of ξ and ψ."""
        network, w = self.bare_network, self.config.distillation_momentum
        if self.config.distillation_follows_learning_rate:
            w = 1 - (1 - w) * self.optimizer.param_groups[0]["lr"] / self.initial_lr
        distill_(
            network.unlabeled_decoder,
            network.denoising_decoder,
            network.difficulty_decoder,
            w,
            self.faults.skipped,
        )

    def descend(self) -> None:
        """As the base; after a step that was not taken, the difficulty history is as before, too."""
        super().descend()
        self.difficulty.undo_update(self.faults.skipped)

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def _encoder_gradients_once_an_epoch(self, encoding: SharedEncoding) -> dict[str, Tensor]:
        """Return the gradient norm that each flow gives the encoder, in the first iteration of an epoch only.

        To be called when all flows have gone back, but the shared encoding has not: so far, the encoder's own gradient
        is that of the denoising flow.
        """
        if not self._measure_gradients:
            return {}
        self._measure_gradients = False
        parameters = [p for p in self.bare_network.encoder.parameters() if p.requires_grad]
        gradients = {
            "denoising": [p.grad.clone() for p in parameters if p.grad is not None],
            "difficulty": encoding.gradient(0, parameters),
            "unlabeled": encoding.gradient(1, parameters),
        }
        if self.is_ddp:
            add_over_processes_([gradient for found in gradients.values() for gradient in found])
        one = torch.ones((), device=self.device)
        scale = one if self.grad_scaler is None else self.grad_scaler.scale(one)
        return {f"gradient_{flow}": joint_norm(found) / scale for flow, found in gradients.items()}

    # ------------------------------------------------------------------------------------------- hooks of the host

    def initialize(self) -> None:
        """As the base; activations are recomputed, and the parts compiled, where that is asked for."""
        super().initialize()
        if self.config.recompute_activations:
            recompute_activations(self.bare_network)
        self._compile()

    def _compile(self) -> None:
        """Compile all parts where the host would; on a CPU, if ``nnUNet_compile`` asks for it, what DDIM repeats.

        On a CPU the rest gains too little for the memory and the minute that compiling it takes.
        """
        if self.device.type == "cpu":
            if os.environ.get("nnUNet_compile", "").lower() in ("true", "1", "t"):  # noqa: SIM112 (the host's spelling)
                self.print_to_log_file("Using torch.compile for the steps of DDIM...")
                self.bare_network.compile_denoiser(**COMPILER_OPTIONS)
        elif nnUNetTrainer._do_i_compile(self):
            self.bare_network.compile_parts(**COMPILER_OPTIONS)

    @classmethod
    def build_network_architecture(
        cls,  # static in the host, which calls it by instance or class
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> ADNetwork:
        """Build encoder and decoders from the plans; deep supervision is not part of the method."""
        network = build_network(
            configuration_manager,
            num_input_channels,
            num_output_channels,
            cls.config.shared_stem,
            cls.config.weight_averaging,
        )
        if not cls.config.common_initialization:
            network.initialize_decoders_apart()
        return network

    def configure_optimizers(self) -> tuple:
        """As the base, on weights that are stored as the device convolves fastest.

        What ablation NoDiffusion never uses is frozen, or distributed training would wait for it.
        """
        keep_weights_channels_last(self.bare_network)
        if not self.config.diffusion:
            for module in self.bare_network.encoder.denoising_parts:
                module.requires_grad_(False)
        return super().configure_optimizers()

    def parameter_groups(self) -> list[dict]:
        """Return E and θ, and what only labels teach, at a rate of its own (``ADConfig.labeled_rate``)."""
        network = self.bare_network
        labeled = nn.ModuleList(
            [network.denoising_decoder, network.difficulty_decoder, *network.encoder.denoising_parts]
        )
        of_labels = set(labeled.parameters())
        return [
            {"params": [p for p in network.parameters() if p not in of_labels], "relative_rate": 1.0},
            {"params": list(labeled.parameters()), "relative_rate": self.config.labeled_rate},
        ]

    def on_train_start(self) -> None:
        """As the base; a new training removes the snapshots of an earlier one, which may be of other patches."""
        super().on_train_start()
        if self.local_rank == 0:
            snapshots.tidy(self._snapshots, training_begins=self.current_epoch == 0)

    def on_train_epoch_start(self) -> None:
        """As the host; gradients of the flows are measured in the first iteration."""
        super().on_train_epoch_start()
        self._measure_gradients = not self.train_outputs

    def summarise(self, train_outputs: list[dict]) -> dict[str, np.ndarray]:
        """As the base; Dice by t follows from its sums and counts over the epoch."""
        means = super().summarise(train_outputs)
        sums, counts = means.pop("dice_by_t_sums"), means.pop("dice_by_t_counts")
        if self.config.diffusion:
            means["dice_by_t"] = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
        return means

    def validation_step(self, batch: dict) -> dict:
        """As the host for θ; for ψ and for ξ by DDIM count overlaps with the label, too."""
        x, y = self.to_device(batch["data"], batch["target"][:, 0].clone())  # the host overwrites ignored voxels
        outputs = super().validation_step(batch)
        for name, logits in {"xi": self.sample_xi(x), "psi": self.predict_psi(x)}.items():
            counts = overlap(hard_labels(logits), y, self.num_classes, self.ignore_label).over_batch()
            outputs[name] = torch.stack(counts).cpu().numpy()
        return outputs

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log the foreground Dice of the three decoders."""
        counts = {name: np.sum([outputs.pop(name) for outputs in val_outputs], axis=0) for name in ("psi", "xi")}
        super().on_validation_epoch_end(val_outputs)
        per_class = {"theta": np.asarray(self.logger.get_value("dice_per_class_or_region", step=-1))}
        per_class |= {name: _foreground_dice(self._over_ranks(value)) for name, value in counts.items()}
        self.log_epoch(
            **{f"val_dice_{name}": _mean_of_present(dice) for name, dice in per_class.items()},
            **{f"val_dice_per_class_{name}": dice for name, dice in per_class.items()},
        )

    def on_epoch_end(self) -> None:
        """As the host; at some epochs keep what the decoders make of one unlabelled patch."""
        if self.local_rank == 0 and snapshots.is_due(self.current_epoch, self.num_epochs):
            self._write_snapshot()
        super().on_epoch_end()

    @property
    def _snapshots(self) -> Path:
        return Path(self.output_folder) / "snapshots"

    @torch.no_grad()
    def _write_snapshot(self) -> None:
        self.seed_step(Stream.SNAPSHOT, self.current_epoch)
        case, x_u = snapshots.central_patch(self.unlabeled_dataset, self.configuration_manager.patch_size)
        # as many patches as a batch has: torch.compile would compile all parts anew for another number
        (image,) = self.to_device(x_u.repeat(self.batch_size, *[1] * (x_u.ndim - 1)))
        p_xi, p_psi = self.sample_xi(image), self.predict_psi(image)
        with self._predicting() as network:
            encoder, decoder = network.inference_path
            theta = decoder(encoder(image))
        label_maps = {"xi": p_xi, "psi": p_psi, "theta": theta}
        label_maps = {name: hard_labels(logits) for name, logits in label_maps.items()}
        label_maps["pseudo_label"] = self.ensemble(p_xi, p_psi, self.generator)
        snapshots.write(self._snapshots, self.current_epoch, case, x_u, label_maps)

    def _over_ranks(self, counts: np.ndarray) -> np.ndarray:
        if not self.is_ddp:
            return counts
        gathered: list[np.ndarray] = [np.empty(0)] * distributed.get_world_size()
        distributed.all_gather_object(gathered, counts)
        return np.sum(gathered, axis=0)

    def method_state(self) -> dict:
        """The difficulty history goes into the checkpoint, too."""
        return {**super().method_state(), "difficulty": self.difficulty.state_dict()}

    def load_method_state(self, state: dict) -> None:
        """Restore what :meth:`method_state` returned."""
        super().load_method_state(state)
        self.difficulty.load_state_dict(state["difficulty"])


def _foreground_dice(counts: np.ndarray) -> np.ndarray:
    intersection, total = counts[:, 1:]
    return np.divide(2 * intersection, total, out=np.full_like(total, np.nan), where=total > 0)


def _mean_of_present(dice: np.ndarray) -> float:
    return float(np.nanmean(dice)) if np.isfinite(dice).any() else float("nan")
