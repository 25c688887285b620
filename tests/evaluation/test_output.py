"""What of an evaluation is on the disk when a write fails."""

from pathlib import Path

import pytest
from volumes_on_disk import LEFT, LEFT_SHIFTED, box, write_labels

from nnunet_ad.evaluation import output
from nnunet_ad.evaluation.evaluate import evaluate


def test_an_earlier_result_survives_a_write_that_fails(tmp_path, monkeypatch):
    write_labels(tmp_path / "ref" / "a.nii.gz", box({1: LEFT}))
    write_labels(tmp_path / "first" / "a.nii.gz", box({1: LEFT}))
    write_labels(tmp_path / "second" / "a.nii.gz", box({1: LEFT_SHIFTED}))
    first, second = (
        evaluate([tmp_path / name], tmp_path / "ref", processes=1, progress=False) for name in ("first", "second")
    )
    output.write(first, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    write_text = Path.write_text

    def fail(self, text, **options):
        write_text(self, text[:40], **options)
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="no space left"):
        output.write(second, tmp_path / "out")
    after = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert after.keys() == before.keys()
    assert after["evaluation.json"] == before["evaluation.json"]
    assert after["table.md"] == before["table.md"]
