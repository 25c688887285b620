"""Colours that people with colour blindness tell apart (Okabe and Ito), on dark pictures and on the page."""

from dataclasses import dataclass

# On pictures, which have a dark ground in light and dark mode.
ON_IMAGES = ("#56b4e9", "#e69f00", "#f0e442", "#cc79a7", "#00c08b", "#ff7f32", "#9aa7ff")
REFERENCE_ALONE, PREDICTION_ALONE = "#e69f00", "#56b4e9"  # where there is but one structure

# On the page, as CSS variables --series-1 … of templates/style.css, one set for light and one for dark mode.
NUM_SERIES = 7


@dataclass(frozen=True)
class LegendEntry:
    """What a colour and a line mean."""

    label: str
    colour: str
    dashed: bool = False


def rgb(colour: str) -> tuple[int, int, int]:
    """Return a colour ``#rrggbb`` as three integers."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
