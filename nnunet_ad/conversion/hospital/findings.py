"""What a check found, in words that may be written anywhere and, apart, in words that name the source."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from nnunet_ad.conversion.errors import ConversionError


class Severity(StrEnum):
    """Whether a case with this finding may be written."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """One thing found in one case.

    Attributes:
        case: The neutral name of the case.
        part: Which part of the case, as ``image`` or ``mask``.
        message: One sentence: what was found, what was expected, what to do. Names nothing of the source.
        private_message: The same, with names from the source.
        severity: Whether the case may be written.
        paths: The files or the folder that it was found in.
    """

    case: str
    part: str
    message: str
    private_message: str
    severity: Severity = Severity.ERROR
    paths: tuple[Path, ...] = ()

    @classmethod
    def of(cls, error: ConversionError, case: str, part: str, paths: tuple[Path, ...] = ()) -> "Finding":
        """Return the finding that an error stands for."""
        private = str(error)
        return cls(case, part, getattr(error, "public_message", private), private, paths=paths)
