"""Curves of a training, one value per epoch, and their picture ``progress_ad.png``.

nnU-Net's own logger takes known keys only, so these live beside it and travel in the checkpoint.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Curves = dict[str, list]

# Title, unit of the axis, and the curves: key in Curves -> label. Lists of numbers are drawn one line an entry.
_PANELS: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "Losses",
        "DiceCE",
        {
            "loss_denoising": "denoising (Eq. 2)",
            "loss_difficulty": "difficulty (Eq. 6)",
            "loss_unlabeled": "unlabelled (Eq. 8)",
            "loss_supervised": "labelled",
            "loss_consistency": "consistency",
            "loss_crossed": "crossed pseudo-labels",
        },
    ),
    (
        "Gradient that each flow gives the encoder",
        "norm",
        {
            "gradient_denoising": "denoising",
            "gradient_difficulty": "difficulty",
            "gradient_unlabeled": "μ · unlabelled",
        },
    ),
    ("Weight of the unlabelled loss", "μ (Eq. 9)", {"mu": "μ"}),
    ("Class weights", "w_k (Eq. 5)", {"class_weights": "class"}),
    ("Dice of ξ on labelled patches by step t", "λ", {"dice_by_t": "quintile"}),
    (
        "Pseudo-labels",
        "share of voxels",
        {"pseudo_foreground": "foreground", "agreement": "ξ and ψ agree (of foreground)"},
    ),
    (
        "Validation patches",
        "mean foreground Dice",
        {"val_dice_theta": "θ", "val_dice_psi": "ψ", "val_dice_xi": "ξ (DDIM)"},
    ),
    ("Skipped steps (loss or gradient not finite)", "steps", {"numerical_faults": "faults"}),
)
_LOGARITHMIC = ("Gradient that each flow gives the encoder",)


def append(curves: Curves, **values: float | Sequence[float]) -> None:
    """Add one epoch's values."""
    for name, value in values.items():
        curves.setdefault(name, []).append(value)


def plot(curves: Curves, file: Path) -> None:
    """Draw all panels that have data into a PNG file."""
    with style.context("default"):  # nnU-Net's own picture leaves large fonts behind
        _plot(curves, file)


def _plot(curves: Curves, file: Path) -> None:
    panels = [panel for panel in _PANELS if any(curves.get(name) for name in panel[2])]
    num_rows = -(-len(panels) // 2)
    figure = Figure(figsize=(14, 3.4 * num_rows), layout="constrained")
    for axes, (title, unit, labels) in zip(figure.subplots(num_rows, 2, squeeze=False).flat, panels, strict=False):
        for name, label in labels.items():
            _draw(axes, curves.get(name, []), label)
        axes.set(title=title, ylabel=unit, xlabel="epoch")
        if title in _LOGARITHMIC:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    figure.savefig(file, dpi=80)


def _draw(axes: Axes, values: list, label: str) -> None:
    array = np.asarray(values, dtype=float)
    if array.ndim == 1:
        axes.plot(array, label=label)
        return
    for i, line in enumerate(array.T):
        axes.plot(line, label=f"{label} {i}" if label == "class" else f"{label} {i + 1}")
