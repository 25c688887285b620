"""What is said of preprocessed labelled cases before the first epoch."""

from types import SimpleNamespace

import numpy as np
import pytest

from nnunet_ad.data.labeled import check_labeled

ANY_GRID = SimpleNamespace(check=lambda *_: None)
LABELS = SimpleNamespace(
    has_regions=False, label_dict={"background": 0, "organ": 1, "vessel": 2}, foreground_labels=[1, 2]
)


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
