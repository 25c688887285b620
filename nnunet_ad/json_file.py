"""JSON files of users and of nnU-Net, which a full disk or a hand may have left half-written."""

import json
from pathlib import Path
from typing import Any


def read_json(file: Path, kind: type = dict) -> Any:
    """Return the content of a JSON file in UTF-8.

    Raises:
        ValueError: If it is not JSON, as when it was cut short, or does not hold a ``kind``.
        OSError: If it can't be read.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise ValueError(
            f"{file} is not valid JSON ({error}): it was changed by hand, or not written to its end, as on a full "
            "disk. Repair it, or write it again"
        ) from None
    if not isinstance(content, kind):
        expected = "an object" if kind is dict else "a list"
        raise ValueError(f"{file} holds a {type(content).__name__}; expected {expected} of JSON")
    return content
