"""The file that says which case came from where. It identifies patients, so it lies apart from the dataset."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results

from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.hospital.survey import SurveyedCase

MODE = 0o600
COLUMNS = ("case", "role", "found_as", "patient", "files")


def check_mapping_path(path: Path, overwrite: bool) -> None:
    """Check that the mapping may be written there.

    Raises:
        ConversionError: The place is inside one of nnU-Net's folders, which are passed on, its folder is missing, or
            the file exists and may not be overwritten.
    """
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


def mapping_text(surveyed: Iterable[SurveyedCase], patients: Mapping[str, str]) -> str:
    """Return the mapping as CSV: neutral name, role, name in the input, patient, files."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in surveyed:
        case = each.case
        paths = [path for channel in case.channels for path in channel.paths]
        paths += case.mask.files if case.mask else ()
        files = " | ".join(str(path.absolute()) for path in dict.fromkeys(paths))
        writer.writerow((case.name, case.role, case.source.name, patients[case.name], files))
    return file.getvalue()


@contextmanager
def private_file(path: Path, text: str) -> Iterator[None]:
    """Write a file that only its owner may read, in place once the body has finished without an exception."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "w", encoding="utf-8") as file:
            file.write(text)
        yield
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
