import gc
import inspect
import json
import math
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from changed_config import with_config
from matplotlib.backends.backend_agg import FigureCanvasAgg
from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs import nnUNetTrainer_1epoch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import nn

import nnunet_ad.trainer as trainers
from nnunet_ad.pseudo_label import ensemble
from nnunet_ad.trainer import (
    nnUNetTrainerAD,
    nnUNetTrainerAD_1epoch,
    nnUNetTrainerAD_NoDiffusion,
    nnUNetTrainerAD_NoDRS,
)

DATASET = "Dataset500_Made"
CLASSES_14 = {"background": 0} | {f"class {i}": i for i in range(1, 14)}


def batch_of(num_classes: int, foreground: bool = True, size: int = 16) -> dict:
    target = torch.randint(num_classes, (2, 1, size, size, size)) if foreground else torch.zeros(2, 1, *[size] * 3)
    return {
        "data": torch.randn(2, 1, size, size, size),
        "target": target.to(torch.int16),
        "unlabeled_data": torch.randn(2, 1, size, size, size),
    }


@pytest.fixture
def started(make_trainer):
    """Return a function that makes an initialised trainer in the middle of an epoch."""

    def start(trainer_class=nnUNetTrainerAD, **changes):
        trainer = make_trainer(trainer_class, **changes)
        trainer.initialize()
        trainer.on_train_epoch_start()
        return trainer

    return start


def test_the_train_step_is_short():
    assert len(inspect.getsource(nnUNetTrainerAD.train_step).splitlines()) < 40


def test_every_variant_is_found_by_nnunet():
    for name in trainers.__all__:
        assert recursive_find_trainer_class_by_name(name) is getattr(trainers, name)


def test_every_trainer_keeps_the_hosts_constructor():
    expected = ["plans", "configuration", "fold", "dataset_json", "device"]
    for name in trainers.__all__:
        assert list(inspect.signature(getattr(trainers, name)).parameters) == expected


@pytest.mark.parametrize("name", [name for name in trainers.__all__ if name != "nnUNetTrainerSupervised"])
def test_every_variant_takes_a_step(started, name):
    trainer = started(getattr(trainers, name))
    before = [p.clone() for p in trainer.network.parameters()]
    outputs = trainer.train_step(batch_of(3))
    assert torch.isfinite(outputs["loss"])
    changed = [not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True)]
    assert np.mean(changed) > 0.5


def test_weights_of_convolutions_are_stored_channels_last_and_stay_so(started):
    trainer = started(nnUNetTrainerAD)
    trainer.train_step(batch_of(3))
    trainer.network.load_state_dict({name: x.contiguous() for name, x in trainer.network.state_dict().items()})
    weights = [p for p in trainer.network.parameters() if p.ndim == 5]
    assert weights and all(w.is_contiguous(memory_format=torch.channels_last_3d) for w in weights)


def test_the_loss_is_equation_9(started):
    trainer = started()
    trainer.current_epoch = 30
    outputs = trainer.train_step(batch_of(3))
    expected = outputs["loss_denoising"] + outputs["loss_difficulty"] + trainer.mu * outputs["loss_unlabeled"]
    torch.testing.assert_close(outputs["loss"], expected)
    assert 0 < trainer.mu < 10


def test_the_background_weighs_one_and_the_foreground_one_on_average(started):
    trainer = started()
    for _ in range(3):
        w = trainer.train_step(batch_of(3))["class_weights"]
    assert w[0] == 1
    assert w[1:].mean() == pytest.approx(1)
    assert w[1] != w[2]


def test_without_difficulty_weighting_all_weights_are_one(started):
    assert started(nnUNetTrainerAD_NoDRS).train_step(batch_of(3))["class_weights"].tolist() == [1, 1, 1]


def test_one_of_14_classes_never_present_leaves_everything_finite(started):
    trainer = started(labels=CLASSES_14)
    for _ in range(4):
        outputs = trainer.train_step(batch_of(13))  # the last class is in no label
        assert torch.isfinite(outputs["loss"])
        assert torch.isfinite(outputs["class_weights"]).all()
    assert all(torch.isfinite(p).all() for p in trainer.network.parameters())


def test_a_batch_without_foreground_leaves_everything_finite(started):
    trainer = started()
    for foreground in (False, True, False):
        outputs = trainer.train_step(batch_of(3, foreground))
        assert torch.isfinite(outputs["loss"])
        assert torch.isfinite(outputs["class_weights"]).all()


IGNORE = {"background": 0, "organ": 1, "vessel": 2, "ignore": 3}


def test_where_everything_is_ignored_noisy_labels_are_noise_alone(started):
    trainer = started(labels=IGNORE)
    y = torch.full((2, 16, 16, 16), 3)
    assert trainer.num_classes == 3
    noisy, t = trainer.noise_labels(y)
    alpha_bar = trainer.diffusion.alpha_bar[t]
    b = trainer.diffusion.label_scale
    scale = b * alpha_bar.sqrt() / (b**2 * alpha_bar + 1 - alpha_bar) * (1 - alpha_bar).sqrt()  # shrunk
    for sample, expected in zip(noisy, scale, strict=True):
        assert sample.mean() == pytest.approx(0, abs=0.05)
        assert sample.std() == pytest.approx(float(expected), abs=0.05)


def test_ignored_voxels_have_no_part_in_labeled_losses_nor_in_the_difficulty(started):
    trainer = started(labels=IGNORE)
    batch = batch_of(3)
    batch["target"][:] = 3
    outputs = trainer.train_step(batch)
    assert outputs["loss_denoising"] == outputs["loss_difficulty"] == 0
    assert torch.isfinite(outputs["loss"])
    assert (trainer.difficulty.num_updates == 0).all()


@pytest.mark.parametrize("has_dropout", [False, True])
def test_pseudo_labels_leave_the_training_mode_and_the_gradients_alone(started, has_dropout):
    trainer = started()
    trainer.network.has_dropout = has_dropout
    trainer.network.train()
    image = torch.randn(2, 1, 16, 16, 16)
    xi, psi = trainer.sample_xi(image), trainer.predict_psi(image)
    assert trainer.network.training
    assert not xi.requires_grad
    assert not psi.requires_grad
    assert all(p.grad is None for p in trainer.network.parameters())


def test_pseudo_labels_are_made_without_dropout(started):
    trainer = started()
    decoder = trainer.network.difficulty_decoder
    decoder.classifier = nn.Sequential(nn.Dropout3d(0.9), decoder.classifier)
    trainer.network.has_dropout = True
    batch, seen = batch_of(3), []
    expected = trainer.predict_psi(batch["unlabeled_data"])
    trainer.ensemble = lambda p_xi, p_psi, generator: seen.append(p_psi) or ensemble(p_xi, p_psi, generator)
    trainer.train_step(batch)
    torch.testing.assert_close(seen, [expected])


def test_theta_learns_from_unlabeled_patches_only(started):
    """With no weight on the unlabelled loss and no distillation, θ must stay where it is but for weight decay."""
    frozen = {"unsupervised_weight": 0.0, "distillation_momentum": 1.0, "weight_decay": 0.0}
    trainer = started(with_config(nnUNetTrainerAD, **frozen))
    before = {n: p.clone() for n, p in trainer.network.named_parameters()}
    trainer.train_step(batch_of(3))
    for name, parameter in trainer.network.named_parameters():
        if name.startswith("unlabeled_decoder"):
            assert torch.equal(parameter, before[name])
    assert not torch.equal(
        trainer.network.denoising_decoder.classifier.weight, before["denoising_decoder.classifier.weight"]
    )


def test_regions_are_trained_as_the_classes_that_they_are_made_of(started):
    labels = {"background": 0, "whole": [1, 2], "vessel": 2}
    trainer = started(labels=labels, regions_class_order=[1, 2])
    assert trainer.num_classes == 3 and not trainer.label_manager.has_regions
    assert trainer.dataset_json["labels"] == {"background": 0, "whole (1)": 1, "vessel": 2}
    assert torch.isfinite(trainer.train_step(batch_of(3))["loss"])
    log = Path(trainer.log_file).read_text()
    assert "Regions are trained as the classes that they are made of: {'background': 0, 'whole (1)': 1, 'v" in log


def test_regions_with_a_gap_in_their_values_leave_no_folder(make_trainer, dataset):
    labels = {"background": 0, "whole": [1, 3], "vessel": 3}
    with pytest.raises(ValueError, match="label values 1, 3; expected 1 to 2 without a gap"):
        make_trainer(nnUNetTrainerAD, labels=labels, regions_class_order=[1, 3])
    assert not list((dataset / "nnUNet_results").iterdir())


def test_the_second_stage_of_a_cascade_is_refused(make_trainer):
    trainer = make_trainer(nnUNetTrainerAD)
    trainer.is_cascaded = True
    with pytest.raises(ValueError, match="cascade"):
        trainer.initialize()


@pytest.mark.parametrize(
    ("variable", "value"), [("NNUNET_AD_ITERATIONS", "0"), ("NNUNET_AD_ITERATIONS", "ten"), ("NNUNET_AD_SEED", "-1")]
)
def test_nonsense_in_variables_is_named(make_trainer, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{variable} is '{value}'"):
        make_trainer(nnUNetTrainerAD)


def test_a_fold_beyond_the_split_file_is_refused(make_trainer):
    with pytest.raises(ValueError, match="fold 3 was asked for"):
        make_trainer(nnUNetTrainerAD_1epoch, fold=3).run_training()


def test_no_label_of_an_unlabeled_case_is_ever_opened(make_trainer, dataset):
    raw, preprocessed = dataset / "nnUNet_raw" / DATASET, dataset / "nnUNet_preprocessed" / DATASET
    for folder, ending in (
        (raw / "labelsUnlabeled", ".nii.gz"),
        (raw / "labelsTr", ".nii.gz"),
        (preprocessed / "gt_segmentations", ".nii.gz"),
        (preprocessed / "nnUNetPlans_3d_fullres", "_seg.b2nd"),
        (preprocessed / "nnUNetPlans_3d_fullres_unlabeled", "_seg.b2nd"),
    ):
        folder.mkdir(exist_ok=True)
        for case in ("Made_003", "Made_004", "Made_005"):
            (folder / f"{case}{ending}").write_bytes(b"not a label")
    trainer = make_trainer(nnUNetTrainerAD_1epoch)
    trainer.run_training()
    assert trainer.unlabeled_dataset.identifiers == ["Made_003", "Made_004", "Made_005"]
    log = Path(trainer.log_file).read_text()
    assert "3 unlabelled cases" in log
    assert "NOTE" not in log


def test_a_labeled_case_may_be_unlabeled_in_a_fold_and_the_log_says_what_planning_saw(make_trainer, dataset):
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        splits = [{"train": ["Made_000"], "val": ["Made_002"], "unlabeled": ["Made_001", "Made_004"]}]
        (dataset / name / DATASET / "splits_final.json").write_text(json.dumps(splits))
    for file in (dataset / "nnUNet_preprocessed" / DATASET / "nnUNetPlans_3d_fullres").glob("Made_001*"):
        file.write_bytes(b"has a label in it")
    trainer = make_trainer(nnUNetTrainerAD_1epoch)
    trainer.run_training()
    assert trainer.unlabeled_dataset.identifiers == ["Made_001", "Made_004"]
    assert "planning has seen them" in Path(trainer.log_file).read_text()


def test_stock_trainers_see_the_labeled_cases_of_the_same_dataset_only(make_trainer):
    trainer = make_trainer(nnUNetTrainer_1epoch)
    trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()
    training, validation = trainer.get_tr_and_val_datasets()
    assert (training.identifiers, validation.identifiers) == (["Made_000", "Made_001"], ["Made_002"])


def test_fold_all_uses_every_case(make_trainer):
    trainer = make_trainer(nnUNetTrainerAD_1epoch, fold="all")
    trainer.run_training()
    assert len(trainer.unlabeled_dataset.identifiers) == 3


def test_an_unknown_unlabeled_case_is_named(make_trainer, dataset):
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        splits = [{"train": ["Made_000"], "val": ["Made_002"], "unlabeled": ["Made_003", "Nobody"]}]
        (dataset / name / DATASET / "splits_final.json").write_text(json.dumps(splits))
    with pytest.raises(ValueError, match=r"not in imagesUnlabeled/ or imagesTr/.*Nobody"):
        make_trainer(nnUNetTrainerAD_1epoch).run_training()


def test_trains_without_the_raw_dataset_once_preprocessed(make_trainer, dataset, monkeypatch):
    make_trainer(nnUNetTrainerAD_1epoch).run_training()
    shutil.rmtree(dataset / "nnUNet_raw")
    trainer = make_trainer(nnUNetTrainerAD_1epoch)
    trainer.run_training()
    assert len(trainer.unlabeled_dataset.identifiers) == 3
    monkeypatch.delenv("nnUNet_raw")
    shutil.rmtree(dataset / "nnUNet_preprocessed" / DATASET / "nnUNetPlans_3d_fullres_unlabeled")
    with pytest.raises(ValueError, match="set nnUNet_raw"):
        make_trainer(nnUNetTrainerAD_1epoch).run_training()


def two_epochs():
    return with_config(nnUNetTrainerAD, num_epochs=2)


def test_logs_curves_pictures_and_checkpoints(make_trainer):
    trainer = make_trainer(two_epochs())
    trainer.run_training()
    folder = Path(trainer.output_folder)
    assert {"progress.png", "progress_ad.png", "checkpoint_final.pth"} <= {f.name for f in folder.iterdir()}
    assert not list(folder.glob("*.tmp"))
    expected = {
        "mu", "loss_denoising", "loss_difficulty", "loss_unlabeled", "gradient_denoising", "gradient_difficulty",
        "gradient_unlabeled", "class_weights", "dice_by_t", "pseudo_foreground", "agreement",
        "val_dice_theta", "val_dice_psi", "val_dice_xi",
    }  # fmt: skip
    assert expected <= set(trainer.curves)
    assert all(len(values) == 2 for values in trainer.curves.values())
    log = Path(trainer.log_file).read_text()
    for name in expected:
        assert log.count(f": {name} ") == 2
    assert "NNUNET_AD_ITERATIONS is set" in log


def test_the_canvas_of_a_picture_does_not_outlive_its_epoch(make_trainer):
    gc.collect()
    gc.disable()  # it would run some time later, with another 62 MiB held for each epoch until then
    try:
        make_trainer(two_epochs()).run_training()
        assert not [found for found in gc.get_objects() if isinstance(found, FigureCanvasAgg)]
    finally:
        gc.enable()


def test_keeps_one_unlabeled_patch_as_the_decoders_see_it(make_trainer):
    trainer = make_trainer(two_epochs())
    of_another_training = Path(trainer.output_folder) / "snapshots" / "epoch_0300.npz"
    of_another_training.parent.mkdir(parents=True)
    of_another_training.touch()
    trainer.run_training()
    files = sorted((Path(trainer.output_folder) / "snapshots").iterdir())
    assert [file.name for file in files] == ["epoch_0001.npz", "epoch_0002.npz"]
    with np.load(files[1]) as snapshot:
        assert str(snapshot["case"]) == "Made_003"
        assert snapshot["image"].shape == (1, 16, 16, 16)
        for name in ("xi", "psi", "theta", "pseudo_label"):
            assert snapshot[name].shape == (16, 16, 16)
            assert set(np.unique(snapshot[name])) <= {0, 1, 2}


def test_a_patch_is_kept_at_the_batch_size_that_is_compiled_already(make_trainer, monkeypatch):
    trainer = make_trainer(two_epochs())
    batch_sizes, sample = [], trainer.sample_xi
    monkeypatch.setattr(trainer, "sample_xi", lambda x: batch_sizes.append(len(x)) or sample(x))
    trainer.run_training()
    assert set(batch_sizes) == {trainer.batch_size}
    assert trainer.batch_size > 1


def test_continuing_restores_everything_the_step_carries(make_trainer):
    first = make_trainer(two_epochs())
    first.num_epochs = 1
    first.run_training()
    checkpoint = str(Path(first.output_folder) / "checkpoint_final.pth")
    second = make_trainer(two_epochs())
    second.load_checkpoint(checkpoint)
    assert second.current_epoch == 1
    assert json.dumps(second.curves) == json.dumps(first.curves)  # as text, NaN equals NaN
    for name, value in first.difficulty.state_dict().items():
        assert torch.equal(second.difficulty.state_dict()[name], value)
    assert second.difficulty.num_updates.sum() > 0
    assert second.seed == first.seed
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)
    momentum = [s["momentum_buffer"] for s in second.optimizer.state_dict()["state"].values()]
    for mine, theirs in zip(momentum, first.optimizer.state_dict()["state"].values(), strict=True):
        assert torch.equal(mine, theirs["momentum_buffer"])
    second.run_training()
    assert all(len(values) == 2 for values in second.curves.values())


def test_checkpoints_load_strictly_into_the_network_that_inference_builds(make_trainer):
    trainer = make_trainer(nnUNetTrainerAD_1epoch)
    trainer.run_training()
    weights = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)["network_weights"]
    network = nnUNetTrainerAD.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 3, enable_deep_supervision=False
    )
    network.load_state_dict(weights)
    network.eval()
    trainer.network.eval()
    x = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(network(x), trainer.network(x))


def test_the_ramp_up_follows_the_number_of_epochs_that_is_trained(make_trainer):
    trainer = make_trainer(nnUNetTrainerAD)
    trainer.num_epochs, trainer.current_epoch = 30, 10
    assert trainer.mu == 10


def remove_splits(dataset: Path) -> None:
    for folder in ("nnUNet_raw", "nnUNet_preprocessed"):
        (dataset / folder / DATASET / "splits_final.json").unlink()


def test_a_fold_beyond_a_split_file_that_the_host_only_now_writes_is_refused(make_trainer, dataset):
    folder = dataset / "nnUNet_preprocessed" / DATASET
    remove_splits(dataset)
    for file in list((folder / "nnUNetPlans_3d_fullres").glob("Made_000*")):
        for i in (6, 7):
            shutil.copy(file, file.with_name(file.name.replace("000", f"00{i}")))
    with pytest.raises(ValueError, match="fold 7 was asked for"):
        make_trainer(nnUNetTrainerAD_1epoch, fold=7).run_training()


def test_too_few_labeled_cases_for_nnunets_folds_are_said_so(make_trainer, dataset):
    remove_splits(dataset)
    with pytest.raises(ValueError, match=r"3 labelled case\(s\), too few for nnU-Net's 5 folds"):
        make_trainer(nnUNetTrainerAD_1epoch).run_training()


def test_no_checkpoint_where_checkpointing_is_disabled(make_trainer):
    trainer = make_trainer(nnUNetTrainerAD_1epoch)
    trainer.disable_checkpointing = True
    trainer.run_training()
    assert not list(Path(trainer.output_folder).glob("*.pth"))


def test_workers_end_when_training_fails(make_trainer, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    trainer = make_trainer(nnUNetTrainerAD_1epoch)
    before = set(multiprocessing.active_children())

    def fail(batch):
        assert len(set(multiprocessing.active_children()) - before) == 2
        raise ArithmeticError("planted")

    monkeypatch.setattr(trainer, "train_step", fail)
    with pytest.raises(ArithmeticError, match="planted"):
        trainer.run_training()
    assert set(multiprocessing.active_children()) <= before


def test_the_same_seed_gives_the_same_losses(make_trainer):
    losses = []
    for _ in range(2):
        trainer = make_trainer(nnUNetTrainerAD_1epoch)
        trainer.run_training()
        losses.append(trainer.curves["loss_denoising"] + trainer.curves["loss_unlabeled"])
    assert losses[0] == losses[1]


def test_overfits_one_batch(started):
    """The equations together learn: after a hundred steps on one batch all three decoders know the large structure."""
    trainer = started(with_config(nnUNetTrainerAD, learning_rate=0.05, rampup_epochs=0))
    grid = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"))
    target = ((grid - 7.5).square().sum(0) < 25).to(torch.int16).expand(2, 1, 16, 16, 16).clone()
    image = target.float() + 0.2 * torch.randn(2, 1, 16, 16, 16)
    for _ in range(100):
        outputs = trainer.train_step({"data": image, "target": target, "unlabeled_data": image})
    assert outputs["loss_denoising"] < 0.35
    for logits in (trainer.sample_xi(image), trainer.predict_psi(image), trainer.network(image)):
        prediction = logits.argmax(1) == 1
        dice = 2 * (prediction & (target[:, 0] == 1)).sum() / (prediction.sum() + (target == 1).sum())
        assert dice > 0.8


def test_the_ramp_up_begins_at_the_first_epoch(make_trainer):
    assert make_trainer(nnUNetTrainerAD).mu == pytest.approx(10 * math.exp(-5))


def test_the_gradient_of_each_flow_is_told_apart(started):
    outputs = started(with_config(nnUNetTrainerAD, unsupervised_weight=0.0)).train_step(batch_of(3))
    assert outputs["gradient_unlabeled"] == 0
    assert outputs["gradient_denoising"] > 0 and outputs["gradient_difficulty"] > 0


def one_hot(label_map: torch.Tensor) -> torch.Tensor:
    return 50.0 * torch.nn.functional.one_hot(label_map.long(), 3).movedim(-1, 1)


def test_what_is_logged_of_a_pseudo_label(started):
    trainer, psi = started(), torch.ones(2, 16, 16, 16)
    xi = psi.clone()
    xi[:, :8] = 2
    trainer.sample_xi, trainer.predict_psi = lambda image: one_hot(xi), lambda image, features: one_hot(psi)
    _, logged = trainer.pseudo_label(torch.zeros(2, 1, 16, 16, 16))
    assert (logged["agreement"], logged["pseudo_foreground"]) == (0.5, 1.0)


def test_validation_counts_the_overlap_of_each_decoder_where_labels_are_known(started):
    trainer, batch = started(labels=IGNORE), batch_of(3)
    batch["target"][:, :, :8] = 3
    y = batch["target"][:, 0].clone()
    trainer.sample_xi, trainer.predict_psi = lambda x: one_hot(torch.where(y == 3, 1, y)), lambda x: one_hot(0 * y)
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        counts = trainer.validation_step(batch)
    of_class = [(y == k).sum().item() for k in range(3)]
    assert counts["xi"].tolist() == [of_class, [2 * count for count in of_class]]
    assert counts["psi"][0].tolist() == [of_class[0], 0, 0]


def test_without_diffusion_xi_labels_the_image_by_its_own_decoder(started):
    trainer, image = started(nnUNetTrainerAD_NoDiffusion), torch.randn(2, 1, 16, 16, 16)
    network = trainer.network
    with torch.no_grad():
        network.denoising_decoder.classifier.bias.add_(torch.tensor([1.0, 2.0, 3.0]))
        expected = trainer.forward(lambda x: network.denoising_decoder(network.encoder(x)), image)
    torch.testing.assert_close(trainer.sample_xi(image), expected)


def test_the_patch_that_is_kept_is_labelled_by_what_inference_uses(make_trainer):
    trainer = make_trainer(nnUNetTrainerAD_1epoch)
    trainer.run_training()
    with torch.no_grad():
        trainer.network.average["unlabeled_decoder"].classifier.bias.copy_(torch.tensor([0.0, 0.0, 1e4]))
    trainer._write_snapshot()
    with np.load(Path(trainer.output_folder) / "snapshots" / "epoch_0002.npz") as snapshot:
        assert (snapshot["theta"] == 2).all()


def test_no_two_steps_draw_the_same_numbers(make_trainer, monkeypatch):
    trainer, seeds = make_trainer(with_config(nnUNetTrainerAD, num_epochs=2)), []
    seed_step = trainer.seed_step
    monkeypatch.setattr(
        trainer, "seed_step", lambda *which: seed_step(*which) or seeds.append(trainer.generator.initial_seed())
    )
    trainer.run_training()
    assert len(seeds) == len(set(seeds)) == 2 * (2 + 1 + 1)  # training, validation, and a snapshot an epoch
