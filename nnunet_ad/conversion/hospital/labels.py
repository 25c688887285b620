"""``labels.json``: which value of a label map, which file, segment or contour is which structure.

::

    {"liver": 1, "tumour": [2, 3]}                                     values in the label maps
    {"liver": {"value": 1, "sources": ["Liver", "liver_*.nii.gz"]},    and names of files, segments or contours
     "background": {"value": 7, "sources": ["Table"]}}                 what is to be left out

In the dataset the structures are numbered from 1 in the order of the file, and one called ``ignore`` comes last.
"""

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nnunet_ad.conversion.errors import ConversionError, SourceError

BACKGROUND, IGNORE = "background", "ignore"
ANYTHING = "*"  # as a source of the background: whatever has no other name
MAX_STRUCTURES = 254  # label maps are written in uint8
MAX_VALUE = 2**31 - 1  # of a label map that is read


@dataclass(frozen=True)
class Structure:
    """One structure.

    Attributes:
        name: Its name in the dataset.
        values: Its values in label maps.
        sources: Names of binary files, segments or contours, with ``*`` and ``?`` as in file names.
    """

    name: str
    values: tuple[int, ...]
    sources: tuple[str, ...]

    def has_source(self, name: str) -> bool:
        """Return whether this very name is one of the sources, whatever the case."""
        (name,) = _folded([name])
        return name in _folded(self.sources)

    def is_called(self, name: str) -> bool:
        """Return whether one of the sources, patterns included, matches this name, whatever the case."""
        (name,) = _folded([name])
        patterns = (source.replace("[", "[[]") for source in _folded(self.sources) if source != ANYTHING)
        return any(fnmatchcase(name, pattern) for pattern in patterns)  # [ stands for itself


@dataclass(frozen=True)
class Labels:
    """All structures in the order of their values in the dataset, from 1, and what is background."""

    structures: tuple[Structure, ...]
    background: Structure

    @property
    def numbers(self) -> dict[str, int]:
        """Value in the dataset of each name, ``background`` first."""
        return {BACKGROUND: 0} | {structure.name: index for index, structure in enumerate(self.structures, 1)}

    @property
    def values(self) -> dict[int, int]:
        """Value in the dataset of each value in label maps."""
        mapping = dict.fromkeys(self.background.values, 0)
        return mapping | {value: self.numbers[each.name] for each in self.structures for value in each.values}

    @property
    def has_values(self) -> bool:
        """Whether a structure has a value in label maps."""
        return any(structure.values for structure in self.structures)

    def knows(self, names: Iterable[str]) -> bool:
        """Return whether something is called by one of these names, be it one structure or several."""
        return any(each.is_called(name) for name in names for each in (*self.structures, self.background))

    def number_of(self, names: Iterable[str]) -> int | None:
        """Return the value in the dataset of what is called by one of these names, or None.

        A source that is one of the names goes before patterns, whichever structure they belong to.

        Args:
            names: The names of one file, segment or contour, the most telling first.

        Raises:
            SourceError: Only patterns match, and they belong to several structures.
        """
        names = list(names)
        everything = (*self.structures, self.background)
        for name in names:
            for structure in everything:
                if structure.has_source(name):
                    return self.numbers[structure.name]
        matching = [structure.name for structure in everything if any(map(structure.is_called, names))]
        if len(matching) > 1:
            raise SourceError(
                f"the name of a file, segment or contour matches patterns of {' and '.join(matching)} in labels.json, "
                "expected one structure; add the whole name to the sources of the right one, or narrow the patterns",
                names[0],
            )
        return self.numbers[matching[0]] if matching else None

    @property
    def ignores_others(self) -> bool:
        """Whether segments, contours and binary files without a name are background."""
        return ANYTHING in self.background.sources


def read_labels(path: Path) -> Labels:
    """Read ``labels.json``.

    Raises:
        ConversionError: The file is missing or not as documented.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repetition)
    except ConversionError:
        raise
    except OSError as error:
        raise ConversionError(f"--labels: the file cannot be read ({error.strerror}); give a JSON file") from None
    except (ValueError, RecursionError) as error:  # also of numbers and nesting beyond Python's limits
        raise ConversionError(
            f'--labels: the file is no JSON ({error}); write it as in {{"liver": 1, "tumour": 2}}'
        ) from None
    if not isinstance(content, dict):
        raise ConversionError('--labels: expected names with values, as in {"liver": 1, "tumour": 2}')
    structures = [_structure(name, entry) for name, entry in content.items()]
    background = next((each for each in structures if each.name == BACKGROUND), Structure(BACKGROUND, (), ()))
    background = Structure(BACKGROUND, tuple({0, *background.values}), background.sources)
    named = sorted((each for each in structures if each.name != BACKGROUND), key=lambda each: each.name == IGNORE)
    if not [each for each in named if each.name != IGNORE]:
        raise ConversionError("--labels: there is no structure in it; name at least one")
    if len(named) > MAX_STRUCTURES:
        raise ConversionError(
            f"--labels: there are {len(named)} structures in it, expected at most {MAX_STRUCTURES}; leave some out"
        )
    labels = Labels(tuple(named), background)
    _check_unique([value for each in (*named, background) for value in each.values], "the value")
    _check_unique([source for each in (*named, background) for source in {*_folded(each.sources)}], "the source")
    return labels


def _structure(name: str, entry: Any) -> Structure:
    if not name.strip():
        raise ConversionError("--labels: a structure has an empty name; give it one")
    if not isinstance(entry, dict):
        entry = {"value": entry}
    if unknown := set(entry) - {"value", "sources"}:
        raise ConversionError(f"--labels: {name!r} has {sorted(unknown)}, expected only 'value' and 'sources'")
    values = _as_list(entry.get("value", []))
    sources = _as_list(entry.get("sources", []))
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise ConversionError(f"--labels: the value of {name!r} is {entry['value']!r}, expected whole numbers")
    if not all(abs(value) <= MAX_VALUE for value in values):
        raise ConversionError(f"--labels: a value of {name!r} is beyond {MAX_VALUE}; give the values of the label maps")
    if not all(isinstance(source, str) and source for source in sources):
        raise ConversionError(f"--labels: the sources of {name!r} are {entry['sources']!r}, expected names")
    if name != BACKGROUND:
        if 0 in values:
            raise ConversionError(f"--labels: {name!r} has the value 0, which is the background; give its value")
        if ANYTHING in sources:
            raise ConversionError(f"--labels: {name!r} has the source '*', which only the background may have")
        sources = list(dict.fromkeys([name, *sources]))
    return Structure(name, tuple(values), tuple(sources))


def _folded(names: Iterable[str]) -> list[str]:
    """Return names as they are compared: upper or lower case alike, and accents in one or two characters."""
    return [unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()) for name in names]


def _as_list(entry: Any) -> list[Any]:
    return entry if isinstance(entry, list) else [entry]


def _check_unique(items: list[Any], what: str) -> None:
    repeated = sorted({item for item in items if items.count(item) > 1})
    if repeated:
        raise ConversionError(f"--labels: {what} {repeated[0]!r} is given twice; give it to one structure")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_unique([key for key, _ in pairs], "the name")
    return dict(pairs)
