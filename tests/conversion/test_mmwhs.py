import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme
from written_datasets import (
    FILE_FAULTS,
    IMAGE_FAULTS,
    assert_nowhere,
    assert_one_error,
    assert_processes_agree,
    assert_same_image,
    assert_same_places,
    assert_verified,
    change_voxels,
    digests,
    names,
    plant_note,
    read_json,
    run_script,
    voxels,
)

from nnunet_ad.conversion.command_line import build_parser, run
from nnunet_ad.conversion.mmwhs import CONVERTER
from nnunet_ad.testing.benchmark_trees.mmwhs import LAYOUTS, NUMBERS, has_stray_code, write_mmwhs_tree

SCRIPT = Path(__file__).parents[2] / "dataset_conversion" / "Dataset103_MMWHS.py"
NAMES = {"mr2ct": "Dataset103_MMWHS_MR2CT", "ct2mr": "Dataset104_MMWHS_CT2MR"}
NAME = NAMES["mr2ct"]
VALUES = {205: 1, 420: 2, 421: 2, 500: 3, 820: 4}
ALL_VALUES = VALUES | {550: 5, 600: 6, 850: 7}
TARGET_NUMBERS = {
    "mr2ct": {"val": (1005, 1011, 1015), "test": (1003, 1008, 1014, 1019)},
    "ct2mr": {"val": (1012, 1015, 1016), "test": (1007, 1009, 1018, 1019)},
}
SOURCE_LEFT_OUT = {"mr2ct": (1007, 1009, 1018, 1019), "ct2mr": (1003, 1008, 1014, 1019)}


def convert(tree, *options):
    return run(CONVERTER, ["-i", str(tree), *map(str, options)])


def expected(direction):
    """Return the labelled, unlabelled, val and test cases of a direction."""
    source, target = direction.split("2")
    lists = TARGET_NUMBERS[direction]
    used = {*lists["val"], *lists["test"]}
    return {
        "labeled": [f"{source}_train_{number}" for number in NUMBERS if number not in SOURCE_LEFT_OUT[direction]],
        "unlabeled": [f"{target}_train_{number}" for number in NUMBERS if number not in used],
    } | {role: [f"{target}_train_{number}" for number in lists[role]] for role in ("val", "test")}


@pytest.fixture(scope="session")
def pristine_mmwhs(tmp_path_factory):
    root = tmp_path_factory.mktemp("mmwhs")
    for layout in LAYOUTS:
        write_mmwhs_tree(root / layout, layout=layout)
    return root


@pytest.fixture
def tree(pristine_mmwhs, tmp_path):
    return shutil.copytree(pristine_mmwhs / "ct_train", tmp_path / "train input")


@pytest.fixture
def other_tree(pristine_mmwhs, tmp_path):
    return shutil.copytree(pristine_mmwhs / "imagesTr", tmp_path / "imagesTr input")


def file(tree, case, kind="image"):
    return tree / case.rpartition("_")[0] / f"{case}_{kind}.nii.gz"


# What is written


def test_several_processes_write_what_one_writes(tree, raw, shared):
    assert_processes_agree(lambda *options: convert(tree, *options), raw)


@pytest.mark.parametrize("direction", NAMES)
@pytest.mark.parametrize("tree_name", ["tree", "other_tree"])
def test_cases_go_where_the_public_lists_want_them(tree_name, direction, request, raw):
    assert convert(request.getfixturevalue(tree_name), "--direction", direction) == 0
    folder, lists = raw / NAMES[direction], expected(direction)
    assert names(folder / "imagesTr") == names(folder / "labelsTr") == lists["labeled"]
    assert names(folder / "imagesUnlabeled") == lists["unlabeled"]
    assert names(folder / "imagesTs") == names(folder / "labelsTs") == lists["test"]
    assert [len(lists[role]) for role in ("labeled", "unlabeled", "test")] == [16, 13, 4]
    assert [path.name for path in raw.iterdir()] == [NAMES[direction]]

    assert read_json(folder / "splits_final.json") == [
        {"train": lists["labeled"], "val": lists["labeled"], "unlabeled": lists["unlabeled"]}
    ]
    description = read_json(folder / "dataset.json")
    assert description["labels"] == {"background": 0, "MYO": 1, "LAC": 2, "LVC": 3, "AA": 4}
    sidecar = read_json(folder / "nnunet_ad.json")
    assert sidecar["domains"] == {
        case: case[:2].upper() for case in sorted(lists["labeled"] + lists["unlabeled"] + lists["test"])
    }
    assert sidecar["protocol"] == {
        "setting": "unsupervised domain adaptation",
        "num_labeled": 16,
        "num_unlabeled": 13,
        "num_val": 16,
        "num_test": 4,
        "validation": "the labelled cases themselves (the paper's choice)",
    }


def test_each_image_is_normalised_by_itself(tree, raw):
    assert convert(tree) == 0
    (channel,) = read_json(raw / NAME / "dataset.json")["channel_names"].values()
    assert get_normalization_scheme(channel) is ZScoreNormalization


@pytest.mark.parametrize("direction", NAMES)
def test_labelled_target_cases_are_used_for_nothing_by_default(direction, tree, raw):
    lists = expected(direction)
    for case in lists["val"]:
        file(tree, case).unlink()
        file(tree, case, "label").unlink()
    assert convert(tree, "--direction", direction) == 0
    assert not [name for name in digests(raw) if any(case in name for case in lists["val"])]
    notes = read_json(raw / NAMES[direction] / "nnunet_ad.json")["notes"]
    assert any(f"{', '.join(lists['val'])} are left out" in note for note in notes)
    assert not any("fingerprint" in note for note in notes)


@pytest.mark.parametrize("direction", NAMES)
def test_labelled_target_cases_validate_on_request(direction, tree, raw):
    assert convert(tree, "--direction", direction, "--target-val") == 0
    folder, lists = raw / NAMES[direction], expected(direction)
    assert names(folder / "imagesTr") == names(folder / "labelsTr") == sorted(lists["labeled"] + lists["val"])
    assert read_json(folder / "splits_final.json") == [
        {"train": lists["labeled"], "val": lists["val"], "unlabeled": lists["unlabeled"]}
    ]
    sidecar = read_json(folder / "nnunet_ad.json")
    assert sidecar["protocol"]["validation"].startswith("kept aside")
    seen = f"saw images and labels of the 3 kept-aside cases of the target, too: {', '.join(lists['val'])}"
    assert any("fingerprint" in note and seen in note for note in sidecar["notes"])


def test_kept_aside_cases_are_the_last_unlabelled_ones_and_said_to_be_seen(tree, raw):
    assert convert(tree, "--val", 2) == 0
    folder, lists = raw / NAME, expected("mr2ct")
    assert lists["unlabeled"][-2:] == ["ct_train_1018", "ct_train_1020"]
    assert read_json(folder / "splits_final.json") == [
        {"train": lists["labeled"], "val": lists["unlabeled"][-2:], "unlabeled": lists["unlabeled"][:-2]}
    ]
    assert names(folder / "imagesUnlabeled") == lists["unlabeled"][:-2]
    assert names(folder / "labelsTr") == sorted(lists["labeled"] + lists["unlabeled"][-2:])
    notes = read_json(folder / "nnunet_ad.json")["notes"]
    assert any("fingerprint" in note and "too: ct_train_1018, ct_train_1020" in note for note in notes)


@pytest.mark.parametrize(
    ("options", "value_of"), [([], VALUES), (["--all-structures"], ALL_VALUES)], ids=["four", "seven"]
)
@pytest.mark.parametrize("direction", NAMES)
def test_codes_are_mapped_and_places_kept(direction, options, value_of, tree, raw, capsys):
    assert convert(tree, "--direction", direction, *options) == 0
    folder, lists = raw / NAMES[direction], expected(direction)
    for case in lists["labeled"] + lists["test"]:
        role = "Tr" if case in lists["labeled"] else "Ts"
        assert_same_places(file(tree, case, "label"), folder / f"labels{role}" / f"{case}.nii.gz", value_of)
    for case in lists["labeled"] + lists["unlabeled"] + lists["test"]:
        (written,) = folder.glob(f"images*/{case}_0000.nii.gz")
        assert_same_image(file(tree, case), written)
    sidecar = read_json(folder / "nnunet_ad.json")
    assert "421 to 2 (LAC)" in sidecar["notes"][0]
    assert "any other to background" in sidecar["notes"][0]
    assert len(read_json(folder / "dataset.json")["labels"]) == (8 if options else 5)
    assert "note: case" not in capsys.readouterr().out


def test_made_trees_are_seeded_and_have_every_code(tree, tmp_path):
    again = digests(write_mmwhs_tree(tmp_path / "again"))
    assert again == digests(tree)
    assert len(again) == 2 * 2 * 20 + 2
    assert not set(again.values()) & set(digests(write_mmwhs_tree(tmp_path / "other", seed=1)).values())
    for number in NUMBERS:
        codes = set(np.unique(voxels(file(tree, f"mr_train_{number}", "label"))[0]))
        assert codes == {0, *ALL_VALUES} - (set() if has_stray_code(number) else {421})


def test_unknown_codes_become_background_and_are_named(tree, raw, capsys):
    case = "mr_train_1001"
    source = file(tree, case, "label")
    change_voxels(source, lambda values: np.where(values == 500, 777, values))
    assert convert(tree) == 0
    output = capsys.readouterr().out
    assert f"note: case {case}: the label has the values [777], which the challenge does not define" in output
    assert f"note: case {case}: the label has no LVC" in output
    assert output.count("note: case") == 2
    (codes, _), (written, _) = voxels(source), voxels(raw / NAME / "labelsTr" / f"{case}.nii.gz")
    assert (codes == 777).any()
    assert not written[codes == 777].any()


@pytest.mark.parametrize(("image_ending", "label_ending"), [("", ""), ("_0000", "")])
def test_file_names_without_image_and_label(image_ending, label_ending, other_tree, raw, capsys):
    assert convert(other_tree, "--dry-run") == 0
    listing = capsys.readouterr().out
    for path in other_tree.rglob("*_train_*.nii.gz"):
        name = path.name.replace("_image", image_ending).replace("_label", label_ending)
        path.rename(path.with_name(name))
    assert convert(other_tree, "--dry-run") == 0
    assert capsys.readouterr().out == listing


def test_both_layouts_give_the_same_dataset(tree, other_tree, raw):
    assert convert(tree, "--target-val") == 0
    first = digests(raw)
    assert convert(other_tree, "--target-val", "--overwrite") == 0
    assert digests(raw) == first
    assert len(first) == 3 + (16 + 3) * 2 + 13 + 4 * 2


def test_both_directions_have_their_own_id(tree, raw):
    assert convert(tree) == 0
    assert convert(tree, "--direction", "ct2mr") == 0
    assert convert(tree, "--direction", "ct2mr", "-d", 7) == 0
    assert sorted(path.name for path in raw.iterdir()) == ["Dataset007_MMWHS_CT2MR", *sorted(NAMES.values())]
    assert "(default: 103 for mr2ct, 104 for ct2mr)" in " ".join(build_parser(CONVERTER).format_help().split())


def test_input_may_be_the_shared_folder_or_lie_above_it(tree, tmp_path, raw, capsys):
    (tmp_path / "a" / "b").mkdir(parents=True)
    tree.rename(tmp_path / "a" / "b" / "tree")
    listings = []
    for above in ("a", "a/b", "a/b/tree"):
        assert convert(tmp_path / above, "--dry-run") == 0
        listings.append(capsys.readouterr().out)
    assert len(set(listings)) == 1


def test_nnunet_finds_no_fault(tree, raw):
    assert convert(tree, "--target-val", "--all-structures") == 0
    assert_verified(raw / NAME)


@pytest.mark.parametrize("direction", NAMES)
def test_labels_of_unlabelled_cases_are_never_opened(direction, tree, raw):
    lists = expected(direction)
    for case in lists["unlabeled"] + lists["val"]:
        file(tree, case, "label").write_bytes(b"not a volume")
    file(tree, lists["unlabeled"][0], "label").unlink()
    file(tree, lists["unlabeled"][1], "label").unlink()
    file(tree, lists["unlabeled"][1], "label").mkdir()
    assert convert(tree, "--direction", direction) == 0
    assert len(names(raw / NAMES[direction] / "imagesUnlabeled")) == 13


def test_no_path_and_no_note_of_the_source_is_written(tree, raw, tmp_path):
    for path in (file(tree, "mr_train_1001"), file(tree, "mr_train_1001", "label"), file(tree, "ct_train_1001")):
        plant_note(path, "Planted^Name")
    assert convert(tree) == 0
    assert_nowhere(raw / NAME, "Planted", str(tmp_path))


def test_the_script_lists_exactly_what_is_written_and_a_dry_run_writes_nothing(tree, raw):
    env = os.environ | {"nnUNet_raw": str(raw)}
    result = run_script(SCRIPT, "-i", tree, "--target-val", "--dry-run", env=env)
    assert (result.returncode, result.stderr) == (0, "")
    assert not raw.exists()
    assert convert(tree, "--target-val") == 0
    assert re.findall(rf"^{NAME}/(.*)$", result.stdout, re.MULTILINE) == sorted(digests(raw / NAME))


# Errors: one line, status 1, nothing written


@pytest.mark.parametrize(("kind", "case"), [("label", "mr_train_1002"), ("image", "ct_train_1003")])
@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_damaged_files(fault, kind, case, tree, raw, capsys):
    damage, parts = FILE_FAULTS[fault]
    damage(file(tree, case, kind))
    assert_one_error(capsys, convert(tree), f"case {case}, file {case[:8]}/{case}_", *parts)
    assert list(raw.iterdir()) == []


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_unusable_images(fault, tree, raw, capsys):
    change, parts = IMAGE_FAULTS[fault]
    change_voxels(file(tree, "ct_train_1001"), change)
    assert_one_error(capsys, convert(tree), "case ct_train_1001, file ct_train/ct_train_1001_image.nii.gz:", *parts)
    assert list(raw.iterdir()) == []


LABEL_FAULTS = {
    "fraction": (lambda values: values * 0.25, ["the label has the value 51.25", "whole numbers"]),
    "NaN": (lambda values: np.where(values == 500, np.nan, values), ["NaN or infinite"]),
    "infinite": (lambda values: np.where(values == 500, np.inf, values), ["NaN or infinite"]),
    "consecutive numbers": (lambda values: (values > 0).astype(np.uint8), ["[0, 1]", "[205, 420, 421, 500, 820]"]),
    "only other structures": (lambda values: np.where(values == 550, 550, 0).astype(np.int16), ["[0, 550]", "[205,"]),
    "empty": (np.zeros_like, ["the values [0]", "[205,"]),
}


@pytest.mark.parametrize("fault", LABEL_FAULTS)
def test_unusable_labels(fault, tree, raw, capsys):
    change, parts = LABEL_FAULTS[fault]
    change_voxels(file(tree, "mr_train_1003", "label"), change)
    assert_one_error(
        capsys, convert(tree), "case mr_train_1003, file mr_train/mr_train_1003_label.nii.gz: the ", *parts
    )
    assert list(raw.iterdir()) == []


def test_swapped_partners(tree, raw, capsys):
    first, second = file(tree, "mr_train_1002", "label"), file(tree, "mr_train_1003", "label")
    shutil.move(first, tree / "aside")
    shutil.move(second, first)
    shutil.move(tree / "aside", second)
    assert_one_error(capsys, convert(tree), "case mr_train_1002", "same grid", "right partner")


def test_missing_images(tree, raw, capsys):
    for case in ("mr_train_1008", "ct_train_1020"):
        file(tree, case).unlink()
    assert_one_error(
        capsys,
        convert(tree),
        "2 of the 33 cases",
        "ct_train_1020, mr_train_1008",
        "{ct,mr}_train/{ct,mr}_train_10NN_image.nii.gz or {CT,MR}/imagesTr/",
    )
    assert not raw.exists()


def test_one_modality_alone(tree, raw, capsys):
    assert_one_error(capsys, convert(tree / "ct_train"), "33 of the 33 cases")
    shutil.rmtree(tree / "mr_train")
    assert_one_error(capsys, convert(tree), "16 of the 33 cases", "mr_train_1001")


@pytest.mark.parametrize("case", ["mr_train_1004", "ct_train_1019"])
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_a_missing_label_is_found_before_anything_is_read(case, dry_run, tree, raw, capsys):
    file(tree, case, "label").unlink()
    assert_one_error(
        capsys, convert(tree, *dry_run), f"case {case}, file {case[:8]}/{case}_label.nii.gz: there is no such file"
    )
    assert not raw.exists()


def test_a_case_found_twice(tree, other_tree, raw, capsys):
    copy = tree / "CT" / "imagesTr" / "ct_train_1001_image.nii.gz"
    copy.parent.mkdir(parents=True)
    shutil.copy(file(tree, "ct_train_1001"), copy)
    assert_one_error(
        capsys, convert(tree), "case ct_train_1001 was found more than once", "CT/imagesTr/", "ct_train/ct_train_1001"
    )
    assert not raw.exists()


def test_mixed_layouts(tree, other_tree, raw, capsys):
    shutil.rmtree(tree / "ct_train")
    shutil.move(other_tree / "CT", tree / "CT")
    assert_one_error(
        capsys,
        convert(tree),
        "16 as {ct,mr}_train/{ct,mr}_train_10NN_image.nii.gz",
        "17 cases are stored as {CT,MR}/imagesTr/{ct,mr}_train_10NN_image.nii.gz",
    )
    assert not raw.exists()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--val", 3, "--target-val"], ["--val 3 and --target-val", "one of them"]),
        (["--val", 14], ["14 kept-aside", "29 cases"]),
        (["--val", -1], ["-1 kept-aside"]),
    ],
)
def test_impossible_choices_of_val(options, parts, tree, raw, capsys):
    assert_one_error(capsys, convert(tree, *options), *parts)
    assert not raw.exists()
