"""``nnunet_ad rank-unlabeled`` on a tiny trained model."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from matplotlib.image import imread
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ad.cli.main import main
from nnunet_ad.data import preprocessing
from nnunet_ad.ranking import so_far
from nnunet_ad.ranking.branches import DenoisingBranch, ThreeDecoders
from nnunet_ad.ranking.model import TrainedModel
from nnunet_ad.ranking.rank import CaseDisagreement, grid_spacing
from nnunet_ad.trainer import nnUNetTrainerAD_1epoch

DATASET = "Dataset500_Made"
CONFIGURATION = "3d_fullres"
PLANS = "nnUNetPlansTiny"


@pytest.fixture
def trained(make_trainer, dataset) -> Path:
    """The dataset with a training of nnUNetTrainerAD_1epoch: weights as they were drawn, which is enough here."""
    save_training(make_trainer(nnUNetTrainerAD_1epoch), dataset)
    return dataset


def save_training(trainer, dataset: Path) -> None:
    """Write what a finished training leaves behind."""
    trainer.initialize()
    folder = Path(trainer.output_folder_base)
    shutil.copy(dataset / "nnUNet_preprocessed" / DATASET / f"{PLANS}.json", folder / "plans.json")
    shutil.copy(dataset / "nnUNet_preprocessed" / DATASET / "dataset.json", folder / "dataset.json")
    with torch.no_grad():  # the decoders start from the same weights
        for name, parameter in trainer.network.named_parameters():
            if name.endswith("weight"):
                parameter.add_(0.3 * torch.randn_like(parameter) * parameter.std().nan_to_num(0))
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))


def rank(output: Path, *more: str, trainer: str = "nnUNetTrainerAD_1epoch") -> int:
    arguments = ["-d", "500", "-c", CONFIGURATION, "-f", "0", "-p", PLANS, "-device", "cpu", "-tr", trainer]
    return main(["rank-unlabeled", *arguments, "-o", str(output), *more])


def read(output: Path) -> list[dict[str, str]]:
    with (output / "ranking.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def error_of(capsys) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def delete_labels(root: Path) -> None:
    """Delete all there is of labels and labelled cases, so that whatever needs one fails."""
    raw, preprocessed = (root / name / DATASET for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    labelled = [preprocessed / "gt_segmentations", preprocessed / "nnUNetPlans_3d_fullres"]
    for folder in (raw / "labelsTr", raw / "labelsTs", *labelled):
        shutil.rmtree(folder)


def test_a_training_is_ranked(dataset, make_trainer, tmp_path, capsys):
    make_trainer(nnUNetTrainerAD_1epoch).run_training()
    assert rank(tmp_path / "out", "--steps", "2", "--top", "2") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["contact_sheet.png", "ranking.csv"]
    splits = json.loads((dataset / "nnUNet_raw" / DATASET / "splits_final.json").read_text())
    assert sorted(line["case"] for line in read(tmp_path / "out")) == sorted(splits[0]["unlabeled"])
    assert min(imread(tmp_path / "out" / "contact_sheet.png").shape[:2]) > 200
    assert "Written to" in capsys.readouterr().out


def test_tiles_keep_their_slices_and_not_whole_volumes(trained, tmp_path, monkeypatch):
    from nnunet_ad.ranking import output

    drawn = []
    monkeypatch.setattr(output, "draw_contact_sheet", lambda tiles, caption, path: drawn.extend(tiles) or path.touch())
    assert rank(tmp_path / "out", "--steps", "1") == 0
    assert len(drawn) == 3
    assert all(array.base is None for tile in drawn for array in (tile.image, tile.label_maps))


def test_the_table_holds_what_it_says_and_no_label_is_needed(trained, tmp_path):
    delete_labels(trained)
    assert rank(tmp_path / "out", "--steps", "2", "--top", "0") == 0
    assert not (tmp_path / "out" / "contact_sheet.png").exists()
    lines = read(tmp_path / "out")
    assert [int(line["rank"]) for line in lines] == [1, 2, 3]
    values = [float(line["disagreement"]) for line in lines]
    assert values == sorted(values, reverse=True)
    assert 0 < values[0] <= 1
    for line in lines:
        each = [float(line[f"disagreement {name}"]) for name in ("organ", "vessel")]
        assert np.nanmean(each) == pytest.approx(float(line["disagreement"]), abs=1e-5)
        for name, value in zip(("organ", "vessel"), each, strict=True):
            volumes = [float(line[f"volume {name} {decoder} [ml]"]) for decoder in ("theta", "psi", "xi")]
            assert math.isnan(value) == (not any(volumes))


def test_the_ranking_is_reproducible_and_a_case_does_not_depend_on_the_others(trained, tmp_path):
    assert rank(tmp_path / "first", "--steps", "2") == 0
    assert rank(tmp_path / "second", "--steps", "2") == 0
    for name in ("ranking.csv", "contact_sheet.png"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()

    images = tmp_path / "images"
    images.mkdir()
    last = read(tmp_path / "first")[-1]
    shutil.copy(trained / "nnUNet_raw" / DATASET / "imagesUnlabeled" / f"{last['case']}_0000.nii.gz", images)
    assert rank(tmp_path / "alone", "--steps", "2", "-i", str(images)) == 0
    assert read(tmp_path / "alone") == [last | {"rank": "1"}]
    assert sorted(path.name for path in (tmp_path / "alone").iterdir()) == ["contact_sheet.png", "ranking.csv"]


@pytest.fixture
def trained_in_2d(make_trainer, dataset) -> Path:
    """As ``trained``, with the network of configuration 2d."""

    def two_dimensional(plans, configuration, fold, dataset_json, device):
        del configuration
        return nnUNetTrainerAD_1epoch(plans, "2d", fold, dataset_json, device)

    preprocessed = dataset / "nnUNet_preprocessed" / DATASET
    shutil.copytree(preprocessed / "nnUNetPlans_3d_fullres", preprocessed / "nnUNetPlans_2d")  # the trainer looks there
    save_training(make_trainer(two_dimensional), dataset)
    return dataset


def test_two_dimensional_networks_rank_volumes(trained_in_2d, tmp_path):
    assert rank(tmp_path / "out", "-c", "2d", "--steps", "1") == 0
    lines = read(tmp_path / "out")
    assert len(lines) == 3
    assert "volume organ theta [ml]" in lines[0]


def test_of_two_dimensional_images_no_volume_is_written(trained_in_2d, tmp_path):
    (tmp_path / "images").mkdir()
    values = np.random.default_rng(0).normal(size=(20, 24)).astype(np.float32)
    for case in ("a", "b"):
        sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "images" / f"{case}_0000.nii.gz"))
    assert rank(tmp_path / "out", "-c", "2d", "--steps", "1", "-i", str(tmp_path / "images")) == 0
    lines = read(tmp_path / "out")
    assert [line["case"] for line in lines] == ["a", "b"]
    assert list(lines[0]) == ["case", "rank", "disagreement", "disagreement organ", "disagreement vessel"]


def test_theta_is_what_nnunet_predicts(trained):
    model = TrainedModel(DATASET, CONFIGURATION, 0, "nnUNetTrainerAD_1epoch", PLANS)
    image = np.random.default_rng(0).normal(size=(1, 20, 24, 22)).astype(np.float32)
    expected = model.predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image)).argmax(0).numpy()
    theta, psi, xi = ThreeDecoders(model, 1).predict(image)
    assert (theta == expected).mean() > 0.99  # bfloat16 on processors that have it
    assert not np.array_equal(theta, psi)
    assert not np.array_equal(psi, xi)


def test_the_noise_depends_on_the_seed_only(trained):
    model = TrainedModel(DATASET, CONFIGURATION, 0, "nnUNetTrainerAD_1epoch", PLANS)
    image = np.random.default_rng(0).normal(size=(1, 16, 16, 20)).astype(np.float32)
    theta, _, xi = ThreeDecoders(model, 1, seed=0).predict(image)
    other = ThreeDecoders(model, 1, seed=1).predict(image)
    assert np.array_equal(theta, other[0])
    assert not np.array_equal(xi, other[2])
    decoders = ThreeDecoders(model, 1, seed=0)
    decoders.predict(image)
    assert np.array_equal(decoders.predict(image)[2], xi)


def test_without_diffusion_xi_sees_the_image_only(trained, make_trainer):
    from nnunet_ad.trainer import nnUNetTrainerAD_NoDiffusion

    save_training(make_trainer(nnUNetTrainerAD_NoDiffusion), trained)
    model = TrainedModel(DATASET, CONFIGURATION, 0, "nnUNetTrainerAD_NoDiffusion", PLANS)
    assert not isinstance(ThreeDecoders(model).branches["xi"], DenoisingBranch)


def test_cases_without_prediction_are_last():
    empty = CaseDisagreement("a", np.array([np.nan, np.nan]), np.zeros((3, 2)))
    some = CaseDisagreement("b", np.array([0.0, np.nan]), np.zeros((3, 2)))
    more = CaseDisagreement("c", np.array([0.3, 0.1]), np.zeros((3, 2)))
    assert sorted([empty, some, more], key=lambda case: case.order) == [more, some, empty]


def test_volumes_are_of_the_preprocessed_grid():
    properties = {"spacing": (1.0, 2.0, 3.0), "shape_after_cropping_and_before_resampling": (30, 10, 20)}
    spacing = grid_spacing(properties, (15, 10, 40), [2, 0, 1])
    np.testing.assert_allclose(spacing, [6, 1, 1])
    assert spacing.prod() * 15 * 10 * 40 == pytest.approx(1 * 2 * 3 * 30 * 10 * 20)


# --------------------------------------------------------------------------------------------- errors of the user


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-f", "3"), "no such training"),
        (("-f", "first"), "expected the number of a fold"),
        (("-tr", "nnUNetTrainerAD"), "no such training"),
        (("-chk", "checkpoint_none.pth"), "checkpoint_final.pth"),
        (("--steps", "0"), "expected 1 to 1000"),
        (("--top", "-1"), "--top -1"),
        (("-i", "nowhere"), "nowhere does not exist"),
    ],
)
def test_wrong_arguments_are_one_sentence(trained, tmp_path, capsys, arguments, expected):
    assert rank(tmp_path / "out", *arguments) == 1
    assert expected in error_of(capsys)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_named(trained, tmp_path, capsys):
    assert rank(tmp_path / "out", "-device", "cuda") == 1
    assert "Use -device cpu" in error_of(capsys)


def test_the_checkpoint_of_a_stock_trainer_is_refused(make_trainer, dataset, tmp_path, capsys):
    save_training(make_trainer(nnUNetTrainer), dataset)
    assert rank(tmp_path / "out", trainer="nnUNetTrainer") == 1
    assert "was trained with nnUNetTrainer, whose network has one decoder" in error_of(capsys)


def test_a_fold_without_unlabeled_case_is_refused(trained, tmp_path, capsys):
    for folder in ("nnUNet_raw", "nnUNet_preprocessed"):
        file = trained / folder / DATASET / "splits_final.json"
        splits = json.loads(file.read_text())
        splits[0]["unlabeled"] = []
        file.write_text(json.dumps(splits))
    assert rank(tmp_path / "out") == 1
    assert "has no unlabelled case" in error_of(capsys)


def test_a_folder_without_image_is_refused(trained, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    assert rank(tmp_path / "out", "-i", str(tmp_path / "images")) == 1
    assert "has no image; expected files named CASE_0000.nii.gz" in error_of(capsys)


def test_a_missing_channel_is_named(trained, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    sitk.WriteImage(sitk.Image(20, 20, 20, sitk.sitkFloat32), str(tmp_path / "images" / "scan_0001.nii.gz"))
    assert rank(tmp_path / "out", "-i", str(tmp_path / "images")) == 1
    assert "found scan_0001.nii.gz; the model was trained on 1 channel(s), so expected scan_0000.nii.gz" in error_of(
        capsys
    )


def test_a_file_without_the_number_of_its_channel_is_named(trained, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "patient_1.nii.gz").touch()
    assert rank(tmp_path / "out", "-i", str(tmp_path / "images")) == 1
    assert "such as patient_1_0000.nii.gz" in error_of(capsys)


def test_images_with_another_ending_are_not_left_out_silently(trained, tmp_path, capsys):
    images = shutil.copytree(trained / "nnUNet_raw" / DATASET / "imagesUnlabeled", tmp_path / "images")
    for name in ("scan_0000.nii", "scan_0000.mha"):
        (images / name).touch()
        assert rank(tmp_path / "out", "-i", str(images)) == 1
        assert (
            f"{images / name}: the images that the model was trained on end in .nii.gz (file_ending in dataset.json). "
            "Convert the file or move it elsewhere." in error_of(capsys)
        )
        (images / name).unlink()
    (images / "scan_0000.nii.gz").symlink_to("nowhere")
    assert rank(tmp_path / "out", "-i", str(images)) == 1
    assert "is a link to a file that is not there" in error_of(capsys)
    assert not list((tmp_path / "out").iterdir())


def test_cases_that_other_trainings_use_stay_as_they_are_after_planning_anew(trained, tmp_path, capsys):
    assert rank(tmp_path / "first", "--steps", "1", "--top", "0") == 0
    folder = trained / "nnUNet_preprocessed" / DATASET / "nnUNetPlans_3d_fullres_unlabeled"
    files = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in sorted(folder.iterdir())}
    (plans_file,) = (trained / "nnUNet_results").rglob("plans.json")
    plans = json.loads(plans_file.read_text())
    spacing = plans["configurations"][CONFIGURATION]["spacing"]
    plans["configurations"][CONFIGURATION]["spacing"] = [2 * spacing[0], *spacing[1:]]
    plans_file.write_text(json.dumps(plans))
    capsys.readouterr()
    assert rank(tmp_path / "second", "--steps", "1", "--top", "0") == 0
    assert "are preprocessed by other plans: all are preprocessed apart" in capsys.readouterr().out
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in sorted(folder.iterdir())} == files
    assert [path.name for path in (tmp_path / "second").iterdir()] == ["ranking.csv"]
    assert len(read(tmp_path / "second")) == len(read(tmp_path / "first"))


def test_an_unreadable_image_is_named(trained, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken_0000.nii.gz").write_bytes(b"not an image")
    assert rank(tmp_path / "out", "-i", str(tmp_path / "images")) == 1
    assert "case broken, file " in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_a_failing_contact_sheet_leaves_no_half_file(trained, tmp_path, monkeypatch, capsys):
    from nnunet_ad.ranking import output

    def fail(tiles, caption, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(output, "draw_contact_sheet", fail)
        assert rank(tmp_path / "out", "--steps", "1") == 1
    assert "disk full" in error_of(capsys)
    assert names(tmp_path / "out") == [".ranking_so_far", "ranking.csv"]
    assert rank_and_count(monkeypatch, tmp_path / "out", "--steps", "1") == (0, 0)
    assert names(tmp_path / "out") == ["contact_sheet.png", "ranking.csv"]


# --------------------------------------------------------------------------------------------- killed rankings


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def rank_and_count(monkeypatch, output: Path, *more: str, end: int = 99) -> tuple[int, int]:
    """Rank, with Ctrl-C in the prediction of case number ``end``; return the status and how many were predicted."""
    predict, predicted = ThreeDecoders.predict, []

    def counted(decoders, image, on_progress):
        if len(predicted) == end:
            raise KeyboardInterrupt
        predicted.append(image)
        return predict(decoders, image, on_progress)

    with monkeypatch.context() as patch:
        patch.setattr(ThreeDecoders, "predict", counted)
        return rank(output, *more), len(predicted)


@pytest.fixture
def images(trained, tmp_path) -> Path:
    return shutil.copytree(trained / "nnUNet_raw" / DATASET / "imagesUnlabeled", tmp_path / "images")


@pytest.mark.parametrize("of_a_folder", [False, True])
def test_an_interrupted_ranking_goes_on_and_ends_as_another(images, tmp_path, monkeypatch, capsys, of_a_folder):
    more = ["--steps", "2", *(["-i", str(images)] if of_a_folder else [])]
    assert rank(tmp_path / "whole", *more) == 0
    assert rank_and_count(monkeypatch, tmp_path / "out", *more, end=1) == (130, 1)
    assert error_of(capsys).endswith("nnunet_ad rank-unlabeled: interrupted")
    assert names(tmp_path / "out") == [".ranking_so_far"]
    monkeypatch.setattr(preprocessing, "_preprocess_case", lambda job: pytest.fail("preprocessed again"))
    assert rank_and_count(monkeypatch, tmp_path / "out", *more, end=1) == (130, 1)
    assert rank_and_count(monkeypatch, tmp_path / "out", *more) == (0, 1)
    assert names(tmp_path / "out") == names(tmp_path / "whole") == ["contact_sheet.png", "ranking.csv"]
    for name in names(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("change", ["steps", "seed", "checkpoint", "images", "plans", "damage"])
def test_what_decides_the_result_begins_anew(images, tmp_path, monkeypatch, change):
    out, more = tmp_path / "out", ["--steps", "1", "--top", "0", "-i", str(images)]
    assert rank_and_count(monkeypatch, out, *more, end=2) == (130, 2)
    files = sorted((out / ".ranking_so_far" / "cases").iterdir())
    assert len(files) == 2
    (checkpoint,) = (tmp_path / "nnUNet_results").rglob("checkpoint_final.pth")
    expected = 3
    match change:
        case "steps":
            more += ["--steps", "2"]
        case "seed":
            more += ["--seed", "1"]
        case "checkpoint":
            content = torch.load(checkpoint, weights_only=False)
            next(iter(content["network_weights"].values())).add_(0.1)
            torch.save(content, checkpoint)
        case "images":
            os.utime(images / f"{files[0].stem}_0000.nii.gz", ns=(1, 1))
            expected = 2
        case "plans":
            file = checkpoint.parents[1] / "plans.json"
            file.write_text(file.read_text().replace('"batch_size": 2', '"batch_size": 3'))
        case "damage":
            files[0].write_bytes(files[0].read_bytes()[:100])
            expected = 2
    assert rank_and_count(monkeypatch, out, *more) == (0, expected)


def test_a_killed_ranking_goes_on(images, tmp_path, monkeypatch):
    """The kill is real: no handler, no clean-up."""
    code = (
        "import os, signal, sys; from nnunet_ad.cli.main import main\n"
        "from nnunet_ad.ranking.so_far import RankingSoFar\n"
        "save = RankingSoFar.save\n"
        "def killed(*arguments): save(*arguments); os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))\n"
        "RankingSoFar.save = killed; main(sys.argv[1:])"
    )
    out, more = tmp_path / "out", ["--steps", "1", "-i", str(images)]
    command = ["rank-unlabeled", "-d", "500", "-c", CONFIGURATION, "-f", "0", "-p", PLANS, "-device", "cpu"]
    command += ["-tr", "nnUNetTrainerAD_1epoch", "-o", str(out), *more]
    assert subprocess.run([sys.executable, "-c", code, *command], timeout=300).returncode != 0
    assert ".ranking_so_far" in names(out)
    (out / ".preprocessed_abc" / "images").mkdir(parents=True)  # as earlier versions left
    (out / ".unfinished_01234567_ranking.csv").touch()
    assert rank_and_count(monkeypatch, out, *more) == (0, 2)
    assert names(out) == ["contact_sheet.png", "ranking.csv"]


def test_two_rankings_do_not_write_to_one_folder(trained, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    with so_far.ranking_so_far(out, "another"):
        assert rank(out, "--steps", "1") == 1
        assert f"another rank-unlabeled writes to {out}" in error_of(capsys)
    assert rank(out, "--steps", "1") == 0
    assert names(out) == ["contact_sheet.png", "ranking.csv"]
