import pytest
import torch
from torch import nn

from nnunet_ad.losses import dice_ce
from nnunet_ad.network.onednn import Conv3d
from nnunet_ad.trainer import nnUNetTrainerAD, nnUNetTrainerCPS, nnUNetTrainerMeanTeacher, nnUNetTrainerSupervised
from nnunet_ad.trainer.mean_teacher import TeacherAndStudent

SIZE = (16, 16, 16)


def batch_of(num_classes: int) -> dict:
    return {
        "data": torch.randn(2, 1, *SIZE),
        "target": torch.randint(num_classes, (2, 1, *SIZE)).to(torch.int16),
        "unlabeled_data": torch.randn(2, 1, *SIZE),
    }


@pytest.fixture
def started(make_trainer):
    def start(trainer_class, **changes):
        trainer = make_trainer(trainer_class, **changes)
        trainer.initialize()
        trainer.on_train_epoch_start()
        return trainer

    return start


def test_the_teacher_is_the_moving_average_of_the_students():
    networks = TeacherAndStudent(nn.Linear(1, 1, bias=False))
    expected = None
    for i in range(1, 301):
        with torch.no_grad():
            networks.student.weight.fill_(float(i))
        networks.update_teacher()
        weight = max(1 / i, 0.01)
        expected = float(i) if expected is None else (1 - weight) * expected + weight * i
    torch.testing.assert_close(networks.teacher.weight.item(), expected, rtol=1e-5, atol=0)


def test_the_teacher_is_validated_and_only_the_student_has_gradients(started):
    trainer = started(nnUNetTrainerMeanTeacher)
    for _ in range(2):
        trainer.train_step(batch_of(3))
    network, x = trainer.network, torch.randn(1, 1, *SIZE)
    assert all(p.grad is None for p in network.teacher.parameters())
    # The heads of deep supervision are there, but unused.
    assert all(p.grad is not None for name, p in network.student.named_parameters() if "seg_layers" not in name)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), network.teacher(x))
        assert not torch.equal(network.train()(x), network.eval()(x))


def test_all_are_as_long_as_each_other_unless_a_variable_says_otherwise(make_trainer, monkeypatch):
    monkeypatch.delenv("NNUNET_AD_ITERATIONS")
    trainers = (nnUNetTrainerAD, nnUNetTrainerMeanTeacher, nnUNetTrainerCPS, nnUNetTrainerSupervised)
    made = [make_trainer(trainer_class) for trainer_class in trainers]
    lengths = {(t.num_epochs, t.num_iterations_per_epoch, t.num_val_iterations_per_epoch) for t in made}
    assert lengths == {(300, 250, 50)}


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerMeanTeacher, nnUNetTrainerCPS])
def test_the_loss_is_the_supervised_one_plus_mu_times_the_other(started, trainer_class):
    trainer = started(trainer_class)
    trainer.current_epoch = 30
    outputs = trainer.train_step(batch_of(3))
    _, supervised, other, _ = outputs.values()
    torch.testing.assert_close(outputs["loss"], supervised + trainer.mu * other)
    assert 0 < trainer.mu < trainer.config.unsupervised_weight


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerMeanTeacher, nnUNetTrainerCPS])
def test_without_unlabeled_weight_the_unlabeled_patches_change_nothing(started, trainer_class, monkeypatch):
    monkeypatch.setattr(trainer_class, "mu", 0.0)
    batch, weights = batch_of(3), []
    for x_u in (batch["unlabeled_data"], torch.randn(2, 1, *SIZE)):
        trainer = started(trainer_class)
        trainer.train_step(batch | {"unlabeled_data": x_u})
        weights.append([p.detach().clone() for p in trainer.network.parameters()])
    for first, second in zip(*weights, strict=True):
        torch.testing.assert_close(first, second)


def test_the_two_networks_start_differently_and_both_learn(started):
    trainer = started(nnUNetTrainerCPS)
    first, second = trainer.network.first, trainer.network.second
    before = [[p.detach().clone() for p in network.parameters()] for network in (first, second)]
    assert any(not torch.equal(p, q) for p, q in zip(*before, strict=True))
    trainer.train_step(batch_of(3))
    for network, old in zip((first, second), before, strict=True):
        assert any(not torch.equal(p, q) for p, q in zip(network.parameters(), old, strict=True))


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerMeanTeacher, nnUNetTrainerCPS])
def test_regions_are_trained_as_classes(started, trainer_class):
    regions = {"background": 0, "whole": [1, 2], "part": [2]}
    trainer = started(trainer_class, labels=regions, regions_class_order=[1, 2])
    assert trainer.num_classes == 3
    assert torch.isfinite(trainer.train_step(batch_of(3))["loss"])


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerMeanTeacher, nnUNetTrainerCPS, nnUNetTrainerSupervised])
def test_all_have_the_length_that_the_variables_say(make_trainer, trainer_class, monkeypatch):
    monkeypatch.setenv("NNUNET_AD_EPOCHS", "3")
    monkeypatch.setenv("NNUNET_AD_ITERATIONS", "10")
    trainer = make_trainer(trainer_class)
    lengths = trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch
    assert lengths == (3, 10, 2)


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerSupervised, nnUNetTrainerMeanTeacher, nnUNetTrainerCPS])
def test_a_baseline_is_scored_as_fast_as_the_method(make_trainer, trainer_class):
    trainer = make_trainer(trainer_class)
    trainer.initialize()
    convolutions = [module for module in trainer.network.modules() if isinstance(module, nn.Conv3d)]
    assert convolutions
    assert all(type(module) is Conv3d for module in convolutions)


def calls_of(network: nn.Module) -> list:
    """Return a list to which each call of a network adds its input and output."""
    calls = []
    network.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output.detach().float())))
    return calls


def test_the_student_learns_to_agree_with_a_teacher_that_sees_noise_and_follows_it(started):
    trainer, batch = started(nnUNetTrainerMeanTeacher), batch_of(3)
    network = trainer.network
    with torch.no_grad():
        for parameter in network.teacher.parameters():
            parameter.mul_(2)
    of_student, of_teacher = calls_of(network.student), calls_of(network.teacher)
    outputs = trainer.train_step(batch)
    (_, labelled), (x_u, student) = of_student
    ((noisy, teacher),) = of_teacher
    assert torch.equal(x_u, batch["unlabeled_data"])
    noise = noisy - x_u
    assert noise.std() == pytest.approx(0.1, rel=0.1) and noise.abs().max() == pytest.approx(0.2, abs=1e-5)
    expected = nn.functional.mse_loss(student.softmax(1), teacher.softmax(1))
    torch.testing.assert_close(outputs["loss_consistency"], expected)
    torch.testing.assert_close(outputs["loss_supervised"], dice_ce(labelled, batch["target"][:, 0]))
    for mine, theirs in zip(network.teacher.parameters(), network.student.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)  # the average of one iteration


def test_each_network_learns_from_labels_and_from_the_other_one(started):
    trainer, batch = started(nnUNetTrainerCPS), batch_of(3)
    calls = [calls_of(network) for network in (trainer.network.first, trainer.network.second)]
    outputs = trainer.train_step(batch)
    (labelled, first), (labelled_2, second) = ([logits for _, logits in found] for found in calls)
    y, cross_entropy = batch["target"][:, 0], nn.functional.cross_entropy
    torch.testing.assert_close(outputs["loss_supervised"], dice_ce(labelled, y) + dice_ce(labelled_2, y))
    crossed = cross_entropy(first, second.argmax(1)) + cross_entropy(second, first.argmax(1))
    torch.testing.assert_close(outputs["loss_crossed"], crossed)
