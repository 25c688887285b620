"""Pictures inside the page: PNG files of few colours as data URIs."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NUM_COLOURS = 192  # more are not seen beside grey values, and the page is to stay small


@dataclass(frozen=True)
class Picture:
    """A picture for ``<img>``.

    Attributes:
        uri: its content as a data URI.
        width: pixels.
        height: pixels.
        alt: what a reader who cannot see it should know.
        caption: a word or two below it, or "".
    """

    uri: str
    width: int
    height: int
    alt: str
    caption: str = ""

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.width / self.height


def picture(pixels: NDArray[np.uint8], alt: str, size: tuple[int, int] | None = None, caption: str = "") -> Picture:
    """Make a picture.

    Args:
        pixels: shape (rows, columns, 3).
        alt: its description.
        size: width and height in pixels to bring it to, without blurring.
        caption: a word or two below it.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if size is not None:
        image = image.resize(size, Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)
    return Picture(_uri(file.getvalue()), image.width, image.height, alt, caption)


def picture_of_file(content: bytes, alt: str) -> Picture:
    """Make a picture of the content of a PNG file as it is.

    Raises:
        OSError: it is no picture.
    """
    with Image.open(io.BytesIO(content)) as image:
        return Picture(_uri(content), image.width, image.height, alt)


def grey(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image as grey values 0 to 255, contrast between its 0.5 and 99.5 percentiles."""
    finite = np.nan_to_num(np.asarray(values, dtype=np.float32))
    low, high = np.percentile(finite, [0.5, 99.5])
    return np.asarray(255 * np.clip((finite - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)


def _uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
