"""One small planned dataset for all tests that train."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

# Read by nnU-Net when it is imported.
os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("nnUNet_n_proc_DA", "1")
os.environ.setdefault("nnUNet_compile", "f")

import pytest
import torch
from planned_dataset import DATASET, PATHS, PLANS, plan_and_preprocess, set_paths

torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def planned(tmp_path_factory) -> Path:
    """A folder with nnUNet_raw, nnUNet_preprocessed and nnUNet_results: 2 + 1 labelled, 3 unlabelled, 1 test case."""
    from nnunet_ad.planning.small_plans import write_small_plans
    from nnunet_ad.testing.made_dataset import write_made_dataset

    root = tmp_path_factory.mktemp("planned")
    with pytest.MonkeyPatch.context() as patch:
        set_paths(patch, root)
        write_made_dataset(
            root / "nnUNet_raw", shape=(20, 24, 22), num_labeled=2, num_val=1, num_unlabeled=3, num_test=1
        )
        plan_and_preprocess()
    write_small_plans(root / "nnUNet_preprocessed" / DATASET, "3d_fullres", 4, (16, 16, 16), 2, PLANS)
    return root


@pytest.fixture
def dataset(planned, tmp_path, monkeypatch) -> Path:
    """A copy of the planned dataset that a test may change; nnU-Net's variables and short epochs are set."""
    for name in PATHS:
        shutil.copytree(planned / name, tmp_path / name)
    set_paths(monkeypatch, tmp_path)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # batches are made in this process
    monkeypatch.setenv("NNUNET_AD_ITERATIONS", "2")
    monkeypatch.setenv("NNUNET_AD_SEED", "1")
    return tmp_path


@pytest.fixture
def make_trainer(dataset) -> Callable:
    """Return a function that makes a trainer on the dataset, as nnU-Net's command does."""

    def make(trainer_class, fold: int | str = 0, device: str = "cpu", **changes_of_dataset_json):
        folder = dataset / "nnUNet_preprocessed" / DATASET
        plans = json.loads((folder / f"{PLANS}.json").read_text()) | {"continue_training": False}
        dataset_json = json.loads((folder / "dataset.json").read_text()) | changes_of_dataset_json
        return trainer_class(plans, "3d_fullres", fold, dataset_json, torch.device(device))

    return make
