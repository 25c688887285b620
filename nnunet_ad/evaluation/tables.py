"""Tables of text as Markdown and as plain text for a terminal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

NO_NUMBER = "-"


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        header: the column titles.
        rows: the cells, as many a row as there are titles.
        text_columns: the first columns, which are text and not numbers: aligned to the left.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1

    def as_markdown(self) -> str:
        """Return the table in GitHub's Markdown."""
        marks = ["---" if index < self.text_columns else "---:" for index in range(len(self.header))]
        lines = [self.header, marks, *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    def as_text(self) -> str:
        """Return the table in columns of equal width."""
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(self._align(line, widths)).rstrip() for line in lines)

    def _align(self, cells: Sequence[str], widths: Sequence[int]) -> list[str]:
        return [
            cell.ljust(width) if index < self.text_columns else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """Return a number with fixed digits; a dash where there is none."""
    if math.isnan(value):
        return NO_NUMBER
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    value = round(value, digits) + 0.0  # no negative zero
    return f"{value:{'+' if sign else ''}.{digits}f}"
