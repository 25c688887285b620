"""Draws the learning curves of an experiment: Dice on validation patches against iterations, a panel a trainer."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from run_record import DECODERS, RunRecord

_COLUMNS, _COLOURS = 3, 32
_STYLES = dict(zip(DECODERS, (("θ", "C0"), ("ψ", "C1"), ("ξ (DDIM)", "C2")), strict=True))


def plot(records: Sequence[RunRecord], baseline: str, iterations: int, file: Path) -> None:
    """Write a picture.

    Args:
        records: Of all trainers and seeds; a thin line each.
        baseline: The trainer whose mean over the seeds is in every panel.
        iterations: An epoch.
        file: A PNG file.
    """
    trainers = list(dict.fromkeys(record.trainer for record in records))
    rows = -(-len(trainers) // _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    reference = [record for record in records if record.trainer == baseline]
    for axes, trainer in zip(panels, trainers, strict=False):
        axes.set_title(trainer, fontsize="medium")
        axes.grid(alpha=0.3)
        axes.tick_params(labelbottom=True)
        if reference and trainer != baseline:
            _draw(axes, reference, "theta", iterations, baseline, "0.6", each=False)
        for decoder, (label, colour) in _STYLES.items():
            drawn = [record for record in records if record.trainer == trainer and decoder in record.curves]
            if drawn:
                _draw(axes, drawn, decoder, iterations, label, colour)
        axes.legend(fontsize="x-small", loc="lower right")
    for axes in panels[len(trainers) :]:
        axes.set_axis_off()
    figure.supxlabel("iterations")
    figure.supylabel("Dice on validation patches")
    drawn = BytesIO()
    figure.savefig(drawn, dpi=80)
    Image.open(drawn).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


def _draw(
    axes: Axes, records: Sequence[RunRecord], decoder: str, iterations: int, label: str, colour: str, each: bool = True
) -> None:
    """Draw the mean over seeds, and a thin line for each seed where there are several."""
    curves = np.array([record.curves[decoder] for record in records], dtype=float)
    x = iterations * np.arange(1, curves.shape[1] + 1)
    if each and len(curves) > 1:
        axes.plot(x, curves.T, color=colour, linewidth=0.5, alpha=0.5)
    known = np.ma.masked_invalid(curves).mean(axis=0).filled(np.nan)
    axes.plot(x, known, color=colour, linewidth=1.5, label=label)
