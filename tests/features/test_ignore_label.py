"""An ignore label in losses, difficulty and the choice of patches."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ad.losses import dice_ce
from nnunet_ad.trainer import nnUNetTrainerAD, nnUNetTrainerAD_NoDecoupling

IGNORE = 3
LABELS = {"background": 0, "organ": 1, "vessel": 2, "ignore": IGNORE}
ANNOTATED_SLICES = 3


@pytest.fixture
def half_ignored():
    """A batch whose labelled patches are ignored in one half."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(3, (2, 1, 16, 16, 16), generator=generator, dtype=torch.int16)
    target[:, :, :8] = IGNORE
    images = torch.randn(2, 2, 1, 16, 16, 16, generator=generator)
    return {"data": images[0], "target": target, "unlabeled_data": images[1]}


def valid_voxels(logits, y):
    """Return logits and labels of all voxels that are not ignored, as one row."""
    valid = y != IGNORE
    return logits.movedim(1, -1)[valid].T[None], y[valid][None]


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerAD, nnUNetTrainerAD_NoDecoupling])
def test_labeled_losses_and_difficulty_are_those_of_the_other_voxels(make_trainer, half_ignored, trainer_class):
    trainer = make_trainer(trainer_class, labels=LABELS)
    trainer.initialize()
    trainer.on_train_epoch_start()
    logits, losses, overlaps = [], [], []
    forward, backward, update_class_weights = trainer.forward, trainer.backward, trainer.update_class_weights
    trainer.forward = lambda *inputs: logits.append(forward(*inputs)) or logits[-1]
    trainer.backward = lambda *inputs, **weight: losses.append(backward(*inputs, **weight)) or losses[-1]
    trainer.update_class_weights = lambda samples: overlaps.append(samples) or update_class_weights(samples)
    outputs = trainer.train_step(half_ignored)

    xi, _, psi, _, *theta_on_labeled = logits
    y = half_ignored["target"][:, 0].long()
    torch.testing.assert_close(losses[0], dice_ce(*valid_voxels(xi.detach(), y)))
    torch.testing.assert_close(losses[1], dice_ce(*valid_voxels(psi.detach(), y), outputs["class_weights"]))
    for theta, loss in zip(theta_on_labeled, losses[3:], strict=True):
        torch.testing.assert_close(loss, dice_ce(*valid_voxels(theta.detach(), y)))
    assert len(theta_on_labeled) == (trainer_class is nnUNetTrainerAD_NoDecoupling)

    (samples,) = overlaps
    xi, y = (voxels[0] for voxels in valid_voxels(xi.detach(), y))
    expected = [
        2 * ((xi.argmax(0) == k) & (y == k)).sum() / ((xi.argmax(0) == k).sum() + (y == k).sum()) for k in range(3)
    ]
    torch.testing.assert_close(samples.over_batch().dice(), torch.stack(expected))


def test_ignored_voxels_of_a_pasted_box_have_no_part_in_the_unlabeled_loss(make_trainer, half_ignored):
    trainer = make_trainer(nnUNetTrainerAD, labels=LABELS)
    trainer.initialize()
    calls, dice_ce_of_trainer = [], trainer.dice_ce
    trainer.dice_ce = lambda logits, y, *w: calls.append((logits.detach(), y)) or dice_ce_of_trainer(logits, y, *w)
    outputs = trainer.train_step(half_ignored)
    theta, mixed = calls[2]
    assert (mixed == IGNORE).any()
    torch.testing.assert_close(outputs["loss_unlabeled"], dice_ce(*valid_voxels(theta, mixed)))


@pytest.fixture
def sparsely_annotated(dataset, make_trainer):
    """The dataset with labels in a few slices of each case only."""
    raw = dataset / "nnUNet_raw" / "Dataset500_Made"
    trainer = make_trainer(nnUNetTrainerAD, labels=LABELS)
    for file in (raw / "labelsTr").iterdir():
        label = SimpleITK.ReadImage(file)
        label[:, :, ANNOTATED_SLICES:] = IGNORE
        label[10, 10, 0], label[12, 12, 0] = 1, 2  # these slices have no foreground of their own
        SimpleITK.WriteImage(label, file)
        case = file.name.removesuffix(".nii.gz")
        for earlier in Path(trainer.preprocessed_dataset_folder).glob(f"{case}*"):
            earlier.unlink()
        DefaultPreprocessor(verbose=False).run_case_save(
            f"{trainer.preprocessed_dataset_folder}/{case}", [str(raw / "imagesTr" / f"{case}_0000.nii.gz")], str(file),
            trainer.plans_manager, trainer.configuration_manager, trainer.dataset_json,
        )  # fmt: skip


def loader_of(trainer):
    trainer.initialize()
    batches = trainer.get_dataloaders()[0]
    return batches.loader if isinstance(trainer, nnUNetTrainerAD) else batches.data_loader


def test_patches_are_chosen_as_by_the_host(sparsely_annotated, make_trainer):
    stock = loader_of(make_trainer(nnUNetTrainer, labels=LABELS))
    mine = loader_of(make_trainer(nnUNetTrainerAD, labels=LABELS))
    data, _, _, properties = mine.labeled._data.load_case("Made_000")
    for seed in range(20):
        for force_foreground in (False, True):
            np.random.seed(seed)
            expected = stock.get_bbox(data.shape[1:], force_foreground, properties["class_locations"])
            np.random.seed(seed)
            box = mine.labeled.get_bbox(data.shape[1:], force_foreground, properties["class_locations"])
            assert box == expected
        assert box[0][0] < ANNOTATED_SLICES


def test_labeled_patches_have_labels_and_unlabeled_ones_come_from_everywhere(sparsely_annotated, make_trainer):
    np.random.seed(0)
    loader = loader_of(make_trainer(nnUNetTrainerAD, labels=LABELS))
    batches = [loader.generate_train_batch() for _ in range(4)]
    assert all((target != IGNORE).any() for batch in batches for target in batch["target"])
    starts = {loader.unlabeled.get_bbox((60, 60, 60), False, None)[0][0] for _ in range(50)}
    assert max(starts) - min(starts) > 20
