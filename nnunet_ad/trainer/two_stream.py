"""nnU-Net's trainer fed with labelled and unlabelled batches: the seams with the host, without a method."""

import gc
import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.dataloading.nnunet_dataset import (
    infer_dataset_class,
    nnUNetBaseDataset,
    nnUNetDatasetNumpy,
)
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_ad.augmentation.svda import SVDA, training_transforms
from nnunet_ad.config import ADConfig
from nnunet_ad.data.dataset import UnlabeledDataset
from nnunet_ad.data.domain_gap import domain_gap
from nnunet_ad.data.folds import (
    SPLITS_FILE,
    cases_in_no_fold,
    check_copy_of_splits,
    check_enough_for_folds,
    check_fold_exists,
    check_labeled_cases,
    check_preprocessed,
    named_unlabeled,
)
from nnunet_ad.data.labeled import Grids, check_labeled
from nnunet_ad.data.loader import LabeledDataLoader, TwoStreamDataLoader, UnlabeledDataLoader
from nnunet_ad.data.unlabeled import DatasetFolders, prepare_unlabeled, preprocessing_of
from nnunet_ad.losses import dice_ce
from nnunet_ad.network.averaging import MovingAverage
from nnunet_ad.regions import as_classes
from nnunet_ad.trainer import checkpoints, curves, provenance
from nnunet_ad.trainer.environment import integer_from_environment
from nnunet_ad.trainer.faults import check_writable, explained
from nnunet_ad.trainer.learning_rate import RelativePolyLRScheduler
from nnunet_ad.trainer.memory import keep_freed_memory
from nnunet_ad.trainer.numerical_faults import NumericalFaults
from nnunet_ad.trainer.optimizer import sgd
from nnunet_ad.trainer.precision import cpu_computes_bf16
from nnunet_ad.trainer.processes import add_over_processes_, first_process_first, joint_sum
from nnunet_ad.trainer.randomness import Stream
from nnunet_ad.trainer.resumable import nnUNetTrainerResumable

EPOCHS_VARIABLE = "NNUNET_AD_EPOCHS"
ITERATIONS_VARIABLE = "NNUNET_AD_ITERATIONS"


class nnUNetTrainerTwoStream(nnUNetTrainerResumable):
    """Base of trainers that see unlabelled cases: streams, augmentation, optimiser and curves.

    A subclass brings the network and the train step. ``NNUNET_AD_ITERATIONS=n`` makes every epoch n training and
    max(1, n // 5) validation iterations, ``NNUNET_AD_EPOCHS=n`` makes n epochs.

    Regions of ``dataset.json`` are trained as the classes that they are made of, see :mod:`nnunet_ad.regions`.

    Attributes:
        config: Hyper-parameters; a variant is a subclass with another one.
        curves: One value an epoch of whatever is logged, part of the checkpoint.
        faults: Judges whether losses and gradients of a step are finite.
        unlabeled_dataset: The unlabelled cases of the fold, from the start of training on.
    """

    config: ADConfig = ADConfig()

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (the host inspects this very signature)
    ):
        with explained(self):
            plain = as_classes(dataset_json)
            super().__init__(plans, configuration, fold, plain, device)
            if plain is not dataset_json:
                self.print_to_log_file(f"Regions are trained as the classes that they are made of: {plain['labels']}")
            if self.local_rank == 0:
                check_writable(self.output_folder)
        self.enable_deep_supervision = False
        self.initial_lr = self.config.learning_rate
        self.weight_decay = self.config.weight_decay
        self.num_epochs = integer_from_environment(EPOCHS_VARIABLE, minimum=1) or self.config.num_epochs
        self.num_iterations_per_epoch = (
            integer_from_environment(ITERATIONS_VARIABLE, minimum=1) or self.config.num_iterations_per_epoch
        )
        self.num_val_iterations_per_epoch = max(1, self.num_iterations_per_epoch // 5)
        self.num_classes = self.label_manager.num_segmentation_heads
        self.ignore_label = self.label_manager.ignore_label
        self.curves: curves.Curves = {}
        self.faults = NumericalFaults(self.device, self.config.max_faults_in_a_row)
        self.unlabeled_dataset: UnlabeledDataset | None = None
        if self.device.type == "cpu":
            keep_freed_memory()

    # ------------------------------------------------------------------------------------------- network

    def initialize(self) -> None:
        """As the host; the processes of a distributed training may be on any device and on several machines.

        Raises:
            ValueError: If the configuration is not preprocessed.
        """
        plans = self.plans_manager
        check_preprocessed(
            Path(self.preprocessed_dataset_folder), plans.dataset_name, self.configuration_name, plans.plans_name
        )
        is_ddp, self.is_ddp = self.is_ddp, False  # or the host would wrap the network for a GPU of the first machine
        super().initialize()
        self.is_ddp = is_ddp
        if is_ddp:
            self._set_batch_size_and_oversample()
            # All start from the first process's weights. Buffers are constants; in --val not every process has a case.
            self.network = DistributedDataParallel(self.network, broadcast_buffers=False)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """There is none to switch."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, RelativePolyLRScheduler]:
        """SGD with Nesterov momentum and nnU-Net's polynomial schedule (Table 8)."""
        momentum = self.config.momentum
        optimizer = sgd(self.parameter_groups(), self.initial_lr, momentum, self.weight_decay, self.device)
        return optimizer, RelativePolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def parameter_groups(self) -> list[dict]:
        """Return the groups of parameters, each with its ``relative_rate``; the first one's is 1."""
        return [{"params": list(self.network.parameters()), "relative_rate": 1.0}]

    def _build_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The host's validation step shows the loss on validation patches by this."""
        return lambda output, target: self.dice_ce(output, target[:, 0])

    def dice_ce(self, logits: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Return DiceCE of (B, K, *spatial) and (B, *spatial) over the joint batch of all processes, see ``losses``."""
        return dice_ce(logits, target, class_weights, self.ignore_label, joint_sum if self.is_ddp else None)

    def joint_mean(self, values: Tensor) -> Tensor:
        """Return the mean of values, of any shape, over the joint batch of all processes."""
        if not self.is_ddp:
            return values.mean()
        total, count = joint_sum(torch.stack((values.sum(), values.new_full((), values.numel()))))
        return total / count

    def backward(self, loss: Tensor, weight: float = 1.0) -> Tensor:
        """Add the gradients of ``weight`` times a loss to those gathered so far; return the loss without its graph.

        Goes through the host's scaler where it has one. What the flow kept for its backward pass is free afterwards, so
        the flows of a step never hold memory at the same time.
        """
        self.faults.watch(loss.detach())
        weighted = weight * loss
        (weighted if self.grad_scaler is None else self.grad_scaler.scale(weighted)).backward()
        return loss.detach()

    def descend(self) -> None:
        """Clip the joint norm of the gathered gradients and take a step, through the host's scaler where it has one.

        A step with a loss or a gradient that is not finite is not taken. With a scaler on CUDA, nothing is read back
        for that, see :func:`nnunet_ad.trainer.optimizer.sgd`.
        """
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters]
        if self.is_ddp:
            add_over_processes_(gradients)
        self.faults.spread(gradients[0])
        scale = None
        if self.grad_scaler is not None:
            scale = self.grad_scaler.scale(torch.ones((), device=self.device))
            self.grad_scaler.unscale_(self.optimizer)
        self.faults.judge(nn.utils.clip_grad_norm_(parameters, self.config.max_gradient_norm), scale)
        if self.grad_scaler is not None:
            self.grad_scaler.step(self.optimizer)  # which skips it, too
            self.grad_scaler.update()
        elif not self.faults.skipped:
            self.optimizer.step()

    def to_device(self, *tensors: Tensor) -> list[Tensor]:
        """Copy tensors to the device."""
        return [tensor.to(self.device, non_blocking=True) for tensor in tensors]

    # ------------------------------------------------------------------------------------------- data

    def do_split(self) -> tuple[list[str], list[str]]:
        """As the host, but a fold beyond the split file is an error instead of a random split, as are unknown cases."""
        folder, cases_folder = Path(self.preprocessed_dataset_folder_base), Path(self.preprocessed_dataset_folder)
        identifiers = infer_dataset_class(str(cases_folder)).get_identifiers(str(cases_folder))
        if self.fold != "all":
            check_enough_for_folds(identifiers, folder)
        check_fold_exists(self.fold, folder)
        train, val = super().do_split()
        check_fold_exists(self.fold, folder)  # the host may have written the file only now
        check_labeled_cases(self.fold, train, val, identifiers, cases_folder)
        return train, val

    def get_tr_and_val_datasets(self) -> tuple:
        """As the host; all cases are checked, and unlabelled ones preprocessed where they were not.

        The first process writes missing splits and preprocesses, the others wait for it.
        """
        with first_process_first():
            return self._find_cases()

    def _find_cases(self) -> tuple:
        folders = DatasetFolders.of(self.plans_manager.dataset_name)
        check_copy_of_splits(self.fold, folders.preprocessed, folders.raw, self.print_to_log_file)
        labeled, val = super().get_tr_and_val_datasets()
        fold_of_dataset = f"fold {self.fold} of {self.plans_manager.dataset_name}"
        self._refuse_labels_of_others(type(labeled), folders.preprocessed)
        grids = Grids(self.plans_manager, self.configuration_name)
        check_labeled(labeled, val, self.label_manager, grids, fold_of_dataset, self.print_to_log_file)
        self.unlabeled_dataset = prepare_unlabeled(
            folders,
            preprocessing_of(folders, self.plans_manager, self.configuration_name, self.dataset_json),
            self.fold,
            labeled.identifiers,
            val.identifiers,
            self.print_to_log_file,
            between_cases=self.between_preparations,
        )
        self._point_out_unused(type(labeled), folders.preprocessed)
        for warning in domain_gap(labeled, self.unlabeled_dataset):
            self.print_to_log_file(warning)
        return labeled, val

    def _refuse_labels_of_others(self, dataset_class: type[nnUNetBaseDataset], preprocessed_dataset: Path) -> None:
        """Refuse a format of which the host would unpack the labels of cases that the fold has as unlabelled."""
        named = set() if self.fold == "all" else set(named_unlabeled(preprocessed_dataset).get(int(self.fold), ()))
        if dataset_class is nnUNetDatasetNumpy and named & set(self._preprocessed_labeled(dataset_class)):
            raise ValueError(
                f"fold {self.fold} has unlabelled cases in {self.preprocessed_dataset_folder}, which holds .npz files "
                "of an earlier nnU-Net, and nnU-Net unpacks the labels of them all. Run nnUNetv2_preprocess again."
            )

    def _point_out_unused(self, dataset_class: type[nnUNetBaseDataset], preprocessed_dataset: Path) -> None:
        labeled, unlabeled = self._preprocessed_labeled(dataset_class), self.unlabeled_dataset.identifiers
        if self.fold != "all" and (others := cases_in_no_fold(labeled, unlabeled, preprocessed_dataset)):
            self.print_to_log_file(
                f"WARNING: {len(others)} labelled case(s) are in no fold of {preprocessed_dataset / SPLITS_FILE}, as "
                f"if annotated since: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}. Add them there, or, "
                "if nnU-Net drew these folds, delete that file to have new ones drawn."
            )

    def _preprocessed_labeled(self, dataset_class: type[nnUNetBaseDataset]) -> list[str]:
        return dataset_class.get_identifiers(self.preprocessed_dataset_folder)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:  # noqa: N802 (host's name)
        """As the host; without mirroring, in training and in inference, unless the configuration asks for it."""
        *others, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.config.mirroring:
            self.inference_allowed_mirroring_axes = mirror_axes = None
        return *others, mirror_axes

    def get_dataloaders(self) -> tuple:
        """Return the loader of labelled with unlabelled batches and the host's loader of validation batches."""
        labeled, val = self.get_tr_and_val_datasets()
        patch_size = self.configuration_manager.patch_size
        rotation, slice_wise, initial_patch_size, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )

        def transforms(of_labeled: bool) -> BasicTransform:
            svda = SVDA.of(self.config, patch_size, rotation, slice_wise, of_labeled)
            return training_transforms(svda, self.configuration_manager.use_mask_for_norm, mirror_axes)

        def labeled_loader(dataset, size, augmentation) -> LabeledDataLoader:
            return LabeledDataLoader(
                dataset,
                self.batch_size,
                size,
                patch_size,
                self.label_manager,
                oversample_foreground_percent=self.oversample_foreground_percent,
                probabilistic_oversampling=self.probabilistic_oversampling,
                transforms=augmentation,
            )

        train = TwoStreamDataLoader(
            labeled_loader(labeled, initial_patch_size, transforms(of_labeled=True)),
            UnlabeledDataLoader(
                self.unlabeled_dataset,
                self.batch_size,
                initial_patch_size,
                patch_size,
                self.label_manager,
                transforms(of_labeled=False),
            ),
        )
        validation = labeled_loader(
            val, patch_size, self.get_validation_transforms(None, ignore_label=self.ignore_label)
        )
        num_workers = get_allowed_n_proc_DA()
        return (
            self.in_advance(train, Stream.TRAINING_BATCH, num_workers),
            self.in_advance(validation, Stream.VALIDATION_BATCH, num_workers // 2),
        )

    # ------------------------------------------------------------------------------------------- epochs

    def run_training(self) -> None:
        """As the base; errors that are known say what to do."""
        with explained(self):
            super().run_training()

    def on_train_start(self) -> None:
        """Say in the log what is trained, and in which way; the averages of a new training begin."""
        folder = self.output_folder_base
        with TemporaryDirectory() as scratch:
            if self.local_rank != 0:  # the host copies plans and fingerprint there from every process
                self.output_folder_base = scratch
            super().on_train_start()
        self.output_folder_base = folder
        if self.current_epoch == 0 and not self.train_outputs:
            for module in self.bare_network.modules():
                if isinstance(module, MovingAverage):
                    module.begin()  # weights of another training (-pretrained_weights) bring its number of iterations
        changed = [name for name in (EPOCHS_VARIABLE, ITERATIONS_VARIABLE) if name in os.environ]
        shortened = "".join(f" ({name} is set)" for name in changed)
        plans = self.plans_manager.plans
        self.print_to_log_file(f"{provenance.versions()}; device: {provenance.device_name(self.device)}")
        self.print_to_log_file(f"Plans {self.plans_manager.plans_name}, hash {provenance.plan_hash(plans)}")
        self.print_to_log_file(f"seed {self.seed}; {self.config}")
        self.print_to_log_file(
            f"{self.num_epochs} epochs of {self.num_iterations_per_epoch} training and "
            f"{self.num_val_iterations_per_epoch} validation iterations{shortened}, "
            f"batches of {self.batch_size} labelled and {self.batch_size} unlabelled patches"
        )
        if self.device.type == "cpu":
            self.print_to_log_file(f"Forward passes on the CPU in {'bfloat16' if cpu_computes_bf16() else 'float32'}")

    def on_epoch_end(self) -> None:
        """As the host, then the curves as a picture, and as numbers for the report."""
        super().on_epoch_end()
        if self.local_rank == 0:
            curves.plot(self.curves, Path(self.output_folder) / "progress_ad.png")
            progress = {"learning_rate": self.logger.get_value("lrs", step=None), "curves": self.curves}
            progress = json.loads(json.dumps(progress), parse_constant=lambda _: None)  # JSON knows no NaN
            with checkpoints.whole_file(Path(self.output_folder) / "progress_ad.json") as stream:
                stream.write(json.dumps(progress).encode())
            gc.collect()  # a closed figure is a cycle that holds its canvas, 62 MiB an epoch for nnU-Net's picture

    def log_epoch(self, **values) -> None:
        """Add one epoch's values, numbers or arrays, to curves, log file and further loggers of the host."""
        values = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in values.items()}
        curves.append(self.curves, **values)
        for name, value in values.items():
            self.print_to_log_file(name, np.round(np.asarray(value, dtype=float), 4))
            for logger in self.logger.loggers:
                logger.log(f"ad/{name}", value, self.current_epoch)

    def between_iterations(self, cases: Collection[str] = ()) -> None:
        """As the base; now and then see whether too many steps in a row had a numerical fault."""
        if cases and not self.val_outputs:
            self.faults.cases.append(set(cases))
        if not self.val_outputs and len(self.train_outputs) % self.faults.most_in_a_row == 0:
            self.faults.check(f"epoch {self.current_epoch}, training iteration {len(self.train_outputs)}")
        super().between_iterations(cases)

    # ------------------------------------------------------------------------------------------- checkpoints

    def method_state(self) -> dict:
        """The curves and the number of faults in a row go into the checkpoint, too."""
        return {**super().method_state(), "curves": self.curves, "faults_in_a_row": int(self.faults.in_a_row)}

    def load_method_state(self, state: dict) -> None:
        """Restore what :meth:`method_state` returned; the running epoch adds its values to the curves again."""
        super().load_method_state(state)
        self.curves = {name: values[: self.current_epoch] for name, values in state["curves"].items()}
        self.faults.go_on(state["faults_in_a_row"])
