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


def test_what_a_killed_process_left_is_not_added_to(tmp_path):
    (tmp_path / ".a.txt").write_text("left")
    with written_whole(tmp_path / "a.txt") as temporary, temporary.open("a") as stream:
        stream.write("new")
    assert (tmp_path / "a.txt").read_text() == "new"
