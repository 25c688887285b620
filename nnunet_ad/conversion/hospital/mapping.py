"""The file that says which case came from where. It identifies patients, so it lies apart from the dataset.

Where it is there already, cases keep the names that they have in it.
"""

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results

from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.hospital.plan import CaseKey, PlannedCase
from nnunet_ad.conversion.hospital.survey import SurveyedCase

MODE = 0o600
COLUMNS = ("case", "role", "found_as", "patient", "files", "frame")
GONE = "gone"  # as a role: a case that is not converted any more, and whose name no other may get


def check_mapping_path(path: Path, overwrite: bool, inputs: Iterable[Path]) -> None:
    """Check that the mapping may be written there.

    Args:
        path: The place.
        overwrite: Whether an earlier mapping may be replaced.
        inputs: The folders and files that are read.

    Raises:
        ConversionError: The place is inside one of nnU-Net's folders, which are passed on, or is an input or inside
            one, its folder is missing, or the file exists and may not be overwritten or is no mapping.
    """
    if any(path.resolve().is_relative_to(each.resolve()) for each in inputs):
        raise ConversionError("--mapping: the file is one that is read or lies in a folder that is; name another place")
    for folder in (nnUNet_raw, nnUNet_preprocessed, nnUNet_results):
        if folder.is_set() and path.resolve().is_relative_to(Path(folder).resolve()):
            raise ConversionError(
                "--mapping: the file would lie inside nnU-Net's folders and identify patients wherever the dataset "
                "goes; name a place outside them"
            )
    if not path.resolve().parent.is_dir():
        raise ConversionError("--mapping: the folder of the file does not exist; make it or name another place")
    if path.is_dir() or (path.exists() and not overwrite):
        raise ConversionError("--mapping: the file exists; name another one, or add --overwrite")
    if path.exists() and not _is_mapping(path):
        raise ConversionError("--mapping: the file exists and is no mapping, which is never replaced; name another one")


def _is_mapping(path: Path) -> bool:
    """Return whether a file begins as mappings do."""
    expected = ",".join(COLUMNS).encode()
    try:
        with path.open("rb") as file:
            return file.readline(len(expected) + 2).rstrip(b"\r\n") == expected
    except OSError as error:
        raise _unwritable(error) from None


def earlier_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of an earlier mapping, by column.

    Args:
        path: A file that :func:`check_mapping_path` has accepted; it may be missing.

    Raises:
        ConversionError: The file is damaged.
    """
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
        if not all(row["case"] and row["found_as"] and re.fullmatch("[0-9]*", row["frame"] or "") for row in rows):
            raise ValueError("an entry is missing")
    except (OSError, ValueError, csv.Error):
        raise ConversionError(
            "--mapping: the file is damaged, so the names in it cannot be kept; repair it, or name another one"
        ) from None
    return rows


def names_in(rows: Iterable[Mapping[str, str]]) -> dict[CaseKey, str]:
    """Return the names of the cases of an earlier mapping."""
    names: dict[CaseKey, str] = {}
    for row in rows:
        names.setdefault((row["found_as"], int(row["frame"]) if row["frame"] else None), row["case"])
    return names


def _unwritable(error: OSError) -> ConversionError:
    return ConversionError(
        f"--mapping: the file cannot be written ({error.strerror}); look at the permissions and the free space there, "
        "or name another place"
    )


def mapping_text(
    surveyed: Iterable[SurveyedCase], patients: Mapping[str, str], earlier: Iterable[Mapping[str, str]] = ()
) -> str:
    """Return the mapping as CSV: neutral name, role, name in the input, patient, files, number of the volume.

    Args:
        surveyed: The cases.
        patients: Patient of each case.
        earlier: Rows of an earlier mapping. Those of cases that are gone stay, so that no other case gets their names.
    """
    rows = [_row(each.case, patients[each.case.name]) for each in surveyed]
    names, keys = {row["case"] for row in rows}, {(row["found_as"], row["frame"]) for row in rows}
    gone = (row for row in earlier if row["case"] not in names and (row["found_as"], row["frame"]) not in keys)
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows([*rows, *({**row, "role": GONE} for row in gone)])
    return file.getvalue()


def _row(case: PlannedCase, patient: str) -> dict[str, str]:
    paths = [path for channel in case.channels for path in channel.paths]
    paths += case.mask.files if case.mask else ()
    files = " | ".join(str(path.absolute()) for path in dict.fromkeys(paths))
    frame = "" if case.frame is None else str(case.frame)
    return dict(zip(COLUMNS, (case.name, case.role, case.source.name, patient, files, frame), strict=True))


@contextmanager
def private_file(path: Path, text: str) -> Iterator[None]:
    """Write a file that only its owner may read, in place once the body has finished without an exception.

    A link stays one.

    Raises:
        ConversionError: It cannot be written.
    """
    path = path.resolve()
    partial = path.with_name(f".{path.name}.partial")
    try:
        try:
            partial.unlink(missing_ok=True)
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise _unwritable(error) from None
        yield
        try:
            partial.replace(path)
        except OSError as error:
            raise ConversionError(f"the dataset is complete, but {_unwritable(error)}") from None
    finally:
        partial.unlink(missing_ok=True)
