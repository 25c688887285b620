"""One DICOM file: whether it is one, and what its header says.

Messages name no file and no value of the header that may identify a patient; callers say which file it is.
"""

import logging
import sqlite3
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pydicom
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from nnunet_ad.conversion.errors import ConversionError

_PREAMBLE, _MARK = 128, b"DICM"
_PIXEL_DATA = Tag("PixelData")
_UNDEFINED_LENGTH = 0xFFFFFFFF
# What pydicom and highdicom raise for damaged files.
PARSER_ERRORS = (
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    NotImplementedError,
    OSError,
    OverflowError,
    TypeError,
    ValueError,
    sqlite3.Error,  # highdicom keeps an index of frames
    struct.error,
    zlib.error,
)
UNREADABLE = "the file cannot be read as DICOM, it may be truncated; get it again from its source"


def is_dicom(path: Path) -> bool:
    """Return whether a file bears the mark of DICOM.

    Raises:
        ConversionError: The file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE + len(_MARK))[_PREAMBLE:] == _MARK
    except OSError as error:
        raise ConversionError(f"a file cannot be opened ({error.strerror}); allow reading it") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom and highdicom, each module of which has a logger, from warning of values, which they would show."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            logging.disable()
            yield
        finally:
            logging.disable(before)


def read_dataset(path: Path, tags: Sequence[str] | None = None, *, pixels: bool = False) -> pydicom.Dataset:
    """Read a DICOM file, and parse every value now, so that none can fail to be parsed later.

    Args:
        path: The file.
        tags: Keywords of the elements to read; None for all.
        pixels: Read the pixel data, too.

    Raises:
        ConversionError: The file cannot be read or parsed.
    """
    with _parsing():
        dataset = pydicom.dcmread(
            path, stop_before_pixels=not pixels, specific_tags=None if tags is None else list(tags)
        )
        _parse(dataset)
    return dataset


def read_header(path: Path, tags: Sequence[str]) -> tuple[pydicom.Dataset, int | None]:
    """Return elements of a DICOM file as :func:`read_dataset`, and how many bytes of pixel data it states.

    Args:
        path: The file.
        tags: Keywords of the elements to read.

    Returns:
        The elements, and the number of bytes, which are not read; None if they are compressed or if there are none.

    Raises:
        ConversionError: The file cannot be read or parsed.
    """
    lengths: list[int] = []

    def is_reached(tag: BaseTag, _: str | None, length: int) -> bool:
        if tag == _PIXEL_DATA:
            lengths.append(length)
        return bool(lengths)

    with _parsing(), path.open("rb") as file:
        dataset = read_partial(file, is_reached, specific_tags=[Tag(tag) for tag in tags])
        _parse(dataset)
    return dataset, lengths[0] if lengths and lengths[0] != _UNDEFINED_LENGTH else None


@contextmanager
def _parsing() -> Iterator[None]:
    try:
        with quiet():
            yield
    except PARSER_ERRORS:
        raise ConversionError(UNREADABLE) from None


def _parse(dataset: pydicom.Dataset) -> None:
    """Parse every value of a dataset, and check that it is whole."""
    found = list(dataset.keys())
    is_whole = all(_is_whole(dataset.get_item(tag)) for tag in found)
    for _ in chain(dataset.file_meta, dataset.iterall()):
        pass
    if not is_whole:
        raise ConversionError(UNREADABLE)


def _is_whole(element: DataElement | RawDataElement) -> bool:
    """Return whether an element has as many bytes as it states; pydicom takes what is there."""
    if not isinstance(element, RawDataElement) or element.value is None or element.length == _UNDEFINED_LENGTH:
        return True
    return len(element.value) == element.length


def text_of(dataset: pydicom.Dataset, keyword: str) -> str:
    """Return an element as text, empty if there is none."""
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def number_of(dataset: pydicom.Dataset, keyword: str) -> int | None:
    """Return an element as an integer, or None if there is none or it is something else."""
    try:
        return int(text_of(dataset, keyword))
    except ValueError:
        return None


def numbers_of(dataset: pydicom.Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return the numbers of an element, or None if there is none, or not ``count`` finite numbers."""
    value = dataset.get(keyword)
    if value is None or isinstance(value, str | bytes) or not hasattr(value, "__len__") or len(value) != count:
        return None
    try:
        numbers = tuple(float(each) for each in value)
    except (TypeError, ValueError):
        return None
    return numbers if all(abs(number) < 1e9 for number in numbers) else None


def modality_of(dataset: pydicom.Dataset) -> str:
    """Return the modality as an error message may show it."""
    modality = text_of(dataset, "Modality")
    return modality if modality.isalnum() and len(modality) <= 16 else "none"


def check_modality(dataset: pydicom.Dataset, expected: str) -> None:
    """Check that a file is what it is taken for.

    Raises:
        ConversionError: It states another modality, or none.
    """
    modality = modality_of(dataset)
    if modality == "none":
        raise ConversionError(UNREADABLE)
    if modality != expected:
        raise ConversionError(f"the file is of the modality {modality}, expected {expected}; give the right file")
