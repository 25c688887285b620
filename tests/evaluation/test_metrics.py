import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from medpy.metric import binary as medpy

from nnunet_ad.evaluation import metrics

SYMMETRIC = (metrics.dice, metrics.jaccard, metrics.hd95, metrics.assd)
OVERLAPS = (metrics.dice, metrics.jaccard)
DISTANCES = (metrics.hd95, metrics.asd, metrics.assd)
MEDPY_DISTANCES = {metrics.hd95: medpy.hd95, metrics.asd: medpy.asd, metrics.assd: medpy.assd}
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Return two masks, mostly not empty, and an anisotropic spacing."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    prediction, reference = (rng.random(shape) < draw(st.sampled_from([0.02, 0.2, 0.5, 0.9])) for _ in range(2))
    spacing = tuple(draw(st.floats(0.2, 8.0)) for _ in shape)
    return prediction, reference, spacing


def random_pair(dimensions: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    rng = np.random.default_rng(seed)
    shape = (9, 11, 13)[:dimensions]
    return rng.random(shape) < 0.3, rng.random(shape) < 0.3, (2.5, 0.7, 1.1)[:dimensions]


@settings(max_examples=500, deadline=None)
@given(mask_pairs())
def test_agrees_with_medpy_on_random_pairs(pair):
    prediction, reference, spacing = pair
    if not (prediction.any() and reference.any()):
        expected = math.inf if prediction.any() or reference.any() else math.nan
        for metric in DISTANCES:
            np.testing.assert_equal(metric(prediction, reference, spacing), expected)
        return
    assert metrics.dice(prediction, reference, spacing) == pytest.approx(medpy.dc(prediction, reference), abs=1e-6)
    assert metrics.jaccard(prediction, reference, spacing) == pytest.approx(medpy.jc(prediction, reference), abs=1e-6)
    for ours, theirs in MEDPY_DISTANCES.items():
        expected = theirs(prediction, reference, voxelspacing=spacing)
        assert ours(prediction, reference, spacing) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("density", [0.001, 0.05, 0.6], ids=["k-d tree", "mixed", "distance transform"])
def test_agrees_with_medpy_on_larger_volumes(density):
    rng = np.random.default_rng(1)
    prediction, reference = (rng.random((40, 50, 30)) < density for _ in range(2))
    for ours, theirs in MEDPY_DISTANCES.items():
        expected = theirs(prediction, reference, voxelspacing=(0.6, 0.6, 3.0))
        assert ours(prediction, reference, (0.6, 0.6, 3.0)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("sequence", ["bSSFP", "LGE"])
def test_agrees_with_medpy_on_real_anisotropic_masks(sequence):
    folder = DATA / "CardiacMR" / sequence / "masks"
    if not folder.is_dir():
        pytest.skip("the project's shared data are not here")
    sitk = pytest.importorskip("SimpleITK")
    images = [sitk.ReadImage(str(path)) for path in sorted(folder.glob("*.nii.gz"))[:2]]
    spacing = images[0].GetSpacing()[::-1]
    labels = sitk.GetArrayFromImage(images[0])
    moved = np.roll(labels, (1, 3, -2), axis=(0, 1, 2))
    for value in (1, 2, 3):
        for ours, theirs in MEDPY_DISTANCES.items():
            expected = theirs(moved == value, labels == value, voxelspacing=spacing)
            assert ours(moved == value, labels == value, spacing) == pytest.approx(expected, abs=1e-6)


def test_agrees_with_medpy_on_a_real_left_atrium():
    files = sorted((DATA / "LASeg").glob("*/*/mri_norm2.h5"))
    if not files:
        pytest.skip("the project's shared data are not here")
    h5py = pytest.importorskip("h5py")
    with h5py.File(files[0]) as file:
        reference = file["label"][()] > 0
    prediction = np.roll(reference, (2, -3, 1), axis=(0, 1, 2))
    for ours, theirs in MEDPY_DISTANCES.items():
        expected = theirs(prediction, reference, voxelspacing=(0.625,) * 3)
        assert ours(prediction, reference, (0.625,) * 3) == pytest.approx(expected, abs=1e-6)


def test_boxes_computed_by_hand():
    prediction, reference = np.zeros((20, 20, 20), bool), np.zeros((20, 20, 20), bool)
    reference[5:9, 5:9, 5:9] = True  # 64 voxels, 56 of them on the surface
    prediction[5:9, 5:9, 7:11] = True  # moved by two voxels: 32 in common
    spacing = (1.0, 1.0, 3.0)
    assert metrics.dice(prediction, reference, spacing) == 0.5
    assert metrics.jaccard(prediction, reference, spacing) == pytest.approx(1 / 3)
    # Per slice along the last axis, from the prediction's far end: 16 surface voxels 6 mm away, 12 around 3 mm away
    # (the slice next to the reference's end), 12 on its surface, and of the near end (16) the 12 outer ones on the
    # surface and the 4 inner ones 1 mm from it.
    assert metrics.asd(prediction, reference, spacing) == pytest.approx((16 * 6 + 12 * 3 + 4 * 1) / 56)
    assert metrics.assd(prediction, reference, spacing) == pytest.approx((16 * 6 + 12 * 3 + 4 * 1) / 56)
    assert metrics.hd95(prediction, reference, spacing) == 6.0


def test_two_voxels_are_as_far_apart_as_their_spacing_says():
    prediction, reference = np.zeros((5, 9), bool), np.zeros((5, 9), bool)
    prediction[1, 2], reference[4, 6] = True, True
    for metric in DISTANCES:
        assert metric(prediction, reference, (2.0, 0.5)) == pytest.approx(math.hypot(3 * 2.0, 4 * 0.5))


def test_surface_distances_are_directed():
    prediction, reference = np.zeros((3, 30), bool), np.zeros((3, 30), bool)
    prediction[1, 5] = True
    reference[1, 5], reference[1, 25] = True, True
    assert metrics.asd(prediction, reference, (1, 1)) == 0
    assert metrics.asd(reference, prediction, (1, 1)) == 10


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("metric", SYMMETRIC, ids=lambda metric: metric.__name__)
def test_all_but_asd_are_symmetric(metric, dimensions):
    prediction, reference, spacing = random_pair(dimensions)
    assert metric(prediction, reference, spacing) == pytest.approx(metric(reference, prediction, spacing), rel=1e-12)


@pytest.mark.parametrize("metric", DISTANCES, ids=lambda metric: metric.__name__)
def test_a_mask_has_no_distance_from_itself(metric):
    prediction, _, spacing = random_pair()
    assert metric(prediction, prediction.copy(), spacing) == 0


@pytest.mark.parametrize("metric", OVERLAPS, ids=lambda metric: metric.__name__)
def test_a_mask_overlaps_itself_fully(metric):
    prediction, _, spacing = random_pair()
    assert metric(prediction, prediction.copy(), spacing) == 1


@pytest.mark.parametrize("metric", DISTANCES, ids=lambda metric: metric.__name__)
def test_scaling_the_spacing_scales_distances(metric):
    prediction, reference, spacing = random_pair()
    scaled = tuple(3.5 * length for length in spacing)
    expected = 3.5 * metric(prediction, reference, spacing)
    assert metric(prediction, reference, scaled) == pytest.approx(expected)


@pytest.mark.parametrize("metric", [*SYMMETRIC, metrics.asd], ids=lambda metric: metric.__name__)
def test_surroundings_change_nothing(metric):
    prediction, reference, spacing = random_pair()
    padded = (np.pad(mask, ((3, 9), (0, 4), (7, 1))) for mask in (prediction, reference))
    assert metric(*padded, spacing) == pytest.approx(metric(prediction, reference, spacing), rel=1e-12)


@pytest.mark.parametrize("metric", [*SYMMETRIC, metrics.asd], ids=lambda metric: metric.__name__)
def test_permuting_axes_changes_nothing(metric):
    prediction, reference, spacing = random_pair()
    order = (2, 0, 1)
    permuted = metric(prediction.transpose(order), reference.transpose(order), [spacing[axis] for axis in order])
    assert permuted == pytest.approx(metric(prediction, reference, spacing), rel=1e-12)


@pytest.mark.parametrize("metric", [*SYMMETRIC, metrics.asd], ids=lambda metric: metric.__name__)
def test_both_empty_is_not_a_number(metric):
    empty = np.zeros((4, 5, 6), bool)
    assert math.isnan(metric(empty, empty, (1, 1, 1)))


def test_one_empty_scores_no_overlap_and_an_infinite_distance():
    empty, full = np.zeros((4, 5), bool), np.ones((4, 5), bool)
    for pair in ((empty, full), (full, empty)):
        assert [metric(*pair, (1, 1)) for metric in OVERLAPS] == [0, 0]
        assert [metric(*pair, (1, 1)) for metric in DISTANCES] == [math.inf] * 3


def test_surface_distances_refuse_an_empty_mask():
    empty, full = np.zeros((4, 5), bool), np.ones((4, 5), bool)
    with pytest.raises(ValueError, match="one of these is empty"):
        metrics.surface_distances(empty, full, (1, 1))


def test_results_are_python_floats():
    prediction, reference, spacing = random_pair()
    assert {type(metric(prediction, reference, spacing)) for metric in (*SYMMETRIC, metrics.asd)} == {float}


@pytest.mark.parametrize("metric", [*SYMMETRIC, metrics.asd], ids=lambda metric: metric.__name__)
@pytest.mark.parametrize(
    ("prediction", "reference", "spacing", "message"),
    [
        (np.zeros((2, 2), np.uint8), np.zeros((2, 2), bool), (1, 1), "prediction has dtype uint8"),
        (np.zeros((2, 2), bool), np.zeros((2, 2), float), (1, 1), "reference has dtype float64"),
        (np.zeros(4, bool), np.zeros(4, bool), (1,), "prediction has 1 dimensions"),
        (np.zeros((1, 2, 2, 2), bool), np.zeros((1, 2, 2, 2), bool), (1,) * 4, "masks are 2-D or 3-D"),
        (np.zeros((2, 3), bool), np.zeros((3, 2), bool), (1, 1), r"shape \(2, 3\) and reference \(3, 2\)"),
        (np.zeros((2, 3), bool), np.zeros((2, 3), bool), (1, 1, 1), "needs 2 positive numbers"),
        (np.zeros((2, 3), bool), np.zeros((2, 3), bool), 1.0, "needs 2 positive numbers"),
        (np.zeros((2, 3), bool), np.zeros((2, 3), bool), (1, 0), "needs 2 positive numbers"),
        (np.zeros((2, 3), bool), np.zeros((2, 3), bool), (1, math.nan), "needs 2 positive numbers"),
        (np.zeros((2, 3), bool), np.zeros((2, 3), bool), ("a", "b"), "needs 2 positive numbers"),
    ],
)
def test_invalid_arguments_are_refused(metric, prediction, reference, spacing, message):
    with pytest.raises(ValueError, match=message):
        metric(prediction, reference, spacing)


@pytest.mark.parametrize("metric", DISTANCES, ids=lambda metric: metric.__name__)
def test_distances_need_a_spacing(metric):
    with pytest.raises(ValueError, match="spacing is None"):
        metric(np.ones((2, 2), bool), np.ones((2, 2), bool), None)


def test_overlaps_need_no_spacing():
    assert metrics.dice(np.ones((2, 2), bool), np.ones((2, 2), bool)) == 1


def test_imports_neither_torch_nor_the_host():
    code = "import sys, nnunet_ad.evaluation.metrics; print({'torch', 'nnunetv2', 'SimpleITK'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
