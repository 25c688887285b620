import json
from pathlib import Path

import pytest

from nnunet_ad.data.folds import (
    cases_in_no_fold,
    check_cases_exist,
    check_copy_of_splits,
    check_fold_exists,
    unlabeled_cases_of_fold,
)


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    raw, preprocessed = tmp_path / "raw" / "Dataset001_X", tmp_path / "pre" / "Dataset001_X"
    raw.mkdir(parents=True)
    preprocessed.mkdir(parents=True)
    return preprocessed, raw


def write_splits(folder: Path, *unlabeled) -> None:
    splits = [{"train": ["a"], "val": ["b"]} | ({} if u is None else {"unlabeled": u}) for u in unlabeled]
    (folder / "splits_final.json").write_text(json.dumps(splits))


def cases(folders, fold=0, train=("a",), val=("b",), known=("u2", "u1")) -> list[str]:
    preprocessed, raw = folders
    return unlabeled_cases_of_fold(fold, train, val, preprocessed, raw, lambda: known)


def test_without_the_key_all_unlabeled_images_are_used(folders):
    write_splits(folders[0], None)
    assert cases(folders) == ["u1", "u2"]


def test_without_a_split_file_all_unlabeled_images_are_used(folders):
    assert cases(folders) == ["u1", "u2"]


def test_the_key_decides_for_each_fold(folders):
    for folder in folders:
        write_splits(folder, ["u3"], ["u2", "u4"])
    assert cases(folders, fold=0) == ["u3"]
    assert cases(folders, fold=1) == ["u2", "u4"]


def test_fold_all_uses_all_unlabeled_images(folders):
    for folder in folders:
        write_splits(folder, ["u3"])
    assert cases(folders, fold="all") == ["u1", "u2"]


@pytest.mark.parametrize("list_name", ["train", "val"])
def test_a_case_both_labeled_and_unlabeled_is_refused(folders, list_name):
    write_splits(folders[0], ["u1", "x"])
    write_splits(folders[1], ["u1", "x"])
    with pytest.raises(ValueError, match=r"x is both labelled .* Remove it"):
        cases(folders, **{list_name: ("x",)})


def test_a_name_in_both_folders_is_refused_where_no_list_names_it(folders):
    (folders[1] / "imagesTr").mkdir()
    (folders[1] / "imagesTr" / "a_0000.nii.gz").touch()
    with pytest.raises(ValueError, match=r"a is both labelled .*imagesUnlabeled/ and imagesTr/ .* rename"):
        cases(folders, fold="all", known=("a", "u1"))


def test_no_unlabeled_case_is_refused(folders):
    with pytest.raises(ValueError, match="no unlabelled case"):
        cases(folders, known=())


def test_a_raw_file_that_names_other_cases_stops_the_training(folders):
    write_splits(folders[0], ["u1"])
    write_splits(folders[1], ["u1", "u2"])
    with pytest.raises(ValueError, match="copy it over the other") as error:
        cases(folders)
    assert str(folders[0] / "splits_final.json") in str(error.value)
    assert str(folders[1] / "splits_final.json") in str(error.value)


@pytest.mark.parametrize("named", [["u1"], []])
def test_a_raw_file_that_newly_has_the_key_stops_the_training(folders, named):
    write_splits(folders[0], None)
    write_splits(folders[1], named)
    with pytest.raises(ValueError, match="differ"):
        cases(folders)


def test_the_order_of_the_names_is_no_difference(folders):
    write_splits(folders[0], ["u1", "u2"])
    write_splits(folders[1], ["u2", "u1"])
    assert cases(folders) == ["u1", "u2"]


def test_without_raw_folder_the_copy_is_enough(folders):
    write_splits(folders[0], ["u1"])
    assert unlabeled_cases_of_fold(0, ["a"], ["b"], folders[0], None, lambda: []) == ["u1"]


@pytest.mark.parametrize("content", [b"[{", b"\xff\xfe["])
def test_broken_json_is_named(folders, content):
    (folders[0] / "splits_final.json").write_bytes(content)
    with pytest.raises(ValueError, match="not valid JSON"):
        cases(folders)


def test_a_split_file_that_is_no_list_is_named(folders):
    (folders[0] / "splits_final.json").write_text("{}")
    with pytest.raises(ValueError, match="should be a list of folds"):
        cases(folders)


@pytest.mark.parametrize("unlabeled", [[None], "u1", {"u1": 1}, [3]])
def test_a_list_of_cases_that_is_none_is_named(folders, unlabeled):
    write_splits(folders[0], unlabeled)
    with pytest.raises(ValueError, match="should be a list of folds"):
        cases(folders)


def test_raw_splits_without_a_copy_are_refused_where_training_would_draw_its_own(folders):
    preprocessed, raw = folders
    write_splits(raw, None)
    check_copy_of_splits("all", preprocessed, raw, pytest.fail)
    check_copy_of_splits(0, preprocessed, None, pytest.fail)
    with pytest.raises(ValueError, match=r"raw/Dataset001_X/splits_final.json was not there when .*copy it to .*/pre/"):
        check_copy_of_splits(0, preprocessed, raw, pytest.fail)


@pytest.mark.parametrize("name", ["train", "val"])
def test_raw_splits_with_other_labeled_cases_are_pointed_out(folders, name):
    preprocessed, raw = folders
    for folder in folders:
        write_splits(folder, None, None)
    check_copy_of_splits(1, preprocessed, raw, pytest.fail)
    splits = json.loads((raw / "splits_final.json").read_text())
    splits[1][name] = ["c"]
    (raw / "splits_final.json").write_text(json.dumps(splits))
    check_copy_of_splits(0, preprocessed, raw, pytest.fail)
    lines: list[str] = []
    check_copy_of_splits(1, preprocessed, raw, lines.append)
    (line,) = lines
    assert line.startswith(f'WARNING: fold 1: the "{name}" cases of {raw}')
    assert "training reads the copy" in line


def test_a_case_labeled_since_is_to_be_deleted_where_the_raw_images_are_not(folders):
    with pytest.raises(ValueError, match=r"a is both labelled .* delete the \.pkl file of each in .*_unlabeled/"):
        unlabeled_cases_of_fold("all", ["a"], ["b"], folders[0], None, lambda: ["a", "u1"])


def test_a_case_that_was_moved_from_the_labeled_ones_is_to_be_preprocessed_away(folders):
    message = (
        r"a is both labelled .* imagesTr/ has no image of it any more.*pre/.*splits_final\.json.*nnUNetv2_preprocess"
    )
    with pytest.raises(ValueError, match=message):
        cases(folders, known=("a", "u1"))


def test_cases_that_no_fold_uses(folders):
    preprocessed = folders[0]
    assert cases_in_no_fold(["a", "new"], [], preprocessed) == []
    write_splits(preprocessed, ["u1", "c"], None)
    assert cases_in_no_fold(["b", "new", "c", "a", "moved"], ["u1", "moved"], preprocessed) == ["new"]


@pytest.mark.parametrize("fold", [1, 4, -1])
def test_a_fold_beyond_the_file_is_refused(folders, fold):
    write_splits(folders[0], ["u1"])
    with pytest.raises(ValueError, match=f"fold {fold} was asked for"):
        check_fold_exists(fold, folders[0])


def test_existing_folds_pass(folders):
    check_fold_exists(3, folders[0])
    write_splits(folders[0], ["u1"], ["u2"])
    check_fold_exists(1, folders[0])
    check_fold_exists("all", folders[0])


def test_unknown_cases_are_named():
    check_cases_exist(0, ["a"], ["a", "b"], "here")
    with pytest.raises(ValueError, match=r"2 case\(s\) that are not in here: x, y"):
        check_cases_exist(0, ["y", "x", "a"], ["a"], "here")


def test_a_fold_that_the_raw_splits_lack_is_no_difference(folders):
    preprocessed, raw = folders
    write_splits(raw, None)
    write_splits(preprocessed, None, None)
    check_copy_of_splits(1, preprocessed, raw, pytest.fail)
