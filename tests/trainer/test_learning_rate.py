"""Learning rates: nnU-Net's polynomial schedule, and a rate of its own for what only labels teach."""

import pytest
from changed_config import with_config

from nnunet_ad.trainer import nnUNetTrainerAD, nnUNetTrainerAD_NoDiffusion, nnUNetTrainerMeanTeacher


def of_labels_only(name: str) -> bool:
    denoising_parts = ("label_conv.", "step_embedding.", "modulations.", "separate_stem.")
    encoder = any(name.startswith(f"encoder.{part}") for part in denoising_parts)
    return encoder or name.startswith(("denoising_decoder.", "difficulty_decoder."))


@pytest.fixture
def initialized(make_trainer):
    """Return a function that makes a trainer with other hyper-parameters and initialises it."""

    def make(base: type = nnUNetTrainerAD, **changes) -> nnUNetTrainerAD:
        trainer = make_trainer(with_config(base, **changes))
        trainer.initialize()
        return trainer

    return make


@pytest.mark.parametrize("base", [nnUNetTrainerAD, nnUNetTrainerAD_NoDiffusion])
@pytest.mark.parametrize("shared_stem", [True, False])
def test_what_only_labels_teach_has_a_rate_of_its_own(initialized, base, shared_stem):
    trainer = initialized(base, labeled_rate=3.0, learning_rate=0.1, shared_stem=shared_stem, num_epochs=10)
    rates = {}
    for epoch in (0, 5):
        trainer.lr_scheduler.step(epoch)
        rates[epoch] = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.network.named_parameters():
        factor = 3.0 if of_labels_only(name) else 1.0
        assert rates[0][id(parameter)] == pytest.approx(factor * 0.1), name
        assert rates[5][id(parameter)] == pytest.approx(factor * 0.1 * 0.5**0.9), name
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**0.9)  # the one that nnU-Net logs
    assert trainer.lr_scheduler.get_last_lr() == [group["lr"] for group in trainer.optimizer.param_groups]


def test_other_trainers_have_one_rate(initialized):
    trainer = initialized(nnUNetTrainerMeanTeacher, learning_rate=0.1, num_epochs=10)
    trainer.lr_scheduler.step(5)
    (group,) = trainer.optimizer.param_groups
    assert group["lr"] == pytest.approx(0.1 * 0.5**0.9)
