"""Writes an evaluation as JSON, CSV, Markdown, and text for a terminal.

Numbers in JSON and CSV are raw: overlaps from 0 to 1, distances in the protocol's unit, null or an empty cell where
there is no number. Numbers in Markdown and in the terminal are as papers print them: overlaps in percent.
"""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_ad.evaluation.cases import listed
from nnunet_ad.evaluation.protocol import OVERLAPS, Protocol
from nnunet_ad.evaluation.result import Evaluation, Row, Run
from nnunet_ad.evaluation.scoring import Outcome
from nnunet_ad.evaluation.statistics import Summary
from nnunet_ad.evaluation.tables import NO_NUMBER, Table, number
from nnunet_ad.whole_file import written_whole

FORMAT_VERSION = 1
JSON_FILE, CASES_FILE, SUMMARY_FILE, MARKDOWN_FILE = "evaluation.json", "cases.csv", "summary.csv", "table.md"
MEAN = "mean"


def write(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write ``evaluation.json``, ``cases.csv``, ``summary.csv`` and ``table.md``, each as a whole; return their paths.

    Raises:
        OSError: the folder or a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / CASES_FILE, _case_lines(evaluation))
    _write_csv(folder / SUMMARY_FILE, _summary_lines(evaluation))
    content = json.dumps(as_json(evaluation), indent=1, ensure_ascii=False, allow_nan=False)
    for name, text in ((MARKDOWN_FILE, as_markdown(evaluation)), (JSON_FILE, content + "\n")):
        with written_whole(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [folder / name for name in (JSON_FILE, CASES_FILE, SUMMARY_FILE, MARKDOWN_FILE)]


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of ``evaluation.json``; ``docs/evaluation.md`` describes it."""
    protocol = evaluation.protocol
    content = {
        "format_version": FORMAT_VERSION,
        "dataset": evaluation.dataset,
        "protocol": {
            "name": protocol.name,
            "description": protocol.description,
            "metrics": list(protocol.metrics),
            "distance_unit": "voxel" if protocol.voxel_units else "mm",
        },
        "complete": evaluation.is_complete,
        "structures": {structure.name: list(structure.values) for structure in evaluation.structures},
        "domains": evaluation.domains,
        "overall": [_row_json(row) for row in evaluation.overall],
        "per_domain": [_row_json(row) for row in evaluation.per_domain],
        "comparisons": [
            {
                "structure": each.structure or MEAN,
                "metric": each.metric,
                **asdict(each.test),
                "p_value_runs": each.p_value_runs,
            }
            for each in evaluation.comparisons()
        ],
        "runs": [_run_json(run) for run in evaluation.runs],
        "versus": [_run_json(run) for run in evaluation.versus],
    }
    return dict(_without_nan(content))


def as_markdown(evaluation: Evaluation) -> str:
    """Return the report as Markdown."""
    return _report(evaluation, markdown=True)


def as_text(evaluation: Evaluation) -> str:
    """Return the report as text for a terminal."""
    return _report(evaluation, markdown=False)


def _report(evaluation: Evaluation, markdown: bool) -> str:
    title = f"Evaluation of {evaluation.dataset}" if evaluation.dataset else "Evaluation"
    parts = [f"# {title}" if markdown else title, _caption(evaluation, with_intervals=markdown)]
    parts += [f"**{line}**" if markdown else line for line in _warnings(evaluation)]
    for heading, table in _tables(evaluation, with_intervals=markdown):
        if heading:
            parts.append(f"## {heading}" if markdown else heading)
        parts.append(table.as_markdown() if markdown else table.as_text())
    return "\n\n".join(parts) + "\n"


def _tables(evaluation: Evaluation, with_intervals: bool) -> list[tuple[str, Table]]:
    """Return the tables with their headings. A terminal is too narrow for the intervals."""
    protocol, several = evaluation.protocol, len(evaluation.structures) > 1
    tables = [("", _score_table(evaluation, _shown(evaluation.overall, several), with_intervals))]
    if domain_rows := evaluation.per_domain:
        means = [row for row in domain_rows if row.structure is None]
        tables.append(("Mean over structures in each domain", _score_table(evaluation, means, with_intervals)))
        if several:
            each = [row for row in domain_rows if row.structure is not None]
            tables.append(("Structures in each domain", _score_table(evaluation, each, with_intervals)))
    if len(evaluation.runs) > 1:
        tables.append(("Runs, mean over structures", _run_table(evaluation)))
    if evaluation.versus:
        others = ", ".join(run.name for run in evaluation.versus)
        heading = f"Tests against {others}, two-sided, uncorrected"
        tables.append((heading, _comparison_table(evaluation, protocol, several)))
    return tables


def _shown(rows: Sequence[Row], several: bool) -> list[Row]:
    """Return the rows without the mean over structures where there is but one."""
    return [row for row in rows if several or row.structure is not None]


def _caption(evaluation: Evaluation, with_intervals: bool) -> str:
    protocol, num_cases, num_runs = evaluation.protocol, len(evaluation.cases), len(evaluation.runs)
    runs = ", ".join(run.name for run in evaluation.runs)
    spread = "mean ± standard deviation over cases"
    if with_intervals:
        spread += " [bootstrap 95 % interval of the mean]"
    if protocol.name == "paper":
        spread = "mean" if num_runs == 1 else "mean ± standard deviation over runs"
    return (
        f"{_counted(num_cases, 'case')}, {_counted(num_runs, 'run')} ({runs}). "
        f"{spread[0].upper()}{spread[1:]}. Protocol {protocol.name}: {protocol.description}."
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _warnings(evaluation: Evaluation) -> list[str]:
    """Return a line for every run that lacks cases."""
    lines = []
    for run in (*evaluation.runs, *evaluation.versus):
        if run.missing:
            lines.append(f"Incomplete: {run.name} has no prediction for {len(run.missing)} ({listed(run.missing)}).")
        if run.extra:
            lines.append(f"Incomplete: no reference for {len(run.extra)} of {run.name} ({listed(run.extra)}).")
    return lines


def _score_table(evaluation: Evaluation, rows: Iterable[Row], with_intervals: bool) -> Table:
    protocol, rows = evaluation.protocol, list(rows)
    with_domain = any(row.domain is not None for row in rows)
    header = (
        *(("Domain",) if with_domain else ()),
        "Structure",
        "Cases",
        *(f"{metric} [{protocol.unit(metric)}]" for metric in protocol.metrics),
        "Missed",
        "Spurious",
        "Absent",
    )
    cells = tuple(
        (
            *((row.domain or "",) if with_domain else ()),
            row.structure or "Mean",
            str(row.summaries[protocol.metrics[0]].num_cases),
            *(_cell(row.summaries[metric], metric, protocol, with_intervals) for metric in protocol.metrics),
            *(str(row.outcomes[each]) for each in (Outcome.MISSED, Outcome.SPURIOUS, Outcome.ABSENT)),
        )
        for row in rows
    )
    return Table(header, cells, text_columns=2 if with_domain else 1)


def _run_table(evaluation: Evaluation) -> Table:
    protocol, mean_row = evaluation.protocol, evaluation.overall[-1]
    header = ("Run", *(f"{metric} [{protocol.unit(metric)}]" for metric in protocol.metrics))
    rows = [
        (run.name, *(number(_scaled(mean_row.summaries[m].run_means[index], m)) for m in protocol.metrics))
        for index, run in enumerate(evaluation.runs)
    ]
    summaries = [mean_row.summaries[metric] for metric in protocol.metrics]
    spread = (number(_scaled(s.sd_runs, m)) for s, m in zip(summaries, protocol.metrics, strict=True))
    return Table(header, (*rows, ("Standard deviation over runs", *spread)))


def _comparison_table(evaluation: Evaluation, protocol: Protocol, several: bool) -> Table:
    header = ("Structure", "Metric", "Cases", "Median difference", "p over cases (Wilcoxon)", "p over runs (Welch)")
    rows = tuple(
        (
            each.structure or "Mean",
            f"{each.metric} [{protocol.unit(each.metric)}]",
            str(each.test.num_cases),
            number(_scaled(each.test.median_difference, each.metric), sign=True),
            _p(each.test.p_value),
            _p(each.p_value_runs),
        )
        for each in evaluation.comparisons()
        if several or each.structure is not None
    )
    return Table(header, rows, text_columns=2)


def _cell(summary: Summary, metric: str, protocol: Protocol, with_interval: bool) -> str:
    mean = number(_scaled(summary.mean, metric))
    if protocol.name == "paper":
        return mean if len(summary.run_means) == 1 else f"{mean} ± {number(_scaled(summary.sd_runs, metric))}"
    if math.isnan(summary.sd):
        return mean
    sd, low, high = (number(_scaled(value, metric)) for value in (summary.sd, summary.ci_low, summary.ci_high))
    return f"{mean} ± {sd}" + (f" [{low}, {high}]" if with_interval else "")


def _p(value: float) -> str:
    return NO_NUMBER if math.isnan(value) else f"{value:.3g}"


def _scaled(value: float, metric: str) -> float:
    return 100 * value if metric in OVERLAPS else value


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "domain": row.domain,
        "structure": row.structure or MEAN,
        "metrics": {metric: asdict(summary) for metric, summary in row.summaries.items()},
        "outcomes": {str(outcome): count for outcome, count in row.outcomes.items()},
    }


def _run_json(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "missing": list(run.missing),
        "extra": list(run.extra),
        "cases": {
            scored.case: {score.structure: {"outcome": str(score.outcome), **score.values} for score in scored.scores}
            for scored in run.cases
        },
    }


def _without_nan(content: Any) -> Any:
    """Return content with null for what JSON has no number for."""
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _case_lines(evaluation: Evaluation) -> list[list[object]]:
    """Return one line for each run, case and structure, and one for each case that was not scored."""
    metrics = evaluation.protocol.metrics
    lines: list[list[object]] = [["method", "run", "case", "domain", "structure", "outcome", *metrics]]
    for method, runs in (("ours", evaluation.runs), ("versus", evaluation.versus)):
        for run in runs:
            for scored in run.cases:
                start = [method, run.name, scored.case, evaluation.domains.get(scored.case, "")]
                lines += [
                    [*start, score.structure, score.outcome, *(_raw(score.values[metric]) for metric in metrics)]
                    for score in scored.scores
                ]
            for cases, reason in ((run.missing, "not predicted"), (run.extra, "no reference")):
                lines += [[method, run.name, case, "", "", reason, *("" for _ in metrics)] for case in cases]
    return lines


def _summary_lines(evaluation: Evaluation) -> list[list[object]]:
    header = ["protocol", "complete", "domain", "structure", "metric", "unit", "mean", "sd", "ci_low", "ci_high"]
    lines: list[list[object]] = [[*header, "num_cases", "sd_runs", *(str(outcome) for outcome in Outcome)]]
    protocol = evaluation.protocol
    complete = "yes" if evaluation.is_complete else "no"
    for row in (*evaluation.overall, *evaluation.per_domain):
        for metric, summary in row.summaries.items():
            unit = "fraction" if metric in OVERLAPS else protocol.unit(metric)
            numbers = (_raw(value) for value in (summary.mean, summary.sd, summary.ci_low, summary.ci_high))
            start = (protocol.name, complete, row.domain or "", row.structure or MEAN, metric, unit)
            end = (summary.num_cases, _raw(summary.sd_runs), *row.outcomes.values())
            lines.append([*start, *numbers, *end])
    return lines


def _raw(value: float) -> float | str:
    return value if math.isfinite(value) else ""


def _write_csv(path: Path, lines: Iterable[Sequence[object]]) -> None:
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
