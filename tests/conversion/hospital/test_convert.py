"""What is written from good input."""

import csv
import gzip
import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hospital_helpers import (
    ALL_CASES,
    CASES,
    NAME,
    change,
    convert,
    files_below,
    make_arrays,
    make_volume,
    write,
    write_hospital,
    written,
)

from nnunet_ad.conversion.hospital import mapping as mapping_module
from nnunet_ad.conversion.hospital import survey as survey_module
from nnunet_ad.testing.hospital_folder import write_hospital_folder
from nnunet_ad.testing.made_dataset import write_made_dataset

REPOSITORY = Path(__file__).parents[3]
EXPECTED_FILES = sorted(
    [f"imagesTr/Liver_000{n}_0000.nii.gz" for n in (1, 2, 3, 4)]
    + [f"labelsTr/Liver_000{n}.nii.gz" for n in (1, 2, 3, 4)]
    + [f"imagesUnlabeled/Liver_000{n}_0000.nii.gz" for n in (5, 6, 7)]
    + ["imagesTs/Liver_0008_0000.nii.gz", "labelsTs/Liver_0008.nii.gz"]
    + ["dataset.json", "splits_final.json", "nnunet_ad.json", "conversion_report.html", "conversion_report.json"]
)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_cases_go_to_their_folders_with_their_voxels_and_grid(suffix, tmp_path, raw):
    root = write_hospital(tmp_path / "hospital", suffix)
    assert convert(root) == 0
    assert files_below(raw / NAME) == EXPECTED_FILES
    assert [path.name for path in raw.iterdir()] == [NAME], "something temporary was left"
    for number, case in enumerate(ALL_CASES, 1):
        folder = "Tr" if case in CASES["labeled"] else "Ts" if case in CASES["test"] else "Unlabeled"
        image, mask = make_arrays(case)
        expected = make_volume(image, case)
        found = written(raw, f"images{folder}/Liver_{number:04d}_0000.nii.gz")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found), image)
        np.testing.assert_allclose(found.GetOrigin(), expected.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(found.GetSpacing(), expected.GetSpacing(), atol=1e-6)
        np.testing.assert_allclose(found.GetDirection(), expected.GetDirection(), atol=1e-6)
        if folder != "Unlabeled":
            label = written(raw, f"labels{folder}/Liver_{number:04d}.nii.gz")
            np.testing.assert_array_equal(sitk.GetArrayFromImage(label), mask)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_endings_in_upper_case(suffix, hospital, raw):
    for path in sorted(hospital.rglob("*.nii.gz")):
        other = write(sitk.ReadImage(str(path)), path.with_name(path.name.replace(".nii.gz", suffix)))
        other.rename(path.with_name(path.name.replace(".nii.gz", suffix.upper())))
        path.unlink(missing_ok=True)
    assert convert(hospital) == 0
    found = written(raw, "imagesUnlabeled/Liver_0005_0000.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), make_arrays("eva")[0])


def test_descriptions_say_labels_channels_splits_and_domains(hospital, raw, tmp_path):
    table = tmp_path / "domains.csv"
    table.write_text("case;domain\n" + "".join(f"{case}.nii.gz;site {i % 2}\n" for i, case in enumerate(ALL_CASES)))
    assert convert(hospital, "--domains", table, "--modality", "ct") == 0
    dataset = json.loads((raw / NAME / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0, "liver": 1, "tumour": 2}
    assert dataset["channel_names"] == {"0": "CT"}
    assert dataset["numTraining"] == 4
    (fold,) = json.loads((raw / NAME / "splits_final.json").read_text())
    labelled = [f"Liver_000{n}" for n in (1, 2, 3, 4)]
    assert fold == {"train": labelled, "val": labelled, "unlabeled": [f"Liver_000{n}" for n in (5, 6, 7)]}
    sidecar = json.loads((raw / NAME / "nnunet_ad.json").read_text())
    assert sidecar["domains"] == {f"Liver_000{n}": f"site {(n - 1) % 2}" for n in range(1, 9)}
    assert sidecar["protocol"]["validation"].startswith("the labelled cases themselves")


def test_values_become_consecutive_in_the_order_of_the_list(hospital, raw):
    (hospital / "labels.json").write_text(json.dumps({"tumour": 2, "liver": [1, 7]}))
    assert convert(hospital) == 0
    label = sitk.GetArrayFromImage(written(raw, "labelsTr/Liver_0001.nii.gz"))
    mask = make_arrays("ann")[1]
    np.testing.assert_array_equal(label, np.select([mask == 2, mask == 1], [1, 2]))
    assert json.loads((raw / NAME / "dataset.json").read_text())["labels"] == {"background": 0, "tumour": 1, "liver": 2}


def test_intensities_like_those_of_ct_suggest_the_modality(hospital, raw, capsys):
    words = "note: intensities look like Hounsfield units; if the images are CT, convert again with --modality CT"
    for path in hospital.rglob("images/*"):
        change(path, lambda volume: volume - 1024)
    assert convert(hospital, "--accept-outliers") == 0
    assert words in capsys.readouterr().out
    assert convert(hospital, "--accept-outliers", "--modality", "CT", "--overwrite") == 0
    assert words not in capsys.readouterr().out


def test_two_runs_write_the_same_bytes(hospital, raw):
    def contents():
        return {file: (raw / NAME / file).read_bytes() for file in files_below(raw / NAME)}

    assert convert(hospital) == 0
    first = contents()
    assert convert(hospital, "--overwrite") == 0
    assert contents() == first


def test_dry_run_lists_exactly_what_is_written_and_writes_nothing(hospital, raw, tmp_path, capsys):
    mapping = tmp_path / "mapping.csv"
    assert convert(hospital, "--dry-run", "--mapping", mapping, "--report", tmp_path / "report") == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if line.startswith(NAME)]
    assert not raw.exists() and not mapping.exists() and not (tmp_path / "report").exists()
    assert convert(hospital, "--report", tmp_path / "report") == 0
    assert listed == [f"{NAME}/{file}" for file in files_below(raw / NAME)]
    assert files_below(tmp_path / "report") == ["conversion_report.html", "conversion_report.json"]


def test_dry_run_draws_no_pictures(hospital, raw, tmp_path, monkeypatch):
    monkeypatch.setattr(survey_module, "draw_thumbnail", lambda *_: pytest.fail("nobody would see it"))
    assert convert(hospital, "--dry-run", "--report", tmp_path / "report") == 0


def test_an_existing_dataset_is_kept_without_overwrite(hospital, raw, capsys):
    (raw / NAME).mkdir(parents=True)
    (raw / NAME / "mine.txt").write_text("mine")
    assert convert(hospital) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert convert(hospital, "--dry-run") == 0
    assert f"but {NAME} already exists in nnUNet_raw; add --overwrite" in capsys.readouterr().out
    assert files_below(raw) == [f"{NAME}/mine.txt"]
    assert convert(hospital, "--overwrite") == 0
    assert files_below(raw / NAME) == EXPECTED_FILES


def test_the_script_runs_and_its_help_draws_the_layouts(hospital, raw):
    script = [sys.executable, str(REPOSITORY / "scripts" / "convert_hospital_data.py")]
    assert "DIR/masks/<case>.nii.gz" in subprocess.run([*script, "--help"], capture_output=True, text=True).stdout
    command = [*script, "-d", "501", "-n", "Liver", "--labeled", str(hospital / "labeled")]
    result = subprocess.run([*command, "--labels", str(hospital / "labels.json")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "note: there are no unlabelled cases" in result.stdout
    assert "4 labelled, 0 unlabelled, 0 test cases" in result.stdout


def test_made_folder_becomes_the_made_dataset(tmp_path, raw):
    numbers = {"num_labeled": 2, "num_unlabeled": 2, "num_test": 2, "shape": (18, 20, 16), "num_channels": 2}
    made = write_made_dataset(tmp_path / "made", seed=3, **numbers)
    root = write_hospital_folder(tmp_path / "hospital", seed=3, **numbers)
    assert convert(root, "--channels", "MR0", "MR1", "--domains", root / "domains.csv") == 0
    for folder in ("imagesTr", "imagesUnlabeled", "imagesTs", "labelsTr", "labelsTs"):
        pairs = list(zip(sorted((made / folder).iterdir()), sorted((raw / NAME / folder).iterdir()), strict=True))
        assert len(pairs) == 2 * (1 + folder.startswith("images"))
        for mine, theirs in pairs:
            expected, found = sitk.ReadImage(str(mine)), sitk.ReadImage(str(theirs))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(expected))
            np.testing.assert_allclose(found.GetDirection(), expected.GetDirection(), atol=1e-6)
    dataset = json.loads((raw / NAME / "dataset.json").read_text())
    assert dataset["channel_names"] == {"0": "MR0", "1": "MR1"}
    expected_domains = json.loads((made / "nnunet_ad.json").read_text())["domains"].values()
    assert list(json.loads((raw / NAME / "nnunet_ad.json").read_text())["domains"].values()) == list(expected_domains)


def test_nnunet_plans_and_preprocesses_the_result(tmp_path, monkeypatch):
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments

    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
        (tmp_path / name).mkdir()
    root = write_hospital_folder(
        tmp_path / "hospital", seed=0, num_labeled=2, num_unlabeled=1, num_test=0, shape=(18, 20, 16)
    )
    (root / "test").rmdir()
    assert convert(root) == 0
    extract_fingerprints([501], num_processes=1, check_dataset_integrity=True)
    plan_experiments([501])
    assert (tmp_path / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json").is_file()


# Geometry


def _centroid(label):
    indices = np.argwhere(sitk.GetArrayFromImage(label) > 0)[:, ::-1].mean(axis=0)
    return np.array(label.TransformContinuousIndexToPhysicalPoint(indices.tolist()))


def _directions():
    angles = (0.4, -0.3, 0.2)
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        plane = np.eye(3)
        plane[[first, first, second, second], [first, second, first, second]] = (
            np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle),
        )  # fmt: skip
        rotation = rotation @ plane
    permuted = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    return {"oblique": rotation, "flipped": np.diag([-1, 1, -1]), "mirrored": np.diag([1, -1, 1]), "sagittal": permuted}


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("reorient", [(), ("--reorient", "LPS"), ("--reorient", "PIR")])
@pytest.mark.parametrize("name", list(_directions()))
def test_structures_stay_where_they_are_in_the_body(name, reorient, suffix, tmp_path, raw):
    direction = tuple(_directions()[name].ravel().tolist())
    originals = []
    for case in CASES["labeled"][:2]:
        image, mask = (make_volume(each, case, (0.41, 0.73, 4.2), direction) for each in make_arrays(case))
        write(image, tmp_path / "hospital" / "labeled" / "images" / f"{case}{suffix}")
        write(mask, tmp_path / "hospital" / "labeled" / "masks" / f"{case}{suffix}")
        originals.append((image, mask))
    (tmp_path / "hospital" / "labels.json").write_text('{"liver": 1, "tumour": 2}')
    assert convert(tmp_path / "hospital", *reorient) == 0
    for number, (image, mask) in enumerate(originals, 1):
        new_mask = written(raw, f"labelsTr/Liver_000{number}.nii.gz")
        new_image = written(raw, f"imagesTr/Liver_000{number}_0000.nii.gz")
        assert np.linalg.norm(_centroid(new_mask) - _centroid(mask)) < 1e-3
        for voxel in ((0, 0, 0), (11, 2, 7), (5, 13, 9)):
            place = image.TransformIndexToPhysicalPoint(voxel)
            assert new_image[new_image.TransformPhysicalPointToIndex(place)] == image[voxel]
        if reorient:
            code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(new_image.GetDirection())
            assert code == reorient[1]


# Several channels, 4-D


def _write_two_channels(
    hospital, rename=lambda case, channel: f"{case}/{channel}.nii.gz", second=lambda volume: volume
):
    for role, cases in CASES.items():
        folder = hospital / role / "images" if role != "unlabeled" else hospital / role
        for case in cases:
            image = make_volume(make_arrays(case)[0], case)
            (folder / f"{case}.nii.gz").unlink()
            write(image, folder / rename(case, "T1"))
            write(second(sitk.Cast(image, sitk.sitkFloat32) * 2 + 5), folder / rename(case, "T2"))


@pytest.mark.parametrize("pattern", ["{0}/{1}.nii.gz", "{0}/anat_{1}w_{1}.nii.gz", "{0}_{1}.nii.gz"])
def test_channels_are_told_apart_by_a_word_of_the_file_name(pattern, hospital, raw):
    _write_two_channels(hospital, pattern.format)
    assert convert(hospital, "--channels", "t2", "T1") == 0
    assert json.loads((raw / NAME / "dataset.json").read_text())["channel_names"] == {"0": "t2", "1": "T1"}
    image = make_arrays("eva")[0]
    for channel, expected in enumerate((2.0 * image + 5, image)):
        found = written(raw, f"imagesUnlabeled/Liver_0005_{channel:04d}.nii.gz")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found), expected)


def test_channels_are_told_apart_by_patterns(hospital, raw):
    _write_two_channels(hospital, lambda case, channel: f"{case}/{'pre' if channel == 'T1' else 'post'}.nii.gz")
    assert convert(hospital, "--channels", "T1=pre*", "T2=post*") == 0
    assert len(list((raw / NAME / "imagesTr").iterdir())) == 8


def test_channels_on_another_grid_are_resampled_if_wanted(hospital, raw):
    def coarser(volume):
        grid = sitk.Image([8, 9, 10], sitk.sitkUInt8)
        grid.SetOrigin(volume.GetOrigin())
        grid.SetSpacing((1.1, 1.3, 2.5))
        grid.SetDirection(volume.GetDirection())
        return sitk.Resample(volume, grid, sitk.Transform(), sitk.sitkLinear)

    _write_two_channels(hospital, second=coarser)
    assert convert(hospital, "--channels", "T1", "T2") == 1
    assert convert(hospital, "--channels", "T1", "T2", "--resample-channels") == 0
    first, second = (written(raw, f"imagesTr/Liver_0001_000{channel}.nii.gz") for channel in (0, 1))
    assert first.GetSize() == second.GetSize()
    assert first.GetOrigin() == second.GetOrigin()


def test_channels_that_do_not_overlap_are_told(hospital, raw, refused):
    def far_away(volume):
        volume.SetOrigin((900, 900, 900))
        return volume

    _write_two_channels(hospital, second=far_away)
    status = convert(hospital, "--channels", "T1", "T2", "--resample-channels")
    refused(status, "Liver_0001", "image of channel T2: the image does not overlap the first channel", "right partner")


@pytest.mark.parametrize(("frames", "expected"), [(["0"], [0]), (["2", "0"], [2, 0]), (["all"], [0, 1, 2])])
def test_frames_of_4d_files_become_cases(frames, expected, hospital, raw):
    for path in (hospital / "unlabeled").iterdir():
        change(path, lambda volume: sitk.JoinSeries([volume + 10 * i for i in range(3)], 0.0, 1.0))
    assert convert(hospital, "--frames", *frames) == 0
    names = [path.name for path in sorted((raw / NAME / "imagesUnlabeled").iterdir())]
    assert len(names) == 3 * len(expected)
    for name, frame in zip(names, expected, strict=False):
        found = written(raw, f"imagesUnlabeled/{name}")
        assert found.GetDimension() == 3
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found), make_arrays("eva")[0] + 10 * frame)
        np.testing.assert_allclose(found.GetOrigin(), make_volume(make_arrays("eva")[0], "eva").GetOrigin(), atol=1e-4)


def test_a_3d_mask_belongs_to_the_volume_that_was_chosen(hospital, raw, refused):
    for path in (hospital / "labeled" / "images").iterdir():
        change(path, lambda volume: sitk.JoinSeries([volume + 10 * i for i in range(3)], 0.0, 1.0))
    for frames in (("all",), (0, 2)):
        words = f"the mask is one volume, but {3 if frames == ('all',) else 2} volumes of the image become cases"
        refused(convert(hospital, "--frames", *frames), "Liver_0001", words, "as by --frames 0")
    assert convert(hospital, "--frames", 2) == 0
    found = (
        written(raw, f"{folder}/Liver_0001{end}.nii.gz") for folder, end in (("imagesTr", "_0000"), ("labelsTr", ""))
    )
    image, label = map(sitk.GetArrayFromImage, found)
    np.testing.assert_array_equal(image, make_arrays("ann")[0] + 20)
    np.testing.assert_array_equal(label, make_arrays("ann")[1])


def test_channels_with_other_numbers_of_volumes_are_told(hospital, raw, refused):
    for case in ("ann_T1", "ann_T2"):
        write(make_volume(make_arrays("ann")[0] + len(case), "ann"), hospital / "labeled" / f"{case}.nii.gz")
    folder = hospital / "unlabeled"
    for case in CASES["unlabeled"]:
        shutil.copy(folder / f"{case}.nii.gz", folder / f"{case}_T1.nii.gz")
        change(folder / f"{case}.nii.gz", lambda volume: sitk.JoinSeries([volume, volume + 1], 0.0, 1.0))
        (folder / f"{case}.nii.gz").rename(folder / f"{case}_T2.nii.gz")
    words = "the channels' files have 1, 2 volumes, expected as many in each"
    refused(convert(hospital, "--channels", "T1", "T2", "--frames", "all"), "(unlabeled 1 of 3), files", words)
    refused(convert(hospital, "--channels", "T1", "T2", "--frames", 1), "(unlabeled 1 of 3, frame 1)", "hence no 1")
    assert convert(hospital, "--channels", "T1", "T2", "--frames", 0, "--skip-bad") == 1, "no labelled case is good"


def test_a_4d_file_with_a_single_volume_is_one(hospital, raw):
    change(hospital / "unlabeled" / "eva.nii.gz", lambda volume: sitk.JoinSeries([volume], 0.0, 1.0))
    assert convert(hospital) == 0
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(written(raw, "imagesUnlabeled/Liver_0005_0000.nii.gz")), make_arrays("eva")[0]
    )


# Mapping


def test_mapping_is_for_the_owner_only_and_lies_outside(hospital, raw, tmp_path, capsys):
    mapping = tmp_path / "mapping.csv"
    assert convert(hospital, "--mapping", mapping) == 0
    assert stat.S_IMODE(mapping.stat().st_mode) == 0o600
    rows = list(csv.DictReader(mapping.read_text().splitlines()))
    assert [(row["case"], row["role"], row["found_as"]) for row in rows] == [
        (f"Liver_{number:04d}", role, case)
        for number, (role, case) in enumerate(((role, case) for role in CASES for case in CASES[role]), 1)
    ]
    assert rows[0]["files"].split(" | ") == [
        str(hospital / "labeled" / folder / "ann.nii.gz") for folder in ("images", "masks")
    ]
    assert convert(hospital, "--mapping", mapping, "-d", 502) == 1
    assert "--mapping: the file exists" in capsys.readouterr().err
    (raw / NAME).mkdir(exist_ok=True)
    for inside in (raw / "mapping.csv", raw / NAME / "mapping.csv", tmp_path / "x" / ".." / raw.name / "mapping.csv"):
        assert convert(hospital, "--mapping", inside, "--overwrite") == 1
        assert "--mapping: the file would lie inside" in capsys.readouterr().err


def names_in(mapping):
    rows = csv.DictReader(mapping.read_text().splitlines())
    return {f"{row['found_as']} {row['frame']}".strip(): row["case"] for row in rows}


def test_cases_keep_the_names_of_an_earlier_mapping(hospital, raw, tmp_path):
    mapping = tmp_path / "mapping.csv"
    assert convert(hospital, "--mapping", mapping) == 0
    first = names_in(mapping)
    write(make_volume(make_arrays("ann")[0] + 1, "ann"), hospital / "unlabeled" / "abe.nii.gz")
    (hospital / "unlabeled" / "fay.nii.gz").rename(hospital / "labeled" / "images" / "fay.nii.gz")
    write(make_volume(make_arrays("fay")[1], "fay"), hospital / "labeled" / "masks" / "fay.nii.gz")
    for kind in ("images", "masks"):
        (hospital / "labeled" / kind / "bob.nii.gz").unlink()
    report = tmp_path / "report"
    assert convert(hospital, "--mapping", mapping, "--overwrite", "--report", report) == 0
    expected = first | {"abe": "Liver_0009"}
    assert names_in(mapping) == expected
    assert "Liver_0002,gone,bob," in mapping.read_text()
    assert len({*expected.values()}) == 9
    labelled = {path.name.removesuffix(".nii.gz") for path in (raw / NAME / "labelsTr").iterdir()}
    assert labelled == {expected[case] for case in ("ann", "cid", "dan", "fay")}
    label = written(raw, f"labelsTr/{first['fay']}.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), make_arrays("fay")[1])
    (fold,) = json.loads((raw / NAME / "splits_final.json").read_text())
    assert set(fold["train"]) == labelled and expected["abe"] in fold["unlabeled"]
    before = mapping.read_bytes()
    assert convert(hospital, "--mapping", mapping, "--overwrite") == 0
    assert mapping.read_bytes() == before
    assert convert(hospital, "--overwrite") == 0
    assert (raw / NAME / "imagesUnlabeled" / "Liver_0005_0000.nii.gz").exists(), "numbered anew without a mapping"


def test_images_that_did_not_change_keep_their_time_of_writing(hospital, raw, tmp_path):
    """By size and time preprocessing knows which unlabelled cases are as before."""
    mapping = tmp_path / "mapping.csv"
    assert convert(hospital, "--mapping", mapping) == 0
    names, folder = names_in(mapping), raw / NAME / "imagesUnlabeled"
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    write(make_volume(make_arrays("fay")[0] + 1, "fay"), hospital / "unlabeled" / "fay.nii.gz")
    assert convert(hospital, "--mapping", mapping, "--overwrite") == 0
    after = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert {name for name in before if after[name] != before[name]} == {f"{names['fay']}_0000.nii.gz"}


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([-1024, 0, 3071], np.int16),
        ([-32768, 0, 32767], np.int16),
        ([-32769, 0, 1], np.float32),
        ([0, 1, 40000], np.float32),
        ([0, 1, 1e30], np.float32),
        ([0, 1, 0.5], np.float32),
    ],
)
def test_whole_numbers_are_written_in_int16(hospital, raw, values, dtype):
    array = np.resize(np.array(values, np.float32), make_arrays("ann")[0].shape)
    write(make_volume(array, "ann"), hospital / "labeled" / "images" / "ann.nii.gz")
    assert convert(hospital, "--accept-outliers") == 0
    image = sitk.GetArrayFromImage(written(raw, "imagesTr/Liver_0001_0000.nii.gz"))
    assert image.dtype == dtype
    np.testing.assert_array_equal(image, array)


def test_each_channel_is_written_in_its_own_type(hospital, raw):
    _write_two_channels(hospital, second=lambda volume: volume + 0.25)
    assert convert(hospital, "--channels", "T1", "T2") == 0
    image = make_arrays("ann")[0]
    for channel, expected in enumerate((image, (2.0 * image + 5.25).astype(np.float32))):
        found = sitk.GetArrayFromImage(written(raw, f"imagesTr/Liver_0001_{channel:04d}.nii.gz"))
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_the_name_of_a_case_that_is_gone_is_given_to_no_other(hospital, raw, tmp_path):
    mapping, last = tmp_path / "mapping.csv", hospital / "unlabeled" / "gus.nii.gz"
    assert convert(hospital, "--mapping", mapping) == 0
    first, away = names_in(mapping), tmp_path / "gus.nii.gz"
    last.rename(away)
    assert convert(hospital, "--mapping", mapping, "--overwrite") == 0
    write(make_volume(make_arrays("ann")[0] + 1, "ann"), hospital / "unlabeled" / "abe.nii.gz")
    assert convert(hospital, "--mapping", mapping, "--overwrite") == 0
    away.rename(last)
    assert convert(hospital, "--mapping", mapping, "--overwrite") == 0
    assert names_in(mapping) == first | {"abe": "Liver_0009"}
    assert "gone" not in mapping.read_text()


def test_volumes_of_4d_files_keep_the_names_of_an_earlier_mapping(hospital, raw, tmp_path):
    mapping = tmp_path / "mapping.csv"
    for path in (hospital / "unlabeled").iterdir():
        change(path, lambda volume: sitk.JoinSeries([volume + 10 * i for i in range(3)], 0.0, 1.0))
    assert convert(hospital, "--frames", 2, 0, "--mapping", mapping) == 0
    first = names_in(mapping)
    assert (first["ann"], first["eva 2"], first["eva 0"]) == ("Liver_0001", "Liver_0005", "Liver_0006")
    assert convert(hospital, "--frames", "all", "--mapping", mapping, "--overwrite") == 0
    new = {"eva 1": "Liver_0012", "fay 1": "Liver_0013", "gus 1": "Liver_0014"}
    assert names_in(mapping) == first | new
    for name, frame in ((first["eva 2"], 2), (first["eva 0"], 0), (new["eva 1"], 1)):
        found = sitk.GetArrayFromImage(written(raw, f"imagesUnlabeled/{name}_0000.nii.gz"))
        np.testing.assert_array_equal(found, make_arrays("eva")[0] + 10 * frame)


def test_earlier_mappings_that_were_changed_by_hand(hospital, raw, tmp_path, refused):
    mapping = tmp_path / "mapping.csv"
    rows = ["Liver_0020,x,hal", "Liver_0020,x,ann", "Other_0001,x,bob", "../Liver_0003,x,cid", "Liver_10,x,dan"]
    mapping.write_text("case,role,found_as,patient,files,frame\n" + "".join(f"{row},?,?,\n" for row in rows))
    assert convert(hospital, "--mapping", mapping, "--overwrite") == 0
    names = [f"Liver_{number:04d}" for number in range(21, 27)]
    cases = [case for case in ALL_CASES if case not in ("ann", "dan")]
    assert names_in(mapping) == {"ann": "Liver_0020", "dan": "Liver_10", **dict(zip(cases, names, strict=True))}
    shutil.rmtree(raw)
    for damage in (b"Liver_0001\n", b"\xff\n", b'"'):
        content = b"case,role,found_as,patient,files,frame\n" + damage
        mapping.write_bytes(content)
        refused(
            convert(hospital, "--mapping", mapping, "--overwrite"), "--mapping: the file is damaged", "name another"
        )
        assert mapping.read_bytes() == content


@pytest.mark.parametrize("file", ["labels.json", "domains.csv", "labeled/images/ann.nii.gz", "unlabeled/new.csv"])
def test_mapping_never_replaces_input(file, hospital, raw, refused):
    table = hospital / "domains.csv"
    table.write_text("case,domain\n" + "".join(f"{case},A\n" for case in ALL_CASES))
    before = {path: path.read_bytes() for path in hospital.rglob("*") if path.is_file()}
    options = ("--domains", table, "--overwrite", "--mapping", hospital / file)
    refused(convert(hospital, *options), "--mapping: ", "name another")
    assert {path: path.read_bytes() for path in hospital.rglob("*") if path.is_file()} == before


def test_mapping_replaces_only_a_mapping(hospital, raw, tmp_path, refused):
    mapping = tmp_path / "mine.csv"
    for content in (b"", b"\xff\xfe", b"case,role\n", b"precious\n"):
        mapping.write_bytes(content)
        refused(convert(hospital, "--mapping", mapping, "--overwrite"), "--mapping: the file exists and is no mapping")
        assert mapping.read_bytes() == content
    mapping.unlink()
    assert convert(hospital, "--mapping", mapping) == 0
    first = mapping.read_bytes()
    assert convert(hospital, "--mapping", mapping, "--overwrite") == 0
    assert mapping.read_bytes() == first


def test_a_mapping_with_other_ends_of_lines_or_behind_a_link_is_a_mapping(hospital, raw, tmp_path):
    mapping, link = tmp_path / "mine.csv", tmp_path / "link.csv"
    assert convert(hospital, "--mapping", mapping) == 0
    first = mapping.read_bytes()
    mapping.write_bytes(first.replace(b"\n", b"\r\n"))
    link.symlink_to(mapping)
    assert convert(hospital, "--mapping", link, "--overwrite") == 0
    assert link.is_symlink() and mapping.read_bytes() == first


def test_mapping_that_cannot_be_written_is_named(hospital, raw, tmp_path, refused, monkeypatch):
    def deny(path, *arguments):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(mapping_module.os, "open", deny)
    line = refused(convert(hospital, "--mapping", tmp_path / "m.csv"), "--mapping: the file cannot be written")
    assert "Permission denied" in line and "nnUNet_raw" not in line


@pytest.mark.parametrize("inside", ["labeled", "unlabeled", "labels.json"])
def test_input_inside_the_dataset_is_never_deleted(inside, hospital, raw, capsys):
    (raw / NAME).mkdir(parents=True)
    (hospital / inside).rename(raw / NAME / inside)
    (hospital / inside).symlink_to(raw / NAME / inside)
    before = files_below(raw)
    assert convert(hospital, "--overwrite") == 1
    option = "labels" if inside == "labels.json" else inside
    assert f"--{option}: the input lies inside {NAME} in nnUNet_raw" in capsys.readouterr().err
    assert files_below(raw) == before


def test_dataset_inside_the_input_is_refused(hospital, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(hospital / "unlabeled" / "raw"))
    assert convert(hospital, "--dry-run") == 1
    assert "--unlabeled: nnUNet_raw lies inside the folder" in capsys.readouterr().err


def test_a_linked_dataset_is_replaced_where_it_lies(hospital, raw, tmp_path, capsys):
    elsewhere, mapping = tmp_path / "large disk" / "liver", tmp_path / "m.csv"
    elsewhere.mkdir(parents=True)
    raw.mkdir()
    (elsewhere / "old").write_text("")
    (raw / NAME).symlink_to(elsewhere)
    for _ in range(2):
        assert convert(hospital, "--overwrite", "--mapping", mapping) == 0
        assert (raw / NAME).is_symlink() and [path.name for path in elsewhere.parent.iterdir()] == ["liver"]
        assert len(list((elsewhere / "imagesTr").iterdir())) == 4
        assert not (elsewhere / "old").exists() and mapping.is_file()
        assert [path.name for path in raw.iterdir()] == [NAME]
    elsewhere.rename(elsewhere.with_name("gone"))
    assert convert(hospital, "--overwrite", "--mapping", mapping) == 1
    assert f"{NAME} in nnUNet_raw is a link to a folder that is not there; make" in capsys.readouterr().err
    assert not elsewhere.exists()


def test_without_mapping_there_is_none(hospital, raw, tmp_path):
    before = set(tmp_path.rglob("*"))
    assert convert(hospital) == 0
    new = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert new and all(path.is_relative_to(raw / NAME) for path in new)


def test_mapping_is_not_written_if_the_dataset_is_not(hospital, raw, tmp_path, refused):
    (hospital / "unlabeled" / "eva.nii.gz").write_bytes(b"nothing")
    refused(convert(hospital, "--mapping", tmp_path / "mapping.csv"), "Liver_0005")
    assert not list(tmp_path.glob("*mapping*"))


# Report


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_report_that_cannot_be_written_is_told_first(name, hospital, raw, tmp_path, refused):
    (tmp_path / "file").write_text("mine")
    (hospital / "unlabeled" / "eva.nii.gz").write_bytes(b"never read")
    line = refused(convert(hospital, "--report", tmp_path / name), "error: the report cannot be written", "--report")
    assert "Liver_0005" not in line
    assert (tmp_path / "file").read_text() == "mine"


def test_report_in_the_folder_of_the_dataset_is_refused(hospital, raw, refused):
    refused(convert(hospital, "--report", raw / NAME), "--report: the folder is the dataset's")


@pytest.mark.parametrize("folder", ["labeled", "unlabeled/report"])
def test_report_among_the_cases_is_refused(folder, hospital, raw, refused):
    words = f"--report: the folder lies inside that of --{folder.split('/')[0]}"
    refused(convert(hospital, "--report", hospital / folder), words)
    assert not (hospital / "unlabeled" / "report").exists()


@pytest.mark.parametrize("options", [(), ("--report", "report")])
def test_dataset_is_called_complete_if_the_report_fails_late(options, hospital, raw, tmp_path, monkeypatch, capsys):
    def fill_disk(file, text, encoding):
        if "conversion_report.json" not in file.name:
            return write_text(file, text, encoding)
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    write_text = Path.write_text
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "write_text", fill_disk)
    assert convert(hospital, *options) == 1
    message = capsys.readouterr().err
    assert f"{NAME} is complete in nnUNet_raw, but the report cannot be written (No space" in message
    assert "name another folder with --report and add --overwrite" in message
    assert [Path(file).name for file in files_below(tmp_path) if "report" in Path(file).name] == [
        "conversion_report.html"
    ]
    assert len(list((raw / NAME / "imagesTr").iterdir())) == 4


def test_headers_hold_nothing_but_the_volume(hospital, raw):
    def with_metadata(volume):
        for key in ("descrip", "aux_file", "intent_name", "db_name", "ITK_FileNotes"):
            volume.SetMetaData(key, "PLANTED")
        return volume

    change(hospital / "labeled" / "images" / "ann.nii.gz", with_metadata)
    change(hospital / "labeled" / "masks" / "ann.nii.gz", with_metadata)
    assert convert(hospital) == 0
    for file in ("imagesTr/Liver_0001_0000.nii.gz", "labelsTr/Liver_0001.nii.gz"):
        compressed = (raw / NAME / file).read_bytes()
        assert compressed[3] == 0 and compressed[4:8] == bytes(4), "gzip states a name or a time"
        header = gzip.decompress(compressed)[:348]
        assert header[14:32] == bytes(18)  # db_name and what belongs to it
        assert header[148:252] == bytes(104), "descrip or aux_file"
        assert header[328:344] == bytes(16), "intent_name"
