"""The information table of M&Ms: vendor, end-diastolic and end-systolic frame of each subject.

It comes as ``211230_M&Ms_Dataset_information_diagnosis_opendataset.csv``, or as an older CSV or Excel file with
``M&Ms``, ``Dataset`` and ``Information`` in its name. Frames are numbered from 0.
"""

import io
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import ParseError

import pandas as pd

from nnunet_ad.conversion.errors import ConversionError

NEWEST_TABLE = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
CODE, VENDOR, ED, ES = COLUMNS = ("External code", "Vendor", "ED", "ES")
_FILE_NAME = re.compile(r"[^.~].*\.(csv|xlsx|xls)", re.IGNORECASE)  # a leading dot or tilde: left by an editor
_TITLE = re.compile(r"m&?ms.*dataset.*information", re.IGNORECASE)
_EXCEL_PACKAGES = {".xlsx": "openpyxl", ".xls": "xlrd"}
_READ_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    KeyError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    ParseError,
)


@dataclass(frozen=True)
class Subject:
    """One row of the table.

    Attributes:
        vendor: Letter of the vendor, A to D.
        ed: Number of the end-diastolic frame, None where the table states none.
        es: Number of the end-systolic frame, None where the table states none.
    """

    vendor: str
    ed: int | None
    es: int | None


def find_table(folder: Path) -> Path:
    """Find the information table in a folder: the newest CSV if it is there, else any CSV, else an Excel file.

    Of several of a kind, the one whose name is last in the alphabet is taken: names start with the date.

    Raises:
        ConversionError: There is none.
    """
    tables = [path for path in folder.iterdir() if _FILE_NAME.fullmatch(path.name) and _TITLE.search(path.name)]
    if not tables:
        raise ConversionError(
            f"found no information table in {folder}, expected {NEWEST_TABLE} or an older CSV or Excel file named "
            "alike, which comes with the images; put it there"
        )
    return max(tables, key=lambda path: (path.name == NEWEST_TABLE, path.suffix.lower() == ".csv", path.name))


def read_table(path: Path) -> dict[str, Subject]:
    """Read the information table.

    Args:
        path: The CSV or Excel file; ``.xls`` needs the package xlrd, ``.xlsx`` openpyxl.

    Returns:
        The row of each subject by its external code.

    Raises:
        ConversionError: The file cannot be read or lacks a column, a subject is there twice, or a frame is no number
            from 0.
    """
    rows = _read_rows(path)
    rows.columns = [_plain(str(column)) for column in rows.columns]
    missing = [column for column in COLUMNS if _plain(column) not in rows.columns]
    if missing:
        raise ConversionError(
            f"the table {path.name} has no column {', '.join(missing)}, but {', '.join(rows.columns)}; "
            "get it again from its source"
        )
    subjects: dict[str, Subject] = {}
    for code, vendor, ed, es in rows[[_plain(column) for column in COLUMNS]].fillna("").itertuples(index=False):
        code = code.strip()
        if not code:
            continue  # an empty row at the end
        if code in subjects:
            raise ConversionError(f"the table {path.name} has the subject {code} twice; remove one of the rows")
        subjects[code] = Subject(vendor.strip().upper(), _frame(ed, ED, code, path), _frame(es, ES, code, path))
    return subjects


def _read_rows(path: Path) -> pd.DataFrame:
    """Return the table with every cell as text."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".csv":
            return pd.read_csv(path, dtype=str, encoding="utf-8-sig")
        options = {"logfile": io.StringIO()} if suffix == ".xls" else {}  # xlrd else prints about damaged files
        return pd.read_excel(path, dtype=str, engine=_EXCEL_PACKAGES[suffix], engine_kwargs=options)
    except ImportError:
        raise ConversionError(
            f"the table {path.name} needs the package {_EXCEL_PACKAGES[suffix]} to be read; "
            f"run pip install {_EXCEL_PACKAGES[suffix]}, or put {NEWEST_TABLE} beside it"
        ) from None
    except _READ_ERRORS + _xlrd_errors():
        raise ConversionError(
            f"the table {path.name} cannot be read, it may be truncated; get it again from its source"
        ) from None


def _xlrd_errors() -> tuple[type[Exception], ...]:
    """Return what xlrd raises for damaged and empty files, where it is installed."""
    try:
        import xlrd
    except ImportError:
        return ()
    return (xlrd.XLRDError, xlrd.compdoc.CompDocError, AssertionError, IndexError, TypeError)


def _frame(text: str, column: str, code: str, path: Path) -> int | None:
    """Return a frame number, which Excel may have stored as 9.0, or None for an empty cell."""
    text = text.strip()
    if not text:
        return None
    if not re.fullmatch(r"\d+(\.0+)?", text):
        raise ConversionError(
            f"the table {path.name} has the {column} frame {text!r} for subject {code}, expected a number from 0; "
            "get it again from its source"
        )
    return int(float(text))


def _plain(column: str) -> str:
    """Return a column's name without the spaces and capitals in which the tables differ."""
    return column.replace(" ", "").lower()
