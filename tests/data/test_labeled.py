"""What is said of preprocessed labelled cases before the first epoch."""

from types import SimpleNamespace

import numpy as np
import pytest

from nnunet_ad.data.labeled import check_labeled

ANY_GRID = SimpleNamespace(check=lambda *_: None)
LABELS = SimpleNamespace(label_dict={"background": 0, "organ": 1, "vessel": 2}, foreground_labels=[1, 2])


def cases(**properties):
    array = np.zeros((1, 4, 4, 4))
    return SimpleNamespace(
        identifiers=list(properties),
        source_folder="there",
        load_case=lambda case: (array, array, None, properties[case]),
    )


def has(*classes: int) -> dict:
    return {"class_locations": {k: [(0, 0, 0)] if k in classes else [] for k in (1, 2)}}


@pytest.mark.parametrize("damaged", ["train", "val"])
def test_a_case_without_the_places_of_its_classes_is_named(damaged):
    given = {"train": cases(a=has(1, 2)), "val": cases(b=has(1))} | {damaged: cases(x={})}
    with pytest.raises(ValueError, match=r"labelled case x: .* damaged \(KeyError: 'class_locations'\)"):
        check_labeled(given["train"], given["val"], LABELS, ANY_GRID, "fold 0", pytest.fail)


def test_a_class_in_validation_cases_only_cannot_be_learned():
    said = []
    check_labeled(cases(a=has(1), b=has(1)), cases(c=has(2)), LABELS, ANY_GRID, "fold 0", said.append)
    assert said == ["WARNING: no labelled training case of fold 0 has vessel: it can't be learned."]


@pytest.mark.parametrize(
    ("voxels", "absent"),
    [
        ({(1, 2, 3): True, (2, 3): True, 3: True}, ""),
        ({(1, 2, 3): True, (2, 3): True, 3: False}, "enhancing"),
        ({(1, 2, 3): True, (2, 3): False, (3,): False}, "core, enhancing"),
    ],
)
def test_of_regions_what_their_voxels_tell_is_said(voxels, absent):
    """A region with voxels does not tell which of its classes they belong to, one without has none of any."""
    labels = SimpleNamespace(label_dict={"edema": 1, "core": 2, "enhancing": 3}, foreground_labels=[1, 2, 3])
    places = {"class_locations": {key: [(0, 0, 0)] if has else [] for key, has in voxels.items()}}
    said = []
    check_labeled(cases(a=places), cases(), labels, ANY_GRID, "fold 0", said.append)
    expected = [f"WARNING: no labelled training case of fold 0 has {absent}: it can't be learned."] if absent else []
    assert said == expected


def test_regions_without_any_voxel_are_refused():
    labels = SimpleNamespace(label_dict={"edema": 1, "core": 2}, foreground_labels=[1, 2])
    places = {"class_locations": {(1, 2): [], (2,): []}}
    with pytest.raises(ValueError, match=r"all 1 training case\(s\) \(a\) are background; expected voxels of edema, c"):
        check_labeled(cases(a=places), cases(), labels, ANY_GRID, "fold 0", pytest.fail)
