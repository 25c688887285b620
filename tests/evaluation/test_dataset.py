"""Where a dataset is looked for."""

import pytest
from volumes_on_disk import write_dataset

from nnunet_ad.evaluation.dataset import find_dataset


def test_a_name_is_that_of_the_raw_dataset_wherever_the_command_runs(tmp_path, monkeypatch):
    write_dataset(tmp_path, {"background": 0, "left": 1}, {})
    (tmp_path / "results" / "Dataset007_Toy").mkdir(parents=True)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.chdir(tmp_path / "results")
    assert find_dataset("Dataset007_Toy") == tmp_path / "Dataset007_Toy"
    with pytest.raises(ValueError, match=r"has no dataset\.json"):
        find_dataset("./Dataset007_Toy")
