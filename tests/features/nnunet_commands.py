"""nnU-Net's commands on a folder of made datasets."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from planned_dataset import PATHS, PLANS

from nnunet_ad.planning.small_plans import shrink_plans
from nnunet_ad.testing.made_dataset import write_made_dataset

TRAINER = "nnUNetTrainerAD_1epoch"
SETTINGS = {
    "nnUNet_n_proc_DA": "1",
    "nnUNet_def_n_proc": "1",
    "nnUNet_compile": "f",
    "NNUNET_AD_ITERATIONS": "1",
    "NNUNET_AD_SEED": "1",
}


@dataclass(frozen=True)
class Workplace:
    """Where raw, preprocessed and trained things of some datasets lie, and the commands that run there."""

    root: Path

    @property
    def variables(self) -> dict[str, str]:
        """The environment of the commands."""
        return {**os.environ, **SETTINGS, **{name: str(self.root / name) for name in PATHS}}

    def run(self, command: str, *arguments: object, **variables: str) -> str:
        """Run a command, expect that it succeeds, and return what it says."""
        done = self._run(command, arguments, variables)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said[-5000:]
        return said

    def refusal(self, command: str, *arguments: object, **variables: str) -> str:
        """Run a command, expect that it fails, and return its last line."""
        done = self._run(command, arguments, variables)
        assert done.returncode != 0
        return done.stderr.strip().splitlines()[-1]

    def _run(self, command: str, arguments: Sequence[object], variables: dict) -> subprocess.CompletedProcess:
        line = [Path(sys.executable).with_name(command), *map(str, arguments)]
        environment = {**self.variables, **variables}
        return subprocess.run(line, capture_output=True, text=True, timeout=600, env=environment)

    def prepare(self, dataset_id: int, *configurations: str, **options) -> None:
        """Write, plan and preprocess a small made dataset, in the order of nnU-Net's integration tests."""
        write_made_dataset(
            self.root / "nnUNet_raw", dataset_id, shape=(20, 24, 22), num_labeled=2, num_val=2, num_unlabeled=2,
            num_test=1, **options,
        )  # fmt: skip
        self.run("nnUNetv2_plan_and_preprocess", "-d", dataset_id, "--no_pp", "-npfp", 1)
        write_tiny_plans(self.preprocessed(dataset_id))
        if configurations:
            np = ("-np", *[1] * len(configurations))
            self.run("nnUNetv2_preprocess", "-d", dataset_id, "-plans_name", PLANS, "-c", *configurations, *np)

    def train(self, dataset_id: int, configuration: str, fold: int | str, *options: object, **variables: str) -> str:
        """Train with the default trainer and plans of these tests, unless ``options`` name others."""
        return self.run("nnUNetv2_train", *_training(dataset_id, configuration, fold, options), **variables)

    def training_refusal(
        self, dataset_id: int, configuration: str, fold: int | str, *options: object, **variables: str
    ) -> str:
        """As :meth:`train`, but expect a failure and return its last line."""
        return self.refusal("nnUNetv2_train", *_training(dataset_id, configuration, fold, options), **variables)

    def predict(self, dataset_id: int, configuration: str, output: Path, *options: object, **variables: str) -> Path:
        """Predict the test images, expect a segmentation of each, and return the folder of the segmentations."""
        images = self.raw(dataset_id) / "imagesTs"
        arguments = ("-i", images, "-o", output, "-d", dataset_id, "-c", configuration, "-device", "cpu")
        self.run("nnUNetv2_predict", *arguments, *_with_defaults(options), **variables)
        assert {file.name for file in output.glob("*.nii.gz")} == self.test_cases(dataset_id)
        return output

    def raw(self, dataset_id: int) -> Path:
        """The raw dataset."""
        return next((self.root / "nnUNet_raw").glob(f"Dataset{dataset_id}_*"))

    def preprocessed(self, dataset_id: int) -> Path:
        """The preprocessed dataset."""
        return self.root / "nnUNet_preprocessed" / self.raw(dataset_id).name

    def model(self, dataset_id: int, configuration: str, trainer: str = TRAINER, plans: str = PLANS) -> Path:
        """The folder of a trained configuration, which holds the folds."""
        return self.results(dataset_id) / f"{trainer}__{plans}__{configuration}"

    def results(self, dataset_id: int) -> Path:
        """The folder of all models of a dataset."""
        return self.root / "nnUNet_results" / self.raw(dataset_id).name

    def test_cases(self, dataset_id: int) -> set[str]:
        """The names of the segmentations that a prediction of ``imagesTs`` should write."""
        return {file.name for file in (self.raw(dataset_id) / "labelsTs").iterdir()}


def write_tiny_plans(preprocessed_dataset: Path, source: str = "nnUNetPlans", name: str = PLANS) -> None:
    """Shrink plans to a network of seconds, and add the two stages of a cascade, which small images never get.

    ``3d_lowres`` and ``3d_cascade_fullres`` are declared as in nnU-Net's integration tests.
    """
    plans = json.loads((preprocessed_dataset / f"{source}.json").read_text())
    plans = shrink_plans(plans, "2d", 4, (16, 16), 2, f"{name}2d")
    plans = shrink_plans(plans, "3d_fullres", 4, (16, 16, 16), 2, name)
    plans["configurations"] |= {
        "3d_lowres": {
            "inherits_from": "3d_fullres",
            "data_identifier": f"{name}_3d_lowres",
            "spacing": [3.0, 2.5, 2.5],
            "next_stage": "3d_cascade_fullres",
        },
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    (preprocessed_dataset / f"{name}.json").write_text(json.dumps(plans))


def _training(dataset_id: int, configuration: str, fold: int | str, options: Sequence[object]) -> list[object]:
    return [dataset_id, configuration, fold, "-device", "cpu", *_with_defaults(options)]


def _with_defaults(options: Sequence[object]) -> list[object]:
    """Add trainer and plans of these tests where the options do not name others."""
    defaults = {"-tr": TRAINER, "-p": PLANS}
    return [
        *options,
        *(word for option, value in defaults.items() if option not in options for word in (option, value)),
    ]
