"""One unlabelled patch at several epochs, as the snapshots of a training keep it."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ad.report.colours import ON_IMAGES, LegendEntry, rgb
from nnunet_ad.report.pictures import Picture, grey, picture

SNAPSHOTS = "snapshots"
MAX_EPOCHS = 6
LONGER_SIDE = 200  # pixels
OPACITY = 0.6

# Name in the snapshot -> heading and what it is.
COLUMNS = {
    "image": ("Image x_u", "a case without labels"),
    "psi": ("ψ's map", "teacher for difficult structures"),
    "xi": ("ξ's DDIM map", "teacher that starts from noise"),
    "pseudo_label": ("Pseudo-label", "both together: what θ learns"),
    "theta": ("θ's prediction", "what is used in the end"),
}


@dataclass(frozen=True)
class MontageRow:
    """One epoch."""

    epoch: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Montage:
    """One unlabelled case at several epochs, one row an epoch, columns as `COLUMNS`."""

    case: str
    rows: tuple[MontageRow, ...]
    legend: tuple[LegendEntry, ...]


def draw_montage(training: Path, spacing: Sequence[float] = (), structures: Sequence[str] = ()) -> Montage | None:
    """Draw the snapshots of a training; None if it has none.

    Args:
        training: the folder of the training.
        spacing: of the patch in mm, in the order of its axes; empty if unknown.
        structures: names of the foreground classes in the order of their labels; empty if unknown.

    Raises:
        ValueError: a snapshot cannot be read or lacks a part.
    """
    files = sorted((training / SNAPSHOTS).glob("epoch_*.npz"))
    if not files:
        return None
    chosen = sorted({round(i) for i in np.linspace(0, len(files) - 1, min(len(files), MAX_EPOCHS))})
    snapshots = {int(files[i].stem.removeprefix("epoch_")): _read(files[i]) for i in chosen}
    last = snapshots[max(snapshots)]
    index = _most_telling(last)
    # A training that went on with other plans has earlier snapshots of another size.
    alike = {epoch: each for epoch, each in snapshots.items() if each["image"].shape == last["image"].shape}
    rows = [MontageRow(epoch, _draw_row(epoch, each, index, spacing)) for epoch, each in alike.items()]
    colours = (ON_IMAGES[i % len(ON_IMAGES)] for i in range(len(structures)))
    legend = tuple(LegendEntry(name, colour) for name, colour in zip(structures, colours, strict=True))
    return Montage(str(last["case"]), tuple(rows), legend)


def _read(file: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(file, allow_pickle=False) as content:
            return {name: content[name] for name in ("case", *COLUMNS)}
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{file} is not a snapshot that nnunet_ad's trainer writes ({error}); delete it to go on without it."
        ) from None


def _most_telling(snapshot: dict[str, NDArray[Any]]) -> int | None:
    """Return the slice with most foreground at the end, the middle if there is none; None for two dimensions."""
    foreground = (snapshot["pseudo_label"] > 0).astype(int) + (snapshot["theta"] > 0)
    if foreground.ndim == 2:
        return None
    sizes = foreground.sum(axis=(1, 2))
    return int(np.argmax(sizes)) if sizes.any() else len(sizes) // 2


def _draw_row(
    epoch: int, snapshot: dict[str, NDArray[Any]], index: int | None, spacing: Sequence[float]
) -> tuple[Picture, ...]:
    where = (...,) if index is None else (index, ...)
    ground = np.repeat(grey(snapshot["image"][0][where])[..., None], 3, axis=-1)
    rows, columns = ground.shape[:2]
    height, width = rows * (spacing[-2] if spacing else 1.0), columns * (spacing[-1] if spacing else 1.0)
    scale = LONGER_SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pictures = []
    for name, (heading, _) in COLUMNS.items():
        if name == "image":
            pictures.append(picture(ground, f"Epoch {epoch}: {heading}", size))
            continue
        labels = snapshot[name][where]
        share = f"{np.mean(labels > 0):.0%} foreground"
        pictures.append(picture(_coloured(ground, labels), f"Epoch {epoch}: {heading}, {share}", size))
    return tuple(pictures)


def _coloured(ground: NDArray[np.uint8], labels: NDArray[Any]) -> NDArray[np.uint8]:
    """Lay the classes in their colours over a grey image."""
    colours = np.array([rgb(colour) for colour in ON_IMAGES], dtype=np.float32)
    blended = (1 - OPACITY) * ground + OPACITY * colours[(labels.astype(int) - 1) % len(colours)]
    return np.where((labels > 0)[..., None], blended, ground).astype(np.uint8)
