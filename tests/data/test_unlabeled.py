"""From folds to the image files of unlabelled cases."""

import json

from nnunet_ad.data import unlabeled
from nnunet_ad.data.unlabeled import images_to_preprocess


def test_training_images_are_listed_once_for_all_folds(tmp_path, monkeypatch):
    """The host starts a dozen processes for it."""
    listings, files = [], {name: [tmp_path / f"{name}_0000.nii.gz"] for name in "abc"}
    monkeypatch.setattr(unlabeled, "training_images", lambda *_: listings.append(1) or files)
    (tmp_path / "splits_final.json").write_text(
        json.dumps([{"train": ["t"], "val": ["t"], "unlabeled": [name]} for name in "ab"])
    )
    assert images_to_preprocess({}, tmp_path, tmp_path, {}) == {name: files[name] for name in "ab"}
    assert len(listings) == 1
