"""The experiment runner over the real commands."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
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


@pytest.fixture
def quality(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("quality")


@pytest.fixture
def run_record(quality):
    return importlib.import_module("run_record")


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "quality").glob("*.toml")), ids=lambda file: file.stem)
def test_the_trainers_of_an_experiment_exist(file, quality):
    experiment = quality.Experiment.read(file)
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


def record_of(run_record, trainer: str, seed: int, dice: dict[str, float]):
    """One structure that has a Dice in each case, and a case in which nobody has it."""
    cases = {
        case: {"organ": {"outcome": "both", "Dice": value, "Jaccard": value, "HD95": 1.0, "ASSD": 0.5}}
        for case, value in dice.items()
    }
    cases["empty"] = {"organ": {"outcome": "absent", "Dice": None, "Jaccard": None, "HD95": None, "ASSD": None}}
    curves = {
        "theta": [None, 0.2, 0.4, None, 0.5, 0.7],
        "theta_per_class": [[None], [0.2], [0.4], [None], [0.5], [0.7]],
    }
    return run_record.RunRecord(trainer, seed, "by hand; device: cpu (EPYC)", 1.5, cases, curves)


def cells_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| nnU")]


def test_a_table_is_made_of_records_alone(tmp_path, quality, run_record):
    names = [f"case_{i}" for i in range(6)]
    better = {"nnUNetTrainerSupervised": 0.0, "nnUNetTrainerAD_FewerSteps": 0.1}
    for trainer, gain in better.items():
        for seed in (0, 1):
            dice = {name: 0.5 + gain + 0.01 * i + 0.02 * seed for i, name in enumerate(names)}
            file = tmp_path / "records" / "tiny" / f"{trainer}_seed_{seed}.json"
            record = record_of(run_record, trainer, seed, dice)
            record.write(file)
            assert run_record.RunRecord.read(file) == record
    (tmp_path / "tiny.toml").write_text(EXPERIMENT.replace("seeds = [0]", "seeds = [0, 1]"))

    experiment = quality.Experiment.read(tmp_path / "tiny.toml")
    found = quality.recorded(experiment, tmp_path / "records")
    table = quality.as_markdown(experiment, found)

    baseline, ours = cells_of(table)
    assert baseline[:3] == ["nnUNetTrainerSupervised", "0, 1", "organ"] and baseline[3].startswith("53.5 ±")
    assert ours[:3] == ["nnUNetTrainerAD_FewerSteps", "0, 1", "organ"] and ours[3].startswith("63.5 ±")
    assert ours[5] == "+10.0"
    assert float(ours[6]) == pytest.approx(2 / 2**6, abs=1e-3)  # all six cases better, two-sided and exact
    t = 0.1 / 0.0002**0.5  # Welch's, with two degrees of freedom as both pairs of seeds differ by 0.02
    assert float(ours[7]) == pytest.approx(1 - t / (t**2 + 2) ** 0.5, abs=1e-4) and baseline[6:] == ["", ""]
    one_seed = [record for record in found if record.seed == 0]
    assert cells_of(quality.as_markdown(experiment, one_seed))[1][7] == ""
    assert "Not finished: nnUNetTrainerMeanTeacher, seed 0; nnUNetTrainerMeanTeacher, seed 1." in table
    assert "nnUNetTrainerSupervised, seed 0: validation patches, second half of training: theta 60.0; 1.5 min" in table

    assert "-device cpu" in table
    turned = quality.as_markdown(experiment.tested_against("nnUNetTrainerAD_FewerSteps"), found)
    assert [cells[0] + cells[5] for cells in cells_of(turned)] == [
        "nnUNetTrainerSupervised-10.0",
        "nnUNetTrainerAD_FewerSteps",
    ]

    quality.plot(found, experiment.baseline, experiment.iterations, tmp_path / "curves.png")
    assert plt.imread(tmp_path / "curves.png").shape[1] == 960  # three panels wide


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

    ends = [line for line in first.splitlines() if line.startswith("- nnUNet")]
    assert len(ends) == 3 and all("; nnunet_ad 0" in line and "; device: cpu" in line for line in ends)

    (log,) = (tmp_path / "tiny" / "nnUNetTrainerAD_FewerSteps").rglob("training_log*.txt")
    assert "num_sampling_steps=3" in log.read_text()

    record = tmp_path / "records" / "tiny" / "nnUNetTrainerMeanTeacher_seed_0.json"
    record.unlink()
    shutil.rmtree(next((tmp_path / "tiny" / "nnUNetTrainerMeanTeacher").rglob("validation")))
    second = run(planned, tmp_path)
    assert second.count("nnUNet_results=") == 1 and second.count("--c") == 1
    assert second[second.index("| nnUNet") :] == first[first.index("| nnUNet") :]

    for trainer in (tmp_path / "tiny").iterdir():
        shutil.rmtree(trainer)
    assert run(planned, tmp_path) == first[first.index("# tiny") :]  # what is recorded is not trained again

    record.unlink()
    assert "Not finished: nnUNetTrainerMeanTeacher, seed 0." in run(planned, tmp_path, "--table")
