"""Where the dataset of all tests that train lies, and how it is planned."""

from pathlib import Path

import pytest

PLANS = "nnUNetPlansTiny"
DATASET = "Dataset500_Made"
PATHS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def plan_and_preprocess(dataset_id: int = 500) -> None:
    """Do what nnUNetv2_plan_and_preprocess does, in this process as far as it lets us."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    extract_fingerprints([dataset_id], num_processes=1, check_dataset_integrity=True)
    plan_experiments([dataset_id])
    preprocess([dataset_id], configurations=["3d_fullres"], num_processes=[1])


def set_paths(patch: pytest.MonkeyPatch, root: Path) -> None:
    """Point nnU-Net's variables into a folder."""
    for name in PATHS:
        (root / name).mkdir(parents=True, exist_ok=True)
        patch.setenv(name, str(root / name))
