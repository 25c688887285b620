"""Files that appear as a whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """Give a hidden name beside a file to write under; it becomes the file if all goes well, else nothing of it stays.

    The ending is the file's, since some libraries choose the format by it.
    """
    temporary = file.with_name(f".{file.name}")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
