import json
import math
import shutil

import pytest
import torch
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_ad.cli import plan
from nnunet_ad.cli.main import main
from nnunet_ad.network.from_plans import build_network
from nnunet_ad.planning.memory_planner import PLANNERS, ADPlanner, Choice, write_memory_plans
from nnunet_ad.planning.small_plans import shrink_plans
from nnunet_ad.testing.made_dataset import write_made_dataset

SHAPE, SPACING = [96, 160, 160], [2.5, 2.0, 2.0]
DATASET = "Dataset500_Made"


@pytest.fixture(scope="module")
def made_raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    write_made_dataset(root, shape=(16, 16, 16), num_labeled=2, num_unlabeled=6, num_test=0)
    return root


@pytest.fixture
def folder(made_raw, tmp_path, monkeypatch):
    """The preprocessed folder of 2 labelled and 6 unlabelled cases with a made fingerprint."""
    shutil.copytree(made_raw, tmp_path / "raw")
    folder = tmp_path / "preprocessed" / DATASET
    folder.mkdir(parents=True)
    fingerprint = {
        "spacings": [SPACING] * 2,
        "shapes_after_crop": [SHAPE] * 2,
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {"0": {"mean": 0.0, "std": 1.0}},
    }
    (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    for name in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return folder


def _voxels(choice):
    return math.prod(choice.patch_size) * choice.batch_size


@pytest.mark.parametrize("planner", PLANNERS)
def test_the_chosen_step_fits_where_that_of_stock_plans_does_not(folder, planner):
    plans = write_memory_plans(500, 6, planner)
    assert plans.chosen.keys() == plans.stock.keys() == {"2d", "3d_fullres"}
    for choice in plans.chosen.values():
        assert choice.memory <= 6 and choice.batch_size >= 2
    assert plans.stock["3d_fullres"].memory > 6
    assert _voxels(plans.chosen["3d_fullres"]) < _voxels(plans.stock["3d_fullres"])


def test_plans_are_made_where_training_is_to_have_no_data_workers(folder, monkeypatch):
    """nnU-Net's planners take that number for one of threads, and fail."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    write_memory_plans(500, 6)
    assert get_allowed_n_proc_DA() == 0


def test_the_batch_size_is_rounded_down(folder):
    first = write_memory_plans(500, 6, "resenc_m", "First").chosen["2d"]
    target = first.memory / first.batch_size * (first.batch_size - 0.3)
    second = write_memory_plans(500, target, "resenc_m", "Second").chosen["2d"]
    assert second.patch_size == first.patch_size
    assert second.batch_size == first.batch_size - 1


def test_no_batch_is_smaller_than_nnunets_smallest(folder, monkeypatch):
    """As where the memory of two patches is all there is, and rounding makes it a little less."""
    monkeypatch.setattr(ADPlanner, "step_memory", lambda self, settings: 0.6 * 6 * settings["batch_size"])
    assert {choice.batch_size for choice in write_memory_plans(500, 6).chosen.values()} == {2}


def test_the_memory_is_used(folder):
    assert write_memory_plans(500, 6).chosen["3d_fullres"].memory > 0.75 * 6


def test_a_larger_target_gives_no_less(folder):
    small, middle, large = (write_memory_plans(500, target, name=f"Plans{target}").chosen for target in (2, 6, 24))
    assert _voxels(small["2d"]) <= _voxels(middle["2d"]) <= _voxels(large["2d"])
    assert _voxels(small["3d_fullres"]) < _voxels(middle["3d_fullres"]) < _voxels(large["3d_fullres"])


@pytest.mark.parametrize("planner", ["plain", "resenc_m"])
def test_the_estimate_counts_what_the_convolutions_of_a_step_put_out(folder, planner):
    path = write_memory_plans(500, 6, planner).path
    small = shrink_plans(json.loads(path.read_text()), "3d_fullres", 4, (16, 24, 24), 2, "Small")
    configuration = PlansManager(small).get_configuration("3d_fullres")
    network = build_network(configuration, 1, 3)
    counted = []
    for module in network.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            module.register_forward_hook(lambda _, __, output: counted.append(output.numel()))
    labeled = torch.zeros(1, 1, *configuration.patch_size)
    network.difficulty_decoder(network.encode(labeled, labeled).features[0])
    estimate = ADPlanner.static_estimate_VRAM_usage(
        configuration.patch_size,
        1,
        3,
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
    )
    assert estimate == sum(counted) + 5 * labeled.numel() * 3


def test_the_limit_of_the_batch_counts_unlabelled_cases_and_both_halves_of_a_batch(folder):
    share = 0.05 * math.prod(SHAPE) / math.prod(SHAPE[1:])  # slices of one case in 5 %
    plans = write_memory_plans(500, 100)
    assert plans.stock["2d"].batch_size == round(2 * share) == 10
    assert plans.chosen["2d"].batch_size == round((2 + 6) * share / 2) == 19
    shutil.rmtree(folder.parents[1] / "raw" / DATASET / "imagesUnlabeled")
    assert write_memory_plans(500, 100, name="Alone").chosen["2d"].batch_size == round(2 * share / 2) == 5


@pytest.mark.parametrize("planner", ["plain", "resenc_m"])
def test_the_network_of_the_plans_runs_on_the_data_of_the_default_plans(folder, planner):
    plans = PlansManager(str(write_memory_plans(500, 6, planner, "Mine").path))
    assert plans.plans_name == "Mine"
    for name in ("2d", "3d_fullres"):
        configuration = plans.get_configuration(name)
        assert configuration.data_identifier == f"nnUNetPlans_{name}"
        with torch.device("meta"):
            network = build_network(configuration, 1, 3)
            logits = network(torch.zeros(configuration.batch_size, 1, *configuration.patch_size))
        assert logits.shape == (configuration.batch_size, 3, *configuration.patch_size)


def test_all_but_patch_batch_and_network_is_as_in_stock_plans(folder):
    ours = json.loads(write_memory_plans(500, 6).path.read_text())
    PLANNERS["plain"][1](500).plan_experiment()
    stock = json.loads((folder / "nnUNetPlans.json").read_text())
    assert {key for key in stock if ours[key] != stock[key]} == {
        "plans_name", "experiment_planner_used", "configurations"
    }  # fmt: skip
    for name, settings in stock["configurations"].items():
        different = {key for key in settings if ours["configurations"][name][key] != settings[key]}
        assert different <= {"patch_size", "batch_size", "architecture"}


def test_a_configuration_of_another_resolution_has_data_of_its_own(folder):
    plans = write_memory_plans(500, 0.5)
    assert plans.data["3d_lowres"].name == "nnUNetPlansAD_3d_lowres"
    assert "3d_cascade_fullres" not in plans.chosen


@pytest.mark.parametrize(
    ("target", "message"),
    [(0, "positive"), (-8, "positive"), (math.nan, "positive"), (math.inf, "positive"), (1e-6, "give a larger one")],
)
def test_an_impossible_target_is_refused(folder, target, message):
    with pytest.raises(ValueError, match=message):
        write_memory_plans(500, target)
    assert not list(folder.glob("*Plans*"))


@pytest.mark.parametrize("dataset", [500, DATASET])
def test_a_missing_fingerprint_says_what_to_run(folder, dataset):
    (folder / "dataset_fingerprint.json").unlink()
    with pytest.raises(ValueError, match="run nnUNetv2_plan_and_preprocess -d 500 first"):
        write_memory_plans(dataset, 8)
    assert not list(folder.iterdir())


def test_regions_are_planned_for_as_the_classes_that_they_are_made_of(folder):
    """Three classes for two regions, beside the background."""

    def planned(name: str, **labels) -> Choice:
        file = folder.parents[1] / "raw" / DATASET / "dataset.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | labels))
        return write_memory_plans(500, 6, name=name).chosen["3d_fullres"]

    of_regions = planned(
        "regions", labels={"background": 0, "whole": [1, 2, 3], "core": [2]}, regions_class_order=[1, 2]
    )
    assert of_regions == planned("classes", labels={"background": 0, "a": 1, "b": 2, "c": 3})
    assert of_regions != planned("fewer", labels={"background": 0, "a": 1, "b": 2})


def test_a_missing_raw_dataset_is_named(folder):
    shutil.rmtree(folder.parents[1] / "raw" / DATASET)
    with pytest.raises(ValueError, match="not in nnUNet_raw"):
        write_memory_plans(500, 8)


def test_splits_that_differ_are_named(folder):
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["other"], "val": ["other"]}]))
    with pytest.raises(ValueError, match=r"splits_final\.json of .* differ"):
        write_memory_plans(500, 8)


def test_folds_that_the_preprocessed_dataset_lacks_are_named(folder):
    splits = folder.parents[1] / "raw" / DATASET / "splits_final.json"
    shutil.copy(splits, folder)
    splits.write_text(json.dumps(2 * json.loads(splits.read_text())))
    with pytest.raises(ValueError, match=r"has more folds than that of .*; copy the further folds there"):
        write_memory_plans(500, 8)
    assert not list(folder.glob("*Plans*"))


def test_folds_that_only_the_preprocessed_dataset_has_are_no_fault(folder):
    splits = json.loads((folder.parents[1] / "raw" / DATASET / "splits_final.json").read_text())
    (folder / "splits_final.json").write_text(json.dumps(2 * splits))
    assert write_memory_plans(500, 6).path.is_file()


def test_existing_plans_are_left_alone(folder):
    (folder / "Mine.json").write_text("{}")
    with pytest.raises(ValueError, match="exist; give the new ones another name"):
        write_memory_plans(500, 8, name="Mine")
    assert (folder / "Mine.json").read_text() == "{}"


@pytest.mark.parametrize("dataset", ["500", DATASET])
def test_the_command_shows_both_choices_and_what_to_run_next(folder, capsys, dataset):
    (folder / "nnUNetPlans_2d").mkdir()
    assert main(["plan", "-d", dataset, "-gpu_memory_target", "6", "--planner", "resenc_m", "-o", "Mine"]) == 0
    printed = capsys.readouterr().out
    assert "chosen" in printed and "nnU-Net's" in printed
    assert f"Written: {folder / 'Mine.json'}" in printed
    assert "nnUNetv2_preprocess -d 500 -plans_name Mine -c 3d_fullres\n" in printed
    assert "nnUNetv2_train 500 CONFIGURATION" in printed
    assert "2D U-Net configuration" not in printed


def test_the_command_refuses_with_one_line(folder, capsys):
    assert main(["plan", "-d", "500", "-gpu_memory_target", "0"]) == 1
    assert capsys.readouterr().err == "nnunet_ad plan: the memory target is 0.0; expected a positive number of GB\n"


def test_the_command_offers_all_planners():
    assert tuple(PLANNERS) == plan.PLANNERS
