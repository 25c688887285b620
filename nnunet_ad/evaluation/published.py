"""The published numbers: tables 1 to 4 of the paper and the best later ones, shipped with the package."""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from nnunet_ad.conversion.folds import load_public_split

METRICS = ("Dice", "Jaccard", "HD95", "ASD")
PAPER_METHOD, LATER_METHOD = "paper", "later"
DATA_FILE = "published_results.json"


@dataclass(frozen=True)
class PublishedMethod:
    """One line of a published table.

    Attributes:
        name: the method.
        numbers: value of each column; Dice and Jaccard in percent, distances in voxels.
        spreads: standard deviation over runs, for the columns that have one.
    """

    name: str
    numbers: dict[str, float]
    spreads: dict[str, float]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of the paper.

    Attributes:
        name: as ``LASeg_5pct``.
        title: what it is.
        table: number of the paper's table.
        methods: all methods, the paper's first and the best later one last.
        metric_columns: metrics of the mean over structures, first in the table.
        part_columns: Dice of each structure, or of each target domain, by short name; may be empty.
        parts_are_domains: whether these are domains.
    """

    name: str
    title: str
    table: int
    methods: tuple[PublishedMethod, ...]
    metric_columns: tuple[str, ...]
    part_columns: tuple[str, ...]
    parts_are_domains: bool

    @property
    def paper(self) -> PublishedMethod:
        """The paper's method."""
        return self.methods[0]

    def test_cases(self, domain: str = "") -> set[str]:
        """Return the cases that the published numbers are of, as the converters name them.

        Args:
            domain: The target domain, where parts are domains.

        Raises:
            ConversionError: The package was installed without the public lists.
        """
        dataset, _, setting = self.name.partition("_")
        public = load_public_split(dataset)
        if self.parts_are_domains:
            return {f"{subject}_{frame}" for subject in public["vendors"][domain] for frame in ("ED", "ES")}
        return set(public.get(setting, public)["test"])


def load_benchmarks() -> dict[str, Benchmark]:
    """Return all benchmarks with published numbers, by name."""
    content = json.loads(resources.files(__package__).joinpath(DATA_FILE).read_text(encoding="utf-8"))
    return {name: _benchmark(name, entry) for name, entry in content["benchmarks"].items()}


def _benchmark(name: str, entry: dict[str, Any]) -> Benchmark:
    methods = tuple(_method(method, numbers) for method, numbers in entry["methods"].items())
    columns = methods[0].numbers
    return Benchmark(
        name=name,
        title=entry["title"],
        table=entry["table"],
        methods=methods,
        metric_columns=tuple(column for column in METRICS if column in columns),
        part_columns=tuple(column for column in columns if column not in METRICS),
        parts_are_domains=name.startswith("MnMs"),
    )


def _method(name: str, entry: dict[str, Any]) -> PublishedMethod:
    names = {PAPER_METHOD: "A&D, the paper", LATER_METHOD: f"{entry.get('method')} (later)"}
    numbers = {**entry, **entry.get("per_class", {})}
    return PublishedMethod(
        name=names.get(name, name.replace("_", " ")),
        numbers={key: value for key, value in numbers.items() if _is_number(value) and not key.endswith("_sd")},
        spreads={key.removesuffix("_sd"): value for key, value in entry.items() if key.endswith("_sd")},
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
