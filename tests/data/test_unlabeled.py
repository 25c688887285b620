"""From folds to the image files of unlabelled cases."""

import json
import pickle

from nnunet_ad.data import unlabeled
from nnunet_ad.data.preprocessed import STAMP
from nnunet_ad.data.unlabeled import DatasetFolders, images_to_preprocess, prepare_unlabeled


def test_training_images_are_listed_once_for_all_folds(tmp_path, monkeypatch):
    """It may hold thousands."""
    listings, files = [], {name: [tmp_path / f"{name}_0000.nii.gz"] for name in "abc"}
    monkeypatch.setattr(unlabeled, "training_images", lambda *_: listings.append(1) or files)
    (tmp_path / "splits_final.json").write_text(
        json.dumps([{"train": ["t"], "val": ["t"], "unlabeled": [name]} for name in "ab"])
    )
    assert images_to_preprocess({}, tmp_path, tmp_path, {}) == {name: files[name] for name in "ab"}
    assert len(listings) == 1


def test_cases_in_the_folder_that_no_fold_names_are_preprocessed_too(tmp_path):
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": ["t"], "val": ["t"], "unlabeled": ["a"]}]))
    in_folder = {name: [tmp_path / f"{name}_0000.nii.gz"] for name in "ab"}
    assert images_to_preprocess(in_folder, tmp_path, tmp_path, {}) == in_folder


def test_images_that_lie_elsewhere_need_no_folder_in_the_raw_dataset(tmp_path):
    folders = DatasetFolders("Dataset500_Made", tmp_path, tmp_path)
    assert folders.raw_with_images({"dataset": {}}) == tmp_path
    assert folders.raw_with_images({}) is None
    (tmp_path / "imagesUnlabeled").mkdir()
    assert folders.raw_with_images({}) == tmp_path


def test_without_raw_images_only_cases_of_the_unlabeled_folder_are_used_unasked(done):
    named, other = sorted(done.folder.glob("*.pkl"))
    properties = pickle.loads(named.read_bytes())
    properties[STAMP]["source"] = "imagesTr"  # a fold named it
    named.write_bytes(pickle.dumps(properties))
    folders = DatasetFolders("Dataset500_Made", done.folder.parent, None)
    found = prepare_unlabeled(folders, done, "all", ["t"], ["v"], print)
    assert found.identifiers == [other.stem]
