"""The exceptions of the converters."""

from collections.abc import Iterator
from contextlib import contextmanager


class ConversionError(ValueError):
    """The input or a setting is wrong; the message is one sentence for the user, saying what to do."""


class SourceError(ConversionError):
    """Something is wrong with the input.

    Attributes:
        public_message: One sentence without any name from the source; ``str()`` of the error may name files, segments
            or series.
    """

    def __init__(self, public_message: str, details: str = ""):
        super().__init__(public_message, details)  # as they are, or a process could not hand the error to another
        self.public_message = public_message

    def __str__(self) -> str:
        public_message, details = self.args
        return f"{public_message} ({details})" if details else public_message


@contextmanager
def naming(case: str, file: str) -> Iterator[None]:
    """Put the case and the file in front of the message of a ConversionError raised inside."""
    try:
        yield
    except ConversionError as error:
        raise ConversionError(f"case {case}, file {file}: {error}") from None
