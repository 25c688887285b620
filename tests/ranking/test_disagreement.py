from itertools import permutations

import numpy as np
import pytest

from nnunet_ad.ranking.disagreement import disagreement_per_class, mean_disagreement, most_contested_slice

CLASSES = [1, 2, 3]


@pytest.fixture(params=range(5))
def maps(request) -> np.ndarray:
    return np.random.default_rng(request.param).integers(0, 4, (3, 5, 6, 7))


def maps_with(*boxes: tuple[int, int, slice], shape=(4, 10, 10)) -> np.ndarray:
    """Return three label maps from (map, class, voxels along the last axis of the first row)."""
    maps = np.zeros((3, *shape), dtype=int)
    for index, k, voxels in boxes:
        maps[index, 0, 0, voxels] = k
    return maps


def formula(maps: np.ndarray, k: int) -> float:
    """The formula of the documentation, written with sets of voxels."""
    a, b, c = ({tuple(voxel) for voxel in np.argwhere(label_map == k)} for label_map in maps)
    return 1 - sum(2 * len(x & y) / (len(x) + len(y)) for x, y in ((a, b), (a, c), (b, c))) / 3


def test_agrees_with_the_formula(maps):
    np.testing.assert_allclose(disagreement_per_class(maps, CLASSES), [formula(maps, k) for k in CLASSES])


def test_equal_maps_do_not_disagree(maps):
    assert disagreement_per_class(np.stack([maps[0]] * 3), CLASSES).tolist() == [0, 0, 0]


def test_disjoint_maps_disagree_fully():
    maps = maps_with((0, 1, slice(0, 3)), (1, 1, slice(3, 5)), (2, 1, slice(5, 9)))
    assert disagreement_per_class(maps, [1]) == 1


def test_the_order_of_the_decoders_does_not_matter(maps):
    expected = disagreement_per_class(maps, CLASSES)
    for order in permutations(range(3)):
        np.testing.assert_allclose(disagreement_per_class(maps[list(order)], CLASSES), expected)
        assert most_contested_slice(maps[list(order)], CLASSES) == most_contested_slice(maps, CLASSES)


def test_permuting_labels_permutes_the_disagreements(maps):
    renamed = np.array([0, 3, 1, 2])[maps]
    expected = disagreement_per_class(maps, CLASSES)
    np.testing.assert_allclose(disagreement_per_class(renamed, [3, 1, 2]), expected)
    assert mean_disagreement(disagreement_per_class(renamed, CLASSES)) == pytest.approx(mean_disagreement(expected))
    assert most_contested_slice(renamed, CLASSES) == most_contested_slice(maps, CLASSES)


def test_a_class_in_no_map_is_undefined_and_left_out_of_the_mean():
    per_class = disagreement_per_class(maps_with((0, 1, slice(0, 4)), (1, 1, slice(0, 4))), [1, 2])
    assert np.isnan(per_class[1])
    assert mean_disagreement(per_class) == per_class[0]


def test_without_any_class_there_is_no_mean():
    assert np.isnan(mean_disagreement(disagreement_per_class(maps_with(), CLASSES)))


@pytest.mark.parametrize("having", [(0,), (0, 2)])
def test_one_against_two_is_two_thirds(having):
    maps = maps_with(*((index, 1, slice(0, 4)) for index in having))
    assert disagreement_per_class(maps, [1]) == pytest.approx(2 / 3)


def test_a_tiny_structure_counts_as_much_as_a_large_one():
    maps = np.zeros((3, 8, 20, 20), dtype=int)
    for index in range(3):
        maps[index, :, 0:10, index : 10 + index] = 1  # 10 wide, shifted by one voxel from map to map
        maps[index, 0, 15, index : 10 + index] = 2
    large, tiny = disagreement_per_class(maps, [1, 2])
    assert tiny == pytest.approx(large)
    assert 0 < tiny < 1


def test_what_a_decoder_adds_raises_the_disagreement():
    near = maps_with((0, 1, slice(0, 8)), (1, 1, slice(0, 8)), (2, 1, slice(0, 7)))
    far = maps_with((0, 1, slice(0, 8)), (1, 1, slice(0, 8)), (2, 1, slice(0, 3)))
    assert 0 < disagreement_per_class(near, [1]) < disagreement_per_class(far, [1]) < 1


def test_one_map_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        disagreement_per_class(np.zeros((1, 4, 4, 4)), [1])


def test_the_slice_shown_is_where_a_tiny_structure_is_contested_most():
    maps = np.zeros((3, 6, 20, 20), dtype=int)
    maps[:, 2, :10, :] = 1
    maps[0, 2, 10, :] = 1  # 20 voxels of a large structure
    maps[0, 4, 5, 5:8] = 2  # all three voxels of a tiny one
    assert most_contested_slice(maps, [1, 2]) == 4


def test_the_share_of_a_slice_is_of_all_voxels_that_any_map_has():
    maps = np.zeros((3, 6, 8, 8), dtype=int)
    maps[:, 0, 0, :6] = 1
    maps[0, 1, 0, :4] = 1  # 4 of 10
    for index, number in ((2, 1), (3, 3), (4, 3), (5, 3)):
        maps[0, index, 0, :number] = 2  # at most 3 of 10
    assert most_contested_slice(maps, [1, 2]) == 1


def test_where_all_agree_the_slice_with_most_foreground_is_shown():
    maps = np.zeros((3, 6, 8, 8), dtype=int)
    maps[:, 1, :2] = 1
    maps[:, 5, :4] = 1
    maps[:, 3, :3] = 2  # all of a smaller structure
    assert most_contested_slice(maps, [1, 2]) == 5


def test_without_foreground_the_middle_slice_is_shown():
    assert most_contested_slice(np.zeros((3, 6, 8, 8), dtype=int), [1]) == 3
