"""What users say by environment variables."""

import os
import re


def integer_from_environment(variable: str, minimum: int) -> int | None:
    """Return the whole number that a variable holds, or ``None`` where it is not set.

    Raises:
        ValueError: If it holds anything else, or a number below ``minimum``.
    """
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.strip().isdecimal() or int(text) < minimum:
        raise ValueError(f"{variable} is {text!r}; expected a whole number of at least {minimum}")
    return int(text)


def minutes_from_environment(variable: str) -> float | None:
    """Return the minutes that a variable holds, as a number or as ``[D-]HH:MM:SS``; ``None`` where it is not set.

    Raises:
        ValueError: If it holds anything else, or a negative number.
    """
    text = os.environ.get(variable)
    if text is None:
        return None
    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", text.strip())
    if clock:
        days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        return (days * 24 + hours) * 60 + minutes + seconds / 60
    if not re.fullmatch(r"\d+(\.\d*)?", text.strip()):
        raise ValueError(f"{variable} is {text!r}; expected minutes, for example 90 or 0.5, or a time, as 01:30:00")
    return float(text)
