import re
import shutil

import numpy as np
import pytest
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
    voxels,
)

from nnunet_ad.conversion.command_line import build_parser, run
from nnunet_ad.conversion.synapse import CONVERTER, LABELS
from nnunet_ad.testing.benchmark_trees.synapse import IDS, LAYOUTS, write_synapse_tree

NAME = "Dataset102_Synapse"
LABELED, PUBLIC_VAL = ["0009", "0021", "0025", "0034"], ["0001", "0007", "0023", "0030"]
TEST = ["0008", "0027", "0029", "0033", "0037", "0039"]
UNLABELED = sorted(set(IDS) - {*LABELED, *PUBLIC_VAL, *TEST})


def convert(tree, *options):
    return run(CONVERTER, ["-i", str(tree), *map(str, options)])


@pytest.fixture(scope="session")
def pristine_synapse(tmp_path_factory):
    root = tmp_path_factory.mktemp("synapse")
    for layout in LAYOUTS:
        write_synapse_tree(root / layout, layout=layout)
    return root


@pytest.fixture
def tree(pristine_synapse, tmp_path):
    return shutil.copytree(pristine_synapse / "RawData", tmp_path / "RawData input")


@pytest.fixture
def other_tree(pristine_synapse, tmp_path):
    return shutil.copytree(pristine_synapse / "imagesTr", tmp_path / "imagesTr input")


def image(tree, case):
    return tree / "RawData" / "Training" / "img" / f"img{case}.nii.gz"


def label(tree, case):
    return tree / "RawData" / "Training" / "label" / f"label{case}.nii.gz"


# What is written


def test_several_processes_write_what_one_writes(tree, raw, shared):
    assert_processes_agree(lambda *options: convert(tree, *options), raw)


@pytest.mark.parametrize("tree_name", ["tree", "other_tree"])
def test_cases_go_where_the_public_lists_want_them(tree_name, request, raw):
    assert convert(request.getfixturevalue(tree_name)) == 0
    folder = raw / NAME
    assert names(folder / "imagesTr") == names(folder / "labelsTr") == LABELED
    assert names(folder / "imagesUnlabeled") == UNLABELED
    assert names(folder / "imagesTs") == names(folder / "labelsTs") == TEST
    assert (len(LABELED), len(UNLABELED), len(TEST)) == (4, 16, 6)
    assert [path.name for path in raw.iterdir()] == [NAME]

    assert read_json(folder / "splits_final.json") == [{"train": LABELED, "val": LABELED, "unlabeled": UNLABELED}]
    description = read_json(folder / "dataset.json")
    assert description["channel_names"] == {"0": "CT"}
    assert list(description["labels"].items()) == list(LABELS.items())
    assert list(LABELS.values()) == list(range(14))
    sidecar = read_json(folder / "nnunet_ad.json")
    assert sidecar["domains"] == dict.fromkeys(sorted({*LABELED, *UNLABELED, *TEST}), "CT")
    assert sidecar["protocol"] == {
        "setting": "class-imbalanced semi-supervised",
        "num_labeled": 4,
        "num_unlabeled": 16,
        "num_val": 4,
        "num_test": 6,
        "validation": "the labelled cases themselves (the paper's choice)",
    }


def test_public_val_cases_are_left_out_and_named_by_default(tree, raw):
    for case in PUBLIC_VAL:
        image(tree, case).unlink()
        label(tree, case).unlink()
    assert convert(tree) == 0
    assert not [file for file in digests(raw) if any(case in file for case in PUBLIC_VAL)]
    notes = read_json(raw / NAME / "nnunet_ad.json")["notes"]
    assert any("sees the 4 labelled cases only" in note for note in notes)
    assert any("0001, 0007, 0023, 0030 are left out" in note for note in notes)


def test_public_val_cases_on_request_are_said_to_be_seen_by_the_fingerprint(tree, raw):
    assert convert(tree, "--val-cases") == 0
    folder = raw / NAME
    assert names(folder / "imagesTr") == names(folder / "labelsTr") == sorted(LABELED + PUBLIC_VAL)
    assert read_json(folder / "splits_final.json") == [{"train": LABELED, "val": PUBLIC_VAL, "unlabeled": UNLABELED}]
    sidecar = read_json(folder / "nnunet_ad.json")
    assert sidecar["protocol"]["validation"].startswith("kept aside")
    assert "fingerprint" in sidecar["notes"][0]
    assert "saw images and labels of the 4 kept-aside cases, too: 0001, 0007, 0023, 0030" in sidecar["notes"][0]
    assert not any("left out" in note for note in sidecar["notes"])


def test_kept_aside_cases_are_the_last_unlabelled_ones_and_said_to_be_seen(tree, raw):
    assert convert(tree, "--val", 3) == 0
    folder = raw / NAME
    kept_aside = ["0036", "0038", "0040"]
    assert names(folder / "imagesTr") == sorted(LABELED + kept_aside)
    assert names(folder / "imagesUnlabeled") == UNLABELED[:-3]
    assert read_json(folder / "splits_final.json")[0]["val"] == kept_aside
    sidecar = read_json(folder / "nnunet_ad.json")
    assert sidecar["protocol"]["num_val"] == 3
    assert "saw images and labels of the 3 kept-aside cases, too: 0036, 0038, 0040" in sidecar["notes"][0]


@pytest.mark.parametrize("tree_name", ["tree", "other_tree"])
def test_voxels_values_and_world_coordinates_are_kept(tree_name, request, raw):
    tree = request.getfixturevalue(tree_name)
    assert convert(tree) == 0
    for case in LABELED + TEST:
        role = "Tr" if case in LABELED else "Ts"
        source = next(path for path in tree.rglob(f"label{case}.nii.gz"))
        assert_same_places(
            source, raw / NAME / f"labels{role}" / f"{case}.nii.gz", {value: value for value in range(1, 14)}
        )
    for case in LABELED + UNLABELED + TEST:
        (written,) = (raw / NAME).glob(f"images*/{case}_0000.nii.gz")
        assert_same_image(next(tree.rglob(f"img{case}.nii.gz")), written)


def test_both_layouts_give_the_same_dataset(tree, other_tree, raw):
    assert convert(tree) == 0
    first = digests(raw)
    assert convert(other_tree, "--overwrite") == 0
    assert digests(raw) == first
    assert len(first) == 3 + 4 * 2 + 16 + 6 * 2


def test_input_may_be_the_shared_folder_or_lie_above_it(tree, tmp_path, raw, capsys):
    (tmp_path / "a").mkdir()
    tree.rename(tmp_path / "a" / "tree")
    listings = []
    for above in ("a", "a/tree", "a/tree/RawData", "a/tree/RawData/Training"):
        assert convert(tmp_path / above, "--dry-run") == 0
        listings.append(capsys.readouterr().out)
    assert len(set(listings)) == 1


def test_nnunet_finds_no_fault(tree, raw):
    assert convert(tree, "--val-cases") == 0
    assert_verified(raw / NAME)


def test_labels_of_unlabelled_cases_are_never_opened(tree, raw):
    for case in UNLABELED:
        label(tree, case).write_bytes(b"not a volume")
    label(tree, UNLABELED[0]).unlink()
    label(tree, UNLABELED[1]).unlink()
    label(tree, UNLABELED[1]).mkdir()
    assert convert(tree) == 0
    assert len(names(raw / NAME / "imagesUnlabeled")) == 16


def test_no_path_and_no_note_of_the_source_is_written(tree, raw, tmp_path):
    for path in (image(tree, "0009"), label(tree, "0009"), image(tree, "0002")):
        plant_note(path, "Planted^Name")
    assert convert(tree) == 0
    assert_nowhere(raw / NAME, "Planted", str(tmp_path))


def test_dry_run_lists_exactly_what_is_written_and_writes_nothing(tree, raw, capsys):
    assert convert(tree, "--val-cases", "--dry-run") == 0
    listed = re.findall(rf"^{NAME}/(.*)$", capsys.readouterr().out, re.MULTILINE)
    assert not raw.exists()
    assert convert(tree, "--val-cases") == 0
    assert listed == sorted(digests(raw / NAME))


def test_an_existing_dataset_is_kept_without_overwrite(tree, raw, capsys):
    (raw / NAME).mkdir(parents=True)
    assert_one_error(capsys, convert(tree), f"{NAME} already exists", "--overwrite")
    assert digests(raw) == {}


def test_made_trees_are_seeded_and_have_every_structure(tree, tmp_path):
    again = digests(write_synapse_tree(tmp_path / "again"))
    assert again == digests(tree)
    assert len(again) == 2 * 30 + 1
    other = digests(write_synapse_tree(tmp_path / "other", seed=1))
    assert again.keys() == other.keys()
    assert not set(again.values()) & set(other.values())
    for case in IDS:
        assert set(np.unique(voxels(label(tree, case))[0])) == set(range(14))
    with pytest.raises(ValueError, match="at least 8 voxels"):
        write_synapse_tree(tmp_path / "small", shape=(7, 8, 8))


def test_help_names_the_default_id():
    assert "default: 102" in build_parser(CONVERTER).format_help()


# Errors: one line, status 1, nothing written


@pytest.mark.parametrize(("kind", "case"), [("img", "0009"), ("label", "0033")])
@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_damaged_files(fault, kind, case, tree, raw, capsys):
    damage, parts = FILE_FAULTS[fault]
    damage(image(tree, case) if kind == "img" else label(tree, case))
    assert_one_error(capsys, convert(tree), f"case {case}, file RawData/Training/", f"{case}.nii.gz:", *parts)
    assert list(raw.iterdir()) == []


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_unusable_images(fault, tree, raw, capsys):
    change, parts = IMAGE_FAULTS[fault]
    change_voxels(image(tree, "0002"), change)
    assert_one_error(capsys, convert(tree), "case 0002, file RawData/Training/img/img0002.nii.gz:", *parts)
    assert list(raw.iterdir()) == []


LABEL_FAULTS = {
    "unknown value": (lambda values: np.where(values > 1, values + 12, values), ["[0, 1, 14,", "[0, 1, 2,"]),
    "negative value": (lambda values: values.astype(np.int16) - 1, ["[-1, 0,"]),
    "fraction": (lambda values: values * 0.5, ["0.5"]),
    "NaN": (lambda values: np.where(values == 3, np.nan, values), ["NaN or infinite"]),
    "empty": (np.zeros_like, ["empty"]),
}


@pytest.mark.parametrize("fault", LABEL_FAULTS)
def test_unusable_labels(fault, tree, raw, capsys):
    change, parts = LABEL_FAULTS[fault]
    change_voxels(label(tree, "0021"), change)
    assert_one_error(capsys, convert(tree), "case 0021, file RawData/Training/label/label0021.nii.gz:", *parts)
    assert list(raw.iterdir()) == []


def test_missing_images(tree, raw, capsys):
    for case in ("0025", "0040", "0039"):
        image(tree, case).unlink()
    assert_one_error(
        capsys, convert(tree), "3 of the 26 cases", "0025, 0039, 0040", "img/imgNNNN.nii.gz or imagesTr/imgNNNN.nii.gz"
    )
    assert not raw.exists()


@pytest.mark.parametrize("case", ["0034", "0008"])
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_a_missing_label_is_found_before_anything_is_read(case, dry_run, tree, raw, capsys):
    label(tree, case).unlink()
    assert_one_error(
        capsys,
        convert(tree, *dry_run),
        f"case {case}, file RawData/Training/label/label{case}.nii.gz: there is no such file",
    )
    assert not raw.exists()


def test_public_val_cases_are_needed_where_they_are_used(tree, raw, capsys):
    image(tree, "0023").unlink()
    assert_one_error(capsys, convert(tree, "--val-cases"), "1 of the 30 cases", "0023")


def test_a_case_found_twice(tree, raw, capsys):
    copy = tree / "copy" / "img" / "img0009.nii.gz"
    copy.parent.mkdir(parents=True)
    shutil.copy(image(tree, "0009"), copy)
    assert_one_error(
        capsys, convert(tree), "case 0009", "RawData/Training/img/img0009.nii.gz and copy/img/img0009.nii.gz"
    )
    assert not raw.exists()


def test_mixed_layouts(tree, other_tree, raw, capsys):
    for folder in ("imagesTr", "labelsTr"):
        (tree / folder).mkdir()
    for case in ("0021", "0022"):
        (other_tree / f"imagesTr/img{case}.nii.gz").rename(tree / f"imagesTr/img{case}.nii.gz")
        (other_tree / f"labelsTr/label{case}.nii.gz").rename(tree / f"labelsTr/label{case}.nii.gz")
        image(tree, case).unlink()
    assert_one_error(capsys, convert(tree), "24 cases", "img/imgNNNN.nii.gz", "2 as imagesTr/imgNNNN.nii.gz")
    assert not raw.exists()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--val", 3, "--val-cases"], ["--val 3 and --val-cases", "one of them"]),
        (["--val", 17], ["17 kept-aside", "20 cases"]),
        (["--val", -1], ["-1 kept-aside"]),
    ],
)
def test_impossible_choices_of_val(options, parts, tree, raw, capsys):
    assert_one_error(capsys, convert(tree, *options), *parts)
    assert not raw.exists()
