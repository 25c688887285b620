import shutil
import warnings

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_helpers import edit, images_below, read_only_series, refused
from pydicom.dataelem import RawDataElement
from pydicom.pixels import get_decoder
from pydicom.tag import Tag
from pydicom.uid import (
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from nnunet_ad.conversion.dicom.series import choose_series
from nnunet_ad.conversion.dicom.volume import read_series
from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.testing.dicom_files import write_multi_frame, write_series


def read_by_simpleitk(files):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    return reader.Execute()


def assert_same_geometry(image, expected, tolerance=1e-6):
    assert image.GetSize() == expected.GetSize()
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(image, name)(), getattr(expected, name)(), rtol=0, atol=tolerance)


# --- what is read


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_values_are_rescaled_and_the_grid_is_kept(tmp_path, values, grid, modality):
    write_series(tmp_path, values, **grid, modality=modality, slope=0.5, intercept=-3)
    image = read_only_series(tmp_path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), values * 0.5 - 3)
    assert image.GetPixelID() == sitk.sitkFloat32
    assert not image.GetMetaDataKeys()
    np.testing.assert_allclose(image.GetSpacing(), grid["spacing"], atol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), grid["origin"], atol=1e-6)
    np.testing.assert_allclose(image.GetDirection(), grid["direction"], atol=1e-6)


def test_each_slice_is_rescaled_by_its_own_slope(tmp_path, values):
    files = write_series(tmp_path, values, modality="PT")
    for index, file in enumerate(files):
        edit(file, RescaleSlope=str(1 + 0.25 * index))
    expected = values * (1 + 0.25 * np.arange(len(values)))[:, None, None]
    np.testing.assert_allclose(sitk.GetArrayFromImage(read_only_series(tmp_path)), expected, rtol=1e-6)


def test_geometry_is_that_of_simpleitk(tmp_path, values, grid):
    files = write_series(tmp_path, values, **grid)
    assert_same_geometry(read_only_series(tmp_path), read_by_simpleitk(files), tolerance=0)


def test_files_are_sorted_along_the_normal(tmp_path, values, grid):
    files = write_series(tmp_path, values, **grid)
    assert files != sorted(files)
    assert images_below(tmp_path)[0].files == tuple(files)


def test_slices_stored_head_first_run_along_the_normal(tmp_path, values):
    """The volume is the same whichever way the slices are numbered."""
    write_series(tmp_path / "up", values)
    write_series(tmp_path / "down", values[::-1], names="IM{:04d}.dcm")
    for index, file in enumerate(sorted((tmp_path / "down").iterdir())):
        edit(file, ImagePositionPatient=["0", "0", str(index)])
    up, down = read_only_series(tmp_path / "up"), read_only_series(tmp_path / "down")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(up), sitk.GetArrayFromImage(down))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_slices_are_decoded(tmp_path, values, syntax):
    values = np.pad(values, ((0, 0), (0, 1), (0, 1)))
    for file in write_series(tmp_path, values):
        dataset = pydicom.dcmread(file)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(file)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_only_series(tmp_path)), values)


def test_secondary_captures_keep_their_stated_grid(tmp_path, values, grid):
    for file in write_series(tmp_path, values, **grid):
        edit(file, SOPClassUID=SecondaryCaptureImageStorage, Modality="OT")
    image = read_only_series(tmp_path)
    np.testing.assert_allclose(image.GetSpacing(), grid["spacing"], atol=1e-6)
    np.testing.assert_allclose(image.GetDirection(), grid["direction"], atol=1e-6)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [3, 0, 5, 1, 4, 2]])
def test_enhanced_multi_frame_is_the_same_volume_in_any_order_of_frames(tmp_path, values, grid, order):
    write_multi_frame(tmp_path / "enhanced.dcm", values, **grid, slope=2, frame_order=order)
    image = read_only_series(tmp_path)
    expected = values * (2 + np.arange(len(values)))[:, None, None]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), expected)
    np.testing.assert_allclose(image.GetSpacing(), grid["spacing"], atol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), grid["origin"], atol=1e-6)
    np.testing.assert_allclose(image.GetDirection(), grid["direction"], atol=1e-6)


def test_inverted_grey_values_of_a_multi_frame_image_are_as_stored(tmp_path, values):
    write_multi_frame(tmp_path / "enhanced.dcm", values)
    edit(tmp_path / "enhanced.dcm", PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")
    expected = values * (1 + np.arange(len(values)))[:, None, None]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_only_series(tmp_path)), expected)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("is_signed", [False, True])
def test_bits_of_a_multi_frame_image_that_are_not_of_the_values_do_not_count(tmp_path, values, is_signed, compressed):
    """Signs need not be extended beyond the stored bits, and overlays may lie there."""
    file = tmp_path / "enhanced.dcm"
    expected = values % 2000 - 1000 * is_signed
    write_multi_frame(file, expected)
    dataset = pydicom.dcmread(file)
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, int(is_signed)
    dataset.PixelData = (expected & 0xFFF | (0 if is_signed else 0x8000)).astype("<u2").tobytes()
    if compressed:
        dataset.compress(RLELossless)
    dataset.save_as(file)
    slopes = np.arange(1, 1 + len(values))[:, None, None]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_only_series(tmp_path)), expected * slopes)


def test_frames_are_rescaled_as_the_whole_file_says(tmp_path, values):
    file = tmp_path / "enhanced.dcm"
    write_multi_frame(file, values)
    dataset = pydicom.dcmread(file)
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        del groups.PixelValueTransformationSequence
    dataset.RescaleSlope, dataset.RescaleIntercept = "2", "-1024"
    dataset.save_as(file)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_only_series(tmp_path)), values * 2 - 1024)


def test_tables_of_values_are_refused(tmp_path, values):
    table = pydicom.Dataset()
    table.LUTExplanation = "made"
    for file in write_series(tmp_path, values):
        edit(file, ModalityLUTSequence=[table])
    refused(tmp_path, r"has a table of values \(ModalityLUTSequence\), expected RescaleSlope")


def test_frames_are_rescaled_by_their_own_slopes(tmp_path, values):
    file = tmp_path / "enhanced.dcm"
    write_multi_frame(file, values)
    dataset = pydicom.dcmread(file)
    for index, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        groups.PixelValueTransformationSequence[0].RescaleSlope = str(1 + index)
        groups.PixelValueTransformationSequence[0].RescaleIntercept = str(-index)
    dataset.save_as(file)
    index = np.arange(len(values))[:, None, None]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_only_series(tmp_path)), values * (1 + index) - index)


def test_positions_rounded_to_a_tenth_of_a_millimetre_are_even(tmp_path):
    values = np.random.default_rng(1).integers(0, 9, (40, 4, 4))
    for index, file in enumerate(write_series(tmp_path, values, spacing=(1, 1, 0.625))):
        edit(file, ImagePositionPatient=["0", "0", f"{0.625 * index:.1f}"])
    assert read_only_series(tmp_path).GetSpacing()[2] == pytest.approx(0.625, abs=0.003)


def test_nothing_is_printed_logged_or_warned(tmp_path, values, capfd, caplog):
    """Pydicom warns of the values it finds odd, here of an identifier in the place of a UID, which is read."""
    files = write_series(tmp_path, values)
    for file in files:
        edit(file, SeriesInstanceUID="PLANTED-ID-4711")
    capfd.readouterr()
    caplog.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_only_series(tmp_path)
    assert not caplog.records
    files[2].write_bytes(files[2].read_bytes()[:-100])
    with pytest.raises(ConversionError):
        read_only_series(tmp_path)
    assert capfd.readouterr() == ("", "")


# --- what is refused


@pytest.mark.parametrize(("dropped", "gap"), [((2,), "from 102.50 to 107.50"), ((2, 3), "from 102.50 to 110.00")])
def test_missing_slices(tmp_path, values, dropped, gap):
    write_series(tmp_path, values, spacing=(1, 1, 2.5), origin=(0, 0, 100), drop_slices=dropped)
    refused(
        tmp_path, f"missing: {gap} mm along the slice normal .* gap of {2.5 * (len(dropped) + 1):.2f} mm, expected 2.50"
    )


def test_missing_slice_of_a_fine_stack(tmp_path, values):
    """Positions are allowed to be rounded, but not to a whole slice."""
    write_series(tmp_path, values, spacing=(0.1, 0.1, 0.1), drop_slices=[3])
    refused(tmp_path, "gap of 0.20 mm, expected 0.10")


def test_uneven_slices(tmp_path, values):
    files = write_series(tmp_path, values, spacing=(1, 1, 2))
    for index, file in enumerate(files):
        edit(file, ImagePositionPatient=["0", "0", str(2 * index + (0.6 if index > 2 else 0))])
    refused(tmp_path, "not evenly spaced: their distances run from 2.00 to 2.60 mm")


def test_same_slice_twice(tmp_path, values):
    files = write_series(tmp_path, values)
    shutil.copy(files[3], tmp_path / "copy.dcm")
    refused(tmp_path, r"1 slice\(s\) lie where another one does, the first at 3.00 mm")


@pytest.mark.parametrize("angle", [0.5, 5, -14])
def test_gantry_tilt(tmp_path, grid, angle):
    values = np.random.default_rng(2).integers(0, 9, (12, 5, 5))
    write_series(tmp_path, values, **grid, tilt=angle)
    refused(tmp_path, f"sheared by {abs(angle):.2f} degrees .* tilted gantry")


def test_one_slice_shifted_sideways(tmp_path, values):
    files = write_series(tmp_path, values)
    edit(files[2], ImagePositionPatient=["3", "0", "2"])
    refused(tmp_path, "shifted sideways against each other by up to 3.00 mm")


def test_mixed_orientations(tmp_path, values):
    uid = generate_uid()
    write_series(tmp_path, values, series_uid=uid)
    sagittal = (0, 0, -1, 1, 0, 0, 0, -1, 0)
    write_series(tmp_path, values[:4], direction=sagittal, series_uid=uid, names="S{}.dcm")
    refused(tmp_path, r"2 orientations, \(1, 0, 0, 0, 1, 0\) in 6 slice\(s\) and \(0, 1, 0, 0, 0, -1\) in 4 slice")


def test_orientation_that_is_none(tmp_path, values):
    for file in write_series(tmp_path, values):
        edit(file, ImageOrientationPatient=["1", "0", "0", "0.5", "1", "0"])
    refused(tmp_path, "expected two orthogonal vectors of length 1")


def test_mixed_sizes(tmp_path, values):
    uid = generate_uid()
    write_series(tmp_path, values[:3], series_uid=uid)
    write_series(tmp_path, values[3:, :5], series_uid=uid, origin=(0, 0, 3), names="S{}.dcm")
    refused(tmp_path, r"2 sizes in pixels, \(9, 7\) in 3 slice\(s\) and \(5, 7\) in 3 slice")


def test_mixed_spacings(tmp_path, values):
    edit(write_series(tmp_path, values)[4], PixelSpacing=["1.1", "1"])
    refused(tmp_path, r"2 pixel spacings in mm, \(1, 1\) in 5 slice\(s\) and \(1.1, 1\) in 1")


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_slices(tmp_path, values, count):
    write_series(tmp_path, values[:count])
    refused(tmp_path, rf"found {count} slice\(s\), expected at least 3")


@pytest.mark.parametrize(
    ("keyword", "place"),
    [
        ("ImagePositionPatient", "slice 3 of 6, in the order of their instance numbers"),
        ("ImageOrientationPatient", "slice 3 of 6, counted along their normal"),
        ("PixelSpacing", "slice 3 of 6, counted along their normal"),
    ],
)
def test_slice_without_place(tmp_path, values, keyword, place):
    file = write_series(tmp_path, values)[2]
    edit(file, **{keyword: None})
    assert file.name in refused(tmp_path, f"^{place}: the header states no valid {keyword}")


def test_slices_that_nothing_places(tmp_path, values):
    files = write_series(tmp_path, values)
    for file in files:
        edit(file, ImageOrientationPatient=None)
    words = "slice 1 of 6, in the order of their instance numbers: the header states no valid ImageOrientation"
    assert refused(tmp_path, words).endswith(f"({files[0].name})")


@pytest.mark.parametrize("spacing", ["0", "-1"])
def test_spacing_that_is_none(tmp_path, values, spacing):
    for file in write_series(tmp_path, values):
        edit(file, PixelSpacing=[spacing, spacing])
    refused(tmp_path, "expected positive numbers")


def test_colour(tmp_path, values):
    for file in write_series(tmp_path, values):
        pixels = np.zeros((9, 7, 3), np.uint8).tobytes()
        edit(
            file,
            SamplesPerPixel=3,
            PhotometricInterpretation="RGB",
            PlanarConfiguration=0,
            BitsAllocated=8,
            BitsStored=8,
            HighBit=7,
            PixelData=pixels,
        )
    refused(tmp_path, "slice 1 of 6, .* in colour")


def test_inverted_grey_values_of_slices(tmp_path, values):
    """ITK inverts them before it rescales."""
    for file in write_series(tmp_path, values):
        edit(file, PhotometricInterpretation="MONOCHROME1")
    refused(tmp_path, "slice 1 of 6, .* MONOCHROME1, .* expected MONOCHROME2")


@pytest.mark.parametrize("stored", [16, 24])
def test_slices_with_fewer_stored_than_32_allocated_bits(tmp_path, values, stored):
    """GDCM reads them wrong."""
    for file in write_series(tmp_path, values):
        pixels = pydicom.dcmread(file).pixel_array.astype("<i4").tobytes()
        edit(file, BitsAllocated=32, BitsStored=stored, HighBit=stored - 1, PixelData=pixels)
    refused(tmp_path, f"slice 1 of 6, .* {stored} stored of 32 allocated bits, .* expected 32 of them")


def test_slices_of_32_bits_are_read(tmp_path, values):
    for file in write_series(tmp_path, values):
        pixels = pydicom.dcmread(file).pixel_array.astype("<i4").tobytes()
        edit(file, BitsAllocated=32, BitsStored=32, HighBit=31, PixelData=pixels)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_only_series(tmp_path)), values)


@pytest.mark.parametrize("is_multi_frame", [False, True])
def test_values_that_do_not_begin_at_the_lowest_bit(tmp_path, values, is_multi_frame):
    if is_multi_frame:
        write_multi_frame(tmp_path / "enhanced.dcm", values)
    else:
        write_series(tmp_path, values)
    for file in tmp_path.iterdir():
        edit(file, BitsStored=12, HighBit=15)
    refused(tmp_path, "HighBit of 15 with 12 stored bits, expected 11")


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("RescaleSlope", b"1,5 "),
        ("RescaleSlope", b"1e999 "),
        ("RescaleSlope", rb"1\2 "),
        ("RescaleIntercept", b"none"),
        ("RescaleIntercept", b"nan "),
    ],
)
@pytest.mark.parametrize("is_multi_frame", [False, True])
def test_scaling_that_is_none(tmp_path, values, keyword, value, is_multi_frame):
    """GDCM leaves such a number out, or rescales by it to infinity."""
    file = tmp_path / "enhanced.dcm"
    if is_multi_frame:
        write_multi_frame(file, values)
    else:
        file = write_series(tmp_path, values)[2]
    dataset = pydicom.dcmread(file)
    header = dataset
    if is_multi_frame:
        header = dataset.PerFrameFunctionalGroupsSequence[2].PixelValueTransformationSequence[0]
    header._dict[Tag(keyword)] = RawDataElement(Tag(keyword), "DS", len(value), value, 0, False, True)
    dataset.save_as(file)
    refused(tmp_path, f"{keyword} that is no number")


def test_a_scaling_without_value_changes_nothing(tmp_path, values):
    for file in write_series(tmp_path, values, slope=2, intercept=3):
        edit(file, RescaleSlope="", RescaleIntercept="")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_only_series(tmp_path)), values)


def test_slice_without_pixels(tmp_path, values):
    file = write_series(tmp_path, values)[1]
    edit(file, PixelData=None)
    assert refused(tmp_path, "slice 2 of 6, .* no pixel data").endswith(f"({file.name})")


@pytest.mark.parametrize("size", [140, 300, 600, -40, -1])
def test_truncated_slice(tmp_path, values, size):
    file = write_series(tmp_path, values)[4]
    file.write_bytes(file.read_bytes()[:size])
    refused(tmp_path, "truncated")


@pytest.mark.parametrize("repeats", [1, 8])
def test_slice_with_less_pixels_than_it_states(tmp_path, values, repeats):
    files = write_series(tmp_path, np.tile(values, (1, repeats, repeats)))
    dataset = pydicom.dcmread(files[1])
    expected = len(dataset.PixelData)
    dataset.PixelData = dataset.PixelData[: expected // 4 * 2]
    dataset.save_as(files[1])
    found = len(pydicom.dcmread(files[1]).PixelData)
    refused(tmp_path, rf"slice 2 of 6, .* holds {found} bytes of pixel data, expected \d+, it may be truncated")


def test_compression_that_is_not_decoded(tmp_path, values):
    for file in write_series(tmp_path, values):
        dataset = pydicom.dcmread(file)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.file_meta.TransferSyntaxUID = HTJ2KLossless
        dataset.save_as(file)
    refused(tmp_path, "compressed by High-Throughput JPEG 2000.* pylibjpeg-openjpeg")


def test_multi_frame_with_two_volumes(tmp_path, values):
    write_multi_frame(tmp_path / "enhanced.dcm", values, frame_order=[0, 1, 2, 3, 0, 1, 2, 3])
    refused(tmp_path, r"4 slice\(s\) lie where another one does")


def test_multi_frame_without_frames(tmp_path, values):
    write_multi_frame(tmp_path / "enhanced.dcm", values)
    edit(tmp_path / "enhanced.dcm", PerFrameFunctionalGroupsSequence=[])
    refused(tmp_path, "does not state where its frames lie")


def test_multi_frame_without_places(tmp_path, values):
    write_multi_frame(tmp_path / "enhanced.dcm", values)
    edit(tmp_path / "enhanced.dcm", PerFrameFunctionalGroupsSequence=None)
    refused(tmp_path, "does not state where its frames lie")


def test_truncated_multi_frame(tmp_path, values):
    write_multi_frame(tmp_path / "enhanced.dcm", values)
    (tmp_path / "enhanced.dcm").write_bytes((tmp_path / "enhanced.dcm").read_bytes()[:-60])
    refused(tmp_path, "truncated")


@pytest.mark.parametrize(
    ("syntax", "packages"),
    [
        (JPEGLosslessSV1, "pylibjpeg and pylibjpeg-libjpeg"),
        (JPEG2000Lossless, "pylibjpeg and pylibjpeg-openjpeg"),
        (RLELossless, "pylibjpeg and pylibjpeg-rle"),
    ],
)
def test_multi_frame_names_the_packages_that_decode_it(tmp_path, values, syntax, packages, monkeypatch):
    """Whatever is installed here: nothing decodes, and pydicom says what it could take."""
    file = tmp_path / "enhanced.dcm"
    write_multi_frame(file, np.pad(values, ((0, 0), (0, 1), (0, 1))))
    dataset = pydicom.dcmread(file)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = dataset.PixelData[:-100]
    dataset.save_as(file)
    monkeypatch.setattr(type(get_decoder(syntax)), "missing_dependencies", [f"pylibjpeg - requires {packages}"])
    refused(tmp_path, f"frames .* cannot be decoded.* install {packages}; get it")
    monkeypatch.setattr(type(get_decoder(syntax)), "missing_dependencies", [])
    refused(tmp_path, "may be truncated; get it again")


@pytest.mark.parametrize("count", [5, 7])
def test_multi_frame_with_another_number_of_frames(tmp_path, values, count):
    write_multi_frame(tmp_path / "enhanced.dcm", values)
    edit(tmp_path / "enhanced.dcm", NumberOfFrames=count)
    assert "enhanced.dcm" in refused(
        tmp_path, "holds 756 bytes of pixel data, expected 882|has 5 frames, but states the place of 6"
    )


def test_damaged_bytes_never_give_a_traceback(tmp_path, values):
    """Flip bytes of the header of one slice: the volume is read, or a sentence says why not."""
    files = write_series(tmp_path, values)
    intact, rng = files[2].read_bytes(), np.random.default_rng(3)
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(intact[: rng.integers(100, len(intact))] if rng.random() < 0.3 else intact)
        for place in rng.integers(128, len(damaged) - 252 if len(damaged) == len(intact) else len(damaged), 3):
            damaged[place] ^= 1 << rng.integers(8)
        files[2].write_bytes(damaged)
        try:
            read_series(choose_series(images_below(tmp_path), None))
            outcomes.add("read")
        except ConversionError as error:
            outcomes.add("refused")
            public = getattr(error, "public_message", str(error))
            assert "\n" not in public
            assert "IM0" not in public
    assert outcomes == {"read", "refused"}


# --- real files


def test_real_study_is_read_as_simpleitk_reads_it(real):
    series = images_below(real / "brain_study")
    assert [(each.description, each.number, len(each.files)) for each in series] == [
        ("T1post", 11, 22),
        ("T1pre_reg", 26401, 22),
        ("FLAIR_reg", 36468, 22),
        ("T2_reg", 37870, 22),
        ("HippoCrop", None, 40),
    ]
    for each in series:
        image = read_series(each)
        assert not image.GetMetaDataKeys()
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(each.files[0].parent), each.uid)
        expected = read_by_simpleitk(names)
        assert_same_geometry(image, expected, tolerance=0)
        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(image), sitk.GetArrayViewFromImage(expected))


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("slicecount", r"found 2 slice\(s\), expected at least 3, .* slices are missing"),
        ("sliceorientation", r"2 orientations, \(.*\) in 2 slice\(s\) and \(.*\) in 2 slice\(s\)"),
        ("gantrytilting", "sheared by 14.00 degrees"),
    ],
)
def test_real_odd_series(real, folder, words):
    refused(real / "odd" / folder, words)
