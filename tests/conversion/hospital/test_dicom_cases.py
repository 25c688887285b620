"""A hospital's DICOM: series and trees of series, DICOM-SEG and RTSTRUCT beside them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hospital_helpers import CASES, NAME, SHAPE, convert, make_arrays, written
from tqdm import tqdm
from written_datasets import assert_processes_agree

from nnunet_ad import parallel

pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

import pydicom

from nnunet_ad.testing.dicom_files import PLANTED, write_rtstruct, write_segmentation, write_series

REAL_DATA = Path(__file__).parents[4] / "shared" / "data" / "dicom"
SPACING, ORIGIN = (0.8, 0.9, 2.5), (-40.0, 21.25, 133.0)


def series_of(case, folder, **options):
    return write_series(folder, make_arrays(case)[0], SPACING, ORIGIN, **options)


def outline(mask, index):
    """Return the outline of a box in a slice in mm, along the borders of its voxels."""
    (top, left), (bottom, right) = (np.argwhere(mask[index]).min(0), np.argwhere(mask[index]).max(0))
    corners = [
        (left - 0.5, top - 0.5),
        (right + 0.5, top - 0.5),
        (right + 0.5, bottom + 0.5),
        (left - 0.5, bottom + 0.5),
    ]
    return [
        (ORIGIN[0] + x * SPACING[0], ORIGIN[1] + y * SPACING[1], ORIGIN[2] + index * SPACING[2]) for x, y in corners
    ]


def write_masks(kind, case, files, path):
    mask = make_arrays(case)[1]
    structures = {"Liver L1": mask > 0, "HCC": mask == 2}
    if kind == "SEG":
        write_segmentation(path, files, structures)
    else:
        contours = {
            name: [outline(voxels, index) for index in range(SHAPE[0]) if voxels[index].any()]
            for name, voxels in structures.items()
        }
        write_rtstruct(path, files, contours)


@pytest.fixture
def hospital(tmp_path):
    """Labelled, unlabelled and test cases as DICOM trees; masks as SEG for the first labelled cases, else RTSTRUCT."""
    root = tmp_path / "hospital"
    for role, cases in CASES.items():
        for index, case in enumerate(cases):
            files = series_of(case, root / role / case / "study" / "series 2")
            if role != "unlabeled":
                write_masks("SEG" if index < 2 else "RTSTRUCT", case, files, root / role / case / "study" / "masks.dcm")
    labels = {"liver": {"sources": ["Liver*"]}, "tumour": {"sources": ["HCC"]}}
    (root / "labels.json").write_text(json.dumps(labels))
    return root


def test_a_bar_shows_the_search_for_series_and_names_no_file(hospital, raw, capsys, monkeypatch):
    monkeypatch.setattr(parallel, "tqdm", lambda *args, **options: tqdm(*args, **options | {"delay": 0}))
    assert convert(hospital, "--overlaps", "later") == 0
    bars = [bar for line in capsys.readouterr().err.splitlines() for bar in line.split("\r") if "finding" in bar]
    for role, cases in CASES.items():
        number = len(cases)
        assert any(bar.startswith(f"finding {role}:") and f"| {number}/{number} [" in bar for bar in bars)
    assert not [case for cases in CASES.values() for case in cases if case in "".join(bars)]


def test_several_processes_write_what_one_writes(hospital, raw, shared):
    assert_processes_agree(lambda *options: convert(hospital, "--overlaps", "later", *options), raw)


def test_masks_that_mark_a_structure_in_two_files_are_united_with_a_warning(hospital, raw, capsys):
    (hospital / "labels.json").write_text(
        json.dumps({"liver": {"sources": ["Liver*"]}, "background": {"sources": ["*"]}})
    )
    study = hospital / "labeled" / "ann" / "study"
    files = sorted((study / "series 2").iterdir())
    again = np.roll(make_arrays("ann")[1] > 0, 1, axis=2)
    write_segmentation(study / "revised.dcm", files, {"Liver new": again})
    assert convert(hospital) == 0
    printed = capsys.readouterr().err
    assert "warning: Liver_0001 (labeled 1 of 4), mask: several mask files mark the same voxels as liver" in printed
    assert printed.count("warning:") == 1
    label = sitk.GetArrayFromImage(written(raw, "labelsTr/Liver_0001.nii.gz"))
    np.testing.assert_array_equal(label, again | (make_arrays("ann")[1] > 0))


def test_slices_apart_that_a_segmentation_states_no_distance_of(hospital, raw):
    (hospital / "labels.json").write_text(
        json.dumps({"liver": {"sources": ["Liver*"]}, "background": {"sources": ["*"]}})
    )
    study = hospital / "labeled" / "ann" / "study"
    mask = np.zeros(SHAPE, np.uint8)
    mask[[2, 7], 3:8, 2:6] = 1
    write_segmentation(study / "masks.dcm", sorted((study / "series 2").iterdir()), {"Liver": mask})
    dataset = pydicom.dcmread(study / "masks.dcm")
    for item in dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence:
        item.pop("SpacingBetweenSlices", None)
    dataset.save_as(study / "masks.dcm")
    assert convert(hospital) == 0
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written(raw, "labelsTr/Liver_0001.nii.gz")), mask)


def test_trees_with_segmentations_and_contours(hospital, raw):
    assert convert(hospital, "--overlaps", "later") == 0
    assert json.loads((raw / NAME / "dataset.json").read_text())["channel_names"] == {"0": "CT"}
    for number, case in enumerate(CASES["labeled"], 1):
        image, mask = make_arrays(case)
        found = written(raw, f"imagesTr/Liver_000{number}_0000.nii.gz")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found), image)
        assert found.GetSpacing() == pytest.approx(SPACING) and found.GetOrigin() == pytest.approx(ORIGIN)
        label = written(raw, f"labelsTr/Liver_000{number}.nii.gz")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(label), mask)
    assert len(list((raw / NAME / "imagesUnlabeled").iterdir())) == 3


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_mask_of_another_patient_on_the_same_grid(kind, hospital, raw, refused, tmp_path, capsys):
    others = series_of("ann", tmp_path / "other", elements={"FrameOfReferenceUID": "1.2.3"})
    write_masks(kind, "ann", others, hospital / "labeled" / "ann" / "study" / "masks.dcm")
    words = "mask: the mask refers to another DICOM series and frame of reference"
    line = refused(convert(hospital, "--overlaps", "later"), "Liver_0001", words, "--accept-other-series")
    assert "1.2." not in line
    assert convert(hospital, "--overlaps", "later", "--accept-other-series") == 0
    assert f"warning: Liver_0001 (labeled 1 of 4), {words}" in capsys.readouterr().err
    assert "that refer to another series" in (raw / NAME / "nnunet_ad.json").read_text()


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_mask_of_another_patient_where_all_have_one_frame_of_reference(kind, hospital, raw, refused, tmp_path, capsys):
    others = series_of("ann", tmp_path / "other", patient=PLANTED | {"PatientID": "PLANTED other"})
    write_masks(kind, "ann", others, hospital / "labeled" / "ann" / "study" / "masks.dcm")
    words = "mask: the mask states another patient (PatientID) than the image"
    line = refused(convert(hospital, "--overlaps", "later"), "Liver_0001", words, "--accept-other-series")
    assert "PLANTED" not in line
    assert "PLANTED" not in refused(convert(hospital, "--overlaps", "later", "--show-paths"), "Liver_0001", words)
    assert convert(hospital, "--overlaps", "later", "--accept-other-series") == 0
    assert f"warning: Liver_0001 (labeled 1 of 4), {words}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_mask_of_another_series_of_the_same_session_is_fine(kind, hospital, raw, tmp_path, capsys):
    write_masks(kind, "ann", series_of("ann", tmp_path / "o"), hospital / "labeled" / "ann" / "study" / "masks.dcm")
    assert convert(hospital, "--overlaps", "later") == 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_mask_of_a_file_image_needs_no_reference(kind, hospital, raw):
    folder = hospital / "labeled" / "ann" / "study"
    shutil.rmtree(folder / "series 2")
    image = sitk.GetImageFromArray(make_arrays("ann")[0])
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    sitk.WriteImage(image, str(folder / "ct.nii.gz"))
    assert convert(hospital, "--overlaps", "later") == 0


def test_folders_are_followed_through_links_and_hidden_ones_passed_over(hospital, raw, tmp_path):
    """What lies in the bin, as a second series, must not be taken for the case's."""
    for case in CASES["labeled"]:
        study = hospital / "labeled" / case / "study"
        (study / "series 2").rename(tmp_path / f"moved {case}")
        (study / "series 2").symlink_to(tmp_path / f"moved {case}")
        series_of("hal", study / ".Trash" / "series 1")
        (study / ".Trash" / "IM.dcm").write_bytes(b"no DICOM")
    assert convert(hospital, "--overlaps", "later") == 0
    for number, case in enumerate(CASES["labeled"], 1):
        found = sitk.GetArrayFromImage(written(raw, f"imagesTr/Liver_000{number}_0000.nii.gz"))
        np.testing.assert_array_equal(found, make_arrays(case)[0])


def test_each_header_is_read_once_to_find_series(hospital, raw, monkeypatch):
    from nnunet_ad.conversion.dicom import series as module

    read, original = [], module._find_header
    monkeypatch.setattr(module, "_find_header", lambda path: read.append(path) or original(path))
    assert convert(hospital, "--overlaps", "later", "--dry-run") == 0
    assert sorted(read) == sorted(hospital.rglob("*.dcm"))


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_of_a_mask_below_unlabeled_the_header_is_read_and_no_more(kind, hospital, raw, refused):
    mask = hospital / "unlabeled" / "eva" / "mask.dcm"
    write_masks(kind, "eva", sorted(mask.parent.rglob("*.dcm")), mask)
    content = mask.read_bytes()
    mask.write_bytes(content[:-50])
    assert convert(hospital, "--overlaps", "later", "--dry-run") == 0
    mask.write_bytes(content[:400])
    refused(convert(hospital, "--overlaps", "later"), "Liver_0005", "cannot be read as DICOM, it may be truncated")


def test_masks_folder_and_reorientation(hospital, raw):
    for case in CASES["labeled"]:
        folder = hospital / "labeled" / case
        (folder / "masks").mkdir()
        (folder / "study" / "masks.dcm").rename(folder / "masks" / "1.dcm")
    assert convert(hospital, "--overlaps", "later", "--reorient", "PIR") == 0
    label = sitk.DICOMOrient(written(raw, "labelsTr/Liver_0004.nii.gz"), "LPS")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), make_arrays("dan")[1])


def test_overlapping_segments_are_told(hospital, raw, refused):
    refused(convert(hospital), "Liver_0001", "voxel(s) are both tumour and liver", "--overlaps later")


@pytest.mark.parametrize("case", ["ann", "dan"])
def test_segments_without_a_name_are_counted_but_named_only_if_wanted(case, hospital, raw, refused):
    (hospital / "labels.json").write_text('{"liver": {"sources": ["Liver*"]}}')
    number = CASES["labeled"].index(case) + 1
    words = f"1 of 2 {'segments' if case == 'ann' else 'contours'} have no name"
    assert "HCC" not in refused(convert(hospital), f"Liver_000{number}", words)
    assert "'HCC'" in refused(convert(hospital, "--show-paths"), f"Liver_000{number}", words)
    (hospital / "labels.json").write_text('{"liver": {"sources": ["Liver*"]}, "background": {"sources": ["*"]}}')
    assert convert(hospital) == 0
    label = sitk.GetArrayFromImage(written(raw, f"labelsTr/Liver_000{number}.nii.gz"))
    np.testing.assert_array_equal(label, make_arrays(case)[1] > 0)


def test_several_series_are_chosen_by_description_or_by_the_mask(hospital, raw, refused):
    for role, case in (("labeled", "ann"), ("unlabeled", "eva")):
        write_series(
            hospital / role / case / "other", make_arrays(case)[0] // 2, SPACING, ORIGIN, description="planted late"
        )
    line = refused(
        convert(hospital, "--overlaps", "later"), "Liver_0005", "found 2 DICOM series", "--series-description"
    )
    assert "planted" not in line
    line = refused(convert(hospital, "--overlaps", "later", "--show-paths"), "Liver_0005", "found 2 DICOM series")
    assert "planted late" in line
    assert convert(hospital, "--overlaps", "later", "--series-description", "^made") == 0
    for file, case in (("imagesTr/Liver_0001", "ann"), ("imagesUnlabeled/Liver_0005", "eva")):
        found = written(raw, f"{file}_0000.nii.gz")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found), make_arrays(case)[0])


def test_channels_from_several_series(hospital, raw):
    for role, cases in CASES.items():
        for case in cases:
            image = 2 * make_arrays(case)[0] + 1
            write_series(hospital / role / case / "b", image, SPACING, ORIGIN, description="T2 tse", modality="MR")
    options = ("--overlaps", "later", "--channels", "T2", "CT", "--series-description", "T2", "made")
    assert convert(hospital, *options) == 0
    found = sitk.GetArrayFromImage(written(raw, "imagesTr/Liver_0001_0000.nii.gz"))
    np.testing.assert_array_equal(found, 2 * make_arrays("ann")[0] + 1)


def test_a_segmentation_of_another_channel_is_resampled_whole(hospital, raw):
    """Its slices are not those of the first channel, whose grid counts."""
    for role, cases in CASES.items():
        for case in cases:
            fine = np.repeat(2 * make_arrays(case)[0] + 1, 2, axis=0)
            fine[1::2] += 1
            spacing = (*SPACING[:2], SPACING[2] / 2)
            write_series(hospital / role / case / "b", fine, spacing, ORIGIN, description="T2 tse", modality="MR")
    labels = {"liver": {"sources": ["Liver*"]}, "background": {"sources": ["*"]}}
    (hospital / "labels.json").write_text(json.dumps(labels))
    study = hospital / "labeled" / "ann" / "study"
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:6, 3:8, 2:6] = 1
    write_segmentation(study / "masks.dcm", sorted((study / "series 2").iterdir()), {"Liver": mask})
    dataset = pydicom.dcmread(study / "masks.dcm")
    for item in dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence:
        item.pop("SpacingBetweenSlices", None)
    dataset.save_as(study / "masks.dcm")
    options = ("--channels", "T2", "CT", "--series-description", "T2", "made", "--resample-channels")
    assert convert(hospital, *options, "--resample-masks", "--skip-bad") == 0  # contours are not resampled
    found = sitk.GetArrayFromImage(written(raw, "labelsTr/Liver_0001.nii.gz"))
    (marked,) = np.nonzero(found.any(axis=(1, 2)))
    assert len(marked) >= 5 and (np.diff(marked) == 1).all()


def set_patients(hospital, patients):
    """Write the elements of a patient into the headers of cases."""
    for case, elements in patients.items():
        for file in next(hospital.glob(f"*/{case}")).rglob("*.dcm"):
            header = pydicom.dcmread(file)
            for keyword, value in elements.items():
                setattr(header, keyword, value)
            header.save_as(file)


def notes_of(raw):
    return json.loads((raw / NAME / "nnunet_ad.json").read_text())["notes"]


def folds_of(raw):
    return json.loads((raw / NAME / "splits_final.json").read_text())


EACH_ITS_OWN = (
    "each file or folder counts as a patient of its own; say by --patients or --patient-regex whose case it is"
)


def test_folds_follow_the_patients_that_headers_state(hospital, raw):
    patients = {"ann": "P1", "bob": "P2", "cid": "P1", "dan": "P3", "eva": "P1", "fay": "P4", "gus": "", "hal": "P5"}
    set_patients(hospital, {case: {"PatientID": patient} for case, patient in patients.items()})
    assert convert(hospital, "--overlaps", "later", "--folds", 3) == 0
    assert sorted(fold["val"] for fold in folds_of(raw)) == [
        ["Liver_0001", "Liver_0003"],
        ["Liver_0002"],
        ["Liver_0004"],
    ]
    for fold in folds_of(raw):
        assert ("Liver_0005" in fold["unlabeled"]) == ("Liver_0001" not in fold["val"])
        assert {"Liver_0006", "Liver_0007"} <= set(fold["unlabeled"])
    words = "patients are told apart by the DICOM headers; 1 case(s) that state none count as patients of their own"
    assert words in notes_of(raw)
    assert EACH_ITS_OWN not in notes_of(raw)


def test_a_patient_for_test_and_training_by_the_headers(hospital, raw, refused):
    patients = {case: {"PatientID": f"PLANTED {case}"} for cases in CASES.values() for case in cases}
    set_patients(hospital, patients | {"hal": {"PatientID": "PLANTED bob"}})
    line = refused(convert(hospital, "--overlaps", "later"), "Liver_0008 (test 1 of 1), patient", "has Liver_0002")
    assert "PLANTED" not in line and "--patients" in line
    assert "PLANTED" not in refused(convert(hospital, "--overlaps", "later", "--show-paths"), "Liver_0008")
    assert convert(hospital, "--overlaps", "later", "--patient-regex", ".*") == 0
    assert not any("told apart" in note or note == EACH_ITS_OWN for note in notes_of(raw))


def test_an_issuer_that_is_stated_in_one_place_only_parts_no_patient(hospital, raw, refused):
    set_patients(hospital, {"ann": {"PatientID": "1", "IssuerOfPatientID": "A"}, "hal": {"PatientID": "1"}})
    set_patients(hospital, {case: {"PatientID": case} for case in ("bob", "cid", "dan", "eva", "fay", "gus")})
    refused(convert(hospital, "--overlaps", "later"), "the patient of this test case also has Liver_0001")


def test_a_patient_that_all_cases_state_is_a_placeholder(hospital, raw, capfd):
    everyone = {case: {"PatientID": "ANONYMOUS"} for cases in CASES.values() for case in cases}
    set_patients(hospital, everyone | {"gus": {"PatientID": ""}})
    assert convert(hospital, "--overlaps", "later", "--folds", 4) == 0
    assert EACH_ITS_OWN in notes_of(raw)
    assert EACH_ITS_OWN in capfd.readouterr().out


def test_series_of_several_patients_in_one_case(hospital, raw, refused):
    for role, cases in CASES.items():
        for case in cases:
            image = 2 * make_arrays(case)[0] + 1
            write_series(hospital / role / case / "b", image, SPACING, ORIGIN, description="T2 tse", modality="MR")
    for file in (hospital / "unlabeled" / "eva" / "b").iterdir():
        header = pydicom.dcmread(file)
        header.PatientID = "PLANTED other"
        header.save_as(file)
    options = ("--overlaps", "later", "--channels", "T2", "CT", "--series-description", "T2", "made")
    line = refused(convert(hospital, *options), "Liver_0005", "patient: the DICOM series of the case state 2 patients")
    assert "PLANTED" not in line
    assert convert(hospital, *options, "--patient-regex", ".*") == 0


def test_another_modality_is_told(hospital, raw, refused):
    shutil.rmtree(hospital / "unlabeled" / "eva")
    series_of("eva", hospital / "unlabeled" / "eva", modality="MR")
    refused(convert(hospital, "--overlaps", "later"), "Liver_0005", "states the modality MR", "others for image are CT")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"drop_slices": [4]}, "slices are missing"),
        ({"drop_slices": [2, 3, 6]}, "slices are missing"),
        ({"tilt": 12.0}, "sheared"),
    ],
)
def test_irregular_series(options, words, hospital, raw, refused):
    shutil.rmtree(hospital / "unlabeled" / "eva")
    series_of("eva", hospital / "unlabeled" / "eva", **options)
    refused(convert(hospital, "--overlaps", "later"), "Liver_0005 (unlabeled 1 of 3), image", words)


def test_truncated_slice(hospital, raw, refused):
    file = sorted((hospital / "unlabeled" / "eva").rglob("*.dcm"))[3]
    file.write_bytes(file.read_bytes()[:-50])
    assert file.name not in refused(convert(hospital, "--overlaps", "later"), "Liver_0005", "truncated")
    refused(convert(hospital, "--overlaps", "later", "--show-paths"), "Liver_0005", "truncated", f"({file.name})")


def test_slices_of_nobody(hospital, raw, refused):
    for file in list((hospital / "unlabeled" / "eva").rglob("*.dcm")):
        file.rename(hospital / "unlabeled" / file.name)
    refused(convert(hospital, "--overlaps", "later"), "DICOM in a folder of its own")


def test_without_the_extra_it_is_named(hospital, raw, refused, monkeypatch):
    import nnunet_ad.conversion.dicom as dicom

    monkeypatch.setattr(dicom, "PACKAGES", ("pydicom_is_not_there",))
    refused(convert(hospital), "Liver_0001", "pip install 'nnunet_ad[dicom]'")


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="needs the real DICOM studies of shared/data")
def test_real_series_with_contours(raw, tmp_path):
    cases = [path for path in sorted((REAL_DATA / "rtstruct").iterdir()) if path.is_dir()]
    labels = {"structure": {"sources": ["no such name"]}, "background": {"sources": ["*"]}}
    root = tmp_path / "hospital"
    for case in cases:
        shutil.copytree(case, root / "labeled" / case.name)
    (root / "labels.json").write_text(json.dumps(labels))
    assert convert(root, "--min-size", "1", "--accept-outliers") == 1  # nothing is called so
    from nnunet_ad.conversion.dicom.rtstruct import structure_names

    files = [file for file in root.rglob("DCM_RS*")]
    names = sorted({name for file in files for name in structure_names(file)})
    labels["structure"]["sources"] = [names[0]] if len(names) == 1 else names
    (root / "labels.json").write_text(json.dumps(labels))
    status = convert(root, "--min-size", "1", "--accept-outliers", "--overlaps", "later", "--skip-bad")
    assert status == 0
    assert list((raw / NAME / "labelsTr").iterdir())
