import errno
import os
from pathlib import Path

import pytest

from nnunet_ad.whole_file import written_whole


@pytest.mark.parametrize("existing", [False, True])
def test_the_file_appears_when_it_is_whole(tmp_path, existing):
    file = tmp_path / "a.txt"
    if existing:
        file.write_text("old")
    with written_whole(file) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("new")
        assert file.exists() == existing
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert file.read_text() == "new"


def test_an_error_leaves_what_was_there(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(RuntimeError), written_whole(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_missing_folder_is_named(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"does not exist: .*nowhere'"),
        written_whole(tmp_path / "nowhere" / "a"),
    ):
        pass


def test_a_link_stays_one_and_a_device_is_written_to(tmp_path):
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    with written_whole(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "a.txt").read_text() == "new"
    with written_whole(Path("/dev/null")) as device:
        device.write_text("new")
    assert Path("/dev/null").is_char_device()


def test_of_two_writers_at_once_each_writes_a_whole_file(tmp_path):
    file = tmp_path / "a.txt"
    with written_whole(file) as first:
        first.write_text("first")
        with written_whole(file) as second:
            second.write_text("second")
            assert first.read_text() == "first"
        assert file.read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert file.read_text() == "first"


@pytest.mark.skipif(os.name != "posix", reason="sets a limit on the size of files")
def test_a_full_disk_names_the_file(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
    try:
        with (
            pytest.raises(OSError, match=r"File too large: .*/a\.txt'") as raised,
            written_whole(tmp_path / "a.txt") as temporary,
        ):
            temporary.write_bytes(bytes(10000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


def test_another_error_keeps_its_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="other'"), written_whole(tmp_path / "a.txt"):
        (tmp_path / "other").read_text()


def test_an_error_does_not_name_the_hidden_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"/a\.txt'"), written_whole(tmp_path / "a.txt") as temporary:
        temporary.read_text()
