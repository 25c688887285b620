"""nnU-Net's regions, as classes that exclude each other.

What θ learns from an unlabelled voxel is one class (Eq. 7), and ξ denoises one-hot labels (Eq. 1). Regions overlap, but
each is a union of label values, of which a voxel has one, so that a model of these values knows every region.
"""

from typing import Any


def as_classes(dataset_json: dict[str, Any]) -> dict[str, Any]:
    """Return the content of ``dataset.json`` with a class for each label value in the place of regions.

    A class is called as the region that it makes up alone; else as the smallest region that has it, with its value.
    Values stay, so that label maps are read and written as before. What declares no regions is returned as it is.

    Raises:
        ValueError: If the values of the regions are not 1, 2, … without a gap, as nnU-Net wants those of classes to be.
    """
    labels = dataset_json["labels"]
    if not any(isinstance(value, list | tuple) and len(value) > 1 for value in labels.values()):
        return dataset_json
    regions = {name: _values(value) for name, value in labels.items() if name not in ("background", "ignore")}
    values = sorted(set().union(*regions.values()) - {0})
    if values != list(range(1, len(values) + 1)):
        raise ValueError(
            f"the regions of dataset.json are made of the label values {', '.join(map(str, values))}; expected 1 to "
            f"{len(values)} without a gap, as each becomes a class. Renumber the labels."
        )
    classes = {_name(value, regions): value for value in values}
    ignore = {"ignore": labels["ignore"]} if "ignore" in labels else {}
    plain = {key: value for key, value in dataset_json.items() if key != "regions_class_order"}
    return plain | {"labels": {"background": 0} | classes | ignore}


def _values(value: int | list[int]) -> frozenset[int]:
    return frozenset(map(int, value if isinstance(value, list | tuple) else [value]))


def _name(value: int, regions: dict[str, frozenset[int]]) -> str:
    smallest = min((name for name in regions if value in regions[name]), key=lambda name: len(regions[name]))
    return smallest if regions[smallest] == {value} else f"{smallest} ({value})"
