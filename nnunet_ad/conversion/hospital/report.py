"""The report on a conversion: every case with a picture and its findings, as one HTML page and as JSON."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

import nnunet_ad
from nnunet_ad.conversion.cases import Role
from nnunet_ad.conversion.dataset import Dataset, dataset_folder_name
from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.hospital.findings import Severity
from nnunet_ad.conversion.hospital.labels import Labels
from nnunet_ad.conversion.hospital.options import Options
from nnunet_ad.conversion.hospital.survey import SurveyedCase
from nnunet_ad.conversion.hospital.thumbnails import colour_of
from nnunet_ad.whole_file import written_whole

FORMAT_VERSION = 1
HTML_FILE, JSON_FILE = "conversion_report.html", "conversion_report.json"
TEMPLATE = "conversion_report.html.j2"
WRITTEN, LEFT_OUT, REFUSED = "written", "left out", "not written"


@dataclass(frozen=True)
class Report:
    """What the report says. Nothing in it names a source.

    Attributes:
        content: The content of the JSON file.
        thumbnails: PNG file of each case that has one.
    """

    content: dict[str, Any]
    thumbnails: dict[str, bytes]

    @classmethod
    def of(
        cls,
        options: Options,
        surveyed: Sequence[SurveyedCase],
        domains: Mapping[str, str],
        labels: Labels,
        dataset: Dataset | None,
        problem: str | None,
    ) -> "Report":
        """Describe a conversion.

        Args:
            options: What was asked for.
            surveyed: Every case that was found.
            domains: Domain of each case.
            labels: The structures.
            dataset: The dataset, or None if it may not be written.
            problem: Why the dataset as a whole may not be written, or None.
        """
        content = {
            "format_version": FORMAT_VERSION,
            "converter": {"package": nnunet_ad.__name__, "version": nnunet_ad.__version__},
            "dataset": dataset_folder_name(options.dataset_id, options.name),
            "written": dataset is not None,
            "labels": labels.numbers,
            "notes": list(dataset.notes) if dataset else [problem] if problem else [],
            "summary": _summary(surveyed, dataset is not None),
            "cases": [_case(each, domains[each.case.name], dataset is not None) for each in surveyed],
        }
        return cls(content, {each.case.name: each.thumbnail for each in surveyed if each.thumbnail})

    def as_html(self) -> str:
        """Return the page. It needs no other file and no network."""
        environment = jinja2.Environment(
            autoescape=True,
            loader=jinja2.FunctionLoader(_template),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template(TEMPLATE).render(
            report=self.content,
            pictures={case: _uri(thumbnail) for case, thumbnail in self.thumbnails.items()},
            colours={name: colour_of(number) for name, number in self.content["labels"].items() if number},
            error=Severity.ERROR.value,
        )

    def as_json(self) -> str:
        """Return the content of the JSON file."""
        return json.dumps(self.content, indent=2, ensure_ascii=False) + "\n"

    def table(self) -> str:
        """Return the summary as text."""
        columns = ("found", WRITTEN, "with_errors", "warnings")
        heading = " " * 10 + "".join(f"{column.replace('_', ' '):>13}" for column in columns)
        rows = [f"{role:<10}" + "".join(f"{row[column]:>13}" for column in columns) for role, row in self._rows()]
        return "\n".join([heading, *rows])

    def _rows(self) -> list[tuple[str, dict[str, int]]]:
        return list(self.content["summary"].items())


def check_report_folder(folder: Path) -> None:
    """Make the folder of the report, and check that files can be written there.

    Raises:
        ConversionError: They cannot.
    """
    probe = folder / f".{JSON_FILE}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise _unwritable(error) from None


def _unwritable(error: OSError) -> ConversionError:
    return ConversionError(f"the report cannot be written ({error.strerror}); name another folder with --report")


def write_report(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write both files of the report.

    Args:
        report: The report.
        folder: The folder, made if missing.

    Returns:
        The files.

    Raises:
        ConversionError: They cannot be written.
    """
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in ((HTML_FILE, report.as_html()), (JSON_FILE, report.as_json())):
            with written_whole(folder / name) as file:
                file.write_text(text, encoding="utf-8")
            files.append(folder / name)
    except OSError as error:
        raise _unwritable(error) from None
    return tuple(files)


def _summary(surveyed: Sequence[SurveyedCase], is_written: bool) -> dict[str, dict[str, int]]:
    summary = {}
    for role in Role:
        cases = [each for each in surveyed if each.case.role is role]
        num_good = sum(each.is_good for each in cases)
        summary[str(role)] = {
            "found": len(cases),
            WRITTEN: num_good if is_written else 0,
            "with_errors": len(cases) - num_good,
            "warnings": sum(finding.severity is Severity.WARNING for each in cases for finding in each.findings),
        }
    return summary


def _case(each: SurveyedCase, domain: str, is_written: bool) -> dict[str, Any]:
    status = LEFT_OUT if not each.is_good else WRITTEN if is_written else REFUSED
    entry: dict[str, Any] = {
        "case": each.case.name,
        "role": str(each.case.role),
        "found_as": each.case.position,
        "domain": domain,
        "status": status,
        "findings": [
            {"part": finding.part, "severity": str(finding.severity), "message": finding.message}
            for finding in each.findings
        ],
    }
    if each.grid is not None:
        entry["size"] = list(each.grid.size)
        entry["spacing_mm"] = [round(spacing, 4) for spacing in each.grid.spacing]
        entry["orientation"] = each.grid.orientation
        entry["intensities"] = [
            [float(f"{facts.low:.5g}"), float(f"{facts.high:.5g}")] for facts in each.channels.values()
        ]
    if each.millilitres:
        entry["millilitres"] = {name: round(volume, 3) for name, volume in each.millilitres.items()}
    return entry


def _template(name: str) -> str:
    return (resources.files("nnunet_ad.conversion.hospital") / "templates" / name).read_text(encoding="utf-8")


def _uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
