"""The experiment runner over the real commands."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nnunet_ad.trainer as trainers

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = """
dataset = 500
configuration = "3d_fullres"
plans = "nnUNetPlansTiny"
fold = 0
baseline = "nnUNetTrainerSupervised"
trainers = ["nnUNetTrainerAD_FewerSteps", "nnUNetTrainerMeanTeacher"]
seeds = [0]
epochs = 2
iterations = 1

[variants.nnUNetTrainerAD_FewerSteps]
base = "nnUNetTrainerAD"
num_sampling_steps = 3
"""


def run(planned, out, *options):
    paths = {name: str(planned / name) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
    line = [
        sys.executable,
        ROOT / "benchmarks" / "quality.py",
        out / "tiny.toml",
        "-o",
        out,
        "-device",
        "cpu",
        *options,
    ]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(line, env=os.environ | paths | {"PATH": path}, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def experiment_of(file: Path):
    spec = importlib.util.spec_from_file_location("quality", ROOT / "benchmarks" / "quality.py")
    quality = importlib.util.module_from_spec(spec)
    sys.modules["quality"] = quality
    spec.loader.exec_module(quality)
    return quality.Experiment.read(file)


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "quality").glob("*.toml")), ids=lambda file: file.stem)
def test_the_trainers_of_an_experiment_exist(file):
    experiment = experiment_of(file)
    named = {*experiment.trainers, experiment.baseline} - experiment.variants.keys()
    bases = {variant["base"] for variant in experiment.variants.values()}
    assert named | bases <= set(trainers.__all__)
    assert len(experiment.runs) == len(experiment.seeds) * (len(experiment.trainers) + 1)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("num_sampling_steps", "num_steps", "nnUNetTrainerAD_FewerSteps sets num_steps, which is no hyper-parameter"),
        ('base = "nnUNetTrainerAD"', "", "nnUNetTrainerAD_FewerSteps names no base"),
    ],
)
def test_what_is_wrong_with_a_variant_is_named(tmp_path, right, wrong, message):
    (tmp_path / "tiny.toml").write_text(EXPERIMENT.replace(right, wrong))
    line = [sys.executable, ROOT / "benchmarks" / "quality.py", tmp_path / "tiny.toml", "-o", tmp_path]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.slow
def test_an_experiment_is_run_once_and_continues(planned, tmp_path):
    (tmp_path / "tiny.toml").write_text(EXPERIMENT)
    first = run(planned, tmp_path)
    rows = [line.split("|")[1:4] for line in first.splitlines() if line.startswith("| nnUNet")]
    assert [tuple(cell.strip() for cell in row) for row in rows] == [
        (trainer, "0", structure)
        for trainer in ("nnUNetTrainerSupervised", "nnUNetTrainerAD_FewerSteps", "nnUNetTrainerMeanTeacher")
        for structure in ("organ", "vessel", "mean")
    ]
    assert first.count("NNUNET_AD_SEED=0 NNUNET_AD_EPOCHS=2 NNUNET_AD_ITERATIONS=1 nnUNet_results=") == 3

    (log,) = (tmp_path / "tiny" / "nnUNetTrainerAD_FewerSteps").rglob("training_log*.txt")
    assert "num_sampling_steps=3" in log.read_text()

    shutil.rmtree(next((tmp_path / "tiny" / "nnUNetTrainerMeanTeacher").rglob("validation")))
    second = run(planned, tmp_path)
    assert second.count("nnUNet_results=") == 1 and second.count("--c") == 1
    assert second[second.index("| nnUNet") :] == first[first.index("| nnUNet") :]

    shutil.rmtree(tmp_path / "tiny" / "nnUNetTrainerMeanTeacher")
    table = run(planned, tmp_path, "--table")
    assert "Not finished: nnUNetTrainerMeanTeacher, seed 0." in table
