import gzip
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
from written_datasets import assert_processes_agree

import nnunet_ad.conversion.writer as writer
from nnunet_ad.conversion.command_line import run
from nnunet_ad.conversion.laseg import CONVERTER, find_images

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "dataset_conversion" / "Dataset101_LASeg.py"
REAL_DATA = REPOSITORY.parent / "shared" / "data" / "LASeg"
NAME = "Dataset101_LASeg"


def convert(tree, *options):
    return run(CONVERTER, ["-i", str(tree), *map(str, options)])


def names(folder):
    return sorted(path.name.removesuffix(".nii.gz").removesuffix("_0000") for path in folder.glob("*.nii.gz"))


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def h5_file(tree, case):
    return tree / "2018LA_Seg_Training Set" / case / "mri_norm2.h5"


def replace_array(path, key, change):
    """Replace an array of an h5 file by ``change`` of it; None removes it."""
    with h5py.File(path, "r+") as file:
        values = change(file[key][()])
        del file[key]
        if values is not None:
            file[key] = values


def replace_volume(path, change):
    """Replace a volume file by ``change`` of it."""
    sitk.WriteImage(change(sitk.ReadImage(str(path))), str(path), useCompression=True)


# What is written


@pytest.mark.parametrize("tree_name", ["h5_tree", "nrrd_tree"])
def test_cases_go_where_the_protocol_wants_them(tree_name, request, raw, split):
    assert convert(request.getfixturevalue(tree_name), "--labeled", 4, "--val", 16) == 0
    folder = raw / NAME
    labelled = sorted(split["train"][:4] + split["train"][-16:])
    assert names(folder / "imagesTr") == names(folder / "labelsTr") == labelled
    assert names(folder / "imagesUnlabeled") == split["train"][4:-16]
    assert names(folder / "imagesTs") == sorted(split["test"])
    expected_test_labels = [] if tree_name == "h5_tree" else sorted(split["test"][::2])
    assert names(folder / "labelsTs") == expected_test_labels
    assert [path.name for path in raw.iterdir()] == [NAME], "something temporary was left"

    (fold,) = json.loads((folder / "splits_final.json").read_text())
    assert fold == {
        "train": split["train"][:4],
        "val": split["train"][-16:],
        "unlabeled": split["train"][4:-16],
    }
    description = json.loads((folder / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "LGE-MR"}
    assert description["labels"] == {"background": 0, "left_atrium": 1}
    assert (description["numTraining"], description["file_ending"]) == (20, ".nii.gz")


@pytest.mark.parametrize("tree_name", ["h5_tree", "nrrd_tree"])
def test_several_processes_write_what_one_writes(tree_name, request, raw, shared):
    tree = request.getfixturevalue(tree_name)
    assert_processes_agree(lambda *options: convert(tree, *options), raw)


@pytest.mark.parametrize(("labeled", "count"), [("4", 4), ("8", 8), ("11", 11), ("5pct", 4), ("10pct", 8)])
def test_labelled_cases_are_the_first_of_the_public_list(labeled, count, h5_tree, raw, split, capsys):
    assert convert(h5_tree, "--labeled", labeled, "--dry-run") == 0
    listed = re.findall(r"labelsTr/(\w+)\.nii\.gz", capsys.readouterr().out)
    assert listed == split["train"][:count]


def test_without_kept_aside_cases_val_is_the_labelled_cases_and_says_so(h5_tree, raw, split):
    assert convert(h5_tree) == 0
    (fold,) = json.loads((raw / NAME / "splits_final.json").read_text())
    assert fold["train"] == fold["val"] == split["train"][:4]
    assert len(fold["unlabeled"]) == 76
    protocol = json.loads((raw / NAME / "nnunet_ad.json").read_text())["protocol"]
    assert protocol["validation"] == "the labelled cases themselves (the paper's choice)"


def test_h5_arrays_become_nifti_axes_in_their_order(h5_tree, raw, split):
    assert convert(h5_tree) == 0
    case = split["train"][0]
    with h5py.File(h5_file(h5_tree, case)) as file:
        image, label = file["image"][()], file["label"][()]
    written = sitk.ReadImage(str(raw / NAME / "imagesTr" / f"{case}_0000.nii.gz"))
    assert written.GetPixelID() == sitk.sitkFloat32
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written).T, image)
    assert written.GetSpacing() == (0.625, 0.625, 0.625)
    assert written.GetOrigin() == (0, 0, 0)
    assert written.GetDirection() == tuple(np.eye(3).ravel())
    written_label = sitk.ReadImage(str(raw / NAME / "labelsTr" / f"{case}.nii.gz"))
    assert written_label.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written_label).T, label)


def test_nrrd_keeps_voxels_and_world_coordinates(nrrd_tree, raw, split):
    assert convert(nrrd_tree) == 0
    case = split["train"][0]
    for source, target, scale in (("lgemri", f"imagesTr/{case}_0000", 1), ("laendo", f"labelsTr/{case}", 255)):
        original = sitk.ReadImage(str(nrrd_tree / "Training Set" / case / f"{source}.nrrd"))
        written = sitk.ReadImage(str(raw / NAME / f"{target}.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(written) * scale, sitk.GetArrayFromImage(original))
        for index in ((0, 0, 0), (11, 0, 3), (5, 9, 7)):
            np.testing.assert_allclose(
                written.TransformIndexToPhysicalPoint(index), original.TransformIndexToPhysicalPoint(index), atol=1e-3
            )


def test_nrrd_without_geometry_gets_the_published_spacing(nrrd_tree, raw, split):
    for path in nrrd_tree.rglob("*.nrrd"):
        replace_volume(path, lambda volume: sitk.GetImageFromArray(sitk.GetArrayFromImage(volume)))
    assert convert(nrrd_tree) == 0
    written = sitk.ReadImage(str(raw / NAME / "imagesTr" / f"{split['train'][0]}_0000.nii.gz"))
    assert written.GetSpacing() == (0.625, 0.625, 0.625)


def test_another_spacing_is_kept_and_named(nrrd_tree, raw, split, capsys):
    def stretch(volume):
        volume.SetSpacing((0.625, 0.625, 1.25))
        return volume

    case = split["train"][0]
    for path in (nrrd_tree / "Training Set" / case).iterdir():
        replace_volume(path, stretch)
    assert convert(nrrd_tree) == 0
    assert "1 of 100 files state a spacing other than 0.625 mm" in capsys.readouterr().out
    written = sitk.ReadImage(str(raw / NAME / "imagesTr" / f"{case}_0000.nii.gz"))
    assert written.GetSpacing() == pytest.approx((0.625, 0.625, 1.25))


def test_sidecar_names_source_protocol_and_domains_but_no_path_and_no_patient(nrrd_tree, raw, split, tmp_path):
    assert convert(nrrd_tree, "--val", 5) == 0
    sidecar = json.loads((raw / NAME / "nnunet_ad.json").read_text())
    assert set(sidecar["domains"]) == set(split["train"] + split["test"])
    assert set(sidecar["domains"].values()) == {"LGE-MR"}
    assert sidecar["protocol"]["validation"].startswith("kept aside")
    counts = {key: sidecar["protocol"][f"num_{key}"] for key in ("labeled", "unlabeled", "val", "test")}
    assert counts == {"labeled": 4, "unlabeled": 71, "val": 5, "test": 20}
    assert all(sidecar["provenance"].values())
    for path in (raw / NAME).rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".gz" else content
            assert str(tmp_path).encode() not in content, path
            assert b"Planted" not in content, path


@pytest.mark.parametrize("tree_name", ["h5_tree", "nrrd_tree"])
def test_two_runs_write_the_same_bytes(tree_name, request, raw):
    tree = request.getfixturevalue(tree_name)
    assert convert(tree, "--val", 16) == 0
    first = digests(raw / NAME)
    assert convert(tree, "--val", 16, "--overwrite") == 0
    assert digests(raw / NAME) == first
    assert len(first) == 3 + 100 + 20 + (0 if tree_name == "h5_tree" else 10)


def test_labels_of_unlabelled_cases_are_never_opened(h5_tree, nrrd_tree, raw, split, monkeypatch):
    for case in split["train"][4:-16]:
        (nrrd_tree / "Training Set" / case / "laendo.nrrd").write_bytes(b"not a volume")
    assert convert(nrrd_tree, "--val", 16) == 0

    opened = []
    original = h5py.File.get

    def get(file, key, *arguments):
        opened.append((Path(file.filename).parent.name, key))
        return original(file, key, *arguments)

    monkeypatch.setattr(h5py.File, "get", get)
    assert convert(h5_tree, "--val", 16, "-d", 7) == 0
    assert {case for case, key in opened if key == "label"} == set(split["train"][:4] + split["train"][-16:])


def test_input_may_be_the_folder_itself_or_contain_it(h5_tree, raw, split, tmp_path, capsys):
    listings = []
    for tree in (h5_tree, h5_tree / "2018LA_Seg_Training Set", h5_tree.parent):
        assert convert(tree, "--dry-run") == 0
        listings.append(capsys.readouterr().out)
    assert len(set(listings)) == 1


def test_deeper_folders_are_not_searched(h5_tree, split, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    h5_tree.rename(tmp_path / "a" / "b" / "c")
    with pytest.raises(ValueError, match="100 of the 100 cases"):
        find_images(tmp_path, split["train"] + split["test"])


# Dry run, overwriting, interruption


def test_dry_run_lists_exactly_what_is_written_and_writes_nothing(nrrd_tree, raw, capsys):
    assert convert(nrrd_tree, "--val", 16, "--dry-run") == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{NAME}/")]
    assert not raw.exists()
    assert convert(nrrd_tree, "--val", 16) == 0
    assert listed == sorted(f"{NAME}/{file}" for file in digests(raw / NAME))


def test_an_existing_dataset_is_kept_without_overwrite(h5_tree, raw, capsys):
    (raw / NAME).mkdir(parents=True)
    (raw / NAME / "mine.txt").write_text("mine")
    assert_one_error(capsys, convert(h5_tree), f"{NAME} already exists", "--overwrite")
    assert digests(raw).keys() == {f"{NAME}/mine.txt"}
    assert convert(h5_tree, "--dry-run") == 0
    assert "already exists" in capsys.readouterr().out
    assert convert(h5_tree, "--overwrite") == 0
    assert not (raw / NAME / "mine.txt").exists()


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_an_id_with_another_name_is_refused(variable, h5_tree, raw, tmp_path, monkeypatch, capsys):
    folder = raw if variable == "nnUNet_raw" else tmp_path / variable
    monkeypatch.setenv(variable, str(folder))
    (folder / "Dataset101_Other").mkdir(parents=True)
    assert_one_error(capsys, convert(h5_tree, "--overwrite"), "Dataset101_Other", "-d")
    assert not (raw / NAME).exists()
    assert convert(h5_tree, "-d", 102) == 0
    assert (raw / "Dataset102_LASeg" / "dataset.json").is_file()


class Interrupted(BaseException):
    pass


def interrupt_after(monkeypatch, num_volumes, exception):
    original = writer._write_volume

    def write(image, path, counter=iter(range(10**6))):  # noqa: B008 - one counter for all calls is meant
        if next(counter) == num_volumes:
            path.write_bytes(b"half a fi")
            raise exception
        original(image, path)

    monkeypatch.setattr(writer, "_write_volume", write)


def test_an_interrupted_run_leaves_nothing_and_a_rerun_finishes(h5_tree, raw, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 30, KeyboardInterrupt())
        assert convert(h5_tree) == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(raw.iterdir()) == []
    assert convert(h5_tree) == 0
    assert len(digests(raw / NAME)) == 107


def test_the_old_dataset_survives_an_interrupted_overwrite(h5_tree, raw, monkeypatch):
    assert convert(h5_tree) == 0
    before = digests(raw)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 30, Interrupted())
        with pytest.raises(Interrupted):
            convert(h5_tree, "--labeled", 8, "--overwrite")
    assert digests(raw) == before


@pytest.mark.parametrize("old_has_its_name", [True, False])
def test_what_a_killed_run_left_is_cleared_up(old_has_its_name, h5_tree, raw):
    partial = raw / f".{NAME}.partial" / "imagesTr"
    partial.mkdir(parents=True)
    (partial / "half.nii.gz").write_bytes(b"half")
    old = raw / (NAME if old_has_its_name else f".{NAME}.old")
    old.mkdir()
    (old / "mine.txt").write_text("mine")
    assert convert(h5_tree, "--overwrite") == 0
    assert [path.name for path in raw.iterdir()] == [NAME]
    assert len(digests(raw / NAME)) == 107


def test_two_runs_at_once_do_not_mix(h5_tree, raw, capsys):
    raw.mkdir()
    with writer._lock(raw / NAME):
        assert_one_error(capsys, convert(h5_tree), "another process is writing")
    assert convert(h5_tree) == 0


def test_stale_preprocessed_data_are_named(h5_tree, raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    (tmp_path / "preprocessed" / NAME).mkdir(parents=True)
    assert convert(h5_tree) == 0
    assert "nnUNet_preprocessed already has" in capsys.readouterr().out


# Errors: one line that names case and file, status 1, nothing left


def assert_one_error(capsys, status, *parts):
    assert status == 1
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("Dataset101_LASeg.py: error: ")]
    assert len(errors) == 1
    assert lines[-1] == errors[0], "something follows the error"
    assert "Traceback" not in "".join(lines)
    for part in parts:
        assert part in errors[0]


def set_voxel(value):
    def change(values):
        values = values.copy()
        values[1, 1, 1] = value
        return values

    return change


H5_FAULTS = {
    "no image": ("image", lambda _: None, ["'image'", "['label']"]),
    "no label": ("label", lambda _: None, ["'label'", "['image']"]),
    "four dimensions": ("image", lambda values: values[None], ["(1, 12, 10, 8)", "3-D"]),
    "empty array": ("image", lambda values: values[:0], ["(0, 10, 8)"]),
    "text": ("image", lambda _: "text", ["3-D array of numbers"]),
    "NaN": ("image", set_voxel(np.nan), ["1 NaN or infinite"]),
    "infinite": ("image", set_voxel(np.inf), ["1 NaN or infinite"]),
    "constant": ("image", np.zeros_like, ["every voxel of the image is 0"]),
    "shapes differ": ("label", lambda values: values[:, :, :7], ["12 x 10 x 7", "12 x 10 x 8"]),
    "axes swapped": ("label", lambda values: values.transpose(1, 0, 2), ["10 x 12 x 8", "12 x 10 x 8"]),
    "label 2": ("label", set_voxel(2), ["[0, 1, 2]", "[0, 1]"]),
    "label 255": ("label", lambda values: values * 255, ["[0, 255]", "[0, 1]"]),
    "label 0.5": ("label", lambda values: values * 0.5, ["[0, 0.5]", "[0, 1]"]),
    "label NaN": ("label", lambda values: np.where(values, np.nan, 0), ["nan", "[0, 1]"]),
    "label empty": ("label", np.zeros_like, ["empty"]),
}


@pytest.mark.parametrize("fault", H5_FAULTS)
def test_h5_faults(fault, h5_tree, raw, split, capsys):
    key, change, parts = H5_FAULTS[fault]
    case = split["train"][2]
    replace_array(h5_file(h5_tree, case), key, change)
    assert_one_error(
        capsys, convert(h5_tree), f"case {case}, file 2018LA_Seg_Training Set/{case}/mri_norm2.h5:", *parts
    )
    assert list(raw.iterdir()) == []


@pytest.mark.parametrize("role", ["train", "test"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_truncated_h5(keep, role, h5_tree, raw, split, capsys):
    case = split[role][1]
    content = h5_file(h5_tree, case).read_bytes()
    h5_file(h5_tree, case).write_bytes(content[: int(len(content) * keep)])
    assert_one_error(capsys, convert(h5_tree), case, "truncated")
    assert not (raw / NAME).exists()


def test_damaged_h5_array(h5_tree, raw, split, capsys):
    path = h5_file(h5_tree, split["train"][1])
    with h5py.File(path) as file:
        chunk = file["image"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + 100] ^= 0xFF
    path.write_bytes(content)
    assert_one_error(capsys, convert(h5_tree), split["train"][1], "cannot be read")


def with_spacing(volume):
    volume.SetSpacing((0.7, 0.625, 0.625))
    return volume


NRRD_FAULTS = {
    "label codes": ("laendo", lambda volume: volume // 255, ["[0, 1]", "[0, 255]"]),
    "other label": ("laendo", lambda volume: volume - sitk.Cast(volume > 0, sitk.sitkUInt8), ["[0, 254]", "[0, 255]"]),
    "shapes differ": ("laendo", lambda volume: volume[:, :, :7], ["12 x 10 x 7", "12 x 10 x 8"]),
    "geometry differs": ("laendo", with_spacing, ["spacing [0.7, 0.625, 0.625]", "Training Set", "lgemri.nrrd"]),
    "flipped": ("laendo", lambda volume: volume[::-1], ["origin"]),
    "flat": ("lgemri", lambda volume: volume[:, :, 3], ["2 dimensions", "3-D"]),
    "several channels": ("lgemri", lambda volume: sitk.Compose(volume, volume), ["2 value(s) a voxel"]),
}


@pytest.mark.parametrize("fault", NRRD_FAULTS)
def test_nrrd_faults(fault, nrrd_tree, raw, split, capsys):
    name, change, parts = NRRD_FAULTS[fault]
    case = split["train"][2]
    path = nrrd_tree / "Training Set" / case / f"{name}.nrrd"
    replace_volume(path, change)
    assert_one_error(capsys, convert(nrrd_tree), f"case {case}, file Training Set/{case}/{name}.nrrd:", *parts)
    assert list(raw.iterdir()) == []


@pytest.mark.parametrize("name", ["lgemri", "laendo"])
def test_truncated_nrrd(name, nrrd_tree, raw, split, capsys):
    path = nrrd_tree / "Training Set" / split["train"][2] / f"{name}.nrrd"
    path.write_bytes(path.read_bytes()[:-60])
    assert_one_error(capsys, convert(nrrd_tree), split["train"][2], f"{name}.nrrd", "truncated")


def test_missing_nrrd_label(nrrd_tree, raw, split, capsys):
    (nrrd_tree / "Training Set" / split["train"][2] / "laendo.nrrd").unlink()
    assert_one_error(capsys, convert(nrrd_tree), split["train"][2], "laendo.nrrd", "no such file")


def test_missing_cases(h5_tree, raw, split, capsys):
    for case in split["train"][10:15]:
        h5_file(h5_tree, case).unlink()
    assert_one_error(capsys, convert(h5_tree), "5 of the 100 cases", *split["train"][10:13], "mri_norm2.h5")
    assert not raw.exists()


def test_a_case_found_twice(h5_tree, raw, split, capsys):
    case = split["train"][0]
    (h5_tree / "copy" / case).mkdir(parents=True)
    (h5_tree / "copy" / case / "mri_norm2.h5").write_bytes(h5_file(h5_tree, case).read_bytes())
    assert_one_error(capsys, convert(h5_tree), case, "more than once", "copy")


def test_mixed_layouts(h5_tree, raw, split, capsys):
    h5_file(h5_tree, split["train"][0]).rename(h5_file(h5_tree, split["train"][0]).with_name("lgemri.nrrd"))
    assert_one_error(capsys, convert(h5_tree), "99 cases have a mri_norm2.h5 and 1 a lgemri.nrrd")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--labeled", 0], "at least 1"),
        (["--labeled", 81], "80 cases"),
        (["--val", 77], "80 cases"),
        (["--val", -1], "0 or more"),
    ],
)
def test_impossible_numbers_of_cases(options, part, h5_tree, raw, capsys):
    assert_one_error(capsys, convert(h5_tree, *options), part)


def test_missing_input_folder(raw, tmp_path, capsys):
    assert_one_error(capsys, convert(tmp_path / "nowhere"), "nowhere", "-i")


def test_unset_raw_folder(h5_tree, raw, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_raw")
    assert_one_error(capsys, convert(h5_tree), "nnUNet_raw is not set")


@pytest.mark.parametrize("option", [("--labeled", "many"), ("-d", "0"), ("-d", "1000"), ("-d", "x")])
def test_wrong_arguments(option, h5_tree, raw, capsys):
    with pytest.raises(SystemExit) as exit_info:
        convert(h5_tree, *option)
    assert exit_info.value.code == 2
    assert repr(option[1]) in capsys.readouterr().err


# The script, and real data


def test_the_script_prints_help_and_errors_without_a_traceback(h5_tree, raw, split):
    result = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True)
    for part in ("mri_norm2.h5", "lgemri.nrrd", "laendo.nrrd", "--dry-run", "--overwrite", "--labeled", "--val"):
        assert part in result.stdout
    h5_file(h5_tree, split["train"][0]).write_bytes(b"")
    result = subprocess.run([sys.executable, SCRIPT, "-i", h5_tree], capture_output=True, text=True)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Dataset101_LASeg.py: error: case 06SR5RBREL16DQ6M8LWS")


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the real LASeg data are not beside the repository")
def test_real_data_plan(raw, capsys):
    assert convert(REAL_DATA, "--labeled", 4, "--val", 16, "--dry-run") == 0
    listed = capsys.readouterr().out
    for folder, count in (
        ("imagesTr", 20),
        ("labelsTr", 20),
        ("imagesUnlabeled", 60),
        ("imagesTs", 20),
        ("labelsTs", 0),
    ):
        assert listed.count(f"{NAME}/{folder}/") == count


@pytest.mark.slow
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the real LASeg data are not beside the repository")
def test_real_data(raw, split):
    assert convert(REAL_DATA, "--labeled", 4, "--val", 16) == 0
    counts = {folder.name: len(list(folder.iterdir())) for folder in (raw / NAME).iterdir() if folder.is_dir()}
    assert counts == {"imagesTr": 20, "labelsTr": 20, "imagesUnlabeled": 60, "imagesTs": 20}
    label = sitk.ReadImage(str(raw / NAME / "labelsTr" / f"{split['train'][0]}.nii.gz"))
    assert label.GetSize() == (183, 140, 88)
    assert set(np.unique(sitk.GetArrayViewFromImage(label))) == {0, 1}
