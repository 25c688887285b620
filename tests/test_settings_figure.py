"""The comparison that README shows: its picture, and its table against the records of the trainings."""

import importlib
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "results" / "records"
MEAN_LOWEST_HIGHEST = re.compile(r"(0\.\d{3})\D+(0\.\d{3}), (0\.\d{3})\)")


@pytest.fixture(scope="module")
def settings_figure():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
        yield importlib.import_module("settings_figure")


def test_the_table_of_readme_is_what_was_recorded(settings_figure):
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| LASeg, 4 labelled cases, 1400"))
    for line, setting in zip(lines[first:], settings_figure.SETTINGS, strict=False):
        table = [tuple(map(float, found)) for found in MEAN_LOWEST_HIGHEST.findall(line)]
        dice = [setting.dice(RECORDS, trainer) for trainer in settings_figure.METHODS]
        assert len(table) == len(dice), line
        for written, values in zip(table, dice, strict=True):
            assert written == pytest.approx((np.mean(values), min(values), max(values)), abs=6e-4), line


def test_the_picture_has_a_panel_a_setting(settings_figure, tmp_path):
    settings_figure.plot(RECORDS, tmp_path / "settings.png", settings_figure.SETTINGS[:2])
    assert plt.imread(tmp_path / "settings.png").shape[1] == 462


def test_a_method_far_below_the_others_leaves_them_room(settings_figure):
    dice = dict(zip(settings_figure.METHODS, ([0.1, 0.2], [0.7, 0.71], [0.72], [0.75]), strict=True))
    assert sorted(settings_figure._compared(dice)) == [0.7, 0.71, 0.72, 0.75]
    dice["nnUNetTrainerSupervised"] = [0.6, 0.65]
    assert min(settings_figure._compared(dice)) == 0.6
