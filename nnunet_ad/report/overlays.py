"""The worst, the median and the best case with the contours of reference and prediction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_ad.evaluation.cases import pair_cases
from nnunet_ad.evaluation.labels import Structure
from nnunet_ad.evaluation.result import Evaluation
from nnunet_ad.report.colours import ON_IMAGES, PREDICTION_ALONE, REFERENCE_ALONE, LegendEntry
from nnunet_ad.report.pictures import Picture, grey, picture
from nnunet_ad.report.planes import Plane, cut_planes
from nnunet_ad.report.scores import RankedCase, rank, worst_median_best
from nnunet_ad.report.sources import Sources

MAX_HEIGHT, WIDTH_OF_ROW = 3.8, 11.0  # inches; the planes of a case are equally high and share a row
MAX_HEIGHT_ON_PAGE = 380  # pixels
DPI = 110


@dataclass(frozen=True)
class CaseOverlay:
    """A case as pictures.

    Attributes:
        title: what the case stands for.
        case: the case and its scores.
        pictures: one a plane; empty if it could not be drawn.
        legend: of the contours.
        note: what a reader must know, or "".
    """

    title: str
    case: RankedCase
    pictures: tuple[Picture, ...]
    legend: tuple[LegendEntry, ...]
    note: str = ""

    @property
    def width_on_page(self) -> int:
        """Pixels that all pictures in one row may take."""
        return round(MAX_HEIGHT_ON_PAGE * sum(picture.aspect for picture in self.pictures))


def draw_overlays(sources: Sources, evaluation: Evaluation) -> list[CaseOverlay]:
    """Draw the cases of `worst_median_best`; a case whose image is missing or does not fit carries a note instead."""
    return [_draw_case(title, case, sources, evaluation) for title, case in worst_median_best(rank(evaluation))]


def _draw_case(title: str, case: RankedCase, sources: Sources, evaluation: Evaluation) -> CaseOverlay:
    image = sources.image_of(case.name)
    if image is None or sources.predictions is None or sources.references is None:
        return CaseOverlay(title, case, (), (), "No picture: the image of this case was not found.")
    structures = _shown_structures(case, evaluation.structures)
    values = [value for structure in structures for value in structure.values]
    pairing = pair_cases(sources.predictions, sources.references, allow_missing=True)
    pair = next(each for each in pairing.pairs if each.case == case.name)
    try:
        planes = cut_planes(image, pair.reference, pair.prediction, values)
    except ValueError as error:
        note = f"No picture: {error}"
        for path in (image, pair.reference, pair.prediction):  # the page may be passed on
            note = note.replace(str(path), path.name)
        return CaseOverlay(title, case, (), (), note)
    height = min(MAX_HEIGHT, WIDTH_OF_ROW / sum(plane.aspect for plane in planes))
    what = f"{title} {case.name}, Dice {case.dice:.2f}"
    pictures = tuple(_draw_plane(plane, structures, height, what) for plane in planes)
    left_out = len(evaluation.structures) - len(structures)
    note = f"Drawn are the {len(structures)} structures that went worst in this case." if left_out else ""
    return CaseOverlay(title, case, pictures, _legend(structures), note)


def _shown_structures(case: RankedCase, structures: Sequence[Structure]) -> list[Structure]:
    """Return the structures to draw, at most one a colour: those with the lowest Dice."""
    if len(structures) <= len(ON_IMAGES):
        return list(structures)
    dice = {score.structure: score.values["Dice"] for score in case.scores.scores}
    order = sorted(structures, key=lambda each: (math.isnan(dice[each.name]), dice[each.name]))
    shown = {each.name for each in order[: len(ON_IMAGES)]}
    return [each for each in structures if each.name in shown]


def _colours(structures: Sequence[Structure]) -> list[tuple[str, str]]:
    """Return the colours of reference and prediction of each structure."""
    if len(structures) == 1:
        return [(REFERENCE_ALONE, PREDICTION_ALONE)]
    return [(colour, colour) for colour in ON_IMAGES[: len(structures)]]


def _legend(structures: Sequence[Structure]) -> tuple[LegendEntry, ...]:
    if len(structures) == 1:
        return (
            LegendEntry("reference", REFERENCE_ALONE, dashed=True),
            LegendEntry("prediction", PREDICTION_ALONE),
        )
    styles = (LegendEntry("reference", "currentColor", dashed=True), LegendEntry("prediction", "currentColor"))
    entries = zip(structures, _colours(structures), strict=True)
    return (*styles, *(LegendEntry(structure.name, colour) for structure, (colour, _) in entries))


def _draw_plane(plane: Plane, structures: Sequence[Structure], height: float, title: str) -> Picture:
    with mpl.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(max(0.5, height * plane.aspect), height), dpi=DPI, facecolor="black")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.imshow(grey(plane.image), cmap="gray", vmin=0, vmax=255, aspect="auto", interpolation="bilinear")
        for structure, colours in zip(structures, _colours(structures), strict=True):
            pairs = zip((plane.reference, plane.prediction), colours, ("dashed", "solid"), strict=True)
            for labels, colour, dashes in pairs:
                mask = np.isin(labels, structure.values)
                if mask.any() and not mask.all():
                    axes.contour(mask, [0.5], colors=colour, linestyles=dashes, linewidths=1.8)
        _write_letters(axes, plane.letters)
        canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    which = f"{plane.name} slice" if plane.name else "image"
    return picture(pixels, f"{title}: {which} with contours of reference and prediction.", caption=plane.name)


def _write_letters(axes: Axes, letters: tuple[str, ...]) -> None:
    """Mark the sides of the body at the edges of the picture."""
    places = ((0.015, 0.5, "left", "center"), (0.985, 0.5, "right", "center"), (0.5, 0.985, "center", "top"),
              (0.5, 0.015, "center", "bottom"))  # fmt: skip
    for letter, (x, y, horizontal, vertical) in zip(letters, places, strict=False):
        axes.text(
            x,
            y,
            letter,
            transform=axes.transAxes,
            ha=horizontal,
            va=vertical,
            color="white",
            fontsize=11,
            path_effects=[patheffects.withStroke(linewidth=2.5, foreground="black")],
        )
