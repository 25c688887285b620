"""Regions of dataset.json as the classes that they are made of."""

import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ad.regions import as_classes

BRATS = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]},
    "regions_class_order": [1, 2, 3],
    "file_ending": ".nii.gz",
}


def test_each_value_becomes_a_class_and_the_rest_stays():
    assert as_classes(BRATS) == {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "whole tumor (1)": 1, "tumor core (2)": 2, "enhancing tumor": 3},
        "file_ending": ".nii.gz",
    }
    assert "regions_class_order" in BRATS  # what came in is as it was


def test_regions_in_any_order_that_need_not_be_lists_and_the_ignore_label():
    labels = {"tumor": 2, "ignore": 4, "masses": (3, 2), "background": 0, "kidney": [1, 2, 3]}
    plain = as_classes({"labels": labels, "regions_class_order": [2, 3, 1]})
    assert list(plain["labels"].items()) == [
        ("background", 0),
        ("kidney (1)", 1),
        ("tumor", 2),
        ("masses (3)", 3),
        ("ignore", 4),
    ]


def test_background_in_a_region_and_a_value_twice_are_no_further_classes():
    labels = {"background": 0, "body": [0, 1, 2], "organ": [2, 2]}
    assert as_classes({"labels": labels})["labels"] == {"background": 0, "body (1)": 1, "organ": 2}


@pytest.mark.parametrize("labels", [{"background": 0, "organ": 1}, {"background": 0, "organ": [1], "ignore": 2}])
def test_what_declares_no_regions_is_returned_as_it_is(labels):
    dataset_json = {"labels": labels}
    assert as_classes(dataset_json) is dataset_json


def test_values_with_a_gap_are_refused():
    labels = {"background": 0, "whole": [1, 2, 4], "core": [4]}
    with pytest.raises(ValueError, match=r"label values 1, 2, 4; expected 1 to 3 without a gap.*Renumber the labels"):
        as_classes({"labels": labels})


def test_label_maps_are_those_that_nnunet_writes_for_regions():
    """The regions of a label map, put together by nnU-Net, are the label map that a model of classes predicts."""
    label_map = np.random.default_rng(0).integers(0, 4, (6, 7, 8))
    of_regions = LabelManager(BRATS["labels"], BRATS["regions_class_order"])
    probabilities = np.stack([np.isin(label_map, region).astype(float) for region in of_regions.foreground_regions])
    assert np.array_equal(of_regions.convert_probabilities_to_segmentation(probabilities), label_map)

    of_classes = LabelManager(as_classes(BRATS)["labels"], None)
    logits = np.stack([label_map == label for label in of_classes.all_labels]).astype(float)
    assert np.array_equal(of_classes.convert_logits_to_segmentation(logits), label_map)
