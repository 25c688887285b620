"""Rotations of NIfTI headers that were rounded: what SimpleITK reads, this package reads, too."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.nifti_header import NiftiImage
from nnunet_ad.conversion.volume_files import check_intact, read_file

VALUES = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)


def write(path, quaternion, qfac=1.0, kind=nib.Nifti1Image):
    """Write a file whose only statement of the geometry is a quaternion (b, c, d)."""
    image = kind(VALUES, np.eye(4))
    image.set_sform(None, 0)
    image.set_qform(np.diag([2.0, 3.0, 4.0, 1.0]), 1)
    header = image.header
    header["qoffset_x"], header["pixdim"][0] = 7, qfac
    header["quatern_b"], header["quatern_c"], header["quatern_d"] = quaternion
    header.single_vox_offset = 352 if kind is nib.Nifti1Image else 544
    with path.open("wb") as file:
        header["magic"] = kind.header_class.single_magic
        header["vox_offset"] = header.single_vox_offset
        file.write(header.binaryblock.ljust(header.single_vox_offset, b"\0") + VALUES.tobytes(order="F"))
    return path


@pytest.mark.parametrize("qfac", [1.0, -1.0])
@pytest.mark.parametrize(
    "quaternion",
    [(0, 0, 0), (0, 0, 1.000002), (0, 1.0003, 0), (0.7072, 0.7072, 0), (0.1, -0.2, 0.3), (0, 0, 0.99999)],
)
def test_the_geometry_is_that_of_simpleitk(tmp_path, quaternion, qfac):
    path = write(tmp_path / "a.nii", quaternion, qfac)
    check_intact(path)
    read, affine = read_file(path, None), NiftiImage.from_filename(path).affine
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), VALUES.T)
    for voxel in ((0, 0, 0), (5, 4, 3)):
        place = (np.diag([-1, -1, 1, 1]) @ affine @ [*voxel, 1])[:3]
        np.testing.assert_allclose(read.TransformIndexToPhysicalPoint(voxel), place, atol=1e-5)


def test_a_quaternion_that_is_too_long_for_rounding_is_told(tmp_path):
    path = write(tmp_path / "a.nii", (0, 0, 1.5))
    with pytest.raises(ConversionError, match=r"quaternion \(b, c, d\) = \[0.0, 0.0, 1.5\], expected a length of 1"):
        check_intact(path)


def test_that_of_nifti_2_is_no_traceback(tmp_path):
    path = write(tmp_path / "a.nii", (0, 0, 1.000002), kind=nib.Nifti2Image)
    with pytest.raises(ConversionError, match="damaged"):
        check_intact(path)


@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_a_position_that_is_no_number_is_told(tmp_path, number):
    """On some of these SimpleITK never returns."""
    image = nib.Nifti1Image(VALUES, np.eye(4))
    image.header["srow_y"][3] = number
    image.header["sform_code"] = 1
    nib.save(nib.Nifti1Image(VALUES, None, image.header), tmp_path / "a.nii")
    with pytest.raises(ConversionError, match="the geometry with NaN or infinite numbers, expected finite ones"):
        check_intact(tmp_path / "a.nii")


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("unit", ["mm", "micron", "meter", "unknown"])
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_a_single_consistent_geometry_is_read(tmp_path, form, unit, mirrored):
    cos, sin, mirror = np.cos(0.2), np.sin(0.2), -1 if mirrored else 1
    affine = np.array(
        [[0.8 * cos, -0.9 * sin, 0, 7], [0.8 * sin, 0.9 * cos, 0, -9], [0, 0, 2.5 * mirror, 5], [0, 0, 0, 1]]
    )
    factor = {"micron": 1000, "meter": 0.001}.get(unit, 1)
    image = nib.Nifti1Image(VALUES, None)
    image.header.set_xyzt_units(unit)
    image.set_qform(np.diag([*3 * [factor], 1]) @ affine, int(form == "qform"))
    image.set_sform(np.diag([*3 * [factor], 1]) @ affine, int(form == "sform"))
    nib.save(nib.Nifti1Image(VALUES, None, image.header), tmp_path / "a.nii")
    assert nib.load(tmp_path / "a.nii").header["pixdim"][0] == mirror
    read = read_file(tmp_path / "a.nii", None)
    for voxel in ((0, 0, 0), (5, 4, 3)):
        place = (np.diag([-1, -1, 1, 1]) @ affine @ [*voxel, 1])[:3]
        np.testing.assert_allclose(read.TransformIndexToPhysicalPoint(voxel), place, atol=1e-4)


@pytest.mark.parametrize(("index", "value"), [(0, -3), (3, -4)])
def test_a_qform_that_readers_take_in_different_ways_is_refused(tmp_path, index, value):
    path = write(tmp_path / "a.nii", (0, 0, 0))
    content = bytearray(path.read_bytes())
    content[76 + 4 * index : 80 + 4 * index] = np.float32(value).tobytes()
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=r"a negative length, or a first number other than .* its qform"):
        read_file(path, None)
