"""Finds the label maps of two folders and pairs them by case."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

# What SimpleITK reads with its geometry. TIFF is left out: nnU-Net keeps its spacing in another file.
ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".gipl", ".gipl.gz", ".png", ".bmp")


@dataclass(frozen=True)
class CasePair:
    """A prediction and its reference."""

    case: str
    prediction: Path
    reference: Path


@dataclass(frozen=True)
class Pairing:
    """The cases of one folder of predictions.

    Attributes:
        pairs: cases that can be scored, sorted by name.
        missing: cases with a reference but no prediction.
        extra: cases with a prediction but no reference.
    """

    pairs: tuple[CasePair, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]


def find_cases(folder: Path) -> dict[str, Path]:
    """Return the label map of each case in a folder: file name without ending, and path.

    Raises:
        ValueError: the folder does not exist, holds no label map, or two of one case.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; pass the folder that holds one label map a case.")
    cases: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)
        if ending is None or path.name.startswith(".") or not path.is_file():
            continue
        case = path.name[: -len(ending)]
        if case in cases:
            raise ValueError(
                f"case {case}: {folder} holds both {cases[case].name} and {path.name}; remove one of them."
            )
        cases[case] = path
    if not cases:
        raise ValueError(f"{folder} holds no label map; expected files that end in one of {', '.join(ENDINGS)}.")
    return cases


def pair_cases(predictions: Path, references: Path, allow_missing: bool = False) -> Pairing:
    """Pair the label maps of two folders by file name.

    Args:
        predictions: folder of predictions.
        references: folder of references.
        allow_missing: pair what is in both folders instead of refusing folders that differ.

    Raises:
        ValueError: as for `find_cases`, or a case lacks its prediction or its reference, or no case has both.
    """
    predicted, referenced = find_cases(predictions), find_cases(references)
    missing, extra = sorted(referenced.keys() - predicted.keys()), sorted(predicted.keys() - referenced.keys())
    common = sorted(predicted.keys() & referenced.keys())
    if not common:
        raise ValueError(
            f"{predictions} and {references} have no case in common: predictions {listed(predicted)}; "
            f"references {listed(referenced)}. A prediction has the file name of its reference."
        )
    if not allow_missing:
        _refuse(missing, "has a reference but no prediction", predictions)
        _refuse(extra, "has a prediction but no reference", references)
    pairs = tuple(CasePair(case, predicted[case], referenced[case]) for case in common)
    return Pairing(pairs, tuple(missing), tuple(extra))


def listed(names: Collection[str], limit: int = 5) -> str:
    """Return the first few names and how many more there are."""
    shown = sorted(names)[:limit]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _refuse(cases: list[str], problem: str, folder: Path) -> None:
    if cases:
        who = f"case {cases[0]}" if len(cases) == 1 else f"{len(cases)} cases ({listed(cases)}): each"
        raise ValueError(
            f"{who} {problem}; nothing in {folder} has that name. Add the file, or score what is there with "
            "--allow-missing."
        )
