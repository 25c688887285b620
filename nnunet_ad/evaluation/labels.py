"""Which structures a label map holds, and how they are called."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

BACKGROUND, IGNORE = "background", "ignore"


@dataclass(frozen=True)
class Structure:
    """One scored structure: the union of one or several label values.

    Attributes:
        name: its name in the tables.
        values: label values that belong to it; several for a region (nnU-Net's region-based training).
    """

    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class LabelDefinition:
    """What the label maps of one dataset may hold.

    Attributes:
        structures: the scored structures in the order of the tables.
        ignore: value of voxels of the reference that are not scored, or None.
        source: who says so, as the start of an error message that goes on with the values.
    """

    structures: tuple[Structure, ...]
    ignore: int | None
    source: str

    @property
    def values(self) -> frozenset[int]:
        """Every value a label map may hold apart from the ignore label, background included."""
        return frozenset({0}.union(*(structure.values for structure in self.structures)))


def labels_of_dataset(dataset_json: Mapping[str, Any], source: str) -> LabelDefinition:
    """Return the labels that nnU-Net's ``dataset.json`` declares, regions and ignore label included.

    Raises:
        ValueError: there is no usable ``labels`` entry.
    """
    declared = dataset_json.get("labels")
    if not isinstance(declared, Mapping) or not declared:
        raise ValueError(f'{source} has no labels; expected an entry such as "labels": {{"background": 0, "LA": 1}}.')
    structures, ignore = [], None
    for name, value in declared.items():
        values = _label_values(name, value, source)
        if name == IGNORE:
            ignore = values[0]
        elif name != BACKGROUND:
            structures.append(Structure(name, values))
    if not structures:
        raise ValueError(f"{source} declares no structure beside background and ignore; there is nothing to score.")
    return LabelDefinition(tuple(structures), ignore, f"{source} declares")


def labels_of_values(values: Iterable[int]) -> LabelDefinition:
    """Return one structure for each value found in the references, apart from background.

    Raises:
        ValueError: there is nothing but background.
    """
    structures = tuple(Structure(f"label {value}", (value,)) for value in sorted(values) if value)
    if not structures:
        raise ValueError("the references hold nothing but background (0); pass the dataset with -d to name its labels.")
    return LabelDefinition(structures, None, "the references hold")


def _label_values(name: str, value: Any, source: str) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(each, int) and not isinstance(each, bool) for each in values):
        raise ValueError(
            f"{source}: label {name!r} is {value!r}; expected an integer or, for a region, a list of them."
        )
    return tuple(values)
