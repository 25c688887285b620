import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ad.data.images import unlabeled_images
from nnunet_ad.data.preprocessed import UnlabeledPreprocessing
from nnunet_ad.data.preprocessing import preprocess_unlabeled
from nnunet_ad.testing.made_dataset import write_made_dataset


def make_plans(**changes) -> PlansManager:
    """Return the part of nnU-Net plans that preprocessing reads, in memory, so that no planning need run."""
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 16, 16],
        "architecture": {"network_class_name": "any", "arch_kwargs": {}, "_kw_requires_import": []},
        "spacing": [2.5, 2.0, 2.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True},
    }
    plans = {
        "dataset_name": "Dataset500_Made",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0, "std": 2.0}},
        "label_manager": "LabelManager",
        "configurations": {"3d_fullres": configuration},
    }
    configuration |= {k: v for k, v in changes.items() if k in configuration}
    plans |= {k: v for k, v in changes.items() if k in plans}
    return PlansManager(plans)


@pytest.fixture
def made(tmp_path):
    return write_made_dataset(tmp_path / "raw", shape=(16, 18, 17), num_labeled=1, num_unlabeled=2, num_test=1)


@pytest.fixture
def preprocessing_with(tmp_path, made):
    dataset_json = {"channel_names": {"0": "MR"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}

    def make(**changes) -> UnlabeledPreprocessing:
        folder = tmp_path / "preprocessed" / "Dataset500_Made" / "nnUNetPlans_3d_fullres_unlabeled"
        return UnlabeledPreprocessing(make_plans(**changes), "3d_fullres", dataset_json, folder)

    return make


@pytest.fixture
def images(made):
    return unlabeled_images(made, {"file_ending": ".nii.gz", "channel_names": {"0": "MR"}})


@pytest.fixture
def preprocessing(preprocessing_with):
    return preprocessing_with()


@pytest.fixture
def done(preprocessing, images):
    assert preprocess_unlabeled(preprocessing, images, num_processes=1) == sorted(images)
    return preprocessing
