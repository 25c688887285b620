"""Which unlabelled cases count as whole and not stale."""

import os
import pickle
import shutil
import time

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ad.conversion.hospital.command_line import main as convert_hospital_data
from nnunet_ad.data import preprocessed as module
from nnunet_ad.data.images import unlabeled_images
from nnunet_ad.data.preprocessed import (
    missing_cases,
    preprocessed_otherwise,
    remember_images,
    usable_cases,
)
from nnunet_ad.data.preprocessing import preprocess_unlabeled
from nnunet_ad.testing.hospital_folder import write_hospital_folder


def test_converting_again_makes_only_changed_cases_stale(preprocessing, tmp_path, monkeypatch):
    """The loop of docs/hospital-data.md: annotate a case, convert again with the same mapping."""
    root = write_hospital_folder(
        tmp_path / "hospital", seed=0, num_labeled=2, num_unlabeled=3, num_test=0, shape=(16, 18, 17)
    )
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "nnUNet_raw"))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    monkeypatch.delenv("nnUNet_results", raising=False)
    folders = ["--labeled", root / "labeled", "--unlabeled", root / "unlabeled", "--labels", root / "labels.json"]
    command = ["-d", 501, "-n", "Made", *folders, "--mapping", tmp_path / "m.csv", "--overwrite", "--accept-outliers"]

    def convert():
        assert convert_hospital_data(list(map(str, command))) == 0
        raw = tmp_path / "nnUNet_raw" / "Dataset501_Made"
        found = unlabeled_images(raw, {"file_ending": ".nii.gz", "channel_names": {"0": "MR"}})
        remember_images(preprocessing, raw, found)
        return found

    assert preprocess_unlabeled(preprocessing, convert(), num_processes=1) == ["Made_0003", "Made_0004", "Made_0005"]
    time.sleep(0.02)  # longer than the clock of a file system ticks
    assert missing_cases(preprocessing, convert()) == []
    shutil.move(root / "unlabeled" / "scan_003.nii.gz", root / "labeled" / "images")
    shutil.copy(root / "labeled" / "masks" / "scan_000.nii.gz", root / "labeled" / "masks" / "scan_003.nii.gz")
    images = convert()
    assert sorted(images) == ["Made_0003", "Made_0005"]
    assert missing_cases(preprocessing, images) == []
    assert sorted(usable_cases(preprocessing)) == sorted(images), "the annotated one trains with its label only"
    file = str(root / "unlabeled" / "scan_002.nii.gz")
    sitk.WriteImage(sitk.ReadImage(file) + 1, file)
    assert missing_cases(preprocessing, convert()) == ["Made_0003"]


@pytest.mark.parametrize(
    "change",
    [
        {"spacing": [3.0, 2.0, 2.0]},
        {"transpose_forward": [1, 0, 2]},
        {"normalization_schemes": ["CTNormalization"]},
        {"resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}},
        {"use_mask_for_norm": [True]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_the_result_makes_it_stale(done, images, preprocessing_with, change):
    assert missing_cases(preprocessing_with(**change), images) == sorted(images)


@pytest.mark.parametrize(
    "change", [{"plans_name": "nnUNetResEncUNetMPlans"}, {"patch_size": [8, 8, 8]}, {"batch_size": 9}]
)
def test_plans_that_differ_in_name_or_network_share_it(done, images, preprocessing_with, change):
    assert missing_cases(preprocessing_with(**change), images) == []


INTENSITIES = "foreground_intensity_properties_per_channel"


@pytest.mark.parametrize(
    ("schemes", "channel", "counts"),
    [
        (["ZScoreNormalization"], "0", False),
        (["NoNormalization"], "0", False),
        (["RescaleTo01Normalization"], "0", False),
        (["RGBTo01Normalization"], "0", False),
        (["CTNormalization"], "0", True),
        (["NormalizationOfSomeone"], "0", True),
        (["CTNormalization", "ZScoreNormalization"], "0", True),
        (["CTNormalization", "ZScoreNormalization"], "1", False),
    ],
)
def test_intensities_of_the_plans_count_for_channels_normalised_by_them(preprocessing_with, schemes, channel, counts):
    of_plans = {str(number): {"mean": 1.0, "std": 2.0} for number in range(len(schemes))}
    planned = {"normalization_schemes": schemes, "use_mask_for_norm": [False] * len(schemes)}
    before = preprocessing_with(**planned, **{INTENSITIES: of_plans})
    after = preprocessing_with(**planned, **{INTENSITIES: of_plans | {channel: {"mean": 1.5, "std": 2.0}}})
    assert (before.key != after.key) == counts


def test_nnunets_schemes_that_count_as_reading_the_image_alone_do():
    from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes

    image = np.random.default_rng(0).uniform(0, 255, (4, 5, 6)).astype(np.float32)
    for name in module._BY_THE_IMAGE_ALONE:
        some, others = (getattr(schemes, name)(False, {"mean": mean}).run(image.copy()) for mean in (0.0, 9.0))
        np.testing.assert_array_equal(some, others)


def test_intensities_of_the_plans_count_with_the_preprocessor_of_someone(preprocessing_with):
    other = {"preprocessor_name": "PreprocessorOfSomeone"}
    changed = preprocessing_with(**other, **{INTENSITIES: {"0": {"mean": 1.5, "std": 2.0}}})
    assert preprocessing_with(**other).key != changed.key


def test_cases_stay_when_the_plans_of_images_normalised_by_themselves_are_made_anew(done, images, preprocessing_with):
    again = preprocessing_with(**{INTENSITIES: {"0": {"mean": 1.5, "std": 2.0}}})
    assert missing_cases(again, images) == []
    assert usable_cases(again) == dict.fromkeys(sorted(images), "imagesUnlabeled")
    assert preprocessed_otherwise(again, images) == []


def test_a_changed_image_file_makes_its_case_stale(done, images):
    case = sorted(images)[1]
    os.utime(images[case][0], ns=(1, 1))
    assert missing_cases(done, images) == [case]


def test_the_spacing_beside_a_tiff_counts(tmp_path):
    file = tmp_path / "u1_0000.tif"
    file.touch()
    assert module._spacing_file(file) == {}
    (tmp_path / "u1.json").write_text('{"spacing": [2, 1, 1]}')
    first = module._spacing_file(file)
    (tmp_path / "u1.json").write_text('{"spacing": [2, 1, 1.5]}')
    assert first["spacing"] != module._spacing_file(file)["spacing"]
    assert module._spacing_file(tmp_path / "u1_0000.nii.gz") == {}


def test_cases_of_other_plans_are_told_whether_or_not_these_keep_a_mask(done, images, preprocessing_with):
    assert preprocessed_otherwise(done, images) == []
    of_others = preprocessing_with(spacing=[9.0, 9.0, 9.0])
    assert preprocessed_otherwise(of_others, images) == sorted(images)
    assert preprocessed_otherwise(of_others, ["nobody"]) == []
    assert preprocessed_otherwise(preprocessing_with(use_mask_for_norm=[True]), images) == sorted(images)


def test_without_raw_images_stale_and_half_written_cases_are_not_usable(done, images, preprocessing_with):
    first, second = sorted(images)
    assert usable_cases(preprocessing_with(spacing=[3.0, 2.0, 2.0])) == {}
    (done.folder / f"{first}.b2nd").unlink()
    assert list(usable_cases(done)) == [second]


def test_without_raw_images_cases_that_were_taken_out_are_not_usable(done, images, made):
    first, second = sorted(images)
    remember_images(done, made, [first, second])
    assert list(usable_cases(done)) == [first, second]
    remember_images(done, made, [second])
    assert list(usable_cases(done)) == [second]
    shutil.rmtree(made / "imagesUnlabeled")  # as on a machine that has the labelled images only
    remember_images(done, made, [])
    assert list(usable_cases(done)) == [second]


def test_a_list_of_cases_that_cannot_be_written_stays(done, images, made, monkeypatch):
    def refuse(file):
        raise PermissionError(file)

    monkeypatch.setattr(module, "written_whole", refuse)
    remember_images(done, made, [])
    assert list(usable_cases(done)) == sorted(images)


def test_a_damaged_list_of_cases_is_as_none(done, images, made):
    remember_images(done, made, [])
    (done.folder / "imagesUnlabeled.json").write_text("[")
    assert list(usable_cases(done)) == sorted(images)


def test_another_reader_makes_it_stale(done, images, preprocessing_with):
    assert missing_cases(preprocessing_with(image_reader_writer="NibabelIO"), images) == sorted(images)


def test_a_list_of_unlabeled_images_says_nothing_of_labeled_ones(done):
    for file in done.folder.glob("*.pkl"):
        properties = pickle.loads(file.read_bytes())
        properties[module.STAMP]["source"] = "imagesTr"
        file.write_bytes(pickle.dumps(properties))
    (done.folder / "imagesUnlabeled.json").write_text("[]")
    found = usable_cases(done)
    assert found and set(found.values()) == {"imagesTr"}
