"""Files that appear as a whole or not at all."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LEFT_OVERS = ".unfinished_*"  # what killed processes leave


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """Give a hidden name beside a file to write under; it becomes the file if all goes well, else nothing of it stays.

    Each writer has a name of its own, so that of several at the same time one wins with a whole file; what a killed
    process leaves under it stays. The ending is the file's, since some libraries choose the format by it. A link stays
    one; what is no file, as a pipe, is given itself.

    Raises:
        FileNotFoundError: If the folder does not exist.
        OSError: If it can't be written; it names the file also where the system does not, as on a full disk.
    """
    file = file.resolve()
    if file.exists() and not file.is_file():
        yield file
        return
    if not file.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "The folder to write to does not exist", str(file.parent))
    temporary = file.with_name(f".unfinished_{uuid4().hex[:8]}_{file.name}")
    try:
        yield temporary
        temporary.replace(file)
    except OSError as error:
        if error.filename == str(temporary) or (error.filename is None and error.errno in _DISK_FULL):
            error.filename = str(file)
        raise
    finally:
        temporary.unlink(missing_ok=True)
