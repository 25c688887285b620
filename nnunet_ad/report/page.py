"""Puts the parts of a report into one HTML page that needs nothing else: no network, no further file."""

import base64
import hashlib
from dataclasses import dataclass
from importlib import resources

import jinja2
from markupsafe import Markup

from nnunet_ad.report.curves import DrawnTopic
from nnunet_ad.report.montage import COLUMNS, Montage
from nnunet_ad.report.overlays import CaseOverlay
from nnunet_ad.report.pictures import Picture
from nnunet_ad.report.summary import Summary
from nnunet_ad.report.tables import SortableTable

TEMPLATES = "templates"


@dataclass(frozen=True)
class Page:
    """The parts of a report. A part that is empty or None is left out, and ``absent`` says why.

    Attributes:
        title: heading of the page.
        subtitle: what was looked at.
        made_by: program, version and date.
        summary: in plain words.
        tables: of scores.
        boxes: heading and drawing of each box plot.
        overlays: cases as pictures.
        montage: one unlabelled case at several epochs.
        topics: curves of the training.
        curves_picture: the trainer's own picture of its curves, where there are no numbers to draw.
        absent: name of a part ("scores", "overlays", "curves", "montage") -> why it is not there.
    """

    title: str
    subtitle: str
    made_by: str
    summary: Summary
    tables: tuple[SortableTable, ...] = ()
    boxes: tuple[tuple[str, Markup], ...] = ()
    overlays: tuple[CaseOverlay, ...] = ()
    montage: Montage | None = None
    topics: tuple[DrawnTopic, ...] = ()
    curves_picture: Picture | None = None
    absent: dict[str, str] | None = None

    def as_html(self) -> str:
        """Return the page."""
        environment = jinja2.Environment(
            autoescape=True,
            loader=jinja2.FunctionLoader(_file),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        script = _file("sorting.js")
        return environment.get_template("page.html.j2").render(
            page=self,
            columns=list(COLUMNS.values()),
            absent=self.absent or {},
            style=Markup(_file("style.css")),
            script=Markup(script),
            script_hash=_hash(script),
        )


def _file(name: str) -> str:
    return (resources.files("nnunet_ad.report") / TEMPLATES / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """Return the hash by which the page's policy allows this script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
