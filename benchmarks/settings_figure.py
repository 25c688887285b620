"""Draws the comparison of README from the records of runs: a panel a setting, a dot a training, a line for their mean.

Usage: ``python benchmarks/settings_figure.py`` writes ``docs/results/settings.png``.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from run_record import RunRecord, evaluation_of

_REPOSITORY = Path(__file__).resolve().parent.parent
_SEEDS, _NUM_COLOURS, _MARGIN, _FAR = range(3), 64, 0.01, 0.2
_OWN, _SAME, _TEACHER, _AD = "nnUNetTrainerSupervised", "MeanTeacher_fast_mu0", "MeanTeacher_svda", "AD_fast"
METHODS = {
    _OWN: ("labels alone, nnU-Net's trainer", "#666666"),
    _SAME: ("labels alone, trained alike", "#0072b2"),
    _TEACHER: ("mean teacher", "#e69f00"),
    _AD: ("nnUNetTrainerAD", "#009e73"),
}


@dataclass(frozen=True)
class Setting:
    """One panel.

    Attributes:
        title: Above it.
        spec: Name of the experiment, the folder of its records.
        teacher: Trainer that stands for mean teacher, where it is not the usual one.
    """

    title: str
    spec: str
    teacher: str = _TEACHER

    def dice(self, records: Path, trainer: str) -> list[float]:
        """Return the mean Dice over the kept-aside cases of each seed.

        Raises:
            OSError: If a record is not there.
        """
        trainer = self.teacher if trainer == _TEACHER else trainer
        files = [records / self.spec / f"{trainer}_seed_{seed}.json" for seed in _SEEDS]
        return [_mean_dice(RunRecord.read(file)) for file in files]


SETTINGS = (
    Setting("LASeg\n4 labelled", "laseg_4_3mm_cpu"),
    Setting("CardiacMR\nadaptation", "cardiac_bssfp_to_lge_short_cpu"),
    Setting("CardiacMR\ngeneralisation", "cardiac_faded_short_cpu"),
    Setting("HeadNeckCT\n600 iterations", "head_neck_short_cpu", "MeanTeacher_fast"),
    Setting("HeadNeckCT\n2000 iterations", "head_neck_2000_cpu", "MeanTeacher_fast"),
)


def plot(records: Path, file: Path, settings: Sequence[Setting] = SETTINGS) -> None:
    """Write a picture (PNG) of the Dice of every method on each setting."""
    figure = Figure(figsize=(2.1 * len(settings), 3.4), layout="constrained")
    panels = figure.subplots(1, len(settings), squeeze=False).ravel()
    found = [{trainer: setting.dice(records, trainer) for trainer in METHODS} for setting in settings]
    height = max(np.ptp(_compared(dice)) for dice in found) + 2 * _MARGIN
    for axes, setting, dice in zip(panels, settings, found, strict=True):
        _draw(axes, dice, height)
        axes.set_title(setting.title, fontsize="medium")
    panels[0].set_ylabel("mean Dice over kept-aside cases")
    handles, _ = panels[0].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=len(METHODS), frameon=False)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=110)
    Image.open(drawn).convert("RGB").quantize(_NUM_COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


def _draw(axes: Axes, dice: dict[str, list[float]], height: float) -> None:
    """Draw one setting; all panels are as high, so that a point of Dice is as much in each."""
    compared = _compared(dice)
    bottom = np.mean((min(compared), max(compared))) - height / 2
    for position, (trainer, values) in enumerate(dice.items()):
        label, colour = METHODS[trainer]
        axes.plot([position] * len(values), values, "o", color=colour, alpha=0.6, markersize=5, label=label)
        axes.hlines(np.mean(values), position - 0.35, position + 0.35, color=colour, linewidth=2)
        if max(values) < bottom:
            axes.text(position, bottom, f"{np.mean(values):.3f}\n↓", ha="center", va="bottom", color=colour)
    axes.set_ylim(bottom, bottom + height)
    axes.set_xlim(-0.6, len(dice) - 0.4)
    axes.set_xticks([])
    axes.grid(axis="y", alpha=0.3)


def _compared(dice: dict[str, list[float]]) -> list[float]:
    """Return what a panel has to show; nnU-Net's own trainer may be far below the others."""
    others = [value for trainer, values in dice.items() if trainer != _OWN for value in values]
    return [*others, *(value for value in dice[_OWN] if value > min(others) - _FAR)]


def _mean_dice(record: RunRecord) -> float:
    (row,) = (row for row in evaluation_of([record], []).overall if row.structure is None)
    return row.summaries["Dice"].mean


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=_REPOSITORY / "docs/results/records", help="folder of records")
    parser.add_argument("-o", "--output", type=Path, default=_REPOSITORY / "docs/results/settings.png", help="picture")
    arguments = parser.parse_args()
    plot(arguments.records, arguments.output)
