import errno
import re

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunet_ad.augmentation.svda import SVDA, training_transforms
from nnunet_ad.data.dataset import UnlabeledDataset
from nnunet_ad.data.images import unlabeled_images
from nnunet_ad.data.loader import LabeledDataLoader, TwoStreamDataLoader, UnlabeledDataLoader
from nnunet_ad.data.preprocessing import preprocess_unlabeled


class LabeledDataset:
    """Two labelled cases in memory."""

    identifiers = ("L1", "L2")

    def load_case(self, identifier):
        image = np.random.default_rng(0).normal(size=(1, 18, 18, 18)).astype(np.float32)
        label = (image > 1).astype(np.int16)
        return image, label, None, {"class_locations": {1: np.argwhere(label)}}


@pytest.fixture
def preprocessing(preprocessing_with, made):
    preprocessing = preprocessing_with(use_mask_for_norm=[True])
    images = unlabeled_images(made, preprocessing.dataset_json)
    preprocess_unlabeled(preprocessing, images, num_processes=1)
    return preprocessing


def make_unlabeled(preprocessing, patch_size, with_mask=False, rotation=(-0.5, 0.5)):
    dataset = UnlabeledDataset(preprocessing.folder, ["Made_001", "Made_002"], with_mask)
    transforms = training_transforms(SVDA(patch_size, rotation), [with_mask])
    manager = preprocessing.plans.get_label_manager({"labels": {"background": 0, "organ": 1, "ignore": 2}})
    initial = [size + 4 for size in patch_size]
    return UnlabeledDataLoader(dataset, 3, initial, patch_size, manager, transforms), manager


@pytest.mark.parametrize("patch_size", [[12, 14, 16], [40, 16, 16], [14, 12]])
def test_unlabeled_patches_have_the_final_size(preprocessing, patch_size):
    loader, _ = make_unlabeled(preprocessing, patch_size)
    batch = next(loader)
    assert batch["data"].shape == (3, 1, *patch_size)
    assert batch["data"].dtype == torch.float32
    assert torch.isfinite(batch["data"]).all()
    assert set(batch) == {"data", "keys"}
    assert set(batch["keys"]) <= {"Made_001", "Made_002"}


def test_the_mask_keeps_the_outside_at_zero(preprocessing):
    loader, _ = make_unlabeled(preprocessing, [40, 40, 40], with_mask=True)
    data = next(loader)["data"]
    assert (data == 0).float().mean() > 0.5  # the padding around a volume of 16 voxels
    assert data.abs().sum() > 0


def test_two_streams_come_in_one_batch(preprocessing):
    patch_size = [12, 12, 12]
    unlabeled, _ = make_unlabeled(preprocessing, patch_size)
    manager = preprocessing.plans.get_label_manager({"labels": {"background": 0, "organ": 1}})
    labeled = nnUNetDataLoader(
        LabeledDataset(),
        2,
        [14, 14, 14],
        patch_size,
        manager,
        transforms=training_transforms(SVDA(patch_size, 0.1), []),
    )
    batch = next(TwoStreamDataLoader(labeled, unlabeled))
    assert batch["data"].shape == (2, 1, *patch_size)
    assert batch["target"].shape == (2, 1, *patch_size)
    assert batch["unlabeled_data"].shape == (3, 1, *patch_size)
    assert set(batch["keys"]) <= {"L1", "L2"}
    assert set(batch["unlabeled_keys"]) <= {"Made_001", "Made_002"}


def test_an_error_names_the_labeled_cases_of_the_batch(preprocessing):
    class Damaged(LabeledDataset):
        identifiers = ("L1",)
        source_folder = "folder"

        def load_case(self, identifier):
            raise RuntimeError("Error while getting the buffer")

    manager = preprocessing.plans.get_label_manager({"labels": {"background": 0, "organ": 1}})
    loader = LabeledDataLoader(Damaged(), 2, [14] * 3, [12] * 3, manager)
    with pytest.raises(ValueError, match=r"from the labelled cases L1 \(Error while getting the buffer\)"):
        next(loader)


@pytest.mark.parametrize(
    "shortage",
    [
        MemoryError("Unable to allocate 3.00 GiB"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OSError(errno.EIO, "Input/output error"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_fault_of_the_machine_is_not_called_damage(preprocessing, monkeypatch, shortage):
    def load_case(self, identifier):
        raise shortage

    unlabeled, manager = make_unlabeled(preprocessing, [12] * 3)
    for dataset in (LabeledDataset, UnlabeledDataset):
        monkeypatch.setattr(dataset, "load_case", load_case)
    for loader in (LabeledDataLoader(LabeledDataset(), 2, [14] * 3, [12] * 3, manager), unlabeled):
        with pytest.raises(type(shortage), match=re.escape(str(shortage))):
            next(loader)
