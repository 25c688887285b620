"""Turns a figure into SVG inside the page, drawn in the page's own colours, so that it follows light and dark mode."""

import html
import io
import re
from typing import Any

from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunet_ad.report.colours import NUM_SERIES

# Stand-ins that the page's variables replace; matplotlib itself knows no CSS variables.
TEXT, GRID = "#010203", "#010204"
SERIES = tuple(f"#0102{16 + i:02x}" for i in range(NUM_SERIES))
_PAGE_COLOURS = {TEXT: "currentColor", GRID: "var(--grid)"} | {
    stand_in: f"var(--series-{i + 1})" for i, stand_in in enumerate(SERIES)
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nnunet_ad",
    "text.parse_math": False,  # names of structures may hold a dollar sign
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "font.size": 10,
}
MAX_NAME = 24  # letters
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


class PageFigure:
    """A matplotlib figure for the page, used as a context so that its style holds while it is drawn and written.

    Args:
        width: inches; 100 of them are as wide as the page on a large screen.
        height: inches.
    """

    def __init__(self, width: float, height: float) -> None:
        # From the defaults: what ran before in this process may have changed sizes (seaborn in nnU-Net does).
        self._style = style.context(("default", _STYLE))
        self._size = width, height

    def __enter__(self) -> "PageFigure":
        self._style.__enter__()
        self.figure = Figure(figsize=self._size, layout="constrained")
        self.axes: Axes = self.figure.subplots()
        return self

    def __exit__(self, *error: Any) -> None:
        self._style.__exit__(*error)

    def svg(self, name: str, description: str) -> Markup:
        """Return the figure as an ``<svg>`` element.

        Args:
            name: unlike that of any other figure of the page; letters, digits and dashes.
            description: what a reader who cannot see the figure should know.
        """
        file = io.StringIO()
        self.figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        text = file.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would style the whole page
        text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)  # ids are shared by all of a page
        for stand_in, colour in _PAGE_COLOURS.items():
            text = text.replace(stand_in, colour)
        text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
        text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
        label = html.escape(description, quote=True)
        return Markup(text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


def shortened(name: str) -> str:
    """Return a name that leaves room for the drawing beside it."""
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def line_style(index: int) -> dict[str, Any]:
    """Return colour and dashes of the line number ``index``: each differs from its neighbours in both."""
    return {
        "color": SERIES[index % NUM_SERIES],
        "linestyle": _DASHES[(index + index // NUM_SERIES) % len(_DASHES)],
        "linewidth": 1.8,
    }
