"""A training that was interrupted ends with what one that was not ends with, bit by bit."""

import json
import os
import random
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from changed_config import with_config
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from planned_dataset import DATASET

from nnunet_ad.cli.main import main
from nnunet_ad.config import ADConfig
from nnunet_ad.data import preprocessing
from nnunet_ad.data.workers import WorkerKilledError
from nnunet_ad.trainer import another_training, checkpoints, nnUNetTrainerAD
from nnunet_ad.trainer.faults import TrainingError
from nnunet_ad.trainer.interruption import EXIT_CODE, TrainingInterruptedError


class Watched(nnUNetTrainerAD):
    """Two epochs that note the loss of each step."""

    config = replace(ADConfig(), num_epochs=2, num_sampling_steps=2)

    def initialize(self) -> None:
        super().initialize()
        self.losses = []

    def train_step(self, batch):
        outputs = super().train_step(batch)
        self.losses.append(outputs["loss"].item())
        return outputs


@pytest.fixture(scope="module")
def planned(planned, tmp_path_factory) -> Path:
    """The planned dataset with its unlabelled cases preprocessed, once for all of these trainings."""
    root = tmp_path_factory.mktemp("preprocessed")
    shutil.copytree(planned, root, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed"):
            patch.setenv(name, str(root / name))
        assert main(["preprocess-unlabeled", "-d", "500", "-p", "nnUNetPlansTiny", "-np", "1"]) == 0
    return root


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch) -> None:
    monkeypatch.setattr("nnunet_ad.trainer.curves.plot", lambda *_: None)
    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.LocalLogger.plot_progress_png", lambda *_: None)


def interrupted_after(trainer, number: int) -> Watched:
    """Let a trainer be asked to stop after that many iterations and ends of epochs."""
    reason, asked = trainer.interruption.reason, iter(range(number))
    trainer.interruption.reason = lambda: "SIGTERM" if next(asked, None) is None else reason()
    return trainer


@pytest.fixture
def uninterrupted(make_trainer, monkeypatch) -> Watched:
    monkeypatch.setenv("NNUNET_AD_ITERATIONS", "3")
    trainer = make_trainer(Watched)
    trainer.run_training()
    return trainer


def interrupted(trainer, iteration: int):
    with pytest.raises(TrainingInterruptedError):
        interrupted_after(trainer, iteration).run_training()
    return trainer


def resumed(trainer):
    """Load what ``--c`` does."""
    maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
    return trainer


def seed_in(file: Path) -> int:
    return torch.load(file, weights_only=False)["nnunet_ad"]["seed"]


def latest(trainer) -> Path:
    return Path(trainer.output_folder) / checkpoints.LATEST


def snapshots_of(trainer) -> dict[str, bytes]:
    files = sorted((Path(trainer.output_folder) / "snapshots").iterdir())
    return {file.name: b"".join(value.tobytes() for value in np.load(file).values()) for file in files}


def state_of(trainer) -> dict[str, torch.Tensor]:
    momentum = trainer.optimizer.state_dict()["state"]
    return {
        **trainer.network.state_dict(),
        **{f"momentum {i}": state["momentum_buffer"] for i, state in momentum.items()},
        **trainer.difficulty.state_dict(),
    }


def test_a_stop_after_the_last_epoch_names_no_epoch_that_there_is_not(make_trainer):
    trainer_class = with_config(Watched, num_epochs=1)
    trainer = interrupted(make_trainer(trainer_class), 3)  # training, validation, end of the epoch
    log = Path(trainer.log_file).read_text()
    assert "Stopped by SIGTERM after the last epoch; checkpoint_latest.pth is written." in log
    resumed(make_trainer(trainer_class)).run_training()
    assert (Path(trainer.output_folder) / checkpoints.FINAL).exists()


@pytest.mark.parametrize(
    ("stops", "workers"),
    [
        ([0], "1"),  # after the first iteration
        ([1, 1], "0"),  # in training, and again in the same epoch
        ([3], "1"),  # in validation
        ([4], "3"),  # between epochs
        ([6], "0"),
    ],
)
def test_a_continued_training_is_the_uninterrupted_one(uninterrupted, make_trainer, monkeypatch, stops, workers):
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    losses, expected_snapshots = [], snapshots_of(uninterrupted)
    for i, stop in enumerate([*stops, 1000]):
        random.seed(i)  # whatever state the process begins with
        trainer = make_trainer(Watched)
        if i > 0:
            trainer.load_checkpoint(str(latest(trainer)))
        if i < len(stops):
            with pytest.raises(TrainingInterruptedError):
                interrupted_after(trainer, stop).run_training()
        else:
            trainer.run_training()
        losses += trainer.losses
    assert losses == uninterrupted.losses
    expected = state_of(uninterrupted)
    assert all(torch.equal(value, expected[name]) for name, value in state_of(trainer).items())
    assert json.dumps(trainer.curves) == json.dumps(uninterrupted.curves)
    for name in ("train_losses", "val_losses", "ema_fg_dice", "lrs"):
        assert trainer.logger.get_value(name, None) == uninterrupted.logger.get_value(name, None)
    assert snapshots_of(trainer) == expected_snapshots
    assert trainer._best_ema == uninterrupted._best_ema
    names = {file.name for file in Path(trainer.output_folder).glob("checkpoint_*")}
    assert names == {"checkpoint_best.pth", "checkpoint_final.pth"}


def test_the_best_epoch_is_remembered(make_trainer, monkeypatch):
    """The host writes its latest checkpoint before it knows whether the epoch was the best."""
    trainer = make_trainer(Watched)
    trainer.num_iterations_per_epoch = 1
    with pytest.raises(TrainingInterruptedError):
        interrupted_after(trainer, 2).run_training()  # an iteration, one of validation, and the end of the epoch
    checkpoint = torch.load(latest(trainer), weights_only=False)
    assert checkpoint["current_epoch"] == 1
    assert checkpoint["_best_ema"] == trainer.logger.get_value("ema_fg_dice", step=0)


def test_without_a_seed_one_is_drawn_logged_and_kept(make_trainer, monkeypatch):
    monkeypatch.delenv("NNUNET_AD_SEED")
    first, second = make_trainer(Watched), make_trainer(Watched)
    assert first.seed != second.seed
    with pytest.raises(TrainingInterruptedError):
        interrupted_after(first, 0).run_training()
    log = Path(first.log_file).read_text()
    assert f"seed {first.seed};" in log
    assert all(name in log for name in ("nnunetv2 2", "torch ", "Python 3", "device: cpu", "hash "))
    second.load_checkpoint(str(latest(first)))
    assert second.seed == first.seed


def test_another_seed_than_that_of_the_checkpoint_is_pointed_out(make_trainer, monkeypatch):
    first = make_trainer(Watched)
    with pytest.raises(TrainingInterruptedError):
        interrupted_after(first, 0).run_training()
    monkeypatch.setenv("NNUNET_AD_SEED", "7")
    second = make_trainer(Watched)
    second.load_checkpoint(str(latest(first)))
    assert second.seed == 1
    assert "NNUNET_AD_SEED is 7, but this training began with seed 1" in Path(second.log_file).read_text()


def test_a_checkpoint_is_continued_where_torch_loads_only_data(make_trainer, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setenv("NNUNET_AD_ITERATIONS", "1")
    first = interrupted(make_trainer(Watched), 2)  # after an epoch, whose values are numpy's
    second = make_trainer(Watched)
    second.load_checkpoint(str(latest(first)))
    assert second.seed == first.seed


def test_a_checkpoint_of_another_network_is_named(make_trainer, dataset):
    first = make_trainer(Watched)
    with pytest.raises(TrainingInterruptedError):
        interrupted_after(first, 0).run_training()
    file = dataset / "nnUNet_preprocessed" / "Dataset500_Made" / "nnUNetPlansTiny.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"][0] += 4
    file.write_text(json.dumps(plans))
    second = make_trainer(Watched)
    message = r"is of another network: \S+ has shape .* there, and has shape .* here.* without --c"
    with pytest.raises(ValueError, match=message):
        second.load_checkpoint(str(latest(first)))


def test_a_damaged_latest_checkpoint_is_replaced_by_the_one_before(make_trainer, monkeypatch):
    monkeypatch.setenv("NNUNET_AD_CHECKPOINT_MINUTES", "0")
    first = make_trainer(Watched)
    with pytest.raises(TrainingInterruptedError):
        interrupted_after(first, 1).run_training()
    with latest(first).open("r+b") as stream:
        stream.truncate(latest(first).stat().st_size // 2)
    second = make_trainer(Watched)
    second.load_checkpoint(str(latest(first)))
    assert len(second.train_outputs) == 1
    log = Path(second.log_file).read_text()
    assert f"{latest(first)} is damaged" in log
    assert str(latest(first).with_name(checkpoints.PREVIOUS)) in log
    second.run_training()
    assert len(second.losses) == 3


def test_an_older_trainings_checkpoint_never_stands_in_for_a_damaged_one(make_trainer, monkeypatch):
    monkeypatch.setenv("NNUNET_AD_CHECKPOINT_MINUTES", "0")
    older = interrupted(make_trainer(Watched), 2)
    assert latest(older).with_name(checkpoints.PREVIOUS).exists()
    failing_at_once(make_trainer(Watched))
    assert not latest(older).with_name(checkpoints.PREVIOUS).exists()


def failing_at_once(trainer):
    trainer.train_step = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.run_training()
    return trainer


@pytest.mark.parametrize(
    ("signals", "error"), [([signal.SIGTERM], TrainingInterruptedError), ([], TrainingError)], ids=["job", "worker"]
)
def test_a_signal_that_kills_a_worker_first_stops_as_others_do(make_trainer, monkeypatch, signals, error):
    """As where the server that new processes are forked from gets it, or a worker that has only begun to start."""

    class Killed:
        def __next__(self):
            for number in signals:
                os.kill(os.getpid(), number)
            raise WorkerKilledError("SIGTERM")

    trainer = make_trainer(Watched)
    step = trainer.train_step

    def train_step(batch):
        trainer.dataloader_train = Killed()
        return step(batch)

    monkeypatch.setenv("NNUNET_AD_ITERATIONS", "1")
    trainer.num_iterations_per_epoch = 1
    trainer.train_step = train_step
    with pytest.raises(error):
        trainer.run_training()
    assert latest(trainer).exists() == bool(signals)
    if signals:
        assert resumed(make_trainer(Watched)).current_epoch == 1


@pytest.mark.parametrize("end", [interrupted, lambda trainer, _: failing_at_once(trainer)], ids=["signal", "killed"])
def test_a_new_training_is_continued_and_not_the_finished_one_before_it(make_trainer, monkeypatch, end):
    monkeypatch.setenv("NNUNET_AD_SEED", "1")
    make_trainer(Watched).run_training()
    monkeypatch.setenv("NNUNET_AD_SEED", "2")
    newer = end(make_trainer(Watched), 1)
    folder = Path(newer.output_folder)
    superseded = another_training.superseded(folder / checkpoints.FINAL)
    assert seed_in(superseded) == 1
    assert superseded.name in Path(newer.log_file).read_text()
    without = make_trainer(Watched)
    without.disable_checkpointing = True
    resumed(without).run_training()
    assert seed_in(superseded) == 1
    newer.save_latest_checkpoint()  # which the host removed at the end of the one without checkpoints
    continued = resumed(make_trainer(Watched))
    assert continued.seed == 2
    continued.run_training()
    assert seed_in(folder / checkpoints.FINAL) == 2
    assert {file.name for file in folder.glob("*.pth")} == {checkpoints.FINAL, checkpoints.BEST}


def test_a_new_training_that_stopped_while_data_were_prepared_is_continued(make_trainer, dataset, monkeypatch):
    monkeypatch.setenv("NNUNET_AD_SEED", "1")
    make_trainer(Watched).run_training()
    image = next((dataset / "nnUNet_raw" / DATASET / "imagesUnlabeled").iterdir())
    content = image.read_bytes()
    image.write_bytes(content[:1000])
    monkeypatch.setenv("NNUNET_AD_SEED", "2")
    with pytest.raises(ValueError, match="truncated"):
        make_trainer(Watched).run_training()
    image.write_bytes(content)
    continued = resumed(make_trainer(Watched))
    assert (continued.seed, continued.current_epoch) == (2, 0)
    continued.run_training()
    assert seed_in(Path(continued.output_folder) / checkpoints.FINAL) == 2


def test_starts_that_come_to_nothing_do_not_push_out_a_training(make_trainer, dataset, monkeypatch):
    monkeypatch.setenv("NNUNET_AD_SEED", "1")
    forgotten = interrupted(make_trainer(Watched), 1)
    image = next((dataset / "nnUNet_raw" / DATASET / "imagesUnlabeled").iterdir())
    image.write_bytes(image.read_bytes()[:1000])
    for seed in ("2", "3"):
        monkeypatch.setenv("NNUNET_AD_SEED", seed)
        with pytest.raises(ValueError, match="truncated"):
            make_trainer(Watched).run_training()
        assert seed_in(latest(forgotten)) == int(seed)
        assert seed_in(another_training.superseded(latest(forgotten))) == 1


def test_a_signal_ends_the_preparation_of_data_after_the_running_case(make_trainer, dataset, monkeypatch):
    for file in (dataset / "nnUNet_raw" / DATASET / "imagesUnlabeled").iterdir():
        os.utime(file, (1, 1))
    signals, prepared = [signal.SIGTERM], []

    def run(jobs, _):
        for job in jobs:
            for number in signals:
                os.kill(os.getpid(), number)
            prepared.append(job[1])
            yield preprocessing._preprocess_case(job)

    monkeypatch.setattr(preprocessing, "_run", run)
    trainer = make_trainer(Watched)
    with pytest.raises(SystemExit) as raised:
        trainer.run_training()
    assert raised.value.code == EXIT_CODE
    assert len(prepared) == 1
    log = Path(trainer.log_file).read_text()
    assert "Stopped by SIGTERM while data were prepared, of which what is done stays; checkpoint_latest.pth is" in log
    assert latest(trainer).exists()
    signals.clear()
    resumed(make_trainer(Watched)).run_training()
    assert sorted(prepared) == ["Made_003", "Made_004", "Made_005"]


def test_continuing_what_has_ended_is_pointed_out(make_trainer):
    make_trainer(Watched).run_training()
    continued = resumed(make_trainer(Watched))
    continued.run_training()
    assert "has ended, after 2 epochs. Nothing is trained" in Path(continued.log_file).read_text()


def test_what_another_training_validated_does_not_stay_beside_a_new_one(make_trainer):
    finished = make_trainer(Watched)
    finished.run_training()
    summary = Path(finished.output_folder) / "validation" / "summary.json"
    summary.parent.mkdir()
    summary.touch()
    resumed(make_trainer(Watched)).run_training()
    assert summary.exists(), "nothing was trained"
    interrupted(make_trainer(Watched), 1)
    aside = another_training.superseded(summary.parent)
    assert (aside / summary.name).exists() and not summary.exists()
    resumed(make_trainer(Watched)).run_training()
    assert not aside.exists()


def test_cases_that_left_the_fold_are_not_validated(make_trainer, monkeypatch):
    trainer = make_trainer(Watched)
    validation = Path(trainer.output_folder) / "validation"
    validation.mkdir(parents=True)
    (val,) = trainer.do_split()[1]
    names = [f"{case}{ending}" for case in (val, "Made_000") for ending in (".nii.gz", ".npz", ".pkl")]
    for name in [*names, "summary.json", "notes.txt"]:
        (validation / name).touch()
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda *_: None)
    trainer.perform_actual_validation()
    assert {file.name for file in validation.iterdir()} == {*names[:3], "notes.txt"}


def test_a_training_is_not_lost_where_continuing_it_was_forgotten(make_trainer, monkeypatch):
    monkeypatch.setenv("NNUNET_AD_SEED", "1")
    forgotten = interrupted(make_trainer(Watched), 1)
    monkeypatch.setenv("NNUNET_AD_SEED", "2")
    failing_at_once(make_trainer(Watched))
    failing_at_once(resumed(make_trainer(Watched)))  # its own checkpoint of the beginning is not another training's
    superseded = another_training.superseded(latest(forgotten))
    assert seed_in(superseded) == 1
    superseded.rename(latest(forgotten))
    continued = resumed(make_trainer(Watched))
    assert (continued.seed, len(continued.train_outputs)) == (1, 2)


def test_a_prolonged_training_that_was_stopped_goes_on_from_where_it_was(make_trainer, monkeypatch):
    finished = make_trainer(Watched)
    finished.run_training()
    monkeypatch.setenv("NNUNET_AD_EPOCHS", str(finished.num_epochs + 1))
    interrupted(resumed(make_trainer(Watched)), 0)
    continued = resumed(make_trainer(Watched))
    assert (continued.current_epoch, len(continued.train_outputs)) == (finished.num_epochs, 1)


def test_a_signal_ends_the_training_with_a_checkpoint_a_line_and_a_code(make_trainer, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    trainer = make_trainer(Watched)
    step = trainer.train_step
    trainer.train_step = lambda batch: os.kill(os.getpid(), signal.SIGTERM) or step(batch)
    handler, before = signal.getsignal(signal.SIGTERM), set(threading.enumerate())
    with pytest.raises(SystemExit) as raised:
        trainer.run_training()
    assert raised.value.code == EXIT_CODE == 75
    assert signal.getsignal(signal.SIGTERM) is handler
    assert len(torch.load(latest(trainer), weights_only=False)["nnunet_ad"]["running_epoch"][0]["train"]) == 1
    stopped = [line for line in Path(trainer.log_file).read_text().splitlines() if "Stopped" in line]
    assert len(stopped) == 1
    assert "by SIGTERM in epoch 0, after 1 of 2 training and 0 of 1 validation iterations" in stopped[0]
    assert not [thread for thread in set(threading.enumerate()) - before if "results_loop" in thread.name]


def test_a_training_without_checkpoints_stops_without_one(make_trainer):
    trainer = interrupted_after(make_trainer(Watched), 0)
    trainer.disable_checkpointing = True
    with pytest.raises(TrainingInterruptedError):
        trainer.run_training()
    log = Path(trainer.log_file).read_text()
    assert "no checkpoint is written (--disable_checkpointing): what was trained since the start is lost" in log
    assert "--c continues" not in log
    assert not list(Path(trainer.output_folder).glob("checkpoint*"))


def test_a_training_without_checkpoints_leaves_those_of_another_alone(make_trainer):
    stopped = interrupted(make_trainer(Watched), 1)
    before = latest(stopped).read_bytes()
    trainer = make_trainer(Watched)
    trainer.disable_checkpointing = True
    trainer.run_training()
    assert latest(trainer).read_bytes() == before
    assert [file.name for file in Path(trainer.output_folder).glob("checkpoint*")] == [latest(trainer).name]


def test_the_time_limit_stops_before_it_is_over(make_trainer, monkeypatch):
    monkeypatch.setenv("NNUNET_AD_TIME_LIMIT", "0.01")
    trainer = make_trainer(Watched)
    with pytest.raises(TrainingInterruptedError):
        trainer.run_training()
    assert "the time limit (NNUNET_AD_TIME_LIMIT)" in Path(trainer.log_file).read_text()
    assert latest(trainer).exists()
