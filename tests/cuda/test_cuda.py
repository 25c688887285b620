"""What the tests of the trainer show on the CPU, on a GPU: mixed precision, a scaler, compiled parts, pinned memory."""

import sys
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from changed_config import with_config
from planned_dataset import DATASET, PLANS

from nnunet_ad.trainer import (
    nnUNetTrainerAD,
    nnUNetTrainerAD_Paper,
    nnUNetTrainerCPS,
    nnUNetTrainerMeanTeacher,
    semi_supervised,
    trainer,
)

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def started(make_trainer, monkeypatch):
    def start(trainer_class=nnUNetTrainerAD, compiled=False, **changes):
        monkeypatch.setenv("nnUNet_compile", "t" if compiled else "f")
        changed = with_config(trainer_class, **{"num_sampling_steps": 2, "rampup_epochs": 0, **changes})
        started = make_trainer(changed, device=DEVICE)
        started.initialize()
        started.on_train_epoch_start()
        return started

    return start


def batch(size: tuple[int, ...] = (16, 16, 16)) -> dict:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn((2, 2, 1, *size), generator=generator)
    target = torch.randint(3, (2, 1, *size), generator=generator)
    tensors = {"data": images[0], "unlabeled_data": images[1], "target": target.to(torch.int16)}
    return {name: tensor.pin_memory() if DEVICE == "cuda" else tensor for name, tensor in tensors.items()}


@contextmanager
def synchronisation_is_an_error():
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerAD_Paper, nnUNetTrainerAD])
def test_a_step_never_waits_for_the_device(started, trainer_class):
    training = started(trainer_class)
    training.train_step(batch())
    training.on_train_epoch_start()  # the first step of an epoch measures gradients, too
    with synchronisation_is_an_error():
        outputs = training.train_step(batch())
        training.train_step(batch())
    assert "gradient_unlabeled" in outputs
    assert all(value.device.type == DEVICE for value in outputs.values())
    assert torch.isfinite(outputs["loss"])


def state_of(training) -> tuple[dict, dict, dict]:
    momentum = training.optimizer.state_dict()["state"]
    return training.network.state_dict(), momentum, training.difficulty.state_dict()


@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_step_that_overflows_changes_nothing(started, steps_before):
    training = started()
    for _ in range(steps_before):
        training.train_step(batch())
    before, before_weight = deepcopy((state_of(training), training.bare_network.encoder.image_stem.conv.weight))
    training.grad_scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**120)
    assert not training.train_step(batch())["numerical_faults"]
    torch.testing.assert_close(state_of(training), before, rtol=0, atol=0)
    training.grad_scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**8)
    training.train_step(batch())
    assert all(torch.isfinite(parameter).all() for parameter in training.network.parameters())
    weight = training.bare_network.encoder.image_stem.conv.weight
    assert not torch.equal(weight, before_weight)
    assert training.optimizer.state[weight]["momentum_buffer"].any()


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerAD_Paper, nnUNetTrainerAD])
@pytest.mark.parametrize("num_sampling_steps", [1, 4])
def test_in_float32_a_step_gives_the_parameters_of_the_plain_step(
    started, monkeypatch, num_sampling_steps, trainer_class
):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from reference_step import ReferenceStep

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for module in (semi_supervised, trainer):
        monkeypatch.setattr(module, "forward_precision", lambda device: nullcontext())
    ours, theirs = (started(trainer_class, num_sampling_steps=num_sampling_steps) for _ in range(2))
    ours.grad_scaler = None
    losses, expected = ours.train_step(batch()), ReferenceStep(theirs)(batch())
    for flow, value in expected.items():
        assert losses[f"loss_{flow}"].item() == pytest.approx(value, abs=1e-4)
    for (name, first), second in zip(ours.network.named_parameters(), theirs.network.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_compiled_steps_give_the_losses_of_plain_ones_and_measure_gradients(started):
    losses = []
    for compiled in (False, True):
        training = started(compiled=compiled)
        outputs = [training.train_step(batch()) for _ in range(3)]
        assert outputs[0]["gradient_unlabeled"] > 0
        losses.append([float(output["loss"]) for output in outputs])
        with torch.no_grad():
            training.validation_step(batch())
    np.testing.assert_allclose(*losses, rtol=0.05)


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerMeanTeacher, nnUNetTrainerCPS])
def test_the_baselines_take_a_step(started, trainer_class):
    training = started(trainer_class)
    assert all(torch.isfinite(training.train_step(batch())["loss"]) for _ in range(2))


def test_recomputing_activations_takes_less_memory(started):
    peaks = []
    for recompute in (False, True):
        training = started(recompute_activations=recompute)
        training.train_step(batch((64, 64, 64)))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        training.train_step(batch((64, 64, 64)))
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del training
    assert peaks[1] < 0.95 * peaks[0]  # the logits of so narrow a network weigh as much as its activations


def test_a_training_runs_loads_its_checkpoint_and_predicts(make_trainer, dataset, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    monkeypatch.setenv("NNUNET_AD_EPOCHS", "2")
    training = make_trainer(nnUNetTrainerAD, device=DEVICE)
    training.initialize()
    training.run_training()
    training.perform_actual_validation()
    folder = Path(training.output_folder)
    assert np.isfinite(training.curves["loss_unlabeled"]).all() and len(training.curves["loss_unlabeled"]) == 2

    again = make_trainer(nnUNetTrainerAD, device=DEVICE)
    again.initialize()
    again.load_checkpoint(str(folder / "checkpoint_final.pth"))
    for first, second in zip(again.network.parameters(), training.network.parameters(), strict=True):
        assert torch.equal(first, second)

    from nnunetv2.inference.predict_from_raw_data import predict_entry_point

    arguments = ["-d", "500", "-i", str(dataset / "nnUNet_raw" / DATASET / "imagesTs"), "-o", str(dataset / "out")]
    arguments += ["-c", "3d_fullres", "-f", "0", "-p", PLANS, "-tr", "nnUNetTrainerAD", "-device", DEVICE]
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_predict", *arguments])
    monkeypatch.setenv("nnUNet_extTrainer", str(Path(__file__).parents[2] / "nnunet_ad" / "external_trainers"))
    predict_entry_point()
    assert len(list((dataset / "out").glob("*.nii.gz"))) == 1
