"""The exception of the converters."""

from collections.abc import Iterator
from contextlib import contextmanager


class ConversionError(ValueError):
    """The input or a setting is wrong; the message is one sentence for the user, saying what to do."""


@contextmanager
def naming(case: str, file: str) -> Iterator[None]:
    """Put the case and the file in front of the message of a ConversionError raised inside."""
    try:
        yield
    except ConversionError as error:
        raise ConversionError(f"case {case}, file {file}: {error}") from None
