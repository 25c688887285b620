"""Which epochs are kept for the report, which part of a case, and what is written."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nnunet_ad.trainer import snapshots


def dataset(image: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(identifiers=["a", "b"], load_case=lambda case: ({"a": image, "b": -image}[case], None))


@pytest.mark.parametrize(("num_epochs", "expected"), [(1, [1]), (7, [1, 2, 5, 7]), (60, [1, 2, 5, 10, 20, 50, 60])])
def test_early_epochs_and_the_last_are_kept(num_epochs, expected):
    assert [epoch + 1 for epoch in range(num_epochs) if snapshots.is_due(epoch, num_epochs)] == expected


def test_the_patch_is_from_the_middle_of_the_first_case():
    image = np.arange(2.0 * 6 * 8 * 10, dtype=np.float32).reshape(2, 6, 8, 10)
    case, patch = snapshots.central_patch(dataset(image), [2, 4, 6])
    assert case == "a"
    assert np.array_equal(patch[0], image[:, 2:4, 2:6, 2:8])
    case, patch = snapshots.central_patch(dataset(image), [4, 6])  # of a network in two dimensions
    assert np.array_equal(patch[0], image[:, 2, 2:6, 2:8])


def test_a_case_smaller_than_the_patch_is_padded_on_both_sides():
    _, patch = snapshots.central_patch(dataset(np.ones((1, 2, 4, 4), np.float32)), [4, 4, 6])
    assert patch.shape == (1, 1, 4, 4, 6)
    assert patch.sum() == 2 * 4 * 4
    assert (patch[0, 0, 1:3, :, 1:5] == 1).all()


@pytest.mark.parametrize(("begins", "left"), [(True, []), (False, ["epoch_0002.npz"])])
def test_what_was_half_written_goes_and_earlier_ones_when_a_training_begins(tmp_path, begins, left):
    for name in (".unfinished_0123abcd_epoch_0005.npz", "epoch_0002.npz"):
        (tmp_path / name).touch()
    snapshots.tidy(tmp_path, begins)
    assert sorted(file.name for file in tmp_path.iterdir()) == left


def test_a_snapshot_is_named_by_its_epoch_from_1(tmp_path):
    image, label_map = torch.rand(1, 1, 2, 3, 4), torch.randint(0, 200, (1, 2, 3, 4))
    snapshots.write(tmp_path / "snapshots", 4, "a", image, {"theta": label_map})
    with np.load(tmp_path / "snapshots" / "epoch_0005.npz") as content:
        assert str(content["case"]) == "a"
        assert np.array_equal(content["image"], image[0])
        assert content["theta"].dtype == np.uint8
        assert np.array_equal(content["theta"], label_map[0])
