"""Reads ``progress_ad.json``, one value per epoch of everything that a training logged."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_ad.json_file import read_json

PROGRESS_FILE = "progress_ad.json"


@dataclass(frozen=True)
class Progress:
    """The curves of a training.

    Attributes:
        curves: float arrays (epochs,) or (epochs, entries) by name, NaN where an epoch has no number.
    """

    curves: dict[str, NDArray[np.float64]]

    @property
    def num_epochs(self) -> int:
        """Length of the longest curve."""
        return max(map(len, self.curves.values()), default=0)


def read_progress(folder: Path) -> Progress | None:
    """Return the curves of a training folder, or None if it has none.

    Raises:
        ValueError: the file is not what the trainer writes.
    """
    file = folder / PROGRESS_FILE
    if not file.is_file():
        return None
    content = read_json(file)
    try:
        curves = {"learning_rate": content["learning_rate"], **content["curves"]}
        return Progress({name: np.asarray(values, dtype=np.float64) for name, values in curves.items() if values})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} does not hold the curves that nnunet_ad's trainer writes ({error!r}); "
            "delete it to get a report without curves."
        ) from None
