import sys

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_helpers import edit, images_below, refused, series_below
from pydicom.uid import (
    generate_uid,
)

from nnunet_ad.conversion import dicom
from nnunet_ad.conversion.dicom.files import is_dicom
from nnunet_ad.conversion.dicom.series import Series, SeriesChoiceError, choose_series
from nnunet_ad.conversion.dicom.volume import read_series
from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.testing.dicom_files import write_rtstruct, write_segmentation, write_series

# --- what is found


def test_other_files_and_other_objects_are_passed_over(tmp_path, values):
    files = write_series(tmp_path / "a" / "b", values, description="the one")
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "picture.jpg").write_bytes(b"\xff\xd8\xff")
    write_segmentation(tmp_path / "seg.dcm", files, {"organ": values > 500})
    write_rtstruct(tmp_path / "rt.dcm", files, {"organ": [np.eye(3)]})
    images, masks = series_below(tmp_path)
    assert [series.description for series in images] == ["the one"]
    assert [series.modality for series in masks] == ["SEG", "RTSTRUCT"]
    assert not is_dicom(tmp_path / "notes.txt")
    assert is_dicom(files[0])


def test_series_come_in_the_order_of_their_numbers(tmp_path, values):
    for number in (11, 2, 7):
        write_series(tmp_path / str(number), values, number=number, description=f"series {number}")
    edit_all = write_series(tmp_path / "none", values, description="no number")
    for file in edit_all:
        edit(file, SeriesNumber=None)
    found = images_below(tmp_path)
    assert [series.number for series in found] == [2, 7, 11, None]
    assert found[-1].description == "no number"
    assert all(len(series.files) == len(values) for series in found)


def test_localizer_within_a_series_is_apart(tmp_path, values):
    uid = generate_uid()
    write_series(tmp_path, values, series_uid=uid, description="abdomen")
    coronal = (1, 0, 0, 0, 0, 1, 0, -1, 0)
    localizer = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_series(
        tmp_path, values[:1], direction=coronal, series_uid=uid, elements=localizer, names="L{}.dcm", description="abdo"
    )
    series = images_below(tmp_path)
    assert sorted((each.is_localizer, len(each.files)) for each in series) == [(False, 6), (True, 1)]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_series(choose_series(series, None))), values)
    with pytest.raises(ConversionError, match="localizer"):
        read_series(next(each for each in series if each.is_localizer))


@pytest.mark.parametrize("keyword", ["AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers"])
def test_volumes_of_the_same_slices_in_one_series_are_told_apart(tmp_path, values, keyword):
    uid = generate_uid()
    for volume in (1, 2):
        write_series(tmp_path, values * volume, series_uid=uid, names=f"v{volume}_{{}}.dcm", elements={keyword: volume})
    found = images_below(tmp_path)
    assert [series.description for series in found] == [f"made series [{keyword} {volume}]" for volume in (1, 2)]
    with pytest.raises(SeriesChoiceError):
        choose_series(found, None)
    chosen = choose_series(found, rf"\[{keyword} 2\]")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_series(chosen)), values * 2)


def test_volumes_that_nothing_tells_apart_are_refused(tmp_path, values):
    uid = generate_uid()
    for volume in (1, 2):
        write_series(tmp_path, values * volume, series_uid=uid, names=f"v{volume}_{{}}.dcm")
    refused(tmp_path, r"6 slice\(s\) lie where another one does, the first at 0.00 mm .* one slice a position")


def test_the_patient_is_stated_but_not_shown(tmp_path, values):
    write_series(tmp_path / "a", values)
    write_series(tmp_path / "b", values, elements={"IssuerOfPatientID": "Planted issuer"})
    write_series(tmp_path / "c", values, patient={}, elements={"IssuerOfPatientID": "Planted issuer"})
    series = [images_below(tmp_path / name)[0] for name in "abc"]
    assert [each.patient for each in series] == ["PLANTED-ID-4711", "PLANTED-ID-4711", ""]
    assert not any("planted" in repr(each).lower().replace(str(tmp_path).lower(), "") for each in series)


# --- what is chosen


def make_series(description, **settings):
    return Series("1.2", description, "MR", settings.pop("number", 1), ("file",) * 3, **settings)


def test_choice_by_description():
    series = [make_series("T1 post"), make_series("T2 FLAIR"), make_series("T2")]
    assert choose_series(series, "flair") is series[1]
    assert choose_series(series, "T2$") is series[2]
    assert choose_series(series[:1], None) is series[0]


def test_choice_among_series_of_one_description():
    series = [make_series("WB", number=4), make_series("WB", number=5), make_series("WB", number=5, is_localizer=True)]
    assert choose_series(series, "MR 4: wb$") is series[0]
    assert choose_series(series, "^MR 5:") is series[1], "localizers are left out"
    assert choose_series(series[2:], "WB") is series[2]


@pytest.mark.parametrize(
    ("pattern", "words"), [(None, "found 2 DICOM series"), ("Planted", "2 match"), ("T9", "none match")]
)
def test_ambiguous_choice_lists_descriptions_in_private_only(pattern, words):
    series = [make_series("Planted name T1", number=4), make_series("Planted name T2", number=None)]
    with pytest.raises(SeriesChoiceError, match=words) as caught:
        choose_series(series, pattern)
    assert "4: 'Planted name T1', MR of 3 file(s); no number: 'Planted name T2'" in str(caught.value)
    assert "--series-description REGEX" in caught.value.public_message
    assert "MR of 3 file(s), MR of 3 file(s)" in caught.value.public_message
    assert "Planted" not in caught.value.public_message


def test_choice_without_series_and_with_a_broken_pattern():
    with pytest.raises(ConversionError, match="no DICOM image series"):
        choose_series([], None)
    with pytest.raises(ConversionError, match="no regular expression"):
        choose_series([make_series("T1")], "(")


# --- what is refused


@pytest.mark.parametrize("content", [b"", b"\x00" * 200])
def test_file_that_only_its_name_makes_dicom(tmp_path, values, content):
    file = write_series(tmp_path, values)[5]
    file.write_bytes(content)
    assert file.name in refused(tmp_path, "file 1 of 6 .* lacks the mark of DICOM")


def test_slice_that_states_to_be_a_report(tmp_path, values):
    """Passing it over would leave out a slice, and at the end of the stack nothing would show it."""
    edit(write_series(tmp_path, values)[5], Modality="SR")
    refused(tmp_path, "one series state the modalities SR and CT")


def test_missing_packages(monkeypatch):
    dicom.require_dicom()
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ConversionError, match=r"pip install 'nnunet_ad\[dicom\]'"):
        dicom.require_dicom()
