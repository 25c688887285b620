"""nnU-Net's training loop, made so that a training may end at any moment and be continued, or repeated, exactly."""

import sys
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import torch
from batchgenerators.dataloading.data_loader import DataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import distributed, nn
from torch._dynamo import OptimizedModule

from nnunet_ad import __version__
from nnunet_ad.data.workers import NumberedBatches, OrderedWorkers, WorkerKilledError
from nnunet_ad.network.checkpoint import check_complete, check_fits, checkpoint_types, load_checkpoint
from nnunet_ad.trainer import another_training, checkpoints, randomness
from nnunet_ad.trainer.environment import minutes_from_environment
from nnunet_ad.trainer.interruption import (
    EXIT_CODE,
    TIME_LIMIT_VARIABLE,
    Interruption,
    TrainingInterruptedError,
    in_any_rank,
)
from nnunet_ad.trainer.processes import own_device
from nnunet_ad.trainer.randomness import Stream, seed_everything

CHECKPOINT_VARIABLE = "NNUNET_AD_CHECKPOINT_MINUTES"
_CHECKPOINT_MINUTES = 9.0  # with the iteration that has begun, less than ten minutes of work are lost


class nnUNetTrainerResumable(nnUNetTrainer):
    """Base of trainers whose run is a function of its seed, however often it was interrupted.

    Every iteration, and every batch, draws random numbers that derive from (seed, rank, number of the iteration). A
    checkpoint may be written between any two iterations: it holds what the running epoch has gathered so far.

    ``NNUNET_AD_SEED=n`` sets the seed, ``NNUNET_AD_CHECKPOINT_MINUTES=n`` the time between checkpoints, and
    ``NNUNET_AD_TIME_LIMIT`` (minutes or HH:MM:SS) when to stop as if by SIGTERM.

    Attributes:
        seed: Of the run; part of the checkpoint.
        generator: Random numbers of a step, on the device.
        train_outputs: What the training iterations of the running epoch returned; part of the checkpoint.
        val_outputs: What its validation iterations returned; part of the checkpoint.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (the host inspects this very signature)
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp:  # the host takes for granted that all processes are on one machine with GPUs
            self.device = own_device(device)
            self.grad_scaler = self.grad_scaler if self.device.type == "cuda" else None
        self.save_every = sys.maxsize  # of the host, which would write before it knows whether this epoch is the best
        self.interruption = Interruption(minutes_from_environment(TIME_LIMIT_VARIABLE), time.monotonic())
        minutes = minutes_from_environment(CHECKPOINT_VARIABLE)
        self.seconds_between_checkpoints = 60 * (_CHECKPOINT_MINUTES if minutes is None else minutes)
        self.seed = randomness.choose_seed()
        self.generator = torch.Generator(self.device)
        self.seed_step(Stream.TRAINING_STEP, 0)
        seed_everything(self.seed, 0, Stream.WEIGHTS, 0)
        self.train_outputs: list[dict] = []
        self.val_outputs: list[dict] = []
        self._workers: list[OrderedWorkers] = []
        self._last_checkpoint = time.monotonic()
        self._latest_is_of_this_run = False
        self._ranks: distributed.ProcessGroup | None = None

    @property
    def bare_network(self) -> nn.Module:
        """The network without the wrappers of distributed training and compilation."""
        network = self.network.module if self.is_ddp else self.network
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    # ------------------------------------------------------------------------------------------- loop

    def run_training(self) -> None:
        """As the host, but going on after the iteration that a loaded checkpoint ends with; workers end in any case.

        Raises:
            TrainingInterruptedError: After SIGTERM or SIGINT, or when the time limit comes near, with a checkpoint
                written before. It is a ``SystemExit`` with code 75.
        """
        if self.is_ddp:
            self._ranks = distributed.new_group(backend="gloo")  # asking it needs no synchronisation with the device
        try:
            with self.interruption:
                self.on_train_start()
                self.interruption.forget_pauses()
                self._last_checkpoint = time.monotonic()
                self._set_another_training_aside()
                self._say_if_nothing_is_left()
                while self.current_epoch < self.num_epochs:
                    self._run_epoch()
                    self.between_iterations()
                self.on_train_end()
                if self._is_asked_to_stop():
                    self._stop("before the validation", checkpoints.FINAL)
        finally:
            for workers in self._workers:
                workers._finish()

    def _set_another_training_aside(self) -> None:
        """At the beginning of a training, see to it that ``--c`` goes on with it and not with another in its folder."""
        if another_training.is_in(Path(self.output_folder)):
            self._write_beginning()

    def _write_beginning(self) -> None:
        """Write ``checkpoint_latest.pth`` before the first iteration of a training, unless it is there."""
        begins = self.current_epoch == 0 and not self.train_outputs and not self._latest_is_of_this_run
        if self.local_rank != 0 or not begins or self.disable_checkpointing:
            return
        folder = Path(self.output_folder)
        another_training.set_latest_aside(folder, self.print_to_log_file)
        self._write_checkpoint(folder / checkpoints.LATEST, self.current_epoch, running_epoch=[])
        self._latest_is_of_this_run = True

    def _say_if_nothing_is_left(self) -> None:
        if self.current_epoch >= self.num_epochs:
            self.print_to_log_file(
                f"NOTE: the training in this folder has ended, after {self.current_epoch} epochs. Nothing is trained, "
                "only the validation is repeated. Without --c a new training begins."
            )

    def _run_epoch(self) -> None:
        self.on_epoch_start()
        self.on_train_epoch_start()
        number = self.num_iterations_per_epoch
        self._iterate(self.train_step, self.dataloader_train, self.train_outputs, number, Stream.TRAINING_STEP)
        self.on_train_epoch_end(self.train_outputs)
        with torch.no_grad():
            self.on_validation_epoch_start()
            number = self.num_val_iterations_per_epoch
            self._iterate(self.validation_step, self.dataloader_val, self.val_outputs, number, Stream.VALIDATION_STEP)
            self.on_validation_epoch_end(self.val_outputs)
        self.train_outputs, self.val_outputs = [], []
        self.on_epoch_end()

    def _iterate(
        self, step: Callable[[dict], dict], batches: Iterator[dict], outputs: list[dict], number: int, stream: Stream
    ) -> None:
        """Take the steps of an epoch that are missing in its outputs."""
        for i in range(len(outputs), number):
            batch = self._next_of(batches)
            self.seed_step(stream, self.current_epoch * number + i)
            outputs.append(step(batch))
            self.between_iterations([*batch.get("keys", ()), *batch.get("unlabeled_keys", ())])

    def _next_of(self, batches: Iterator[dict]) -> dict:
        try:
            return next(batches)
        except WorkerKilledError:
            if not self.is_ddp:  # where the others may be in a step that waits for this process
                self.between_iterations()  # what killed it may have been a signal to all processes of the job
            raise

    def seed_step(self, stream: Stream, number: int) -> None:
        """Seed everything that draws in one step of a stream, the trainer's own generator as well."""
        self.generator.manual_seed(seed_everything(self.seed, self.local_rank, stream, number))

    def between_iterations(self, cases: Collection[str] = ()) -> None:
        """Write a checkpoint if it is time for one; stop if something asks for it. All ranks do so together.

        Args:
            cases: Of the last batch; none at the end of an epoch.
        """
        stop = self._is_asked_to_stop()
        is_due = time.monotonic() - self._last_checkpoint >= self.seconds_between_checkpoints
        if stop or in_any_rank(is_due, self._ranks):
            self.save_latest_checkpoint()
        if stop:
            where = (
                f"in epoch {self.current_epoch}, after {len(self.train_outputs)} of {self.num_iterations_per_epoch} "
                f"training and {len(self.val_outputs)} of {self.num_val_iterations_per_epoch} validation iterations"
            )
            if self.current_epoch >= self.num_epochs:
                where = "after the last epoch"
            self._stop(where, checkpoints.LATEST)

    def _is_asked_to_stop(self) -> bool:
        return in_any_rank(self.interruption.reason() is not None, self._ranks)

    def between_preparations(self) -> None:
        """Stop if something asks for it, while one process prepares data and the others wait for it."""
        self._set_another_training_aside()
        if self.interruption.reason() is not None:
            self._write_beginning()
            self._stop("while data were prepared, of which what is done stays", checkpoints.LATEST)

    def _stop(self, where: str, checkpoint: str) -> NoReturn:
        reason = self.interruption.reason() or "another process of this training"
        written = f"{checkpoint} is written. The same command with --c continues."
        if self.disable_checkpointing:
            written = "no checkpoint is written (--disable_checkpointing): what was trained since the start is lost."
        self.print_to_log_file(f"Stopped by {reason} {where}; {written} Exit code {EXIT_CODE}.")
        raise TrainingInterruptedError

    # ------------------------------------------------------------------------------------------- data

    def in_advance(self, loader: DataLoader, batch_stream: Stream, num_workers: int) -> Iterator[dict]:
        """Return the batches of a loader from the next iteration on, made by worker processes if these are allowed."""
        training = batch_stream == Stream.TRAINING_BATCH
        outputs = self.train_outputs if training else self.val_outputs
        number = self.num_iterations_per_epoch if training else self.num_val_iterations_per_epoch
        first = self.current_epoch * number + len(outputs)
        batches = NumberedBatches(loader, first, partial(seed_everything, self.seed, self.local_rank, batch_stream))
        if get_allowed_n_proc_DA() == 0:
            return batches
        workers = OrderedWorkers(batches, first, max(1, num_workers), pin_memory=self.device.type == "cuda")
        self._workers.append(workers)
        workers.start()
        return workers

    # ------------------------------------------------------------------------------------------- checkpoints

    def method_state(self) -> dict:
        """Return what the training carries from step to step beside network and optimiser; a subclass adds to it."""
        return {"version": __version__, "seed": self.seed}

    def load_method_state(self, state: dict) -> None:
        """Restore what :meth:`method_state` returned."""
        if randomness.is_given() and self.seed != state["seed"]:
            self.print_to_log_file(
                f"{randomness.SEED_VARIABLE} is {self.seed}, but this training began with seed {state['seed']}, "
                "which it keeps."
            )
        self.seed = state["seed"]

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's checkpoint with the method's state added; called by the host at the end of an epoch."""
        self._write_checkpoint(Path(filename), self.current_epoch + 1, running_epoch=[])

    def save_latest_checkpoint(self) -> None:
        """Write ``checkpoint_latest.pth`` between two iterations; the one it replaces is kept as the previous one.

        A ``checkpoint_final.pth`` that it supersedes is named otherwise, as ``--c`` would prefer it.
        """
        self._last_checkpoint = time.monotonic()
        if self.disable_checkpointing:
            return
        folder = Path(self.output_folder)
        self._write_checkpoint(folder / checkpoints.LATEST, self.current_epoch, self._running_epoch())
        self._latest_is_of_this_run = True
        if self._ranks is not None:
            distributed.barrier(self._ranks)  # no rank may end and take the others with it while one is writing

    def _write_checkpoint(self, file: Path, finished_epochs: int, running_epoch: list[dict]) -> None:
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
            "current_epoch": finished_epochs,
            "init_args": self.my_init_kwargs,
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            "nnunet_ad": {**self.method_state(), "running_epoch": running_epoch},
        }
        keep_previous = file.name == checkpoints.LATEST and self._latest_is_of_this_run
        checkpoints.write(checkpoint, file, keep_previous)
        if file.name == checkpoints.LATEST:
            if not keep_previous:
                file.with_name(checkpoints.PREVIOUS).unlink(missing_ok=True)
            another_training.set_end_aside(file.parent, self.print_to_log_file)

    def _running_epoch(self) -> list[dict]:
        """Return, in rank 0, what each rank has gathered in the running epoch."""
        mine = {
            "train": [{name: value.cpu() for name, value in outputs.items()} for outputs in self.train_outputs],
            "val": self.val_outputs,
        }
        if self._ranks is None:
            return [mine]
        gathered: list[dict] = [{}] * distributed.get_world_size()
        distributed.gather_object(mine, gathered if self.local_rank == 0 else None, group=self._ranks)
        return gathered

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Restore what was written; a damaged ``checkpoint_latest.pth`` is replaced by the one before it.

        Raises:
            ValueError: If the file is damaged and there is none to replace it, or it is a model exported for inference
                or of another network.
        """
        file = checkpoints.readable(Path(filename_or_checkpoint), self.print_to_log_file)
        checkpoint = load_checkpoint(file)
        check_complete(checkpoint, file)
        if not self.was_initialized:
            self.initialize()
        check_fits(checkpoint, self.bare_network, file)
        state = checkpoint["nnunet_ad"]
        del checkpoint  # the host reads it again
        with checkpoint_types():
            super().load_checkpoint(str(file))
        for values in self.logger.get_checkpoint().values():
            del values[self.current_epoch :]  # the running epoch logs its values again
        self.load_method_state(state)
        self._latest_is_of_this_run = file.name == checkpoints.LATEST
        self.train_outputs, self.val_outputs = [], []
        if state["running_epoch"]:
            running_epoch = state["running_epoch"][self.local_rank % len(state["running_epoch"])]
            self.val_outputs = running_epoch["val"]
            self.train_outputs = [
                {name: value.to(self.device) for name, value in outputs.items()} for outputs in running_epoch["train"]
            ]

    # ------------------------------------------------------------------------------------------- hooks of the host

    def on_train_start(self) -> None:
        """As the host; what a killed process left half-written is removed."""
        if self.local_rank == 0:
            for name in ("checkpoint_*.tmp", "progress_ad.json.tmp"):
                for file in Path(self.output_folder).glob(name):
                    file.unlink()
        super().on_train_start()

    def on_train_end(self) -> None:
        """As the host, which leaves the final and the best checkpoint; without checkpointing no file changes."""
        if self.disable_checkpointing:
            self._end_elsewhere()
            return
        super().on_train_end()
        if self.local_rank == 0:
            folder = Path(self.output_folder)
            another_training.remove(folder)
            (folder / checkpoints.PREVIOUS).unlink(missing_ok=True)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As the host, without what an earlier fold of this number left there, which it would score as well."""
        if self.local_rank == 0:
            self._remove_cases_of_other_folds(Path(self.output_folder) / another_training.VALIDATION)
        super().perform_actual_validation(save_probabilities)

    def _remove_cases_of_other_folds(self, validation: Path) -> None:
        _, cases = self.do_split()
        (validation / "summary.json").unlink(missing_ok=True)
        for ending in (self.dataset_json["file_ending"], ".npz", ".pkl"):
            for file in validation.glob(f"*{ending}"):
                if file.name.removesuffix(ending) not in cases:
                    self.print_to_log_file(f"{file} is removed: the case is not in the validation of this fold.")
                    file.unlink()

    def _end_elsewhere(self) -> None:
        """End as the host, which would remove another training's ``checkpoint_latest.pth`` from the results folder."""
        folder = self.output_folder
        with TemporaryDirectory() as scratch:
            self.output_folder = scratch
            try:
                super().on_train_end()
            finally:
                self.output_folder = folder
