"""Training on data that lack something: what can be trained trains, what can't is refused before the first epoch."""

import json
import multiprocessing
import pickle
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning import plan_and_preprocess_entrypoints
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ad.data.folds import preprocess_command
from nnunet_ad.data.labeled import Grids, check_labeled
from nnunet_ad.trainer import nnUNetTrainerAD_1epoch

DATASET = "Dataset500_Made"
LABELED_FOLDER = "nnUNetPlans_3d_fullres"


@pytest.fixture
def raw(dataset) -> Path:
    return dataset / "nnUNet_raw" / DATASET


@pytest.fixture
def preprocessed(dataset) -> Path:
    return dataset / "nnUNet_preprocessed" / DATASET


@pytest.fixture
def write_split(raw, preprocessed):
    def write(train=("Made_000", "Made_001"), val=("Made_002",), **unlabeled) -> None:
        split = {"train": list(train), "val": list(val), **unlabeled}
        for folder in (raw, preprocessed):
            (folder / "splits_final.json").write_text(json.dumps([split]))

    return write


@pytest.fixture
def train(make_trainer):
    """Return a function that trains for an epoch and returns the log."""

    def run() -> str:
        trainer = make_trainer(nnUNetTrainerAD_1epoch)
        trainer.run_training()
        assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()
        return Path(trainer.log_file).read_text()

    return run


@pytest.fixture
def refused(make_trainer):
    """Return a function that checks that training is refused before the first epoch, in one line, leaving nothing."""

    def check(match: str) -> None:
        trainer, before = make_trainer(nnUNetTrainerAD_1epoch), set(multiprocessing.active_children())
        with pytest.raises(ValueError, match=match) as raised:
            trainer.run_training()
        assert "\n" not in str(raised.value)
        assert set(multiprocessing.active_children()) <= before
        assert [file.suffix for file in Path(trainer.output_folder).iterdir()] == [".txt"]
        assert "Epoch 0" not in Path(trainer.log_file).read_text()

    return check


def test_a_sound_dataset_gets_no_warning(train):
    assert "WARNING" not in train()


def test_one_unlabeled_case_is_enough(train, write_split):
    write_split(unlabeled=["Made_004"])
    assert "1 unlabelled cases: Made_004" in train()


def test_one_labeled_case_is_enough(train, write_split):
    write_split(train=["Made_000"], val=["Made_000"])
    assert "1 training and 1 validation cases" in train()


def test_no_unlabeled_case(refused, raw, write_split):
    write_split()
    shutil.rmtree(raw / "imagesUnlabeled")
    refused("fold 0 of Dataset500_Made has no unlabelled case.* Put images into imagesUnlabeled/")


def test_a_case_both_labeled_and_unlabeled(refused, write_split):
    write_split(unlabeled=["Made_003", "Made_001"])
    refused("Made_001 is both labelled .* and unlabelled. Remove it from one of the lists")


@pytest.mark.parametrize("part", ["train", "val"])
def test_an_unknown_labeled_case(refused, write_split, part):
    write_split(**{part: ["Made_000", "Nobody"]})
    refused(rf"fold 0 names 1 case\(s\) that are not in .*{LABELED_FOLDER}.*: Nobody")


@pytest.mark.parametrize("part", ["train", "val"])
def test_an_empty_list(refused, write_split, part):
    write_split(**{part: []})
    refused(f'"{part}" of fold 0 is empty')


def test_a_configuration_that_is_not_preprocessed(make_trainer, preprocessed):
    shutil.rmtree(preprocessed / "nnUNetPlans_3d_fullres")
    trainer = make_trainer(nnUNetTrainerAD_1epoch)
    with pytest.raises(ValueError, match=r"is not preprocessed by .* nnUNetv2_preprocess -d 500 -c 3d_full"):
        trainer.initialize()
    assert not Path(trainer.output_folder).exists()


def test_an_unlabeled_case_with_a_channel_too_many(refused, raw):
    file = raw / "imagesUnlabeled" / "Made_004_0000.nii.gz"
    shutil.copy(file, file.with_name("Made_004_0001.nii.gz"))
    refused(r"case Made_004 .* found Made_004_0000.nii.gz, Made_004_0001.nii.gz; dataset.json declares 1 channel")


def test_an_unlabeled_file_with_three_channels(refused, raw):
    file = raw / "imagesUnlabeled" / "Made_004_0000.nii.gz"
    image = sitk.ReadImage(file)
    sitk.WriteImage(sitk.JoinSeries([image] * 3), file)
    refused(r"unlabelled case Made_004 .* has 3 channel\(s\); dataset.json declares 1")


@pytest.mark.parametrize("damage", ["truncated image", "truncated label", "no label", "no properties", "sizes differ"])
def test_a_damaged_preprocessed_labeled_case(refused, preprocessed, damage):
    folder = preprocessed / LABELED_FOLDER
    image, label, properties = (folder / f"Made_001{ending}" for ending in (".b2nd", "_seg.b2nd", ".pkl"))
    match damage:
        case "truncated image":
            image.write_bytes(image.read_bytes()[:-100])
        case "truncated label":
            label.write_bytes(label.read_bytes()[:-100])
        case "no label":
            label.unlink()
        case "no properties":
            properties.unlink()
        case "sizes differ":
            shutil.copy(folder / "Made_000_seg.b2nd", label)
            _pad(image)
    refused("labelled case Made_001: a preprocessed file in .* Run nnUNetv2_preprocess again")


def test_a_damaged_preprocessed_validation_case_is_found_before_the_first_epoch(refused, preprocessed, write_split):
    write_split()
    label = preprocessed / LABELED_FOLDER / "Made_002_seg.b2nd"
    label.write_bytes(label.read_bytes()[:-100])
    refused("labelled case Made_002: a preprocessed file in .* Run nnUNetv2_preprocess again")


def _pad(file: Path) -> None:
    array = np.pad(blosc2.open(str(file), mode="r")[:], ((0, 0), (0, 1), (0, 0), (0, 0)))
    file.unlink()
    blosc2.asarray(array, urlpath=str(file))


@pytest.mark.parametrize("kind", ["labelled", "unlabelled"])
def test_damage_inside_a_preprocessed_file(train, make_trainer, preprocessed, write_split, kind):
    write_split(train=["Made_001"], unlabeled=["Made_004"])
    train()
    shutil.rmtree(preprocessed.parents[1] / "nnUNet_results")
    folder, case = {
        "labelled": (LABELED_FOLDER, "Made_001"),
        "unlabelled": (f"{LABELED_FOLDER}_unlabeled", "Made_004"),
    }[kind]
    file = preprocessed / folder / f"{case}.b2nd"
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 500] = bytes(byte ^ 0x5A for byte in content[middle : middle + 500])
    file.write_bytes(content)
    trainer = make_trainer(nnUNetTrainerAD_1epoch)
    with pytest.raises(ValueError, match=rf"{kind} case {case}\b.*damaged"):
        trainer.run_training()
    assert not list(Path(trainer.output_folder).glob("*.pth*"))


def test_a_labeled_case_without_preprocessed_image(refused, preprocessed):
    (preprocessed / LABELED_FOLDER / "Made_001.b2nd").unlink()
    refused(r"not in .*\(preprocessed labelled cases\): Made_001")


@pytest.mark.parametrize("damage", ["truncated image", "no properties"])
def test_damaged_preprocessed_unlabeled_cases_are_made_anew(train, preprocessed, damage):
    assert "Preprocessed 3 unlabelled case(s) now" in train()
    _damage(preprocessed / f"{LABELED_FOLDER}_unlabeled", damage)
    assert "Preprocessed 1 unlabelled case(s) now, 2 were there already" in train()


@pytest.mark.parametrize("damage", ["truncated image", "no properties"])
def test_damaged_preprocessed_unlabeled_cases_without_raw_data(train, refused, raw, preprocessed, damage):
    train()
    shutil.rmtree(preprocessed.parents[1] / "nnUNet_results")
    shutil.rmtree(raw)
    _damage(preprocessed / f"{LABELED_FOLDER}_unlabeled", damage)
    (preprocessed / "splits_final.json").write_text(
        json.dumps([{"train": ["Made_000"], "val": ["Made_002"], "unlabeled": ["Made_003", "Made_004"]}])
    )
    refused("stale there .*set nnUNet_raw.*: Made_004")


def _damage(folder: Path, damage: str) -> None:
    if damage == "no properties":
        (folder / "Made_004.pkl").unlink()
    else:
        file = folder / "Made_004.b2nd"
        file.write_bytes(file.read_bytes()[:-100])


def test_plans_that_changed_since_the_unlabeled_cases_were_preprocessed(train, preprocessed):
    train()
    file = preprocessed / "nnUNetPlansTiny.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["resampling_fn_data_kwargs"]["order"] = 1
    file.write_text(json.dumps(plans))
    assert "Preprocessed 3 unlabelled case(s) now, 0 were there already" in train()


def test_labeled_cases_that_other_plans_resampled(refused, preprocessed):
    file = preprocessed / "nnUNetPlansTiny.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [1.25, 2.0, 2.0]
    file.write_text(json.dumps(plans))
    refused(
        r"case Made_000 in .* has 20 x 24 x 22 voxels, and the spacing of 3d_fullres in nnUNetPlansTiny gives "
        r"40 x 24 x 22.* nnUNetv2_preprocess -d 500 -c 3d_fullres -plans_name nnUNetPlansTiny"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"spacing": [2.4, 2.0, 2.0]},  # a voxel more
        {"spacing": [1.25, 2.0, 2.0], "resampling_fn_data": "no_resampling_hack"},
        {"spacing": [1.25, 2.0, 2.0], "preprocessor_name": "MyPreprocessor"},
    ],
)
def test_other_grids_that_are_right(make_trainer, preprocessed, change):
    file = preprocessed / "nnUNetPlansTiny.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"] |= change
    trainer = make_trainer(nnUNetTrainerAD_1epoch)
    train, val = (
        infer_dataset_class(str(preprocessed / LABELED_FOLDER))(str(preprocessed / LABELED_FOLDER), [case])
        for case in ("Made_000", "Made_002")
    )
    grids = Grids(PlansManager(plans), "3d_fullres")
    check_labeled(train, val, trainer.label_manager, grids, "fold 0", lambda line: None)


def test_axes_in_another_order_and_slices_are_counted_as_nnunet_does():
    resampling = {"preprocessor_name": "DefaultPreprocessor", "resampling_fn_data": "resample_data_or_seg_to_shape"}
    resampling["architecture"] = {"network_class_name": "any", "arch_kwargs": {}, "_kw_requires_import": []}
    configurations = {
        "3d_fullres": {"spacing": [2.0, 1.0, 1.5], **resampling},
        "2d": {"spacing": [1.0, 1.5], **resampling},
    }
    plans = {"transpose_forward": [2, 0, 1], "plans_name": "P", "dataset_name": "Dataset001_X"}
    plans = PlansManager(plans | {"configurations": configurations})
    properties = {"spacing": [3.0, 4.5, 1.0], "shape_after_cropping_and_before_resampling": (20, 10, 10)}
    dataset = SimpleNamespace(source_folder="there")
    Grids(plans, "3d_fullres").check(dataset, "a", properties, (10, 30, 30))
    Grids(plans, "2d").check(dataset, "a", properties, (20, 30, 30))
    for configuration, shape in (("3d_fullres", "20 x 30 x 30"), ("2d", "10 x 30 x 30")):
        found = tuple(map(int, shape.split(" x ")))
        with pytest.raises(ValueError, match=f"case a in there has {shape} voxels"):
            Grids(plans, configuration).check(dataset, "a", properties, found)
    with pytest.raises(ValueError, match=r"damaged .no shape_after_cropping_and_before_resampling, spacing"):
        Grids(plans, "2d").check(dataset, "a", {}, (20, 30, 30))
    configurations["2d"]["preprocessor_name"] = "MyPreprocessor"
    own = PlansManager(plans.plans | {"configurations": configurations})
    Grids(own, "2d").check(dataset, "a", {}, (20, 30, 30))


def test_the_command_that_is_named_is_nnunets(monkeypatch):
    called = {}
    monkeypatch.setattr(
        plan_and_preprocess_entrypoints, "preprocess", lambda *arguments, **named: called.update(of=arguments, **named)
    )
    monkeypatch.setattr(sys, "argv", preprocess_command("Dataset042_X", "2d", "P").split())
    plan_and_preprocess_entrypoints.preprocess_entry()
    assert (called["of"], called["configurations"]) == (([42], "P"), ["2d"])


def test_a_validation_does_not_ask_the_raw_splits(make_trainer, preprocessed, raw, write_split):
    write_split()
    (raw / "splits_final.json").write_text("broken")
    assert make_trainer(nnUNetTrainerAD_1epoch).do_split() == (["Made_000", "Made_001"], ["Made_002"])


def test_splits_written_to_the_raw_folder_after_planning(refused, write_split, raw, preprocessed):
    write_split()
    (preprocessed / "splits_final.json").unlink()
    assert (raw / "splits_final.json").is_file()
    refused("splits_final.json was not there when the dataset was planned")
    assert not (preprocessed / "splits_final.json").exists()


def test_an_unlabeled_case_that_was_taken_out_stays_out_without_raw_data(train, raw, write_split):
    write_split()
    assert "3 unlabelled cases" in train()
    (raw / "imagesUnlabeled" / "Made_004_0000.nii.gz").unlink()
    assert "2 unlabelled cases: Made_003, Made_005" in train()
    shutil.rmtree(raw)
    assert "2 unlabelled cases: Made_003, Made_005" in train()


def test_a_fold_that_names_a_case_that_was_taken_out_says_so_without_raw_data(
    train, refused, raw, preprocessed, write_split
):
    write_split()
    train()
    (raw / "imagesUnlabeled" / "Made_004_0000.nii.gz").unlink()
    train()
    shutil.rmtree(preprocessed.parents[1] / "nnUNet_results")
    shutil.rmtree(raw)
    split = {"train": ["Made_000"], "val": ["Made_002"], "unlabeled": ["Made_003", "Made_004"]}
    (preprocessed / "splits_final.json").write_text(json.dumps([split]))
    refused("or were taken out of imagesUnlabeled/ since: Made_004")


def test_a_raw_folder_without_images_is_as_none(train, raw, write_split):
    write_split()
    train()
    for folder in ("imagesTr", "imagesUnlabeled"):
        shutil.rmtree(raw / folder)
    assert "unlabelled cases are used as they were preprocessed" in train()


def test_a_case_annotated_after_the_folds_were_drawn_is_pointed_out(train, preprocessed, write_split):
    write_split(train=["Made_000"], val=["Made_002"])
    log = train()
    file = preprocessed / "splits_final.json"
    assert f"WARNING: 1 labelled case(s) are in no fold of {file}, as if annotated since: Made_001. Add them" in log


def test_labels_that_nnunet_would_unpack_with_the_others(refused, preprocessed, write_split):
    """Those of unlabelled cases are never opened, and earlier versions wrote them in another format."""
    folder = preprocessed / LABELED_FOLDER
    for file in folder.glob("*.pkl"):
        image, label = (folder / f"{file.stem}{ending}.b2nd" for ending in ("", "_seg"))
        np.savez_compressed(
            folder / f"{file.stem}.npz",
            data=blosc2.open(str(image), mode="r")[:],
            seg=blosc2.open(str(label), mode="r")[:],
        )
        image.unlink()
        label.unlink()
    write_split(train=["Made_000"], val=["Made_001"], unlabeled=["Made_002", "Made_004"])
    refused(r"fold 0 has unlabelled cases in .*\.npz files.* Run nnUNetv2_preprocess again")
    assert not list(folder.glob("*.npy"))


def test_unlabeled_spacing_far_from_the_labeled(train, raw):
    file = raw / "imagesUnlabeled" / "Made_004_0000.nii.gz"
    image = sitk.ReadImage(file)
    image.SetSpacing((2.0, 2.0, 7.5))
    sitk.WriteImage(image, file)
    log = train()
    assert "WARNING: the spacing in mm of 1 of 3 unlabelled case(s) is far from that of the labelled ones: " in log
    assert "Made_004 7.5 x 2 x 2; labelled: 2.5 to 2.5 x 2 to 2 x 2 to 2." in log
    assert log.count("WARNING") == 1


def test_unlabeled_intensities_far_from_the_labeled(train, raw):
    file = raw / "imagesUnlabeled" / "Made_004_0000.nii.gz"
    image = sitk.ReadImage(file)
    empty = sitk.Image(image.GetSize(), image.GetPixelID())
    empty.CopyInformation(image)
    sitk.WriteImage(empty + 7, file)
    log = train()
    assert "intensity, channel by channel, of 1 of 3 unlabelled case(s) is far" in log
    assert "Made_004 mean 0, SD 0; labelled: mean " in log


def _clear_locations(preprocessed: Path, cases: list[str], classes: set[int]) -> None:
    for case in cases:
        file = preprocessed / LABELED_FOLDER / f"{case}.pkl"
        properties = pickle.loads(file.read_bytes())
        for key in classes:
            properties["class_locations"][key] = []
        file.write_bytes(pickle.dumps(properties))


def test_labels_that_are_background_in_all_training_cases(refused, preprocessed):
    _clear_locations(preprocessed, ["Made_000", "Made_001"], {1, 2})
    refused(
        r"fold 0 of Dataset500_Made: the labels of all 2 training case\(s\) \(Made_000, Made_001\) are background; "
        "expected voxels of organ, vessel"
    )


def test_labels_in_one_training_case_are_enough(train, preprocessed):
    _clear_locations(preprocessed, ["Made_000"], {1, 2})
    assert "WARNING" not in train()


def test_a_class_in_no_training_case_is_named(train, preprocessed):
    _clear_locations(preprocessed, ["Made_000", "Made_001"], {2})
    assert "WARNING: no labelled training case of fold 0 of Dataset500_Made has vessel" in train()
