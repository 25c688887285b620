"""Checkpoint files of this and other versions, and of other networks."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_ad.network.checkpoint import check_fits, load_checkpoint

WEIGHTS = {"network_weights": {}}


@pytest.mark.parametrize(
    "value",
    [
        np.float64(1.5),
        np.float32(1.5),
        np.int64(2),
        np.bool_(True),
        *(np.arange(3, dtype=d) for d in ("u4", "f2", "i4")),
    ],
    ids=repr,
)
def test_numbers_and_arrays_of_numpy_are_data(tmp_path, value):
    torch.save(WEIGHTS | {"logging": {"curve": [value]}}, tmp_path / "a.pth")
    np.testing.assert_array_equal(load_checkpoint(tmp_path / "a.pth")["logging"]["curve"][0], value)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content):
    file = tmp_path / "a.pth"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(file))):
        load_checkpoint(file)


@pytest.mark.parametrize("content", [[1.0], {"weights": {}}])
def test_data_without_weights_are_named(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds no network_weights"):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ({"weight": torch.zeros(2, 3)}, r"bias is missing there, and has shape \(2,\) here"),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, r"weight has shape \(2, 4\) there"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1)}, "more .* and is missing here"),
    ],
)
def test_weights_of_another_network_are_named(there, message):
    with pytest.raises(ValueError, match=message):
        check_fits({"network_weights": there}, nn.Linear(3, 2), "a.pth")
