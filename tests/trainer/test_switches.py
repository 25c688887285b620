"""What the switches of ``ADConfig`` that go beyond the paper do in a trainer."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from changed_config import with_config

from nnunet_ad.diffusion import encode_labels
from nnunet_ad.distillation import distill_
from nnunet_ad.trainer import nnUNetTrainerAD, nnUNetTrainerAD_Paper


@pytest.fixture
def trainer_with(make_trainer):
    """Return a function that makes a trainer with other hyper-parameters."""

    def make(**changes) -> nnUNetTrainerAD:
        return make_trainer(with_config(nnUNetTrainerAD, **changes))

    return make


def test_labels_are_scaled_before_noise_is_added(trainer_with):
    y, noisy = torch.randint(3, (2, 8, 8, 8)), {}
    for scale in (1.0, 0.25):
        trainer = trainer_with(label_scale=scale, shrink_noisy_labels=False)
        trainer.generator.manual_seed(0)
        noisy[scale], t = trainer.noise_labels(y)
    expected = 0.75 * trainer.diffusion.noise_labels(encode_labels(y, 3), t, torch.zeros_like(noisy[1.0]))
    torch.testing.assert_close(noisy[1.0] - noisy[0.25], expected)


@pytest.mark.parametrize(("mirroring", "axes"), [(False, None), (True, (0, 1, 2))])
def test_inference_mirrors_what_training_did(trainer_with, monkeypatch, mirroring, axes):
    monkeypatch.setenv("NNUNET_AD_ITERATIONS", "1")
    trainer = trainer_with(mirroring=mirroring, num_epochs=1)
    trainer.run_training()
    checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["inference_allowed_mirroring_axes"] == trainer.inference_allowed_mirroring_axes == axes


@pytest.mark.parametrize(("follows", "w"), [(False, 0.9), (True, 0.975)])
def test_distillation_may_follow_the_learning_rate(trainer_with, follows, w):
    trainer = trainer_with(distillation_momentum=0.9, distillation_follows_learning_rate=follows)
    trainer.initialize()
    network = trainer.network
    trainer.optimizer.param_groups[0]["lr"] = trainer.config.learning_rate / 4
    with torch.no_grad():
        for parameter in network.difficulty_decoder.parameters():
            parameter.add_(1.0)
    expected = deepcopy(network.unlabeled_decoder)
    distill_(expected, network.denoising_decoder, network.difficulty_decoder, w)
    trainer.distill()
    for ours, theirs in zip(network.unlabeled_decoder.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_papers_trainer_has_none_of_what_was_added():
    assert nnUNetTrainerAD.config.cutmix > 0
    papers = {"cutmix": 0.0, "shrink_noisy_labels": False, "shared_stem": False, "num_sampling_steps": 10}
    papers |= {"weight_averaging": 0.0, "label_scale": 1.0, "labeled_rate": 1.0, "spatial_probability": 1.0}
    assert nnUNetTrainerAD_Paper.config == replace(nnUNetTrainerAD.config, **papers)


@pytest.mark.parametrize(
    ("changes", "operations"), [({}, (2, 2)), ({"svda_unlabeled": False}, (2, 0)), ({"svda": False}, (0, 0))]
)
def test_the_streams_are_augmented_as_the_hyper_parameters_say(trainer_with, changes, operations):
    trainer = trainer_with(num_augmentations=2, spatial_probability=0.25, **changes)
    trainer.initialize()
    loader = trainer.get_dataloaders()[0].loader
    for stream, num_operations in zip((loader.labeled, loader.unlabeled), operations, strict=True):
        svda = stream.transforms.transforms[0]
        assert (svda.num_operations, svda.spatial_probability) == (num_operations, 0.25)


@pytest.mark.parametrize("shrink", [False, True])
def test_xi_reads_noisy_labels_shrunk_or_as_they_are(trainer_with, shrink):
    trainer = trainer_with(shrink_noisy_labels=shrink, label_scale=1.0)
    y = torch.randint(3, (2, 8, 8, 8))
    trainer.generator.manual_seed(0)
    read, t = trainer.noise_labels(y)
    trainer.generator.manual_seed(0)
    torch.randint(trainer.diffusion.num_steps, (2,), generator=trainer.generator)
    eps = torch.randn(read.shape, generator=trainer.generator)
    y_t = trainer.diffusion.noise_labels(encode_labels(y, 3), t, eps)
    factor = trainer.diffusion.alpha_bar[t].sqrt().float().view(2, 1, 1, 1, 1) if shrink else 1.0
    torch.testing.assert_close(read, factor * y_t)


@pytest.mark.parametrize("shared", [False, True])
def test_the_stems_are_shared_or_not(trainer_with, shared):
    trainer = trainer_with(shared_stem=shared)
    trainer.initialize()
    encoder = trainer.network.encoder
    assert (encoder.noisy_stem is encoder.image_stem) is shared


@pytest.mark.parametrize("common", [False, True])
def test_the_decoders_start_from_the_same_parameters_or_not(trainer_with, common):
    trainer = trainer_with(common_initialization=common)
    trainer.initialize()
    network = trainer.network
    for decoder in (network.difficulty_decoder, network.unlabeled_decoder):
        same = [
            torch.equal(ours, theirs)
            for ours, theirs in zip(decoder.parameters(), network.denoising_decoder.parameters(), strict=True)
            if ours.ndim > 1  # norms and biases are constants
        ]
        assert all(same) if common else not any(same)
    decoders = (network.denoising_decoder, network.difficulty_decoder, network.unlabeled_decoder)
    assert len({decoder.classifier.weight.sum().item() for decoder in decoders}) == (1 if common else 3)


def test_without_cutmix_theta_learns_from_the_patches_that_its_teachers_saw(trainer_with, monkeypatch):
    trainer = trainer_with(cutmix=0.0, num_sampling_steps=1, rampup_epochs=0)
    trainer.initialize()
    encoded, encode = [], trainer.network.encode
    monkeypatch.setattr(trainer.network, "encode", lambda *images: encoded.extend(images) or encode(*images))
    x_l, x_u = torch.randn(2, 2, 1, 16, 16, 16)
    y = torch.randint(3, (2, 1, 16, 16, 16)).to(torch.int16)
    trainer.train_step({"data": x_l, "target": y, "unlabeled_data": x_u})
    assert torch.equal(encoded[1], x_u)


def test_with_cutmix_theta_learns_from_mixed_patches_that_its_teachers_saw_whole(trainer_with, monkeypatch):
    trainer = trainer_with(cutmix=1.0, num_sampling_steps=1, rampup_epochs=0)
    trainer.initialize()
    network, seen = trainer.network, {}
    encode, predict_psi = network.encode, trainer.predict_psi
    monkeypatch.setattr(network, "encode", lambda *images: seen.update(encoded=images) or encode(*images))
    monkeypatch.setattr(trainer, "predict_psi", lambda x, *a: seen.update(labelled=x) or predict_psi(x, *a))
    x_l, x_u = torch.randn(2, 2, 1, 16, 16, 16)
    y = torch.randint(3, (2, 1, 16, 16, 16)).to(torch.int16)
    trainer.train_step({"data": x_l, "target": y, "unlabeled_data": x_u})
    assert torch.equal(seen["labelled"], x_u)
    labeled, mixed = seen["encoded"]
    assert torch.equal(labeled, x_l)
    from_labeled = mixed == x_l
    assert torch.equal(mixed[~from_labeled], x_u[~from_labeled])
    assert all(0 < from_labeled[i].float().mean() < 1 for i in range(2))


def test_labeled_patches_are_oversampled_as_by_the_host(make_trainer):
    trainer = make_trainer(nnUNetTrainerAD)
    trainer.initialize()
    training, validation = (batches.loader for batches in trainer.get_dataloaders())
    for loader in (training.labeled, validation):
        assert loader.oversample_foreground_percent == trainer.oversample_foreground_percent > 0
