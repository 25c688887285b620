import json
import shutil
from copy import deepcopy

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncM,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ad.planning.small_plans import shrink_plans, write_small_plans
from nnunet_ad.testing.made_dataset import write_made_dataset

SHAPE, SPACING = [96, 160, 160], [2.5, 2.0, 2.0]
NAMES = {ExperimentPlanner: "nnUNetPlans", nnUNetPlannerResEncM: "nnUNetResEncUNetMPlans"}


@pytest.fixture(scope="module")
def planned_dataset(tmp_path_factory):
    """A dataset planned by nnU-Net from a made fingerprint; returns the preprocessed dataset's folder."""
    root = tmp_path_factory.mktemp("planned")
    raw = write_made_dataset(root / "raw", shape=(16, 16, 16), num_labeled=1, num_unlabeled=0, num_test=0)
    folder = root / "preprocessed" / raw.name
    folder.mkdir(parents=True)
    fingerprint = {
        "spacings": [SPACING] * 4,
        "shapes_after_crop": [SHAPE] * 4,
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {"0": {"mean": 0.0, "std": 1.0}},
    }
    (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_raw", str(root / "raw"))
        patch.setenv("nnUNet_preprocessed", str(root / "preprocessed"))
        for planner in NAMES:
            planner(500).plan_experiment()
    return folder


@pytest.fixture
def plans(planned_dataset):
    return json.loads((planned_dataset / "nnUNetPlans.json").read_text())


@pytest.mark.parametrize("source", NAMES.values())
@pytest.mark.parametrize(
    ("configuration", "patch_size"), [("3d_fullres", (40, 48, 48)), ("3d_fullres", (16, 24, 24)), ("2d", (48, 64))]
)
def test_the_stock_network_of_small_plans_runs(planned_dataset, source, configuration, patch_size):
    plans = json.loads((planned_dataset / f"{source}.json").read_text())
    small = PlansManager(shrink_plans(plans, configuration, 4, patch_size, 2, "Small"))
    settings = small.get_configuration(configuration)
    network = get_network_from_plans(
        settings.network_arch_class_name,
        settings.network_arch_init_kwargs,
        settings.network_arch_init_kwargs_req_import,
        input_channels=1,
        output_channels=3,
        deep_supervision=False,
    )
    with torch.no_grad():
        logits = network(torch.zeros(settings.batch_size, 1, *settings.patch_size))
    assert logits.shape == (2, 3, *patch_size)
    assert small.plans_name == "Small"


@pytest.mark.parametrize("patch_size", [(40, 48, 48), (32, 64, 40), (17, 33, 70), (4, 8, 100)])
def test_patch_is_divisible_and_the_bottleneck_has_four_voxels_an_axis(plans, patch_size):
    settings = shrink_plans(plans, "3d_fullres", 16, patch_size, 2, "Small")["configurations"]["3d_fullres"]
    stride = np.prod(settings["architecture"]["arch_kwargs"]["strides"], axis=0)
    assert (np.array(settings["patch_size"]) % stride == 0).all()
    assert (np.array(settings["patch_size"]) // stride >= 4).all()
    assert (np.array(settings["patch_size"]) >= patch_size).all()
    assert (np.array(settings["patch_size"]) < np.array(patch_size) + stride).all()


def test_features_double_up_to_the_largest_number_of_the_original_plans(plans):
    settings = shrink_plans(plans, "3d_fullres", 100, (64, 64, 64), 2, "Small")["configurations"]["3d_fullres"]
    assert settings["architecture"]["arch_kwargs"]["features_per_stage"] == [100, 200, 320, 320, 320]


def test_a_coarse_axis_is_spared_at_first(plans):
    plans["configurations"]["3d_fullres"]["spacing"] = [10.0, 2.0, 2.0]
    settings = shrink_plans(plans, "3d_fullres", 16, (16, 64, 64), 2, "Small")["configurations"]["3d_fullres"]
    arch = settings["architecture"]["arch_kwargs"]
    assert arch["strides"][1] == [1, 2, 2] and arch["kernel_sizes"][0] == [1, 3, 3]
    assert arch["n_stages"] == len(arch["strides"]) == len(arch["kernel_sizes"]) == len(arch["n_conv_per_stage"])
    assert len(arch["n_conv_per_stage_decoder"]) == arch["n_stages"] - 1


def test_everything_the_preprocessed_data_depend_on_stays(plans):
    before = deepcopy(plans)
    small = shrink_plans(plans, "3d_fullres", 16, (40, 48, 48), 2, "Small")
    assert plans == before
    changed = {"patch_size", "batch_size", "architecture"}
    kept = before["configurations"]["3d_fullres"].keys() - changed
    assert {"data_identifier", "spacing", "normalization_schemes", "preprocessor_name"} <= kept
    for key in kept:
        assert small["configurations"]["3d_fullres"][key] == before["configurations"]["3d_fullres"][key], key
    assert small["configurations"]["2d"] == before["configurations"]["2d"]
    assert {key for key in before if small[key] != before[key]} == {"plans_name", "configurations"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"configuration": "3d_highres"}, "no configuration '3d_highres'; they have 2d, 3d_fullres"),
        ({"patch_size": (48, 48)}, "has 3 axes"),
        ({"patch_size": (2, 48, 48)}, "at least 4 voxels"),
        ({"base_features": 0}, "must be positive, got 0 and 2"),
        ({"batch_size": 0}, "must be positive, got 4 and 0"),
        ({"name": "nnUNetPlans"}, "another name"),
    ],
)
def test_wrong_arguments_are_refused(plans, change, message):
    arguments = {"configuration": "3d_fullres", "base_features": 4, "patch_size": (16, 16, 16), "batch_size": 2}
    with pytest.raises(ValueError, match=message):
        shrink_plans(plans, **{**arguments, "name": "Small", **change})


def test_an_inheriting_configuration_is_refused(plans):
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "spacing": SPACING}
    with pytest.raises(ValueError, match="takes its architecture from '3d_fullres'"):
        shrink_plans(plans, "3d_cascade_fullres", 4, (16, 16, 16), 2, "Small")


def test_a_configuration_with_an_architecture_of_its_own_may_inherit_the_rest(plans):
    parent = plans["configurations"]["3d_fullres"]
    own = {"inherits_from": "3d_fullres", "architecture": deepcopy(parent["architecture"])}
    plans["configurations"]["mine"] = own
    small = shrink_plans(plans, "mine", 4, (16, 24, 24), 3, "Small")
    expected = shrink_plans(plans, "3d_fullres", 4, (16, 24, 24), 3, "Small")["configurations"]["3d_fullres"]
    assert PlansManager(small).get_configuration("mine").configuration == expected | {"inherits_from": "3d_fullres"}
    assert small["configurations"]["3d_fullres"] == parent


def test_plans_are_written_beside_the_original_ones(planned_dataset):
    path = write_small_plans(planned_dataset, "3d_fullres", 8, (40, 48, 48), 3, "Small")
    assert path == planned_dataset / "Small.json"
    settings = PlansManager(str(path)).get_configuration("3d_fullres")
    assert (settings.patch_size, settings.batch_size) == ([40, 48, 48], 3)
    assert settings.data_identifier == "nnUNetPlans_3d_fullres"


@pytest.fixture
def folder(planned_dataset, tmp_path):
    """A copy of the preprocessed dataset's folder, which a test may change."""
    return shutil.copytree(planned_dataset, tmp_path / planned_dataset.name)


def _shrink(folder, name, source="nnUNetPlans", batch_size=2):
    return write_small_plans(folder, "3d_fullres", 4, (16, 16, 16), batch_size, name, source)


def test_plans_that_were_written_here_are_replaced_and_their_mark_changes_nothing(folder):
    small = json.loads(_shrink(folder, "Small").read_text())
    assert (small.pop("shrunk_from"), small.pop("shrunk_configurations")) == ("nnUNetPlans", ["3d_fullres"])
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    assert small == shrink_plans(plans, "3d_fullres", 4, (16, 16, 16), 2, "Small")
    assert PlansManager(str(_shrink(folder, "Small", batch_size=3))).get_configuration("3d_fullres").batch_size == 3
    smaller = json.loads(_shrink(folder, "Smaller", "Small").read_text())
    assert smaller["shrunk_from"] == "Small"


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("nnUNetResEncUNetMPlans", "nnUNetPlans", "has no mark of nnunet_ad shrink-plans; give"),
        ("nnUNetPlans", "dataset_fingerprint", "has no mark of nnunet_ad shrink-plans; give"),
        ("nnUNetPlans", "Notes", "has no mark of nnunet_ad shrink-plans; give"),
        ("nnUNetPlans", "CopyOfSmall", "has no mark of nnunet_ad shrink-plans; give"),
        ("Copy", "Copy", "has the original plans, which would be lost; give"),
        ("CopyOfSmall", "CopyOfSmall", "has the original plans, which would be lost; give"),
        ("Small", "Link", "has the original plans, which would be lost; give"),
    ],
)
def test_no_other_file_is_replaced(folder, source, name, message):
    shutil.copy(folder / "nnUNetPlans.json", folder / "Copy.json")
    shutil.copy(_shrink(folder, "Small"), folder / "CopyOfSmall.json")
    (folder / "Link.json").symlink_to(folder / "Small.json")
    (folder / "Notes.json").write_text("no plans")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ValueError, match=message):
        _shrink(folder, name, source, batch_size=3)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_second_configuration_does_not_undo_the_first(folder):
    first = json.loads(_shrink(folder, "Small").read_text())
    before = (folder / "Small.json").read_bytes()
    with pytest.raises(ValueError, match=r"3d_fullres, which would have its full size again; .*-p Small -o Small"):
        write_small_plans(folder, "2d", 8, (48, 64), 4, "Small")
    assert (folder / "Small.json").read_bytes() == before
    (folder / "Small.json").write_text(json.dumps({k: v for k, v in first.items() if k != "shrunk_configurations"}))
    with pytest.raises(ValueError, match="3d_fullres, which would have its full size again"):
        write_small_plans(folder, "2d", 8, (48, 64), 4, "Small")  # plans of earlier versions, too
    (folder / "Small.json").write_bytes(before)
    both = json.loads(write_small_plans(folder, "2d", 8, (48, 64), 4, "Small", "Small").read_text())
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    alone = shrink_plans(plans, "2d", 8, (48, 64), 4, "Small")
    assert both["configurations"] == first["configurations"] | {"2d": alone["configurations"]["2d"]}
    assert (both["shrunk_from"], both["shrunk_configurations"]) == ("nnUNetPlans", ["2d", "3d_fullres"])
    assert json.loads(_shrink(folder, "Other", "Small").read_text())["configurations"] == both["configurations"]


def test_a_configuration_that_is_changed_in_place_may_grow(folder):
    """Its stages and the largest number of features are those of the original plans, not of the smaller ones."""
    _shrink(folder, "Small")
    grown = write_small_plans(folder, "3d_fullres", 100, (64, 64, 64), 2, "Small", "Small")
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    expected = shrink_plans(plans, "3d_fullres", 100, (64, 64, 64), 2, "Small")
    assert json.loads(grown.read_text())["configurations"] == expected["configurations"]


def test_missing_plans_say_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="nnUNetv2_plan_and_preprocess"):
        write_small_plans(tmp_path, "3d_fullres", 8, (40, 48, 48), 2, "Small")
