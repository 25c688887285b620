"""A picture of predictions beside references: one slice a case, contours over the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

COLOURS = ("tab:red", "tab:cyan", "tab:orange", "tab:green", "tab:purple")
REFERENCE_STYLE: Literal["dashed"] = "dashed"
PREDICTION_STYLE: Literal["solid"] = "solid"


@dataclass(frozen=True)
class OverlayCase:
    """The files of one case and the title above it."""

    title: str
    image: Path
    reference: Path
    prediction: Path


def draw_overlay(cases: Sequence[OverlayCase], structures: dict[str, int], path: Path) -> Path:
    """Write a picture with a column a case: the image, and below it the image with contours.

    The slice shown is the one in which the smallest structure of the reference is largest.

    Args:
        cases: The cases, at least one; image, reference and prediction of a case lie on one grid.
        structures: Label value of each structure to draw.
        path: The picture to write.

    Returns:
        ``path``.
    """
    figure = Figure(figsize=(3 * len(cases), 6.6), layout="constrained")
    axes = figure.subplots(2, len(cases), squeeze=False)
    for (plain, contoured), case in zip(axes.T, cases, strict=True):
        image, reference, prediction = (_read(file) for file in (case.image, case.reference, case.prediction))
        index = most_telling_slice(reference, list(structures.values()))
        plain.set_title(case.title)
        for axis in (plain, contoured):
            axis.imshow(image[index], cmap="gray")
            axis.set_axis_off()
        for colour, value in zip(COLOURS, structures.values(), strict=False):
            for labels, style in ((reference, REFERENCE_STYLE), (prediction, PREDICTION_STYLE)):
                mask = labels[index] == value
                if mask.any():
                    contoured.contour(mask, [0.5], colors=colour, linestyles=style, linewidths=1.5)
    figure.legend(handles=_legend(structures), loc="outside lower center", ncols=len(structures) + 2)
    figure.savefig(path, dpi=120)
    return path


def most_telling_slice(reference: np.ndarray, values: Sequence[int]) -> int:
    """Return the slice (first axis) in which the smallest structure present is largest; the middle if none is."""
    sizes = {value: np.count_nonzero(reference == value) for value in values}
    present = [value for value in values if sizes[value]]
    if not present:
        return len(reference) // 2
    smallest = min(present, key=sizes.__getitem__)
    return int(np.argmax(np.count_nonzero(reference == smallest, axis=(1, 2))))


def _legend(structures: dict[str, int]) -> list[Line2D]:
    colours = [Line2D([], [], color=colour, label=name) for colour, name in zip(COLOURS, structures, strict=False)]
    styles = (("reference", REFERENCE_STYLE), ("prediction", PREDICTION_STYLE))
    return [*colours, *(Line2D([], [], color="black", linestyle=style, label=name) for name, style in styles)]


def _read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
