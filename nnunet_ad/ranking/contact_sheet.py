"""A picture of the cases worth annotating: where the three decoders disagree most, and how."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

LineStyle = Literal["solid", "dashed", "dotted"]

# Okabe and Ito's palette, told apart with any colour vision; line styles tell the decoders apart without colour.
CONTOURS: tuple[tuple[str, str, LineStyle], ...] = (
    ("θ, used for prediction", "#56B4E9", "solid"),
    ("ψ, difficulty-aware", "#E69F00", "dashed"),
    ("ξ, denoising by DDIM", "#CC79A7", "dotted"),
)
CONTESTED_COLOUR, FRAME_COLOUR = "#F0E442", "#F0E442"
_CONTESTED_OPACITY = 0.25
_OUTLINE = withStroke(linewidth=3, foreground="black")  # contours show on bright tissue, too
_TILES_A_ROW = 2
_PANEL_INCHES = 3.2
_TEXT_INCHES = 0.6
_MARGIN = 0.2  # of the zoomed region, on each side
_SMALLEST_ZOOM = 24  # pixels


@dataclass(frozen=True)
class Tile:
    """One case: the slice on which the decoders disagree most.

    Attributes:
        title: Above the tile behind its rank, one or several lines.
        image: (height, width), any intensities.
        label_maps: (3, height, width), of θ, ψ and ξ.
        aspect: Height of a pixel divided by its width.
    """

    title: str
    image: np.ndarray
    label_maps: np.ndarray
    aspect: float


def draw_contact_sheet(tiles: Sequence[Tile], caption: str, path: Path) -> None:
    """Write a PNG file: each case as a whole slice with a frame, and beside it what is in the frame with contours.

    Args:
        tiles: At least one, in the order of their rank.
        caption: Below the tiles.
        path: The file; its name may end in anything.
    """
    with rc_context({"text.parse_math": False}):  # names may hold a dollar sign
        _draw(tiles, caption).savefig(path, dpi=110, format="png")


def _draw(tiles: Sequence[Tile], caption: str) -> Figure:
    num_rows, num_columns = -(-len(tiles) // _TILES_A_ROW), min(len(tiles), _TILES_A_ROW)
    tallest = max(tile.label_maps.shape[1] * tile.aspect / tile.label_maps.shape[2] for tile in tiles)
    row_inches = _PANEL_INCHES * min(max(tallest, 0.4), 1.5) + _TEXT_INCHES
    figure = Figure(
        figsize=(2 * num_columns * _PANEL_INCHES, num_rows * row_inches + _TEXT_INCHES), layout="constrained"
    )
    axes = figure.subplots(num_rows, 2 * num_columns, squeeze=False).reshape(-1, 2)
    for pair in axes:
        for panel in pair:
            panel.set_axis_off()
    for rank, ((overview, closeup), tile) in enumerate(zip(axes, tiles, strict=False), start=1):
        _draw_tile(overview, closeup, tile)
        overview.set_title(f"{rank}. {tile.title}", loc="left", fontsize="small")
    figure.supxlabel(caption, fontsize="small")
    figure.legend(handles=_legend(), loc="outside upper center", ncols=2 if num_columns == 1 else 4, fontsize="small")
    return figure


def _draw_tile(overview: Axes, closeup: Axes, tile: Tile) -> None:
    rows, columns = _region_of_interest(tile.label_maps)
    low, high = np.percentile(tile.image, (0.5, 99.5))
    for panel in (overview, closeup):
        panel.imshow(tile.image, cmap="gray", vmin=low, vmax=high, aspect=tile.aspect)
    corner, height, width = (
        (columns.start - 0.5, rows.start - 0.5),
        rows.stop - rows.start,
        columns.stop - columns.start,
    )
    overview.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=FRAME_COLOUR, linewidth=1))
    contested = (tile.label_maps != tile.label_maps[0]).any(axis=0)
    closeup.imshow(_filled(contested), aspect=tile.aspect, interpolation="nearest")
    for label_map, (_, colour, style) in zip(tile.label_maps, CONTOURS, strict=True):
        for value in np.unique(label_map[label_map > 0]):
            contours = closeup.contour(label_map == value, [0.5], colors=colour, linestyles=style, linewidths=1.6)
            contours.set_path_effects([_OUTLINE])
    closeup.set_xlim(columns.start - 0.5, columns.stop - 0.5)
    closeup.set_ylim(rows.stop - 0.5, rows.start - 0.5)


def _region_of_interest(label_maps: np.ndarray) -> tuple[range, range]:
    """Return rows and columns around whatever some decoder calls foreground, all of the slice where none does."""
    foreground = np.any(label_maps > 0, axis=0)
    if not foreground.any():
        return range(foreground.shape[0]), range(foreground.shape[1])
    height, width = foreground.shape
    rows, columns = np.flatnonzero(foreground.any(axis=1)), np.flatnonzero(foreground.any(axis=0))
    return _around(rows, height), _around(columns, width)


def _around(indices: np.ndarray, size: int) -> range:
    first, last = int(indices[0]), int(indices[-1])
    extent = last - first + 1
    margin = max(round(_MARGIN * extent), (_SMALLEST_ZOOM - extent + 1) // 2)
    return range(max(0, first - margin), min(size, last + 1 + margin))


def _filled(mask: np.ndarray) -> np.ndarray:
    """Return a mask as an RGBA image (height, width, 4)."""
    red, green, blue = (int(CONTESTED_COLOUR[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return mask[..., None] * np.array([red, green, blue, _CONTESTED_OPACITY])


def _legend() -> list[Line2D | Patch]:
    lines = [Line2D([], [], color=colour, linestyle=style, label=label) for label, colour, style in CONTOURS]
    return [*lines, Patch(color=CONTESTED_COLOUR, alpha=_CONTESTED_OPACITY, label="decoders differ")]
