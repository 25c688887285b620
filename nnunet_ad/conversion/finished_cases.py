"""Which cases of an unfinished dataset are finished, so that the same command goes on after a kill."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nnunet_ad.conversion.cases import Case
from nnunet_ad.conversion.dataset import case_files
from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.volume_files import check_intact
from nnunet_ad.whole_file import written_whole

FINISHED_JSON = "finished_cases.json"


class FinishedCases:
    """The finished cases of the folder that a dataset is being written into.

    ``finished_cases.json`` there holds their names in the dataset and their digests, and nothing of the source. Cases
    without a digest are never in it.
    """

    def __init__(self, folder: Path, cases: Sequence[Case]):
        """Take over what an earlier run finished of these very cases, and remove all else that it left.

        Args:
            folder: The folder.
            cases: All cases of the dataset.
        """
        self._folder, self._file = folder, folder / FINISHED_JSON
        left = self._read()
        same = [case for case in cases if case.digest is not None and left.get(case.name) == case.digest]
        self._digests = {case.name: case.digest for case in same}
        self._write()
        kept = {self._file, *(folder / file for case in same for file in case_files(case))}
        for path in sorted(folder.rglob("*"), reverse=True):  # folders after what is in them
            if path.is_dir():
                with suppress(OSError):  # it is not empty
                    path.rmdir()
            elif path not in kept:
                path.unlink()

    def __contains__(self, case: Case) -> bool:
        """Return whether a case is finished, and its files are whole."""
        if case.name not in self._digests:
            return False
        try:
            for file in case_files(case):
                check_intact(self._folder / file)
        except ConversionError:
            return False
        return True

    def add(self, case: Case) -> None:
        """Note that all files of a case are written."""
        if case.digest is not None:
            self._digests[case.name] = case.digest
            self._write()

    def forget(self) -> None:
        """Remove the note, as of a dataset that is complete."""
        self._file.unlink(missing_ok=True)

    def _read(self) -> dict[str, str]:
        try:
            left = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return left if isinstance(left, dict) else {}

    def _write(self) -> None:
        if not self._digests:
            self.forget()
            return
        with written_whole(self._file) as temporary:
            temporary.write_text(json.dumps(self._digests), encoding="utf-8")
