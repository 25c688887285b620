import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.image import imread

from nnunet_ad.testing.overlay import OverlayCase, draw_overlay, most_telling_slice


def test_the_slice_is_the_one_with_most_of_the_smallest_structure():
    reference = np.zeros((5, 8, 8), dtype=np.uint8)
    reference[1, :6, :6] = 1
    reference[3, 0, :2] = 2
    reference[4, 0, :3] = 2
    assert most_telling_slice(reference, [1, 2]) == 4
    assert most_telling_slice(reference, [1, 7]) == 1
    assert most_telling_slice(reference, [7]) == 2


@pytest.fixture
def case(tmp_path):
    labels = np.zeros((4, 16, 16), dtype=np.uint8)
    labels[2, 4:12, 4:12] = 1
    files = {}
    for name, array in (("image", labels * 100.0), ("reference", labels), ("prediction", np.roll(labels, 2, 1))):
        files[name] = tmp_path / f"{name}.nii.gz"
        sitk.WriteImage(sitk.GetImageFromArray(array), str(files[name]))
    return OverlayCase("a case", **files)


def test_the_prediction_is_in_the_picture(case, tmp_path):
    path = draw_overlay([case, case], {"organ": 1, "absent": 2}, tmp_path / "overlay.png")
    right = OverlayCase(case.title, case.image, case.reference, case.reference)
    other = draw_overlay([case, right], {"organ": 1, "absent": 2}, tmp_path / "other.png")
    first, second = imread(path), imread(other)
    assert first.shape == second.shape
    half = first.shape[1] // 2
    np.testing.assert_array_equal(first[:, : half - 20], second[:, : half - 20])
    assert (first[:, half:] != second[:, half:]).any()
