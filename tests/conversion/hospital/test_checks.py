"""Every check: one sentence with case, file, what was found, what was expected, what to do; nothing is written."""

import gzip
import json
import shutil
import struct
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hospital_helpers import (
    ALL_CASES,
    CASES,
    NAME,
    change,
    change_voxels,
    convert,
    files_below,
    make_arrays,
    make_volume,
    write,
    written,
)

from nnunet_ad.conversion.hospital.grid import Grid
from nnunet_ad.conversion.volume_files import read_file

IMAGE, MASK, ALONE = "labeled/images/ann.nii.gz", "labeled/masks/ann.nii.gz", "unlabeled/eva.nii.gz"


def set_spacing(volume, spacing):
    volume.SetSpacing(spacing)
    return volume


def set_voxel(value, dtype=np.float32):
    def put(array):
        array = array.astype(dtype)
        array[3, 4, 5] = value
        return array

    return put


# One case


@pytest.mark.parametrize("file", [IMAGE, MASK, ALONE])
@pytest.mark.parametrize("kept", [0, 30, 100, -1, -9])
def test_truncated_file(file, kept, hospital, raw, refused):
    path = hospital / file
    path.write_bytes(path.read_bytes()[:kept])
    case, part = ("Liver_0005", "image") if file == ALONE else ("Liver_0001", "mask" if file == MASK else "image")
    refused(convert(hospital), case, f"{part}: the file cannot be read, it may be truncated", "get it again")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("compressed", [True, False])
def test_truncated_file_of_each_format(suffix, compressed, hospital, raw, refused):
    (hospital / ALONE).unlink()
    path = write(make_volume(make_arrays("eva")[0], "eva"), hospital / "unlabeled" / f"eva{suffix}", compressed)
    assert convert(hospital, "--dry-run") == 0
    path.write_bytes(path.read_bytes()[:-40])
    refused(convert(hospital), "Liver_0005", "truncated")


def test_volume_cut_before_it_was_compressed(hospital, raw, refused):
    path = hospital / ALONE
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-200]))
    refused(convert(hospital), "Liver_0005", "truncated")


@pytest.mark.parametrize("file", [IMAGE, MASK, ALONE])
def test_compressed_file_with_the_ending_of_others(file, hospital, raw, refused):
    path = hospital / file
    path.rename(path.with_suffix(""))
    assert path.with_suffix("").name.endswith(".nii")
    refused(convert(hospital), "the file is called .nii, but is compressed by gzip; rename it to .nii.gz")


def test_file_of_another_format(hospital, raw, refused):
    (hospital / ALONE).write_text("patient notes")
    refused(convert(hospital), "Liver_0005 (unlabeled 1 of 3), image: the file cannot be read")


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_missing_partner(folder, hospital, raw, refused):
    (hospital / "labeled" / folder / "bob.nii.gz").unlink()
    words = {"images": "found no image file(s)", "masks": "found 1 image file(s) and no mask"}[folder]
    refused(convert(hospital), "Liver_0002 (labeled 2 of 4), files", words, "add")


def test_renamed_mask_leaves_two_cases_without_a_partner(hospital, raw, refused):
    (hospital / MASK).rename(hospital / "labeled" / "masks" / "zoe.nii.gz")
    assert "no mask" in refused(convert(hospital), "Liver_0001")
    refused(convert(hospital), "Liver_0005 (labeled 5 of 5)", "no image file")


def test_swapped_masks(hospital, raw, refused):
    masks = hospital / "labeled" / "masks"
    (masks / "ann.nii.gz").rename(masks / "x")
    (masks / "bob.nii.gz").rename(masks / "ann.nii.gz")
    (masks / "x").rename(masks / "bob.nii.gz")
    line = refused(convert(hospital), "Liver_0001", "mask: the mask lies on another grid than the image")
    assert "origin (-47.5, 21.25, 133)" in line and "expected 12 x 14 x 10 voxels of (0.8, 0.9, 2.5) mm" in line
    assert "origin (-40, 21.25, 133)" in line and "--resample-masks" in line


def test_image_and_mask_swapped(hospital, raw, refused):
    image, mask = hospital / IMAGE, hospital / MASK
    image.rename(hospital / "x")
    mask.rename(image)
    (hospital / "x").rename(mask)
    refused(convert(hospital), "Liver_0001", "mask: the label has the values", "expected only [0, 1, 2]")


@pytest.mark.parametrize("what", ["size", "spacing", "origin", "direction"])
def test_mask_on_another_grid(what, hospital, raw, refused):
    def alter(volume):
        if what == "size":
            return volume[:, :, 1:]
        value = {"spacing": (0.8, 0.9, 2.6), "origin": (0, 0, 0), "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}[what]
        getattr(volume, f"Set{what.title()}")(value)
        return volume

    change(hospital / MASK, alter)
    refused(convert(hospital), "Liver_0001", "the mask lies on another grid", "--resample-masks")


def test_grids_are_the_same_if_no_voxel_is_elsewhere():
    grid = Grid((512, 512, 300), (0.7, 0.7, 1.0), (-180.0, -170.0, 30.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    rounded = replace(grid, spacing=tuple(float(np.float32(each)) for each in grid.spacing))
    assert rounded.matches(grid)
    assert replace(grid, origin=(-180.0065, -170.0, 30.0)).matches(grid)
    assert not replace(grid, origin=(-180.0075, -170.0, 30.0)).matches(grid), "over 0.01 voxels"
    assert not replace(grid, spacing=(0.7009, 0.7, 1.0)).matches(grid), "0.46 mm at the far end"
    tilted = replace(grid, direction=(1, 0, 0, 0, 1, 9e-4, 0, -9e-4, 1))
    assert not tilted.matches(grid), "0.3 mm at the far end"
    assert not replace(grid, origin=(np.nan, 0, 0)).matches(grid)
    coarse = Grid((20, 20, 20), (5.0, 5.0, 5.0), (0.0, 0.0, 0.0), grid.direction)
    assert replace(coarse, origin=(0.009, 0.0, 0.0)).matches(coarse)
    assert not replace(coarse, origin=(0.011, 0.0, 0.0)).matches(coarse), "over 0.01 mm"


def test_mask_on_a_rounded_grid_gets_that_of_the_image(hospital, raw, refused):
    expected = sitk.ReadImage(str(hospital / IMAGE))
    change(hospital / MASK, lambda volume: set_spacing(volume, (0.8004, 0.9, 2.5)))
    assert convert(hospital) == 0
    label = written(raw, "labelsTr/Liver_0001.nii.gz")
    image = written(raw, "imagesTr/Liver_0001_0000.nii.gz")
    for name in ("Spacing", "Origin", "Direction"):
        found = getattr(label, f"Get{name}")()
        assert found == getattr(image, f"Get{name}")()
        np.testing.assert_allclose(found, getattr(expected, f"Get{name}")(), atol=1e-5)
    shutil.rmtree(raw)
    change(hospital / MASK, lambda volume: set_spacing(volume, (0.8009, 0.9, 2.5)))
    refused(convert(hospital), "Liver_0001", "the mask lies on another grid", "up to 0.0099 mm away")


def test_mask_on_another_grid_is_resampled_if_wanted(hospital, raw):
    def finer(volume):
        return sitk.Resample(volume, [24, 28, 20], sitk.Transform(), sitk.sitkNearestNeighbor,
                             volume.TransformContinuousIndexToPhysicalPoint((-0.25,) * 3), (0.4, 0.45, 1.25),
                             volume.GetDirection())  # fmt: skip

    change(hospital / MASK, finer)
    assert convert(hospital, "--resample-masks") == 0
    label = sitk.GetArrayFromImage(written(raw, "labelsTr/Liver_0001.nii.gz"))
    np.testing.assert_array_equal(label, make_arrays("ann")[1])


def test_resampled_mask_that_does_not_meet_the_image(hospital, raw, refused):
    def far_away(volume):
        volume.SetOrigin((900, 900, 900))
        return volume

    change(hospital / MASK, far_away)
    refused(convert(hospital, "--resample-masks"), "Liver_0001", "the label is empty")


def test_resampled_mask_that_lost_volume_carries_a_warning(hospital, raw, capsys):
    def aside(volume):
        volume.SetOrigin(volume.TransformIndexToPhysicalPoint((8, 0, 0)))
        return volume

    change(hospital / MASK, aside)
    assert convert(hospital, "--resample-masks") == 0
    assert "warning: Liver_0001 (labeled 1 of 4), mask: resampling changed" in capsys.readouterr().err


def test_sheared_grid_of_a_tilted_gantry(hospital, raw, refused):
    image = nib.load(hospital / ALONE)
    shear = np.eye(4)
    shear[1, 2] = np.tan(np.deg2rad(15))
    sheared = nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine @ shear)
    nib.save(sheared, hospital / ALONE)
    refused(convert(hospital), "Liver_0005", "the axes of the grid are", "expected 90", "tilted gantry")


def skew(path, cosine, kind=nib.Nifti1Image):
    """Turn the second axis of a NIfTI file a little towards the first, and return where its voxels are."""
    image = nib.load(path)
    affine = image.affine.copy()
    affine[:3, 1] += cosine * affine[:3, 0]
    turned = kind(np.array(image.dataobj), affine)
    turned.set_qform(None, 0)
    turned.set_sform(affine, 1)
    nib.save(turned, path)
    return affine


@pytest.mark.parametrize("cosine", [3e-4, 9e-4])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_axes_a_little_off_a_right_angle_become_perpendicular(suffix, cosine, hospital, raw):
    """SimpleITK refuses what registration leaves in single precision."""
    for file in (ALONE, IMAGE, MASK):
        path = hospital / file
        if suffix == ".nii":
            path = write(sitk.ReadImage(str(path)), path.with_suffix(""))
            (hospital / file).unlink()
        affine = skew(path, cosine)
        with pytest.raises(RuntimeError):
            sitk.ReadImage(str(path))
    assert convert(hospital) == 0
    found = written(raw, "imagesUnlabeled/Liver_0005_0000.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), make_arrays("eva")[0])
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(written(raw, "labelsTr/Liver_0001.nii.gz")), make_arrays("ann")[1]
    )
    image = written(raw, "imagesTr/Liver_0001_0000.nii.gz")
    for voxel in ((0, 0, 0), (11, 13, 9)):
        place = (np.diag([-1, -1, 1, 1]) @ affine @ [*voxel, 1])[:3]
        assert np.linalg.norm(np.array(image.TransformIndexToPhysicalPoint(voxel)) - place) < 0.01


def test_axes_a_little_off_a_right_angle_in_4d(hospital, raw, refused):
    change(hospital / ALONE, lambda volume: sitk.JoinSeries([volume, volume + 1], 0.0, 1.0))
    skew(hospital / ALONE, 5e-4)
    refused(convert(hospital), "Liver_0005", "found 4 dimensions with 2 volumes", "--frames")
    refused(convert(hospital, "--frames", 2), "Liver_0005", "hence no 2")
    assert convert(hospital, "--frames", 1) == 0
    found = written(raw, "imagesUnlabeled/Liver_0005_0000.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), make_arrays("eva")[0] + 1)


def test_nifti_2_is_named(hospital, raw, refused):
    skew(hospital / ALONE, 0, nib.Nifti2Image)
    refused(convert(hospital), "Liver_0005", "the file is NIfTI-2, which is not read; convert it to NIfTI-1")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_sheared_grid_in_other_formats(suffix, hospital, raw, refused):
    (hospital / ALONE).unlink()
    shear = (1, 0, 0, 0, 0.9659258, 0.2588190, 0, 0, 1)
    write(make_volume(make_arrays("eva")[0], "eva", direction=shear), hospital / "unlabeled" / f"eva{suffix}")
    refused(convert(hospital), "Liver_0005", "the axes of the grid are", "expected 90")


@pytest.mark.parametrize("cosine", [0, 5e-4])
@pytest.mark.parametrize(("unit", "factor"), [("micron", 1000), ("meter", 0.001)])
def test_other_units_of_length_than_mm(unit, factor, cosine, hospital, raw):
    affine = skew(hospital / ALONE, cosine)
    image = nib.load(hospital / ALONE)
    image.header.set_xyzt_units(unit)
    scaled = np.diag([factor, factor, factor, 1]) @ affine
    if cosine == 0:
        image.set_qform(scaled, 1)
    image.set_sform(scaled, 1)
    nib.save(nib.Nifti1Image(np.array(image.dataobj), None, image.header), hospital / ALONE)
    assert convert(hospital) == 0
    found = written(raw, "imagesUnlabeled/Liver_0005_0000.nii.gz")
    assert found.GetSpacing() == pytest.approx((0.8, 0.9, 2.5), rel=1e-3)
    for voxel in ((0, 0, 0), (11, 13, 9)):
        place = (np.diag([-1, -1, 1, 1]) @ affine @ [*voxel, 1])[:3]
        assert np.linalg.norm(np.array(found.TransformIndexToPhysicalPoint(voxel)) - place) < 0.01


def set_quaternion(path, value):
    """State a half turn by a quaternion of this length in a NIfTI file without another geometry."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[252:256] = struct.pack("<hh", 1, 0)  # qform_code and sform_code
    content[256:268] = struct.pack("<fff", 0, 0, value)
    path.write_bytes(gzip.compress(content))


def test_a_rounded_quaternion_ends_no_conversion(hospital, raw, refused):
    set_quaternion(hospital / ALONE, 1.3)
    refused(convert(hospital), "Liver_0005", "expected a length of 1 at most; export the file again")
    assert convert(hospital, "--skip-bad", "--dry-run") == 0
    set_quaternion(hospital / ALONE, 1.000002)
    assert convert(hospital) == 0
    assert written(raw, "imagesUnlabeled/Liver_0005_0000.nii.gz").GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)


def test_header_with_two_geometries(hospital, raw, refused):
    image = nib.load(hospital / ALONE)
    other = image.affine.copy()
    other[:3, 3] += 50
    image.set_qform(other, 1)
    image.set_sform(image.affine, 1)
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), None, image.header), hospital / ALONE)
    refused(convert(hospital), "Liver_0005", "two positions of the volume that differ (qform and sform)")


NRRD = """NRRD0005
type: short
dimension: {dimension}
sizes: {sizes}
encoding: raw
endian: little
{geometry}

"""
IN_SPACE = """space: left-posterior-superior
space directions: (0.8,0,0) (0,0.9,0) (0,0,2.5)
"""
MHA = """NDims = 3
DimSize = 12 14 10
ElementSpacing = 0.8 0.9 2.5
DistanceUnits = {geometry}
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""


def write_with_unit(folder, geometry):
    """Write a case's image with these lines of a NRRD header, or this unit of MHA."""
    is_nrrd, num_frames = ":" in geometry, 2 if '"s"' in geometry else 1
    sizes = "12 14 10" if num_frames == 1 else "12 14 10 2"
    header = (NRRD if is_nrrd else MHA).format(dimension=len(sizes.split()), sizes=sizes, geometry=geometry)
    path = folder / ("eva.nrrd" if is_nrrd else "eva.mha")
    path.write_bytes(header.encode() + num_frames * make_arrays("eva")[0].astype("<i2").tobytes())
    return path


@pytest.mark.parametrize(
    ("geometry", "unit"),
    [
        (IN_SPACE + 'space units: "um" "um" "um"', "um"),
        ('spacings: 0.8 0.9 2.5\nunits: "mm" "mm" "cm"', "cm"),
        ('spacings: 0.8 0.9 2.5\nunits: "microns" "microns" "microns"', "microns"),
        ("um", "um"),
        ("cm", "cm"),
    ],
)
def test_lengths_of_nrrd_and_mha_that_are_not_in_mm(geometry, unit, hospital, raw, refused):
    (hospital / ALONE).unlink()
    write_with_unit(hospital / "unlabeled", geometry)
    refused(convert(hospital), "Liver_0005", f"the header states lengths in {unit}, expected mm; export the file again")


@pytest.mark.parametrize(
    "geometry",
    [
        IN_SPACE + 'space units: "mm" "mm" "mm"',
        'spacings: 0.8 0.9 2.5\nunits: "mm" "" "???"',
        'spacings: 0.8 0.9 2.5 1\nunits: "mm" "mm" "mm" "s"',
        "spacings: 0.8 0.9 2.5",
        "mm",
        "?",
        "",
        'spacings: 0.8 0.9 2.5\nunits: "unknown" "none" "n/a"',
        "Unknown",
    ],
)
def test_lengths_of_nrrd_and_mha_in_mm(geometry, tmp_path):
    image = read_file(write_with_unit(tmp_path, geometry), 0)
    assert image.GetSpacing() == pytest.approx((0.8, 0.9, 2.5))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), make_arrays("eva")[0])


def test_sform_whose_lengths_are_not_the_spacing(hospital, raw, refused):
    """SimpleITK would take the directions from one and the spacing from the other."""
    image = nib.load(hospital / ALONE)
    image.set_sform(image.affine, 1)
    image.set_qform(None, 0)
    image.header["pixdim"][1:4] = 1
    nib.save(nib.Nifti1Image(np.array(image.dataobj), None, image.header), hospital / ALONE)
    refused(
        convert(hospital),
        "Liver_0005",
        "two geometries that differ, voxels of [0.8, 0.9, 2.5] mm by its sform and of [1.0, 1.0, 1.0] mm by its pixdim",
        "expected one; export the file again, or correct the wrong one",
    )


@pytest.mark.parametrize("extent", [1, 2, 3])
def test_tiny_dimension(extent, hospital, raw, refused):
    change(hospital / ALONE, lambda volume: volume[:, :, :extent])
    refused(
        convert(hospital), "Liver_0005", f"the image has 12 x 14 x {extent} voxels, expected at least 4", "--min-size"
    )
    assert convert(hospital, "--min-size", extent) == 0


def test_two_dimensions(hospital, raw, refused):
    change(hospital / ALONE, lambda volume: volume[:, :, 3])
    refused(convert(hospital), "Liver_0005", "expected")


def test_implausible_spacing(hospital, raw, refused):
    change(hospital / ALONE, lambda volume: set_spacing(volume, (0.0008, 0.0009, 0.0025)))
    refused(convert(hospital), "Liver_0005", "the spacing is 0.0008 x 0.0009 x 0.0025 mm", "millimetres")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_image_with_nan_or_infinity(value, hospital, raw, refused):
    change_voxels(hospital / ALONE, set_voxel(value))
    refused(convert(hospital), "Liver_0005", "image: the file has 1 NaN or infinite value(s)", "repair or replace")


def test_constant_image(hospital, raw, refused):
    change_voxels(hospital / IMAGE, lambda array: np.full_like(array, 7))
    refused(convert(hospital), "Liver_0001", "every voxel of the image is 7")


def test_empty_mask(hospital, raw, refused):
    change_voxels(hospital / MASK, np.zeros_like)
    refused(convert(hospital), "Liver_0001", "mask: the label is empty")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_image_with_nan_in_other_formats(suffix, hospital, raw, refused):
    (hospital / ALONE).unlink()
    array = set_voxel(np.nan)(make_arrays("eva")[0])
    write(make_volume(array, "eva"), hospital / "unlabeled" / f"eva{suffix}")
    refused(convert(hospital), "Liver_0005", "1 NaN or infinite value(s)")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.5, "values that are no whole numbers"),
        (1.00001, "no whole numbers"),
        (1e-9, "no whole numbers"),
        (np.nan, "1 NaN or infinite"),
    ],
)
def test_mask_with_fractions(value, words, hospital, raw, refused):
    change_voxels(hospital / MASK, set_voxel(value))
    refused(convert(hospital), "Liver_0001", "mask: ", words)


@pytest.mark.parametrize("rest", [0, 5.5e-17], ids=["", "with what an intercept leaves of 0"])
def test_mask_of_whole_floats_is_fine(rest, hospital, raw):
    change_voxels(hospital / MASK, lambda array: array.astype(np.float64) + rest)
    assert convert(hospital) == 0


@pytest.mark.parametrize("kind", ["label map", "binary files"])
def test_mask_scaled_by_its_header_is_rounded(kind, hospital, raw):
    """Stored as 0 and 255 with the slope 1/255, which as a float32 makes 1.00000006 of 255."""

    def scale(path, array):
        change_voxels(path, lambda _: 255.0 * array)
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[112:116] = np.float32(1 / 255).tobytes()  # scl_slope
        path.write_bytes(gzip.compress(content))
        assert (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) % 1).any()

    for case in CASES["labeled"]:
        path, mask = hospital / "labeled" / "masks" / f"{case}.nii.gz", make_arrays(case)[1]
        if kind == "label map":
            scale(path, mask)
        else:
            for number, name in enumerate(("liver", "tumour"), 1):
                scale(shutil.copy(path, path.with_name(f"{case}_{name}.nii.gz")), mask == number)
            path.unlink()
    assert convert(hospital) == 0
    label = sitk.GetArrayFromImage(written(raw, "labelsTr/Liver_0001.nii.gz"))
    np.testing.assert_array_equal(label, make_arrays("ann")[1])


@pytest.mark.parametrize("value", [3, 205, -1])
def test_value_without_a_name(value, hospital, raw, refused):
    change_voxels(hospital / MASK, set_voxel(value, np.int16))
    refused(convert(hospital), "Liver_0001", f"{value}", "expected only [0, 1, 2]")
    (hospital / "labels.json").write_text(json.dumps({"liver": 1, "tumour": 2, "background": value}))
    assert convert(hospital) == 0


def test_mask_of_the_only_structure_with_another_value(hospital, raw, refused):
    (hospital / "labels.json").write_text('{"liver": 1}')
    for path in hospital.rglob("masks/*"):
        change_voxels(path, lambda array: 255 * (array > 0).astype(np.uint8))
    words = "the mask has the value 255 beside 0, expected 1 for liver", 'as in {"liver": [1, 255]}'
    refused(convert(hospital), "Liver_0001", *words)
    (hospital / "labels.json").write_text('{"liver": [1, 255]}')
    assert convert(hospital) == 0


def test_4d_mask_of_a_3d_image(hospital, raw, refused):
    """--frames chooses volumes of the image, of which there is one only."""
    change(hospital / MASK, lambda volume: sitk.JoinSeries([volume, volume], 0.0, 1.0))
    for options in ((), ("--frames", 0)):
        words = "the mask has 2 volumes, but the image is one, expected one label map, or one file a structure"
        assert "--frames" not in refused(convert(hospital, *options), "Liver_0001", words, "give")


def test_4d_image_without_frames(hospital, raw, refused):
    change(hospital / ALONE, lambda volume: sitk.JoinSeries([volume, volume + 1], 0.0, 1.0))
    refused(convert(hospital), "Liver_0005", "found 4 dimensions with 2 volumes", "--frames")
    refused(convert(hospital, "--frames", 2), "Liver_0005", "frame 2", "hence no 2")


def test_colours(hospital, raw, refused):
    change(hospital / ALONE, lambda volume: sitk.Compose([sitk.Cast(volume, sitk.sitkUInt8)] * 3))
    refused(convert(hospital), "Liver_0005", "a voxel holds 3 value(s)", "expected one real number")


def test_file_without_permission_is_not_named(hospital, raw, refused, monkeypatch):
    from nnunet_ad.conversion import volume_files as files

    def deny(path, rectangular):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "_check_nifti", deny)
    assert "ann." not in refused(convert(hospital), "Liver_0001", "the file cannot be opened (Permission denied)")


# Several cases


@pytest.mark.parametrize("copy", ["unlabeled/zoe.nii.gz", "test/images/zoe.nii.gz"])
def test_image_under_two_names(copy, hospital, raw, refused):
    shutil.copy(hospital / IMAGE, hospital / copy)
    refused(convert(hospital), "image: the image has the same voxels as that of Liver_0001 (labeled)", "remove one")


def test_image_under_two_names_is_found_in_another_format_type_and_orientation(hospital, raw, refused):
    volume = sitk.DICOMOrient(sitk.ReadImage(str(hospital / IMAGE)), "RAS")
    write(sitk.Cast(volume, sitk.sitkFloat64), hospital / "unlabeled" / "zoe.mha")
    refused(convert(hospital, "--accept-outliers"), "the image has the same voxels as that of Liver_0001")


def test_case_of_one_name_in_two_roles(hospital, raw, refused):
    change_voxels(hospital / ALONE, lambda array: array + 1)
    (hospital / ALONE).rename(hospital / "unlabeled" / "ANN.nii.gz")
    refused(convert(hospital), "Liver_0005", "the case has the same name as Liver_0001, which is labeled")


def test_case_in_two_formats(hospital, raw, refused):
    change(hospital / ALONE, lambda volume: volume)
    write(sitk.ReadImage(str(hospital / ALONE)), hospital / "unlabeled" / "eva.mha")
    refused(convert(hospital), "Liver_0005", "found 2 image file(s)")


@pytest.mark.parametrize("factor", [0.5, 2, 10])
def test_spacing_unlike_the_rest(factor, hospital, raw, refused, capsys):
    change(hospital / ALONE, lambda volume: set_spacing(volume, [factor * each for each in volume.GetSpacing()]))
    refused(convert(hospital), "Liver_0005", "but of the others typically 0.8 x 0.9 x 2.5 mm", "--accept-outliers")
    assert convert(hospital, "--accept-outliers") == 0
    assert "warning: Liver_0005" in capsys.readouterr().err


@pytest.mark.parametrize("alter", [lambda a: a * 10, lambda a: a - 1024, lambda a: a // 8], ids=["x10", "-1024", "/8"])
def test_intensities_unlike_the_rest(alter, hospital, raw, refused, capsys):
    change_voxels(hospital / IMAGE, alter)
    refused(convert(hospital), "Liver_0001", "image: the intensities run from", "--domains", "--accept-outliers")
    assert convert(hospital, "--accept-outliers") == 0
    assert "warning: Liver_0001" in capsys.readouterr().err


def test_intensities_of_two_scanners_pass(hospital, raw):
    for case in ("eva", "fay"):
        change_voxels(hospital / "unlabeled" / f"{case}.nii.gz", lambda array: array * 30)
    assert convert(hospital) == 0


def test_a_case_is_compared_within_its_domain(hospital, raw, tmp_path, refused):
    change_voxels(hospital / ALONE, lambda array: array * 30)
    table = tmp_path / "domains.csv"
    table.write_text("case,domain\n" + "".join(f"{case},{'B' if case == 'eva' else 'A'}\n" for case in ALL_CASES))
    refused(convert(hospital), "Liver_0005", "the intensities run from")
    assert convert(hospital, "--domains", table) == 0


def test_mixed_orientations(hospital, raw, refused):
    change(hospital / ALONE, lambda volume: sitk.DICOMOrient(volume, "RAS"))
    refused(convert(hospital), "Liver_0005", "the axes run to RAS, but in most", "to LPS,", "--reorient LPS")
    assert convert(hospital, "--reorient", "LPS") == 0
    found = sitk.GetArrayFromImage(written(raw, "imagesUnlabeled/Liver_0005_0000.nii.gz"))
    np.testing.assert_array_equal(found, make_arrays("eva")[0])


def test_oblique_grids_that_hardly_differ_are_alike_whatever_their_orientations_are_called(hospital, raw):
    names = set()
    for case, degrees in (("eva", 40), ("fay", 50)):
        cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        volume = make_volume(make_arrays(case)[0], case, direction=(cos, -sin, 0, sin, cos, 0, 0, 0, 1))
        names.add(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(volume.GetDirection()))
        write(volume, hospital / "unlabeled" / f"{case}.nii.gz")
    assert len(names) == 2
    assert convert(hospital) == 0


def test_test_case_without_the_mask_that_others_have(hospital, raw, capsys):
    image = make_volume(make_arrays("hal")[0] + 1, "hal")
    write(image, hospital / "test" / "images" / "ida.nii.gz")
    assert convert(hospital) == 0
    assert "warning: Liver_0009 (test 2 of 2), mask: the test case has no mask" in capsys.readouterr().err
    assert not (raw / NAME / "labelsTs" / "Liver_0009.nii.gz").exists()


def test_file_that_changes_meanwhile(hospital, raw, capsys, monkeypatch):
    from nnunet_ad.conversion.hospital import convert as module

    original = module.check_cohort

    def change_then_check(*arguments):
        change_voxels(hospital / ALONE, lambda array: array + 1)
        return original(*arguments)

    monkeypatch.setattr(module, "check_cohort", change_then_check)
    assert convert(hospital) == 1
    assert "case Liver_0005, file image: the file changed since it was checked" in capsys.readouterr().err
    assert files_below(raw) == []


def test_file_that_changes_meanwhile_is_not_named(hospital, raw, capsys, monkeypatch):
    from nnunet_ad.conversion.hospital import convert as module

    masks = hospital / "labeled" / "masks"
    for case in CASES["labeled"]:
        (masks / case).mkdir()
        for index, name in enumerate(("liver", "tumour"), 1):
            mask = make_volume((make_arrays(case)[1] == index).astype(np.uint8), case)
            write(mask, masks / case / f"smith_{name}.nii.gz")
        (masks / f"{case}.nii.gz").unlink()
    original = module.check_cohort

    def change_then_check(*arguments):
        (masks / "ann" / "smith_tumour.nii.gz").write_bytes(b"")
        return original(*arguments)

    monkeypatch.setattr(module, "check_cohort", change_then_check)
    assert convert(hospital) == 1
    printed = capsys.readouterr().err
    assert "case Liver_0001, file mask: mask file 2 of 2: the file cannot be read" in printed
    assert "smith" not in printed and files_below(raw) == []


# What is done about them


def test_all_findings_of_all_cases_are_told_at_once(hospital, raw, capsys):
    change_voxels(hospital / IMAGE, lambda array: np.full_like(array, 7))
    change_voxels(hospital / MASK, set_voxel(9))
    (hospital / ALONE).write_bytes(b"")
    assert convert(hospital) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [line.split(",")[0].split()[1] for line in errors] == ["Liver_0001"] * 3 + ["Liver_0005"]


def test_bad_cases_are_left_out_and_listed_if_wanted(hospital, raw, capsys):
    change_voxels(hospital / MASK, set_voxel(9))
    (hospital / ALONE).write_bytes(b"")
    assert convert(hospital, "--skip-bad") == 0
    printed = capsys.readouterr()
    assert [line.split()[:5] for line in printed.out.splitlines()[1:4]] == [
        ["labeled", "4", "3", "1", "0"],
        ["unlabeled", "3", "2", "1", "0"],
        ["test", "1", "1", "0", "0"],
    ]
    assert "error: Liver_0001" in printed.err and "error: Liver_0005" in printed.err
    cases = [path.name.split("_0000")[0] for path in sorted((raw / NAME).glob("images*/*"))]
    assert sorted(cases) == [f"Liver_000{number}" for number in (2, 3, 4, 6, 7, 8)]
    report = json.loads((raw / NAME / "conversion_report.json").read_text())
    left_out = [case["case"] for case in report["cases"] if case["status"] == "left out"]
    assert left_out == ["Liver_0001", "Liver_0005"]
    (fold,) = json.loads((raw / NAME / "splits_final.json").read_text())
    assert fold["train"] == ["Liver_0002", "Liver_0003", "Liver_0004"]
    assert fold["unlabeled"] == ["Liver_0006", "Liver_0007"]


def test_without_a_good_labelled_case_nothing_is_written_even_so(hospital, raw, capsys):
    for case in CASES["labeled"]:
        (hospital / "labeled" / "masks" / f"{case}.nii.gz").write_bytes(b"")
    assert convert(hospital, "--skip-bad") == 1
    assert "--skip-bad" not in capsys.readouterr().err.splitlines()[-1]
    assert files_below(raw) == []


def test_paths_are_shown_only_if_wanted(hospital, raw, capsys):
    (hospital / ALONE).write_bytes(b"")
    assert convert(hospital) == 1
    printed = capsys.readouterr()
    assert "eva" not in printed.out + printed.err and str(hospital) not in printed.out + printed.err
    assert convert(hospital, "--show-paths") == 1
    assert str(hospital / ALONE) in capsys.readouterr().err


def test_report_on_a_refused_conversion_is_written_where_it_was_asked_for(hospital, raw, tmp_path):
    (hospital / ALONE).write_bytes(b"")
    assert convert(hospital, "--report", tmp_path / "report") == 1
    assert files_below(raw) == []
    page = (tmp_path / "report" / "conversion_report.html").read_text()
    assert "The dataset was not written" in page and "cannot be read" in page
    report = json.loads((tmp_path / "report" / "conversion_report.json").read_text())
    assert report["written"] is False
    assert {case["status"] for case in report["cases"]} == {"left out", "not written"}


def test_report_shows_each_case_and_needs_no_network(hospital, raw):
    assert convert(hospital) == 0
    page = (raw / NAME / "conversion_report.html").read_text()
    assert page.count("data:image/png;base64,") == 8
    assert all(f"<h3>Liver_000{number}</h3>" in page for number in range(1, 9))
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert "prefers-color-scheme: dark" in page
    assert "Cases without findings" in page and "Cases with findings" not in page
    report = json.loads((raw / NAME / "conversion_report.json").read_text())
    mask = make_arrays("ann")[1]
    millilitres = {name: np.count_nonzero(mask == value) * 0.8 * 0.9 * 2.5 / 1000 for name, value in
                   (("liver", 1), ("tumour", 2))}  # fmt: skip
    assert report["cases"][0]["millilitres"] == pytest.approx(millilitres, abs=1e-3)


def test_missing_folder_and_empty_folder(hospital, raw, refused, tmp_path):
    shutil.rmtree(hospital / "unlabeled")
    refused(convert(hospital, "--unlabeled", tmp_path / "nowhere"), "--unlabeled: there is no such folder")
    (hospital / "unlabeled").mkdir()
    refused(convert(hospital), "--unlabeled: the folder holds no case")
