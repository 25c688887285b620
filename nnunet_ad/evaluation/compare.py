"""Our numbers beside the published ones."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ad.evaluation.output import FORMAT_VERSION, MEAN
from nnunet_ad.evaluation.protocol import OVERLAPS, PAPER
from nnunet_ad.evaluation.published import Benchmark, PublishedMethod
from nnunet_ad.evaluation.tables import NO_NUMBER, Table, number

# Short names of the published tables, and other names for the same, as letters and digits only.
STRUCTURE_ALIASES: dict[str, tuple[str, ...]] = {
    "Sp": ("spleen",),
    "RK": ("rightkidney", "kidneyright"),
    "LK": ("leftkidney", "kidneyleft"),
    "Ga": ("gallbladder",),
    "Es": ("esophagus", "oesophagus"),
    "Li": ("liver",),
    "St": ("stomach",),
    "Ao": ("aorta",),
    "IVC": ("inferiorvenacava", "postcava"),
    "PSV": (
        "portalveinandsplenicvein",
        "portalandsplenicvein",
        "portalandsplenicveins",
        "portalsplenicvein",
        "portalsplenicveins",
        "portalveinsplenicvein",
        "veins",
    ),
    "PA": ("pancreas", "pa"),
    "RAG": ("rightadrenalgland", "adrenalglandright"),
    "LAG": ("leftadrenalgland", "adrenalglandleft"),
    "AA": ("ascendingaorta", "aortaascending"),
    "LAC": ("leftatrium", "leftatriumcavity", "leftatrialcavity", "leftatriumbloodcavity", "la"),
    "LVC": ("leftventricle", "leftventriclecavity", "leftventricularcavity", "leftventriclebloodcavity", "lv"),
    "RV": ("rightventricle", "rightventriclecavity", "rightventricularcavity", "rightventriclebloodcavity"),
    "MYO": ("myocardium", "leftventriclemyocardium", "leftventricularmyocardium", "myocardiumofleftventricle"),
}

# Structures of the benchmarks whose published tables do not name them.
LASEG_STRUCTURES, MNMS_STRUCTURES = ("LAC",), ("LVC", "MYO", "RV")


@dataclass(frozen=True)
class Value:
    """One of our numbers, in the unit of the published table.

    Attributes:
        mean: the number.
        low: lower end of its bootstrap 95 % interval, or NaN.
        high: upper end, or NaN.
        sd_runs: standard deviation over runs, or NaN.
    """

    mean: float
    low: float = math.nan
    high: float = math.nan
    sd_runs: float = math.nan


@dataclass(frozen=True)
class ComparisonReport:
    """A table of our and the published numbers, and what a reader must know to compare them."""

    title: str
    table: Table
    notes: tuple[str, ...]

    def as_text(self) -> str:
        """Return the report for a terminal."""
        return "\n".join([self.title, "", self.table.as_text(), "", *self.notes])

    def as_markdown(self) -> str:
        """Return the report as Markdown."""
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"# {self.title}", "", self.table.as_markdown(), "", *notes, ""])


def read_result(path: Path) -> dict[str, Any]:
    """Read an ``evaluation.json``.

    Raises:
        ValueError: it is no result of ``nnunet_ad evaluate``, or one of another version.
        OSError: the file cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not {"format_version", "overall", "protocol"} <= content.keys():
        raise ValueError(f"{path} is not a result of nnunet_ad evaluate; pass the evaluation.json that it wrote.")
    if content["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {content['format_version']}, this program reads {FORMAT_VERSION}; "
            "run nnunet_ad evaluate again."
        )
    return content


def compare(results: Sequence[dict[str, Any]], benchmark: Benchmark) -> ComparisonReport:
    """Put our numbers beside the published ones of a benchmark.

    Args:
        results: contents of ``evaluation.json``: one, or for M&Ms one for each target domain.
        benchmark: the benchmark.

    Raises:
        ValueError: the results are not of this benchmark: structures or domains differ, a result has several domains,
            or a domain comes twice.
    """
    if not results:
        raise ValueError("no result was given; pass at least one evaluation.json.")
    if len(results) > 1 and not benchmark.parts_are_domains:
        raise ValueError(f"{len(results)} results were given; {benchmark.name} compares one at a time.")
    ours = _domain_values(results, benchmark) if benchmark.parts_are_domains else _values(results[0], benchmark)
    columns = (*benchmark.metric_columns, *benchmark.part_columns)
    rows = [
        ("ours", *(_cell(ours.get(column)) for column in columns)),
        ("ours, 95 % interval", *(_interval(ours.get(column)) for column in columns)),
        *(_published_row(method, columns) for method in benchmark.methods),
        ("ours minus the paper", *(_difference(ours.get(column), benchmark.paper, column) for column in columns)),
    ]
    return ComparisonReport(
        title=f"{benchmark.title}: ours beside table {benchmark.table} of the paper",
        table=Table(("Method", *(_heading(column) for column in columns)), tuple(rows)),
        notes=_notes(results, benchmark),
    )


def _values(result: dict[str, Any], benchmark: Benchmark) -> dict[str, Value]:
    """Return our value of each column: metrics of the mean over structures, and the Dice of each structure."""
    rows = {row["structure"]: row["metrics"] for row in result["overall"]}
    mean = rows.pop(MEAN)
    values = {metric: _value(mean[metric], metric) for metric in benchmark.metric_columns if metric in mean}
    columns = _match_structures(list(rows), benchmark.part_columns or LASEG_STRUCTURES, benchmark)
    if benchmark.part_columns:
        values |= {column: _value(rows[structure]["Dice"], "Dice") for structure, column in columns.items()}
    return values


def _match_structures(structures: Sequence[str], expected: Sequence[str], benchmark: Benchmark) -> dict[str, str]:
    """Return the published short name of each of our structures."""
    known = {
        alias: column for column in expected for alias in (_normalised(column), *STRUCTURE_ALIASES.get(column, ()))
    }
    matched = {name: known[_normalised(name)] for name in structures if _normalised(name) in known}
    if len(matched) != len(structures) or sorted(matched.values()) != sorted(expected):
        raise ValueError(
            f"the result has the structures {', '.join(structures)}; {benchmark.name} has "
            f"{', '.join(expected)}. Evaluate predictions of that benchmark and give its dataset by -d."
        )
    return matched


def _domain_values(results: Sequence[dict[str, Any]], benchmark: Benchmark) -> dict[str, Value]:
    """Return our Dice of each target domain and, where all are there, their mean."""
    for result in results:
        structures = [row["structure"] for row in result["overall"] if row["structure"] != MEAN]
        _match_structures(structures, MNMS_STRUCTURES, benchmark)
    values: dict[str, Value] = {}
    for row in (_row_of_only_domain(result, benchmark) for result in results):
        domain = _domain(row["domain"])
        if domain not in benchmark.part_columns:
            raise ValueError(
                f"the result has a domain {row['domain']!r}; {benchmark.name} has the target domains "
                f"{', '.join(benchmark.part_columns)}."
            )
        if domain in values:
            raise ValueError(f"domain {domain} occurs in two of the results; pass one result for each target domain.")
        values[domain] = _value(row["metrics"]["Dice"], "Dice")
    if len(values) == len(benchmark.part_columns):
        values["Dice"] = Value(sum(value.mean for value in values.values()) / len(values))
    return values


def _row_of_only_domain(result: dict[str, Any], benchmark: Benchmark) -> dict[str, Any]:
    rows = [row for row in result["per_domain"] if row["structure"] == MEAN]
    if not rows:
        raise ValueError(f"the result has no domains, but {benchmark.name} has; evaluate with the dataset given by -d.")
    if len(rows) > 1:
        raise ValueError(
            f"the result has cases of the domains {', '.join(row['domain'] for row in rows)}; a model of "
            f"{benchmark.name} is tested on one, which it was not trained on: evaluate its predictions of imagesTs/."
        )
    return rows[0]


def _value(summary: dict[str, Any], metric: str) -> Value:
    scale = 100 if metric in OVERLAPS else 1
    numbers = (summary[key] for key in ("mean", "ci_low", "ci_high", "sd_runs"))
    return Value(*(math.nan if each is None else scale * each for each in numbers))


def _notes(results: Sequence[dict[str, Any]], benchmark: Benchmark) -> tuple[str, ...]:
    notes = []
    for result in results:
        name = result.get("dataset") or "ours"
        runs = len(result["runs"])
        cases = {case for run in result["runs"] for case in run["cases"]}
        notes.append(f"{name}: protocol {result['protocol']['name']}, cases {len(cases)}, runs {runs}.")
        domain = _domain(_row_of_only_domain(result, benchmark)["domain"]) if benchmark.parts_are_domains else ""
        expected = benchmark.test_cases(domain)
        if cases != expected:
            notes.append(
                f"{name}: {len(cases & expected)} of the {len(cases)} scored cases are among the {len(expected)} "
                "public test cases that the published numbers are of, so the two are of other cases and do not compare."
            )
        if not result["complete"]:
            notes.append(f"{name}: incomplete, cases without a prediction or reference were left out.")
        if result["protocol"]["name"] != PAPER.name:
            notes.append(
                f"{name}: the published numbers follow --protocol paper (voxel units, ASD one way, empty masks "
                f"scored), ours do not: {result['protocol']['description']}."
            )
    notes.append("Published: Dice and Jaccard in percent, distances in voxels of each benchmark's preprocessed grid.")
    notes.append("Later numbers partly select models on the test set or use other input sizes; read them with care.")
    return tuple(notes)


def _published_row(method: PublishedMethod, columns: Sequence[str]) -> tuple[str, ...]:
    cells = []
    for column in columns:
        if column not in method.numbers:
            cells.append(NO_NUMBER)
        elif column in method.spreads:
            cells.append(f"{method.numbers[column]:g} ± {method.spreads[column]:g}")
        else:
            cells.append(f"{method.numbers[column]:g}")
    return (method.name, *cells)


def _cell(value: Value | None) -> str:
    if value is None:
        return NO_NUMBER
    spread = "" if math.isnan(value.sd_runs) else f" ± {number(value.sd_runs)}"
    return number(value.mean) + spread


def _interval(value: Value | None) -> str:
    if value is None or math.isnan(value.low):
        return NO_NUMBER
    return f"[{number(value.low)}, {number(value.high)}]"


def _difference(value: Value | None, paper: PublishedMethod, column: str) -> str:
    return NO_NUMBER if value is None else number(value.mean - paper.numbers[column], sign=True)


def _heading(column: str) -> str:
    return f"{column} [voxel]" if column in ("HD95", "ASD") else column


def _normalised(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _domain(name: str) -> str:
    """Return the letter of a vendor: ``A`` of ``A``, ``vendor A`` and ``VendorA``."""
    return _normalised(name).removeprefix("vendor").upper()
