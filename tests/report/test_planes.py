"""Slices of a case: the right way up, the right side, the right aspect, and where it fails."""

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ad.report.planes import cut_planes

SHAPE, SPACING = (10, 12, 16), (3.0, 1.0, 0.5)  # (z, y, x) of an LPS grid


def write(folder, name, array, orientation="LPS"):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING[::-1])
    path = folder / f"{name}.nii.gz"
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(path))
    return path


def case(folder, orientation="LPS"):
    """An image that grows towards the patient's left, back and head; a prediction that errs in one corner."""
    z, y, x = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    image = (10000 * z + 100 * y + x).astype(np.float32)
    reference = np.zeros(SHAPE, np.uint8)
    reference[2:8, 3:9, 4:12] = 1
    prediction = reference.copy()
    prediction[5, 4:8, 5:9] = 0
    prediction[3:7, 4, 6] = 0
    arrays = {"image": image, "reference": reference, "prediction": prediction}
    return [write(folder, name, array, orientation) for name, array in arrays.items()]


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "ASL"])
def test_slices_are_the_same_however_the_file_is_stored(tmp_path, orientation):
    axial, coronal, sagittal = cut_planes(*case(tmp_path, orientation), [1])
    assert [plane.name for plane in (axial, coronal, sagittal)] == ["axial", "coronal", "sagittal"]
    # Radiologists' view: the patient's left on the right, the back or the feet at the bottom.
    assert (np.diff(axial.image, axis=0) == 100).all()
    assert (np.diff(axial.image, axis=1) == 1).all()
    assert (np.diff(coronal.image, axis=0) == -10000).all()
    assert (np.diff(coronal.image, axis=1) == 1).all()
    assert (np.diff(sagittal.image, axis=0) == -10000).all()
    assert (np.diff(sagittal.image, axis=1) == 100).all()
    assert [plane.letters for plane in (axial, coronal, sagittal)] == [
        ("R", "L", "A", "P"),
        ("R", "L", "S", "I"),
        ("A", "P", "S", "I"),
    ]


def test_the_slice_is_where_most_voxels_differ(tmp_path):
    axial, coronal, sagittal = cut_planes(*case(tmp_path), [1])
    assert (axial.image // 10000 == 5).all()
    assert (coronal.image % 10000 // 100 == 4).all()
    assert (sagittal.image % 100 == 6).all()
    assert np.count_nonzero(axial.reference != axial.prediction) == 16


def test_the_aspect_is_that_of_millimetres(tmp_path):
    for plane, spacing in zip(cut_planes(*case(tmp_path), [1]), [(1, 0.5), (3, 0.5), (3, 1)], strict=True):
        rows, columns = plane.image.shape
        assert plane.spacing == spacing
        assert plane.aspect == pytest.approx(columns * spacing[1] / (rows * spacing[0]))


def test_only_the_surroundings_of_the_structures_are_shown(tmp_path):
    shape = (12, 200, 200)
    labels = np.zeros(shape, np.uint8)
    labels[4:6, 100:110, 90:100] = 1
    labels[0, 0, 0] = 2  # does not count
    files = [write(tmp_path, name, labels) for name in ("image", "reference", "prediction")]
    axial = cut_planes(*files, [1])[0]
    assert axial.image.shape == (10 + 2 * 12, 10 + 2 * 24)  # 12 mm on each side
    assert axial.reference.max() == 1


def test_an_image_of_two_dimensions_is_one_picture(tmp_path):
    labels = np.zeros((20, 30), np.uint8)
    labels[5:9, 6:12] = 1
    colours = sitk.GetImageFromArray(np.zeros((20, 30, 3), np.uint8), isVector=True)
    sitk.WriteImage(colours, str(tmp_path / "image.png"))
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / "labels.png"))
    (plane,) = cut_planes(tmp_path / "image.png", tmp_path / "labels.png", tmp_path / "labels.png", [1])
    assert plane.image.shape == plane.reference.shape
    assert plane.letters == ()


def test_a_single_slice_has_no_other_planes(tmp_path):
    labels = np.zeros((1, 20, 30), np.uint8)
    labels[0, 5:9, 6:12] = 1
    files = [write(tmp_path, name, labels) for name in ("image", "reference", "prediction")]
    assert [plane.name for plane in cut_planes(*files, [1])] == ["axial"]


def test_slices_above_and_below_are_shown_however_thick(tmp_path):
    labels = np.zeros((7, 20, 30), np.uint8)
    labels[3, 5:9, 6:12] = 1
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((1, 1, 30))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    assert [plane.image.shape[0] for plane in cut_planes(*3 * [tmp_path / "a.nii.gz"], [1])] == [20, 3, 3]


def test_empty_label_maps_show_the_middle(tmp_path):
    files = [write(tmp_path, name, np.zeros(SHAPE, np.uint8)) for name in ("image", "reference", "prediction")]
    assert cut_planes(*files, [1])[0].image.shape == SHAPE[1:]


def test_what_does_not_fit_is_refused(tmp_path):
    _, reference, prediction = case(tmp_path)
    (tmp_path / "text.nii.gz").write_text("no image")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        cut_planes(tmp_path / "text.nii.gz", reference, prediction, [1])
    other = write(tmp_path, "other", np.zeros((9, 12, 16), np.float32))
    with pytest.raises(ValueError, match=r"other\.nii\.gz has \(9, 12, 16\) voxels, its label map \(10, 12, 16\)"):
        cut_planes(other, reference, prediction, [1])
