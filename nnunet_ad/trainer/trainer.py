"""Aggregating & Decoupling inside nnU-Net's trainer: Algorithm 1 and the host's hooks, nothing else."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, distributed, nn
from torch._dynamo import OptimizedModule

from nnunet_ad import __version__
from nnunet_ad.augmentation.svda import SVDA, training_transforms
from nnunet_ad.config import ADConfig
from nnunet_ad.data.dataset import UnlabeledDataset
from nnunet_ad.data.folds import check_fold_exists
from nnunet_ad.data.loader import TwoStreamDataLoader, UnlabeledDataLoader
from nnunet_ad.data.unlabeled import DatasetFolders, prepare_unlabeled
from nnunet_ad.difficulty import DifficultyWeights
from nnunet_ad.diffusion import GaussianDiffusion, encode_labels
from nnunet_ad.distillation import distill_
from nnunet_ad.losses import dice_ce, unsupervised_weight
from nnunet_ad.network.from_plans import build_network
from nnunet_ad.network.network import ADNetwork
from nnunet_ad.pseudo_label import ensemble, plain_sum
from nnunet_ad.trainer import curves
from nnunet_ad.trainer.measures import Overlap, agreement, dice_by_t, gradient_norm, overlap
from nnunet_ad.trainer.precision import cpu_computes_bf16, forward_precision

ITERATIONS_VARIABLE = "NNUNET_AD_ITERATIONS"
SEED_VARIABLE = "NNUNET_AD_SEED"


class nnUNetTrainerAD(nnUNetTrainer):
    """Aggregating & Decoupling (Wang & Li, NeurIPS 2023) for semi-supervised, adaptive, generalising segmentation.

    Labelled cases come from nnU-Net's folders, unlabelled ones from ``imagesUnlabeled/``. What is trained, and what
    ``nnUNetv2_predict`` uses, is the encoder with the unlabelled decoder.

    Attributes:
        config: Hyper-parameters; a variant is a subclass with another one.

    Raises:
        ValueError: On ``initialize``: for region labels, for the second stage of a cascade, or for plans whose network
            A&D can't be built from. On training: for faults of the splits or of unlabelled cases.
    """

    config: ADConfig = ADConfig()
    network: ADNetwork

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (the host inspects this very signature)
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False
        self.initial_lr = self.config.learning_rate
        self.weight_decay = self.config.weight_decay
        self.num_epochs = self.config.num_epochs
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = self._iterations_per_epoch()
        self.save_every = 5
        self.seed = _integer_from_environment(SEED_VARIABLE, minimum=0)
        self.generator = torch.Generator(self.device)
        self._seed_everything()

        self.num_classes = self.label_manager.num_segmentation_heads
        self.ignore_label = self.label_manager.ignore_label
        self.diffusion = GaussianDiffusion(
            self.config.num_diffusion_steps, self.config.beta_start, self.config.beta_end
        )
        self.difficulty = DifficultyWeights(
            self.num_classes - 1, self.config.difficulty_window, self.config.difficulty_exponent
        ).to(self.device)
        self.curves: curves.Curves = {}
        self.unlabeled_dataset: UnlabeledDataset | None = None

    # ------------------------------------------------------------------------------------------- Algorithm 1

    def train_step(self, batch: dict) -> dict:
        """One iteration of Algorithm 1; returns measurements as tensors on the device."""
        x_l, y, x_u = self._to_device(batch["data"], batch["target"][:, 0], batch["unlabeled_data"])
        network, mu = self.bare_network, self.mu
        self.optimizer.zero_grad(set_to_none=True)
        with forward_precision(self.device):
            p_xi, p_psi = self.predict_branches(x_u)
            y_u = self.ensemble(p_xi, p_psi, self.generator)  # Eq. 7
            y_t, t = self.noise_labels(y)  # Eq. 1
            logits = self.network(x_l, y_t, t, x_u, self.config.decoupling)

        samples = overlap(logits.xi.argmax(1), y, self.num_classes, self.ignore_label)
        w = self.update_class_weights(samples.over_batch())  # Eqs. 3-5
        loss_denoising = dice_ce(logits.xi, y, ignore_label=self.ignore_label)  # Eq. 2
        loss_difficulty = dice_ce(logits.psi, y, w, self.ignore_label)  # Eq. 6
        loss_unlabeled = dice_ce(logits.theta, y_u)  # Eq. 8
        loss = loss_denoising + loss_difficulty + mu * loss_unlabeled  # Eq. 9
        if logits.theta_labeled is not None:
            loss = loss + dice_ce(logits.theta_labeled, y, ignore_label=self.ignore_label)

        gradients = self._gradients_once_an_epoch(loss_denoising, loss_difficulty, mu * loss_unlabeled)
        self._descend(loss)
        distill_(
            network.unlabeled_decoder,
            network.denoising_decoder,
            network.difficulty_decoder,
            self.config.distillation_momentum,
        )
        t_sums, t_counts = dice_by_t(samples, t, self.config.num_diffusion_steps)
        return {
            "loss": loss.detach(),
            "loss_denoising": loss_denoising.detach(),
            "loss_difficulty": loss_difficulty.detach(),
            "loss_unlabeled": loss_unlabeled.detach(),
            "class_weights": w,
            "dice_by_t_sums": t_sums,
            "dice_by_t_counts": t_counts,
            "pseudo_foreground": (y_u > 0).float().mean(),
            "agreement": agreement(p_xi.argmax(1), p_psi.argmax(1)),
            **gradients,
        }

    @property
    def mu(self) -> float:
        """Weight of the unsupervised loss in this epoch (Eq. 9)."""
        return unsupervised_weight(
            self.current_epoch, self.config.effective_rampup_epochs, self.config.unsupervised_weight
        )

    def noise_labels(self, y: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return y_t and t, t uniform (Eq. 1), for labels (B, *spatial); nothing in ablation NoDiffusion."""
        if not self.config.diffusion:
            return None, None
        y_0 = encode_labels(y, self.num_classes, self.ignore_label)
        t = torch.randint(self.diffusion.num_steps, (len(y),), generator=self.generator, device=self.device)
        return self.diffusion.noise_labels(y_0, t, self._normal(y_0.shape)), t

    @torch.no_grad()
    def predict_branches(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of ξ by DDIM and of ψ for images (B, C, *spatial), dropout off, no gradient."""
        network, was_training = self.bare_network, self.network.training
        network.eval()
        features = network.encoder(image)
        psi = network.difficulty_decoder(features)
        if self.config.diffusion:
            y_T = self._normal((len(image), self.num_classes, *image.shape[2:]))
            xi = self.diffusion.ddim_sample(
                lambda y_t, t: network.denoise(image, y_t, t), y_T, self.config.num_sampling_steps
            )
        else:
            xi = network.denoising_decoder(features)
        network.train(was_training)
        return xi, psi

    @property
    def ensemble(self) -> Callable[[Tensor, Tensor, torch.Generator | None], Tensor]:
        """How two predictions become one pseudo-label."""
        return ensemble if self.config.reweighted_sampling else plain_sum

    def update_class_weights(self, batch: Overlap) -> Tensor:
        """Take in λ of this iteration and return w (K,), 1 for the background (Eqs. 3-5)."""
        if not self.config.difficulty_weighting:
            return torch.ones(self.num_classes, device=self.device)
        if self.is_ddp:
            for counts in batch:
                distributed.all_reduce(counts)
        weights = self.difficulty.update(batch.dice()[1:], batch.present()[1:])
        # A background weight near zero would make ψ call everything foreground.
        return torch.cat((weights.new_ones(1), weights))

    def _descend(self, loss: Tensor) -> None:
        parameters = self.network.parameters()
        if self.grad_scaler is None:
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, self.config.max_gradient_norm)
            self.optimizer.step()
            return
        self.grad_scaler.scale(loss).backward()
        self.grad_scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(parameters, self.config.max_gradient_norm)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _gradients_once_an_epoch(self, denoising: Tensor, difficulty: Tensor, unlabeled: Tensor) -> dict[str, Tensor]:
        """Return the gradient norm that each flow gives the encoder, in the first iteration of an epoch only."""
        if not self._measure_gradients:
            return {}
        self._measure_gradients = False
        parameters = list(self.bare_network.encoder.parameters())
        # In float16 small gradients would vanish; the scale is a power of two and is divided out exactly.
        scale = 1.0 if self.grad_scaler is None else self.grad_scaler.get_scale()
        flows = {"denoising": denoising, "difficulty": difficulty, "unlabeled": unlabeled}
        return {f"gradient_{name}": gradient_norm(scale * loss, parameters) / scale for name, loss in flows.items()}

    # ------------------------------------------------------------------------------------------- network

    def initialize(self) -> None:
        """Refuse what A&D can't train on, then build network, optimiser and loss."""
        if self.label_manager.has_regions:
            raise ValueError(
                "nnUNetTrainerAD does not train on region labels: its noisy labels and pseudo-labels need classes "
                "that exclude each other. Turn the regions of dataset.json into plain classes, or use nnUNetTrainer."
            )
        if self.is_cascaded:
            raise ValueError(
                f"nnUNetTrainerAD does not train {self.configuration_name}, the second stage of a cascade: unlabelled "
                "cases have no prediction of the first stage. Train 3d_fullres or 3d_lowres."
            )
        super().initialize()

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> ADNetwork:
        """Build encoder and decoders from the plans; deep supervision is not part of the method."""
        return build_network(configuration_manager, num_input_channels, num_output_channels)

    @property
    def bare_network(self) -> ADNetwork:
        """The network without the wrappers of distributed training and compilation."""
        network = self.network.module if self.is_ddp else self.network
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """There is none to switch."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """SGD with Nesterov momentum and nnU-Net's polynomial schedule (Table 8)."""
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            self.initial_lr,
            momentum=self.config.momentum,
            weight_decay=self.weight_decay,
            nesterov=True,
        )
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def _build_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The host's validation step shows θ's loss on validation patches by this."""
        return lambda output, target: dice_ce(output, target[:, 0], ignore_label=self.ignore_label)

    # ------------------------------------------------------------------------------------------- data

    def do_split(self) -> tuple[list[str], list[str]]:
        """As the host, but a fold beyond the split file is an error instead of a random split."""
        check_fold_exists(self.fold, Path(self.preprocessed_dataset_folder_base))
        return super().do_split()

    def get_tr_and_val_datasets(self) -> tuple:
        """Add the unlabelled cases of the fold, preprocessed now where they were not."""
        labeled, val = super().get_tr_and_val_datasets()
        self.unlabeled_dataset = prepare_unlabeled(
            DatasetFolders.of(self.plans_manager.dataset_name),
            self.plans_manager,
            self.configuration_name,
            self.dataset_json,
            self.fold,
            labeled.identifiers,
            val.identifiers,
            self.print_to_log_file,
        )
        return labeled, val

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:  # noqa: N802 (host's name)
        """As the host, without mirroring, neither in training nor in inference."""
        rotation, slice_wise, initial_patch_size, _ = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        self.inference_allowed_mirroring_axes = None
        return rotation, slice_wise, initial_patch_size, None

    def get_dataloaders(self) -> tuple:
        """Return the loader of labelled with unlabelled batches and the host's loader of validation batches."""
        labeled, val = self.get_tr_and_val_datasets()
        patch_size = self.configuration_manager.patch_size
        rotation, slice_wise, initial_patch_size, _ = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        svda = SVDA(patch_size, rotation, self.config.num_augmentations if self.config.svda else 0, slice_wise)
        transforms = training_transforms(svda, self.configuration_manager.use_mask_for_norm)

        def labeled_loader(dataset, size, augmentation) -> nnUNetDataLoader:
            return nnUNetDataLoader(
                dataset,
                self.batch_size,
                size,
                patch_size,
                self.label_manager,
                oversample_foreground_percent=self.oversample_foreground_percent,
                probabilistic_oversampling=self.probabilistic_oversampling,
                transforms=augmentation,
            )

        unlabeled = UnlabeledDataLoader(
            self.unlabeled_dataset, self.batch_size, initial_patch_size, patch_size, self.label_manager, transforms
        )
        train = TwoStreamDataLoader(labeled_loader(labeled, initial_patch_size, transforms), unlabeled)
        validation = labeled_loader(
            val, patch_size, self.get_validation_transforms(None, ignore_label=self.ignore_label)
        )
        num_workers = get_allowed_n_proc_DA()
        loaders = self._in_background(train, num_workers), self._in_background(validation, num_workers // 2)
        for loader in loaders:
            next(loader)
        return loaders

    def _in_background(self, loader, num_workers: int):
        if get_allowed_n_proc_DA() == 0:
            return SingleThreadedAugmenter(loader, None)
        num_workers = max(1, num_workers)
        return NonDetMultiThreadedAugmenter(
            loader,
            None,
            num_processes=num_workers,
            num_cached=max(6, num_workers // 2),
            seeds=None if self.seed is None else [self.seed * 1000 + i for i in range(num_workers)],
            pin_memory=self.device.type == "cuda",
            wait_time=0.002,
        )

    # ------------------------------------------------------------------------------------------- epochs

    def run_training(self) -> None:
        """As the host; worker processes end on errors, too."""
        try:
            super().run_training()
        finally:
            for loader in (self.dataloader_train, self.dataloader_val):
                if isinstance(loader, NonDetMultiThreadedAugmenter):
                    loader._finish()

    def on_train_start(self) -> None:
        """Say in the log what is trained, and in which way."""
        super().on_train_start()
        self.print_to_log_file(f"nnunet_ad {__version__}, torch {torch.__version__}, seed {self.seed}, {self.config}")
        self.print_to_log_file(
            f"{self.num_iterations_per_epoch} training and {self.num_val_iterations_per_epoch} validation iterations "
            f"an epoch{f' ({ITERATIONS_VARIABLE} is set)' if ITERATIONS_VARIABLE in os.environ else ''}, "
            f"{self.num_epochs} epochs, batches of {self.batch_size} labelled and {self.batch_size} unlabelled patches"
        )
        if self.device.type == "cpu":
            self.print_to_log_file(f"Forward passes on the CPU in {'bfloat16' if cpu_computes_bf16() else 'float32'}")

    def on_train_epoch_start(self) -> None:
        """Gradients of the flows are measured in the first iteration."""
        super().on_train_epoch_start()
        self._measure_gradients = True

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Log the means of the epoch."""
        means = {name: torch.stack([o[name] for o in train_outputs if name in o]) for name in train_outputs[0]}
        means = {name: values.float().nanmean(0).cpu().numpy() for name, values in means.items()}
        super().on_train_epoch_end([{"loss": means.pop("loss")}])
        counts = means.pop("dice_by_t_counts")
        sums = means.pop("dice_by_t_sums")
        if self.config.diffusion:
            means["dice_by_t"] = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
        self._log(mu=self.mu, **means)

    def validation_step(self, batch: dict) -> dict:
        """As the host for θ; for ψ and for ξ by DDIM count overlaps with the label, too."""
        x, y = self._to_device(batch["data"], batch["target"][:, 0].clone())
        outputs = super().validation_step(batch)
        with forward_precision(self.device):
            p_xi, p_psi = self.predict_branches(x)
        for name, logits in (("xi", p_xi), ("psi", p_psi)):
            counts = overlap(logits.argmax(1), y, self.num_classes, self.ignore_label).over_batch()
            outputs[name] = torch.stack(counts).cpu().numpy()
        return outputs

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log the mean foreground Dice of the three decoders."""
        branches = {name: np.sum([outputs.pop(name) for outputs in val_outputs], axis=0) for name in ("psi", "xi")}
        super().on_validation_epoch_end(val_outputs)
        dice = {"val_dice_theta": float(self.logger.get_value("mean_fg_dice", step=-1))}
        dice["val_dice_per_class_theta"] = self.logger.get_value("dice_per_class_or_region", step=-1)
        for name, counts in branches.items():
            if self.is_ddp:
                gathered = [None] * distributed.get_world_size()
                distributed.all_gather_object(gathered, counts)
                counts = np.sum(gathered, axis=0)
            intersection, total = counts[:, 1:]
            per_class = np.divide(2 * intersection, total, out=np.full_like(total, np.nan), where=total > 0)
            dice[f"val_dice_{name}"] = float(np.nanmean(per_class)) if (total > 0).any() else float("nan")
            dice[f"val_dice_per_class_{name}"] = per_class
        self._log(**dice)

    def on_epoch_end(self) -> None:
        """As the host, then the picture of A&D's curves."""
        super().on_epoch_end()
        if self.local_rank == 0:
            curves.plot(self.curves, Path(self.output_folder) / "progress_ad.png")

    def _log(self, **values) -> None:
        values = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in values.items()}
        curves.append(self.curves, **values)
        for name, value in values.items():
            self.print_to_log_file(name, np.round(np.asarray(value, dtype=float), 4))
            for logger in self.logger.loggers:
                logger.log(f"ad/{name}", value, self.current_epoch)

    # ------------------------------------------------------------------------------------------- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's checkpoint with A&D's state added; the file appears as a whole or not at all."""
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        checkpoint = {
            "network_weights": self.bare_network.state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": self.grad_scaler.state_dict() if self.grad_scaler is not None else None,
            "logging": self.logger.get_checkpoint(),
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch + 1,
            "init_args": self.my_init_kwargs,
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            "nnunet_ad": {
                "version": __version__,
                "difficulty": self.difficulty.state_dict(),
                "curves": self.curves,
                "generator": self.generator.get_state(),
            },
        }
        temporary = Path(f"{filename}.tmp")
        torch.save(checkpoint, temporary)
        temporary.replace(filename)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Restore what :meth:`save_checkpoint` wrote."""
        super().load_checkpoint(filename_or_checkpoint)
        checkpoint = torch.load(filename_or_checkpoint, map_location="cpu", weights_only=False)
        state = checkpoint["nnunet_ad"]
        self.difficulty.load_state_dict(state["difficulty"])
        self.curves = state["curves"]
        self.generator.set_state(state["generator"])

    # ------------------------------------------------------------------------------------------- small things

    def _iterations_per_epoch(self) -> tuple[int, int]:
        training = _integer_from_environment(ITERATIONS_VARIABLE, minimum=1) or self.config.num_iterations_per_epoch
        return training, max(1, training // 5)

    def _seed_everything(self) -> None:
        """Seed noise, initial weights and augmentation by NNUNET_AD_SEED; without it every run is another one."""
        if self.seed is None:
            self.generator.seed()
            return
        self.generator.manual_seed(self.seed + self.local_rank)
        torch.manual_seed(self.seed)
        np.random.seed(self.seed + self.local_rank)

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def _to_device(self, *tensors: Tensor) -> list[Tensor]:
        return [tensor.to(self.device, non_blocking=True) for tensor in tensors]


def _integer_from_environment(variable: str, minimum: int) -> int | None:
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.strip().isdecimal() or int(text) < minimum:
        raise ValueError(f"{variable} is {text!r}; expected a whole number of at least {minimum}")
    return int(text)
