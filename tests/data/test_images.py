"""Which image files belong to which case."""

import shutil

import pytest
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_ad.data.images import images_of_folder, training_images, unlabeled_images


def test_a_gap_in_the_channels_is_named(made, images):
    case, (file,) = sorted(images.items())[0]
    shutil.copy(file, file.with_name(f"{case}_0002.nii.gz"))
    with pytest.raises(ValueError, match=rf"case {case} .* expected {case}_0000\.nii\.gz, {case}_0001\.nii\.gz"):
        unlabeled_images(made, {"file_ending": ".nii.gz", "channel_names": {"0": "T1", "1": "T2"}})


def test_a_file_not_named_as_nnunets_is_named(tmp_path):
    for name in ("patient_1.nii.gz", "patient_00001.nii.gz", "_0000x.nii.gz"):
        (tmp_path / name).touch()
        message = rf"{name}: expected the name of the case .* such as {name.removesuffix('.nii.gz')}_0000\.nii\.gz"
        with pytest.raises(ValueError, match=message):
            images_of_folder(tmp_path, {"file_ending": ".nii.gz", "channel_names": {"0": "T1"}})
        (tmp_path / name).unlink()


def test_unlabeled_images_that_would_be_left_out_silently_are_named(tmp_path):
    files = {"file_ending": ".nii.gz", "channel_names": {"0": "T1"}}
    folder = tmp_path / "imagesUnlabeled"
    folder.mkdir()
    (folder / "a_0000.nii.gz").touch()
    (folder / "notes.txt").touch()
    (folder / "README").symlink_to(tmp_path / "moved")
    assert list(unlabeled_images(tmp_path, files)) == ["a"]
    for name in ("b_0000.nii", "b_0000.mha", "b_0000.NII.GZ"):
        (folder / name).touch()
        with pytest.raises(ValueError, match=rf"{name}: all images of the dataset end in \.nii\.gz"):
            unlabeled_images(tmp_path, files)
        assert list(images_of_folder(folder, files)) == ["a"]
        (folder / name).unlink()
    for name in ("c_seg_0000.nii.gz", "d_seg_0000.nii.gz", "d_0000.nii.gz"):
        (folder / name).touch()
    with pytest.raises(ValueError, match=r"case d_seg in .* would be called as the mask of d\. Rename"):
        unlabeled_images(tmp_path, files)
    (folder / "d_0000.nii.gz").unlink()
    assert list(unlabeled_images(tmp_path, files)) == ["a", "c_seg", "d_seg"]
    (folder / "b_0000.nii.gz").symlink_to(tmp_path / "moved.nii.gz")
    with pytest.raises(ValueError, match=r"b_0000\.nii\.gz is a link to a file that is not there"):
        unlabeled_images(tmp_path, files)


def test_one_file_may_hold_all_channels(tmp_path):
    (tmp_path / "photo_1_0000.png").touch()
    colours = {"file_ending": ".png", "channel_names": {"0": "R", "1": "G", "2": "B"}}
    assert images_of_folder(tmp_path, colours) == {"photo_1": [tmp_path / "photo_1_0000.png"]}


def test_paths_that_dataset_json_gives_stay_as_they_are(tmp_path):
    files = {"case": {"images": ["imagesTr/case_0000.nii.gz"], "label": "labelsTr/case.nii.gz"}}
    dataset_json = {"dataset": files, "file_ending": ".nii.gz"}
    assert training_images(tmp_path, dataset_json) == {"case": [tmp_path / "imagesTr" / "case_0000.nii.gz"]}
    assert dataset_json["dataset"]["case"]["images"] == ["imagesTr/case_0000.nii.gz"]


def test_without_a_folder_there_are_no_unlabeled_images(tmp_path):
    assert unlabeled_images(tmp_path, {"file_ending": ".nii.gz", "channel_names": {"0": "T1"}}) == {}


def test_a_case_without_its_last_channel_is_named(tmp_path):
    for channel in range(2):
        (tmp_path / f"a_{channel:04d}.nii.gz").touch()
    three = {"file_ending": ".nii.gz", "modality": {"0": "T1", "1": "T2", "2": "PD"}}  # the older name of the key
    with pytest.raises(ValueError, match=r"declares 3 channel\(s\), so expected a_0000.* a_0001.* a_0002"):
        images_of_folder(tmp_path, three)


def test_a_folder_called_as_an_image_is_none(tmp_path):
    for name in ("a_0000.nii.gz", "old.mha"):
        (tmp_path / "imagesUnlabeled" / name).mkdir(parents=True)
    assert unlabeled_images(tmp_path, {"file_ending": ".nii.gz", "channel_names": {"0": "T1"}}) == {}


def test_training_images_are_those_that_nnunet_finds_without_its_processes(tmp_path, monkeypatch):
    for name in ("b_1_0000", "b_1_0001", "a_0000", "b_10_0000", "_0000", "x_00000", "notes", "c_12"):
        (tmp_path / "imagesTr").mkdir(exist_ok=True)
        (tmp_path / "imagesTr" / f"{name}.nii.gz").touch()
    (tmp_path / "imagesTr" / "d_0000.json").touch()
    dataset_json = {"file_ending": ".nii.gz", "channel_names": {"0": "T1", "1": "T2"}}
    theirs = get_filenames_of_train_images_and_targets(str(tmp_path), dataset_json)
    monkeypatch.setattr("nnunetv2.utilities.utils.Pool", lambda **_: pytest.fail("forks"))
    found = training_images(tmp_path, dataset_json)
    assert sorted(found) == ["a", "b_1", "b_10"]
    assert {case: [str(file) for file in files] for case, files in found.items()} == {
        case: theirs[case]["images"] for case in found
    }
    assert training_images(tmp_path / "nowhere", dataset_json) == {}
