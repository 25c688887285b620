"""A step with a loss or gradient that is not finite is as if it had not been."""

from pathlib import Path

import pytest
import torch
from changed_config import with_config
from torch import Tensor

from nnunet_ad.trainer import nnUNetTrainerAD
from nnunet_ad.trainer.numerical_faults import NumericalFaults

NAN, INF = float("nan"), float("inf")


def judged(faults: NumericalFaults, loss: float, norm: float, scale: float | None = None) -> tuple[bool, bool]:
    faults.watch(torch.tensor(loss))
    gradient = torch.tensor([norm])
    faults.spread(gradient)
    faults.judge(gradient.norm(), None if scale is None else torch.tensor(scale))
    return bool(faults.skipped), bool(faults.fault)


@pytest.mark.parametrize(
    ("loss", "norm", "scale", "skipped", "fault"),
    [
        (1.0, 2.0, None, False, False),
        (NAN, 2.0, None, True, True),
        (INF, 2.0, 1024.0, True, True),
        (1.0, INF, None, True, True),
        (1.0, INF, 1024.0, True, False),  # the scaler's overflow
        (1.0, NAN, 1.0, True, True),  # nothing is scaled any more
    ],
)
def test_what_is_a_fault(loss, norm, scale, skipped, fault):
    assert judged(NumericalFaults(torch.device("cpu"), 2), loss, norm, scale) == (skipped, fault)


def test_faults_are_counted_in_a_row_and_overflows_do_not_count():
    faults = NumericalFaults(torch.device("cpu"), 3)
    for loss, norm, scale in ((NAN, 1.0, 8.0), (1.0, INF, 8.0), (NAN, 1.0, 8.0), (1.0, 1.0, 8.0), (NAN, 1.0, 8.0)):
        judged(faults, loss, norm, scale)
        faults.check("here")
    assert faults.in_a_row == 1
    faults.cases.extend([{"a", "b"}, {"b", "c"}, {"b"}])
    judged(faults, NAN, 1.0)
    judged(faults, NAN, 1.0)
    judged(faults, 1.0, 1.0)  # too late
    with pytest.raises(FloatingPointError, match=r"3 training steps in a row, up to here.*last 3 batches was b:"):
        faults.check("here")


def test_after_too_many_faults_a_continued_training_has_one_more_try():
    faults = NumericalFaults(torch.device("cpu"), 3)
    faults.go_on(4)
    judged(faults, 1.0, 1.0)
    faults.check("here")
    faults.go_on(4)
    faults.cases.append({"a", "b"})
    judged(faults, NAN, 1.0)
    with pytest.raises(FloatingPointError, match=r"3 training steps in a row.*Only the last 1 batch\(es\) are known"):
        faults.check("here")


def test_a_checkpoint_of_too_many_faults_does_not_stop_sound_steps(make_trainer, tmp_path):
    first, second = make_trainer(nnUNetTrainerAD), make_trainer(nnUNetTrainerAD)
    first.initialize()
    first.faults.in_a_row.fill_(first.faults.most_in_a_row + 1)
    first.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    second.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    second.train_step(batch())
    second.faults.check("here")
    assert second.faults.in_a_row == 0


@pytest.fixture
def started(make_trainer):
    trainer = make_trainer(nnUNetTrainerAD)
    trainer.initialize()
    trainer.on_train_epoch_start()
    return trainer


def batch() -> dict[str, Tensor]:
    target = torch.randint(3, (2, 1, 16, 16, 16)).to(torch.int16)
    return {"data": torch.randn(2, 1, 16, 16, 16), "target": target, "unlabeled_data": torch.randn(2, 1, 16, 16, 16)}


def state_of(trainer) -> list[Tensor]:
    momentum = [state["momentum_buffer"] for state in trainer.optimizer.state_dict()["state"].values()]
    return [x.clone() for x in (*trainer.network.state_dict().values(), *momentum, *trainer.difficulty.buffers())]


@pytest.mark.parametrize("where", ["data", "unlabeled_data", "gradient"])
def test_a_faulty_step_changes_nothing(started, where):
    started.train_step(batch())
    before, faulty = state_of(started), batch()
    if where == "gradient":
        weight = started.network.difficulty_decoder.classifier.weight
        hook = weight.register_hook(lambda gradient: gradient * torch.inf)
    else:
        faulty[where][0, 0, 3, 3, 3] = NAN
    outputs = started.train_step(faulty)
    assert outputs["numerical_faults"]
    assert all(torch.equal(a, b) for a, b in zip(state_of(started), before, strict=True))
    if where == "gradient":
        hook.remove()
    assert not started.train_step(batch())["numerical_faults"]
    assert not any(torch.equal(a, b) for a, b in zip(state_of(started)[:3], before[:3], strict=True))


def faulty_trainer(make_trainer, most_in_a_row: int, faulty: range, monkeypatch):
    """A trainer of one epoch whose images have NaN in some iterations."""
    monkeypatch.setenv("NNUNET_AD_ITERATIONS", "5")
    changes = {"num_epochs": 1, "num_sampling_steps": 1, "max_faults_in_a_row": most_in_a_row}
    trainer = make_trainer(with_config(nnUNetTrainerAD, **changes))
    step = trainer.train_step

    def train_step(batch):
        if len(trainer.train_outputs) in faulty:
            batch["data"][:] = NAN
        return step(batch)

    trainer.train_step = train_step
    return trainer


def test_faults_are_counted_and_left_out_of_the_means(make_trainer, monkeypatch):
    trainer = faulty_trainer(make_trainer, 3, range(2), monkeypatch)
    trainer.run_training()
    assert trainer.curves["numerical_faults"] == [2]
    assert all(torch.isfinite(torch.tensor(trainer.curves[name][0])) for name in ("loss_denoising", "loss_unlabeled"))
    assert "2 of 5 training steps" in Path(trainer.log_file).read_text()


def test_too_many_in_a_row_end_the_training_and_name_the_suspects(make_trainer, monkeypatch):
    trainer = faulty_trainer(make_trainer, 2, range(1, 4), monkeypatch)
    with pytest.raises(FloatingPointError, match=r"2 training steps in a row, up to epoch 0, training iteration 4"):
        trainer.run_training()


def test_faults_are_counted_on_after_a_checkpoint(make_trainer, tmp_path):
    first, second = make_trainer(nnUNetTrainerAD), make_trainer(nnUNetTrainerAD)
    first.initialize()
    first.faults.in_a_row.fill_(4)
    first.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    second.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert second.faults.in_a_row == 4


def test_a_pseudo_label_that_was_made_of_nan_is_a_fault(started):
    faulty = batch()
    faulty["unlabeled_data"][0, 0, 8, 8, 8] = float("nan")  # every box of CutMix covers it
    assert started.train_step(faulty)["numerical_faults"]


@pytest.mark.parametrize("teacher", ["denoising_decoder", "difficulty_decoder"])
def test_a_teacher_whose_scores_of_an_unlabeled_patch_overflow_is_a_fault(started, teacher):
    sample, predict = started.sample_xi, started.predict_psi
    if teacher == "denoising_decoder":
        started.sample_xi = lambda x: sample(x).index_fill(1, torch.tensor([1]), torch.nan)
    else:
        started.predict_psi = lambda x, features=None: predict(x, features).index_fill(1, torch.tensor([1]), torch.inf)
    assert started.train_step(batch())["numerical_faults"]
