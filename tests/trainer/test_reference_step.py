"""The train step shares, batches and fuses; its result is that of Algorithm 1 read off the page."""

import importlib.util
from pathlib import Path

import pytest
import torch
from changed_config import with_config

from nnunet_ad.config import PRESETS
from nnunet_ad.trainer import nnUNetTrainerAD, nnUNetTrainerAD_Paper

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "reference_step.py"


@pytest.fixture(scope="module")
def reference_step():
    spec = importlib.util.spec_from_file_location("reference_step", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ReferenceStep


@pytest.fixture
def started(make_trainer, monkeypatch):
    monkeypatch.setenv("NNUNET_AD_CPU_BF16", "0")

    def start(trainer_class=nnUNetTrainerAD, **changes):
        trainer = make_trainer(with_config(trainer_class, **changes))
        trainer.initialize()
        trainer.network.train()
        return trainer

    return start


def batch() -> dict:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn((2, 2, 1, 16, 16, 16), generator=generator)
    target = torch.randint(3, (2, 1, 16, 16, 16), generator=generator)
    return {"data": images[0], "unlabeled_data": images[1], "target": target.to(torch.int16)}


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerAD_Paper, nnUNetTrainerAD])
@pytest.mark.parametrize("num_sampling_steps", [1, 10])
def test_a_step_gives_the_parameters_of_the_plain_step(started, reference_step, num_sampling_steps, trainer_class):
    settings = {"trainer_class": trainer_class, "num_sampling_steps": num_sampling_steps, "rampup_epochs": 0}
    ours, theirs = started(**settings), started(**settings)
    plain_step = reference_step(theirs)
    for _ in range(2):
        losses, expected = ours.train_step(batch()), plain_step(batch())
    for flow, value in expected.items():
        assert losses[f"loss_{flow}"].item() == pytest.approx(value, abs=1e-5)
    for (name, first), second in zip(ours.network.named_parameters(), theirs.network.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    before = started(**settings).network.parameters()
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(before, theirs.network.parameters(), strict=True))


@pytest.mark.parametrize(("asked", "parts"), [("t", ["_denoise_prepared"]), ("f", []), (None, [])])
def test_on_a_cpu_the_steps_of_ddim_are_compiled_if_asked_for(started, monkeypatch, asked, parts):
    monkeypatch.delenv("nnUNet_compile")
    if asked:
        monkeypatch.setenv("nnUNet_compile", asked)
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda part, **options: compiled.append(part.__name__) or part)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part, **options: compiled.append(type(part).__name__))
    started()
    assert compiled == parts


def test_a_step_with_compiled_ddim_gives_the_parameters_of_the_plain_step(started, reference_step, monkeypatch):
    settings = {"num_sampling_steps": 10, "rampup_epochs": 0}
    theirs = started(**settings)
    monkeypatch.setenv("nnUNet_compile", "t")
    ours = started(**settings)
    torch._dynamo.utils.counters.clear()
    ours.train_step(batch())
    reference_step(theirs)(batch())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for (name, first), second in zip(ours.network.named_parameters(), theirs.network.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_the_joint_gradient_is_clipped_and_the_optimiser_is_that_of_table_8(started):
    trainer = started(max_gradient_norm=0.01)
    group = trainer.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (1e-2, 0.9, 3e-5, True)
    trainer.train_step(batch())
    norms = [p.grad.norm() for p in trainer.network.parameters() if p.grad is not None]
    assert torch.stack(norms).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_presets_are_those_of_table_8():
    rates = {name: preset.learning_rate for name, preset in PRESETS.items()}
    assert rates == {"LASeg": 1e-2, "Synapse": 3e-2, "MMWHS": 5e-3, "MnMs": 1e-2}
