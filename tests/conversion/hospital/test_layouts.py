"""How the cases of a folder are found, and which file is the mask."""

import errno
import json
import os
import shutil
import unicodedata

import numpy as np
import pytest
import SimpleITK as sitk
from hospital_helpers import ALL_CASES, CASES, NAME, change_voxels, convert, make_arrays, make_volume, write, written

from nnunet_ad.conversion.hospital import sources
from nnunet_ad.conversion.hospital.labels import Structure


def relayout(hospital, image_name, mask_name):
    """Move the labelled cases to other names below ``labeled/``."""
    folder = hospital / "labeled"
    for case in CASES["labeled"]:
        for kind, pattern in (("images", image_name), ("masks", mask_name)):
            source = folder / kind / f"{case}.nii.gz"
            write(sitk.ReadImage(str(source)), folder / pattern.format(case))
            if source != folder / pattern.format(case):
                source.unlink()
    for kind in ("images", "masks"):
        if (folder / kind).is_dir() and not any((folder / kind).iterdir()):
            (folder / kind).rmdir()


def assert_first_label(raw, expected=None):
    label = sitk.GetArrayFromImage(written(raw, "labelsTr/Liver_0001.nii.gz"))
    np.testing.assert_array_equal(label, make_arrays("ann")[1] if expected is None else expected)


@pytest.mark.parametrize(
    ("image_name", "mask_name", "options"),
    [
        ("images/{0}/mr.nii.gz", "masks/{0}.nii.gz", ()),
        ("images/{0}/mr.nii.gz", "masks/{0}/by_ms.nii.gz", ()),
        ("images/{0}.nii.gz", "masks/{0}_mask.nii.gz", ()),
        ("{0}/mr.nii.gz", "{0}/mask.nii.gz", ()),
        ("{0}/mr.nii.gz", "{0}/masks/x.nii.gz", ()),
        ("{0}/scan/mr.nii.gz", "{0}/out/{0}-Segmentation.nii.gz", ()),
        ("{0}.nii.gz", "{0}_seg.nii.gz", ()),
        ("{0}.nii.gz", "{0} label.nii.gz", ()),
        ("{0}/mr.nii.gz", "{0}/roi_1.nii.gz", ("--mask-pattern", "roi*")),
        ("{0}/mask_free_mr_seg.nii.gz", "{0}/roi.nii.gz", ("--mask-pattern", "roi.*")),
        ("{0}/mr.nii.gz", "{0}/roi.nii.gz", ("--mask-pattern", "roi.*", "--image-pattern", "mr.*")),
        ("{0}.nii.gz", "{0}_roi.nii.gz", ("--mask-pattern", "*_roi.nii.gz")),
        ("{0}.nii.gz", "by ms {0}.nii.gz", ("--mask-pattern", "by ms *")),
        ("{0}.nii.gz", "{0}_liver_roi.nii.gz", ("--mask-pattern", "*_roi*")),
        ("{0}.nii.gz", "{0}.nrrd", ("--mask-pattern", "*.nrrd")),
        ("{0}/mr.nii.gz", "{0}_roi.nii.gz", ("--mask-pattern", "*_roi.*")),
    ],
)
def test_layouts(image_name, mask_name, options, hospital, raw):
    relayout(hospital, image_name, mask_name)
    assert convert(hospital, *options) == 0
    assert len(list((raw / NAME / "labelsTr").iterdir())) == 4
    assert_first_label(raw)


def test_other_files_are_passed_over(hospital, raw):
    for file in ("labeled/images/ann.json", "labeled/README.md", "unlabeled/.DS_Store", "unlabeled/notes.txt",
                 "labeled/masks/ann.txt", "test/Thumbs.db"):  # fmt: skip
        (hospital / file).write_text("x")
    assert convert(hospital) == 0
    assert len(list((raw / NAME).glob("images*/*"))) == 8


@pytest.mark.parametrize("file", ["labeled/images/x.bak", "unlabeled/eva.nii.gz.part", "labeled/extra/a.nii.gz"])
def test_unknown_files_are_told(file, hospital, raw, refused):
    (hospital / file).parent.mkdir(exist_ok=True)
    (hospital / file).write_text("x")
    refused(convert(hospital), "1 file(s) are no NIfTI, NRRD or MHA", "convert or remove")


@pytest.mark.parametrize(
    "name", ["unlabeled/M\udcfcller.nii.gz", "unlabeled/M\udcfcller/a.dcm", "labeled/masks/\udcfc"]
)
def test_names_that_are_no_utf8(name, hospital, raw, refused):
    path = hospital / name
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    except OSError:
        pytest.skip("the file system has names in UTF-8 only")
    role = name.split("/")[0]
    line = refused(convert(hospital), f"({role} ", "files: the name of a file or folder is no valid UTF-8; rename it")
    assert "ller" not in line
    assert r"\udcfc" in refused(convert(hospital, "--show-paths"), f"({role} ", "the name of a file")
    assert convert(hospital, "--skip-bad", "--mapping", hospital.with_name("m.csv")) == 0


def test_path_of_the_input_that_is_no_utf8(hospital, raw, refused):
    try:
        hospital = hospital.rename(hospital.with_name("M\udcfcller"))
    except OSError:
        pytest.skip("the file system has names in UTF-8 only")
    assert "ller" not in refused(convert(hospital), "--labeled: the path is no valid UTF-8")


@pytest.mark.parametrize("folder", ["unlabeled", "labeled/images", "labeled/masks", "unlabeled/case"])
@pytest.mark.parametrize("kind", ["link", "loop", "pipe"])
def test_entries_that_are_no_files(kind, folder, hospital, raw, refused):
    (hospital / folder).mkdir(exist_ok=True)
    path = hospital / folder / "smith.dcm"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(hospital / "nowhere" if kind == "link" else path)
    line = refused(convert(hospital), f"({folder.split('/')[0]} ", "an entry is a broken link or no file")
    assert "smith" not in line
    assert convert(hospital, "--skip-bad") == 0


def test_a_file_that_may_not_be_read_is_its_cases_error(hospital, raw, refused, monkeypatch):
    folder = hospital / "unlabeled" / "case"
    folder.mkdir()
    (folder / "smith").write_bytes(b"x")

    def forbidden(file):
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(sources, "_is_dicom", forbidden)
    line = refused(convert(hospital), "Liver_0005 (unlabeled 1 of 4), files: a file or folder cannot be read (Permiss")
    assert "smith" not in line
    assert "(smith)" in refused(convert(hospital, "--show-paths"), "cannot be read (Permission denied)")
    assert convert(hospital, "--skip-bad") == 0


def test_accents_may_be_one_character_or_two(hospital, raw, tmp_path):
    one, two = (unicodedata.normalize(form, "José") for form in ("NFC", "NFD"))
    (hospital / "labeled/images/ann.nii.gz").rename(hospital / f"labeled/images/{two}.nii.gz")
    (hospital / "labeled/masks/ann.nii.gz").rename(hospital / f"labeled/masks/{one}.nii.gz")
    (tmp_path / "d.csv").write_text("case,domain\n" + "".join(f"{case},A\n" for case in (two, *ALL_CASES[1:])))
    labels = {"liver": 1, unicodedata.normalize("NFD", "Zyste é"): 2}
    (hospital / "labels.json").write_text(json.dumps(labels))
    assert convert(hospital, "--domains", tmp_path / "d.csv") == 0
    structure = Structure("s", (), (unicodedata.normalize("NFD", "É*"),))
    assert structure.is_called(unicodedata.normalize("NFC", "éa"))


def test_ambiguous_files_are_listed_with_the_way_to_say_it(hospital, raw, refused, capsys):
    relayout(hospital, "{0}/mr.nii.gz", "{0}/mask.nii.gz")
    write(make_volume(make_arrays("ann")[0] + 1, "ann"), hospital / "labeled" / "ann" / "late.nii.gz")
    words = "found 2 image file(s) among 2 and 1 mask file(s), expected one"
    line = refused(convert(hospital), "Liver_0001 (labeled 1 of 4), files", words, "--image-pattern")
    assert "late" not in line
    assert "late.nii.gz, mr.nii.gz; masks: mask.nii.gz" in refused(convert(hospital, "--show-paths"), words)
    assert convert(hospital, "--image-pattern", "mr*") == 0


@pytest.mark.parametrize(
    ("mask_name", "pattern"), [("{0}_roi.nii.gz", "*_roi.nii.gz"), ("{0}_seg.nii.gz", "*_seg*"), ("{0}.nrrd", "*.nrrd")]
)
def test_a_mask_is_never_that_of_a_case_whose_name_its_own_only_begins_with(mask_name, pattern, hospital, raw, refused):
    relayout(hospital, "{0}.nii.gz", mask_name)
    for file in (hospital / "labeled").glob("bob*"):
        file.rename(file.with_name(file.name.replace("bob", "ann_2")))
    assert convert(hospital, "--mask-pattern", pattern) == 0
    assert_first_label(raw)
    shutil.rmtree(raw / NAME)
    (hospital / "labeled" / mask_name.format("ann")).unlink()
    (hospital / "labeled" / "ann_2.nii.gz").unlink()
    refused(convert(hospital, "--mask-pattern", pattern), "Liver_0001", "no mask")


def test_channels_beside_each_other_told_apart_by_patterns(hospital, raw):
    relayout(hospital, "{0}.nii.gz", "{0}_mask.nii.gz")
    for folder in ("labeled", "unlabeled", "test/images"):
        for case in ALL_CASES:
            if (file := hospital / folder / f"{case}.nii.gz").is_file():
                shutil.copy(file, file.with_name(f"{case}_pre.nii.gz"))
                change_voxels(file.rename(file.with_name(f"{case}_post.nii.gz")), lambda voxels: voxels + 1)
    assert convert(hospital, "--channels", "T1=*_pre.*", "T2=*_post*") == 0
    for channel in (0, 1):
        image = sitk.GetArrayFromImage(written(raw, f"imagesTr/Liver_0001_000{channel}.nii.gz"))
        np.testing.assert_array_equal(image, make_arrays("ann")[0] + channel)
    assert_first_label(raw)


def test_endings_of_which_a_letter_becomes_two_in_other_cases(hospital, raw):
    (hospital / "labels.json").write_text(json.dumps({"liver": {"sources": ["Weiß"]}, "tumour": {"sources": ["Süß"]}}))
    names = dict(zip(CASES["labeled"], ("p1", "p11", "p12", "p2"), strict=True))
    for case, name in names.items():
        (hospital / f"labeled/images/{case}.nii.gz").rename(hospital / f"labeled/{name}.nii.gz")
        (hospital / f"labeled/masks/{case}.nii.gz").unlink()
        for word, value in (("Weiß", 1), ("SÜSS", 2)):
            binary = (make_arrays(case)[1] == value).astype(np.uint8)
            write(make_volume(binary, case), hospital / f"labeled/{name}_{word}.nii.gz")
    (hospital / "labeled/images").rmdir()
    (hospital / "labeled/masks").rmdir()
    shutil.rmtree(hospital / "test")
    assert convert(hospital) == 0
    for number, case in enumerate(("ann", "dan", "bob", "cid"), 1):
        label = sitk.GetArrayFromImage(written(raw, f"labelsTr/Liver_{number:04}.nii.gz"))
        np.testing.assert_array_equal(label, make_arrays(case)[1])


def test_mask_without_a_word_for_it_is_asked_for(hospital, raw, refused):
    relayout(hospital, "{0}/a.nii.gz", "{0}/b.nii.gz")
    refused(convert(hospital), "Liver_0001", "found 2 image file(s)", "--mask-pattern")
    assert convert(hospital, "--mask-pattern", "b.*") == 0


def test_masks_of_unlabelled_cases_are_never_opened(hospital, raw):
    (hospital / "unlabeled" / "eva_mask.nii.gz").write_bytes(b"never")
    assert convert(hospital) == 0
    assert len(list((raw / NAME / "imagesUnlabeled").iterdir())) == 3


def test_unlabelled_images_that_end_as_a_structure_are_images(hospital, raw):
    (hospital / "labels.json").write_text(json.dumps({"a": 1, "b": 2}))
    folder = hospital / "unlabeled"
    (folder / "eva.nii.gz").rename(folder / "Patient_a.nii.gz")
    (folder / "fay.nii.gz").rename(folder / "Patient_b.nii.gz")
    (folder / "case").mkdir()
    (folder / "gus.nii.gz").rename(folder / "case" / "scan_a.nii.gz")
    for never in ("Patient_c_mask.nii.gz", "case/scan_mask.nii.gz"):
        (folder / never).write_bytes(b"never")
    (folder / "Patient_c.nii.gz").write_bytes((hospital / "test" / "images" / "hal.nii.gz").read_bytes())
    (hospital / "test").rename(hospital / "unused")
    (folder / "Patient_c_b.nii.gz").write_bytes(b"never")
    assert convert(hospital) == 0
    assert len(list((raw / NAME / "imagesUnlabeled").iterdir())) == 4


def test_masks_without_images(hospital, raw, refused):
    (hospital / "labeled" / "images").rename(hospital / "labeled" / "scans")
    refused(convert(hospital), "--labeled: there is a folder masks/ but no images/")


def test_cases_are_numbered_in_natural_order(hospital, raw, tmp_path):
    for old, new in (("eva", "p10"), ("fay", "p2"), ("gus", "p1")):
        (hospital / "unlabeled" / f"{old}.nii.gz").rename(hospital / "unlabeled" / f"{new}.nii.gz")
    assert convert(hospital, "--mapping", tmp_path / "m.csv") == 0
    lines = (tmp_path / "m.csv").read_text().splitlines()
    assert [line.split(",")[2] for line in lines[5:8]] == ["p1", "p2", "p10"]


# Binary files


def write_binary_masks(hospital, files, case_folder="masks/{0}", value=255):
    """Replace the label maps by one file a structure."""
    for case in CASES["labeled"]:
        mask = make_arrays(case)[1]
        (hospital / "labeled" / "masks" / f"{case}.nii.gz").unlink()
        for name, values in files.items():
            volume = make_volume(value * np.isin(mask, values).astype(np.uint8), case)
            write(volume, hospital / "labeled" / case_folder.format(case) / name.format(case))


@pytest.mark.parametrize(
    ("names", "folder"),
    [
        (("Liver.nii.gz", "TUMOUR.nii.gz"), "masks/{0}"),
        (("{0}_liver.nii.gz", "{0}_tumour_mask.nii.gz"), "masks"),
        (("seg-liver.nii.gz", "tumour.seg.nii.gz"), "masks/{0}"),
    ],
)
def test_binary_files_named_after_structures(names, folder, hospital, raw):
    write_binary_masks(hospital, dict(zip(names, (1, 2), strict=True)), folder)
    assert convert(hospital) == 0
    assert_first_label(raw)


def test_binary_files_named_in_the_list(hospital, raw):
    labels = {"liver": {"sources": ["organ_*.nii.gz"]}, "tumour": {"sources": ["lesion.nii.gz"]}, "background": {
        "sources": ["table.nii.gz"]}}  # fmt: skip
    (hospital / "labels.json").write_text(json.dumps(labels))
    write_binary_masks(hospital, {"organ_a.nii.gz": 1, "lesion.nii.gz": 2, "table.nii.gz": [0]})
    for path in (hospital / "test" / "masks").iterdir():
        path.unlink()
    assert convert(hospital) == 0
    assert_first_label(raw)


def test_binary_file_without_a_name(hospital, raw, refused):
    write_binary_masks(hospital, {"liver.nii.gz": 1, "smith.nii.gz": 2})
    line = refused(convert(hospital), "Liver_0001", "mask file 2 of 2: one of 2 mask files is named after no structure")
    assert "smith" not in line
    assert "smith.nii.gz" in refused(convert(hospital, "--show-paths"), "Liver_0001", "named after no structure")
    labels = {"liver": 1, "tumour": 2, "background": {"sources": ["*"]}}
    (hospital / "labels.json").write_text(json.dumps(labels))
    refused(convert(hospital), "the dataset: no labelled case has a voxel of tumour")
    (hospital / "labels.json").write_text(json.dumps({"liver": 1, "background": {"value": 2, "sources": ["*"]}}))
    assert convert(hospital) == 0
    assert_first_label(raw, np.where(make_arrays("ann")[1] == 1, 1, 0))


def test_binary_file_with_the_exact_name_of_a_structure_is_not_taken_for_a_pattern(hospital, raw):
    (hospital / "labels.json").write_text('{"liver": {"sources": ["liver*"]}, "liver_tumour": {"sources": ["hcc"]}}')
    write_binary_masks(hospital, {"liver_1.nii.gz": 1, "liver_tumour.nii.gz": 2})
    (hospital / "test" / "masks" / "hal.nii.gz").unlink()
    assert convert(hospital) == 0
    assert_first_label(raw)


@pytest.mark.parametrize("mask_name", ["masks/{0}/smith_liver_hcc.nii.gz", "{0}/smith_liver_hcc.nii.gz"])
def test_binary_file_that_patterns_of_two_structures_match(mask_name, hospital, raw, refused):
    relayout(hospital, "images/{0}.nii.gz" if "masks" in mask_name else "{0}/mr.nii.gz", mask_name)
    (hospital / "labels.json").write_text('{"liver": {"sources": ["*liver*"]}, "tumour": {"sources": ["*hcc*"]}}')
    words = "Liver_0001 (labeled 1 of 4), mask", "matches patterns of liver and tumour in labels.json"
    assert "smith" not in refused(convert(hospital), *words)
    assert "smith_liver_hcc.nii.gz" in refused(convert(hospital, "--show-paths"), *words)


def test_unlabelled_image_that_patterns_of_two_structures_match(hospital, raw):
    labels = json.loads((hospital / "labels.json").read_text())
    labels = {name: {"value": value, "sources": [f"*{name}*"]} for name, value in labels.items()}
    (hospital / "labels.json").write_text(json.dumps(labels))
    image = next((hospital / "unlabeled").rglob("*.nii.gz"))
    image.rename(image.with_name(f"{'_'.join(labels)}.nii.gz"))
    assert convert(hospital) == 0


@pytest.mark.parametrize("mask_name", ["liver_7", "liver_7_mask"])
def test_label_map_called_as_its_case_is_one_whatever_the_case_is_called(mask_name, hospital, raw):
    labels = {"liver": {"value": 1, "sources": ["liver_*.nii.gz", "*_7*"]}, "tumour": {"value": 2, "sources": ["l*"]}}
    (hospital / "labels.json").write_text(json.dumps(labels))
    for folder, name in (("images", "liver_7"), ("masks", mask_name)):
        path = hospital / "labeled" / folder / "ann.nii.gz"
        path.rename(path.with_name(f"{name}.nii.gz"))
    assert convert(hospital) == 0
    label = sitk.GetArrayFromImage(written(raw, "labelsTr/Liver_0004.nii.gz"))
    np.testing.assert_array_equal(label, make_arrays("ann")[1])


def test_binary_mask_called_as_its_case_is_the_structure_where_none_has_a_value(hospital, raw):
    (hospital / "labels.json").write_text('{"liver": {"sources": ["ann*", "bob", "cid", "dan", "hal"]}}')
    for path in hospital.rglob("masks/*"):
        change_voxels(path, lambda array: 255 * (array > 0).astype(np.uint8))
    assert convert(hospital) == 0
    assert_first_label(raw, make_arrays("ann")[1] > 0)


def test_overlapping_structures(hospital, raw, refused):
    write_binary_masks(hospital, {"liver.nii.gz": [1, 2], "tumour.nii.gz": 2})
    refused(convert(hospital), "Liver_0001", "voxel(s) are both tumour and liver", "--overlaps later")
    assert convert(hospital, "--overlaps", "later") == 0
    assert_first_label(raw)


def test_binary_file_with_several_values(hospital, raw, refused):
    write_binary_masks(hospital, {"liver.nii.gz": [1]})
    path = hospital / "labeled" / "masks" / "ann" / "liver.nii.gz"
    write(make_volume(make_arrays("ann")[1], "ann"), path)
    refused(convert(hospital), "Liver_0001", "the mask of one structure has the values 0, 1, 2", "one file a structure")


@pytest.mark.parametrize("kind", ["label map", "empty file", "no file"])
def test_structure_that_a_case_lacks_carries_a_warning(kind, hospital, raw, capsys):
    labels = {"liver": 1, "tumour": 2, "ignore": 9}
    (hospital / "labels.json").write_text(json.dumps(labels))
    if kind == "label map":
        change_voxels(hospital / "labeled" / "masks" / "ann.nii.gz", lambda array: np.where(array == 2, 1, array))
    else:
        write_binary_masks(hospital, {"liver.nii.gz": 1, "tumour.nii.gz": 2})
        path = hospital / "labeled" / "masks" / "ann" / "tumour.nii.gz"
        if kind == "empty file":
            change_voxels(path, np.zeros_like)
        else:
            path.unlink()
    assert convert(hospital) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "Liver_0001 (labeled 1 of 4), mask: no voxel is tumour" in warnings[0] and "not contoured" in warnings[0]


@pytest.mark.parametrize("options", [(), ("--skip-bad",), ("--dry-run",)])
def test_structure_that_all_labelled_cases_lack_is_refused(options, hospital, raw, refused, tmp_path):
    labels = {"liver": 1, "tumour": 2, "vessel": 3, "ignore": 9}
    (hospital / "labels.json").write_text(json.dumps(labels))
    change_voxels(hospital / "test" / "masks" / "hal.nii.gz", lambda array: np.where(array == 2, 3, array))
    status = convert(hospital, *options, "--report", tmp_path / "report")
    refused(status, "the dataset: no labelled case has a voxel of vessel", "labels.json")
    if "--dry-run" not in options:
        assert "no labelled case has a voxel of vessel" in (tmp_path / "report" / "conversion_report.html").read_text()


def test_structure_of_left_out_cases_only_is_refused(hospital, raw, refused):
    for case in CASES["labeled"][1:]:
        path = hospital / "labeled" / "masks" / f"{case}.nii.gz"
        change_voxels(path, lambda array: np.where(array == 2, 1, array))
    assert convert(hospital, "--dry-run") == 0
    (hospital / "labeled" / "images" / "ann.nii.gz").write_bytes(b"")
    refused(convert(hospital, "--skip-bad"), "the dataset: no labelled case has a voxel of tumour")
