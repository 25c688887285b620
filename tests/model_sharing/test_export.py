"""``nnunet_ad export``: small, whole, and silent about the training."""

import getpass
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_export import export_pretrained_model
from nnunetv2.model_sharing.model_import import install_model_from_zip_file
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ad.cli.main import main
from nnunet_ad.network.checkpoint import inference_weights, load_checkpoint
from nnunet_ad.network.from_plans import network_of_plans, stock_network_of_plans
from nnunet_ad.trainer import nnUNetTrainerAD, nnUNetTrainerAD_1epoch, nnUNetTrainerAD_Paper

DATASET = "Dataset500_Made"
PLANS = "nnUNetPlansTiny"
FOLDER = f"{DATASET}/nnUNetTrainerAD_1epoch__{PLANS}__3d_fullres"


def export(output: Path, *more: str, trainer: str = "nnUNetTrainerAD_1epoch") -> int:
    arguments = ["-d", "500", "-c", "3d_fullres", "-p", PLANS, "-tr", trainer, "-f", "0"]
    return main(["export", *arguments, "-o", str(output), *more])


def predicted(folder: Path, image: np.ndarray, folds: tuple[int, ...] = (0,)) -> np.ndarray:
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), folds)
    return predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image)).numpy()


def nearly(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether logits, which nnU-Net keeps in float16, differ by rounding only."""
    return np.allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def same(found: np.ndarray, expected: np.ndarray, form: list[str]) -> bool:
    """Whether logits of a form of export are the training's: our own network's are so to the bit."""
    return np.array_equal(found, expected) if form else nearly(found, expected)


forms = pytest.mark.parametrize("form", [[], ["--own-network"]], ids=["stock", "own"])


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, 20, 24, 22)).astype(np.float32)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a zip file where no other model is, and returns the model's folder."""

    def installed(model: Path, folder: str = FOLDER) -> Path:
        monkeypatch.setenv("nnUNet_results", str(tmp_path / "elsewhere"))
        install_model_from_zip_file(str(model))
        return tmp_path / "elsewhere" / folder

    return installed


@forms
def test_the_export_predicts_the_same_and_is_less_than_40_percent(save_training, install, dataset, image, capsys, form):
    full = save_training()
    expected = predicted(full.parents[1], image)
    assert export(dataset / "model.zip", *form) == 0
    said = capsys.readouterr().out
    assert "nnUNetv2_predict -d Dataset500_Made" in said
    assert f"Who receives it needs {'this package' if form else 'nnU-Net only, not this package'}." in said
    assert (dataset / "model.zip").stat().st_size < 0.4 * full.stat().st_size
    assert not list(dataset.glob(".*"))
    assert same(predicted(install(dataset / "model.zip"), image), expected, form)


@forms
def test_a_model_with_a_stem_of_its_own_for_noisy_labels_predicts_the_same(
    save_training, install, dataset, image, form
):
    full = save_training(nnUNetTrainerAD_Paper)
    assert any("separate_stem" in name for name in load_checkpoint(full)["network_weights"])
    expected = predicted(full.parents[1], image)
    assert export(dataset / "model.zip", *form, trainer="nnUNetTrainerAD_Paper") == 0
    folder = install(dataset / "model.zip", FOLDER.replace("nnUNetTrainerAD_1epoch", "nnUNetTrainerAD_Paper"))
    assert same(predicted(folder, image), expected, form)


def test_by_default_it_is_nnunets_own_network(save_training, install, dataset, image, monkeypatch):
    """Who has no trainer of this package predicts with it."""
    full = save_training()
    expected = predicted(full.parents[1], image)
    assert export(dataset / "own.zip", "--own-network") == 0
    assert export(dataset / "model.zip") == 0
    monkeypatch.delenv("nnUNet_extTrainer")
    folder = install(dataset / "own.zip")
    with pytest.raises(RuntimeError, match="nnUNetTrainerAD"):
        predicted(folder, image)
    assert nearly(predicted(install(dataset / "model.zip"), image), expected)
    stock = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    stock.initialize_from_trained_model_folder(str(folder), (0,))
    assert type(stock.network) is PlainConvUNet
    assert not any("nnunet_ad" in type(module).__module__ for module in stock.network.modules())


@forms
def test_half_precision_is_half_the_size_and_predicts_nearly_the_same(save_training, install, dataset, image, form):
    full = save_training()
    expected = predicted(full.parents[1], image)
    assert export(dataset / "model.zip", *form) == 0
    assert export(dataset / "half.zip", "--half", *form) == 0
    assert (dataset / "half.zip").stat().st_size < 0.7 * (dataset / "model.zip").stat().st_size
    folder = install(dataset / "half.zip")
    weights = load_checkpoint(folder / "fold_0" / "checkpoint_final.pth")["network_weights"]
    assert {w.dtype for w in weights.values() if w.ndim > 1} == {torch.float16}
    assert {w.dtype for w in weights.values() if w.ndim == 1} == {torch.float32}
    assert (predicted(folder, image).argmax(0) == expected.argmax(0)).mean() > 0.99


@pytest.mark.parametrize(
    ("planner", "own", "stock"),
    [(ExperimentPlanner, 0.205, 0.25), (nnUNetPlannerResEncM, 0.304, 0.32), (nnUNetPlannerResEncL, 0.304, 0.32)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_share_of_the_checkpoint_with_nnunets_own_plans(dataset, monkeypatch, planner, own, stock):
    """What docs/sharing-models.md says, by numbers of parameters; compression then takes 7 %."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # nnU-Net's planners take it for a number of threads
    file = dataset / "nnUNet_preprocessed" / DATASET / "dataset_fingerprint.json"
    content = json.loads(file.read_text())
    content["spacings"], content["shapes_after_crop"] = ([[size] * 3] * 3 for size in (1.0, 160))
    file.write_text(json.dumps(content))
    plans = planner(500).plan_experiment()
    assert plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["n_stages"] == 6
    with torch.device("meta"):
        content = json.loads((file.parent / "dataset.json").read_text())
        network = network_of_plans(plans, content, "3d_fullres", averaging=0.1)
        as_stock = stock_network_of_plans(plans, content, "3d_fullres")
    weights = dict(network.named_parameters())
    exported = sum(weight.numel() for weight in inference_weights(weights).values())
    # a checkpoint has a momentum for each weight that learns
    saved = sum(weight.numel() * (2 if weight.requires_grad else 1) for weight in weights.values())
    assert exported / saved == pytest.approx(own, abs=0.005)
    assert sum(weight.numel() for weight in as_stock.parameters()) / saved == pytest.approx(stock, abs=0.005)


@forms
def test_the_file_names_no_case_no_path_and_no_person(save_training, dataset, form):
    full = save_training()
    for name, secret in (("plans.json", {"source": str(dataset)}), ("dataset.json", {"dataset": {"Made_000": {}}})):
        file = full.parents[1] / name
        file.write_text(json.dumps(json.loads(file.read_text()) | secret))
    assert export(dataset / "model.zip", *form) == 0
    with zipfile.ZipFile(dataset / "model.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    files = ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth")
    assert set(members) == {f"{FOLDER}/{name}" for name in files}
    secrets = ["Made_00", str(dataset), str(dataset.parent), "/tmp", "optimizer", "Made volumes", "logging"]
    secrets += [str(Path.home())] + ([getpass.getuser()] if len(getpass.getuser()) > 4 else [])
    for name, content in members.items():
        assert not [secret for secret in secrets if secret.encode() in content], name
        assert socket.gethostname().encode() not in _words(content), name
    assert b"optimizer" in full.read_bytes()
    checkpoint = torch.load(_unpacked(dataset, f"{FOLDER}/fold_0/checkpoint_final.pth"), weights_only=True)
    assert set(checkpoint) == {
        "network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes", "nnunet_ad",
    }  # fmt: skip
    assert checkpoint["init_args"] == {"configuration": "3d_fullres"}
    parts = {".".join(name.split(".")[:2]) for name in checkpoint["network_weights"]}
    assert {part.split(".")[0] for part in parts} == {"encoder", "unlabeled_decoder" if form else "decoder"}
    if form:
        assert {part for part in parts if part.startswith("encoder")} == {"encoder.image_encoder"}


def _words(content: bytes) -> bytes:
    """A file, of a checkpoint without the numbers of its tensors, in which a short name is found by chance."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return content
    with zipfile.ZipFile(io.BytesIO(content)) as parts:
        return b"".join(parts.read(name) for name in parts.namelist() if "/data/" not in name)


def _unpacked(root: Path, member: str) -> Path:
    with zipfile.ZipFile(root / "model.zip") as archive:
        return Path(archive.extract(member, root / "unpacked"))


@forms
def test_a_trainer_that_the_receiver_does_not_have_predicts(save_training, install, dataset, image, form):
    full = save_training(type("nnUNetTrainerAD_OfThisHospital", (nnUNetTrainerAD,), {}))
    shutil.copytree(full.parents[1], full.parents[2] / FOLDER.split("/")[1])
    assert export(dataset / "model.zip", *form, trainer="nnUNetTrainerAD_OfThisHospital") == 0
    folder = install(dataset / "model.zip", f"{DATASET}/nnUNetTrainerAD_OfThisHospital__{PLANS}__3d_fullres")
    assert predicted(folder, image).shape == (3, 20, 24, 22)


def test_exported_and_full_folds_go_together_in_an_ensemble(save_training, install, dataset, image):
    files = [save_training(fold=fold) for fold in (0, 1)]
    expected = predicted(files[0].parents[1], image, (0, 1))
    assert export(dataset / "model.zip", "--own-network") == 0
    folder = install(dataset / "model.zip")
    (folder / "fold_1").mkdir()
    shutil.copy(files[1], folder / "fold_1")
    for order in ((0, 1), (1, 0)):
        np.testing.assert_allclose(predicted(folder, image, order), expected, atol=1e-5)


@forms
@pytest.mark.parametrize("half", [[], ["--half"]], ids=["whole", "half"])
def test_an_exported_model_can_be_exported_again(save_training, install, dataset, form, half):
    save_training()
    assert export(dataset / "model.zip", *form, *half) == 0
    install(dataset / "model.zip")
    assert export(dataset / "again.zip", *form) == 0
    contents = []
    for name in ("model.zip", "again.zip"):
        with zipfile.ZipFile(dataset / name) as archive:
            contents.append({member: archive.read(member) for member in archive.namelist()})
    assert contents[0] == contents[1]
    with pytest.raises(FileNotFoundError, match=r"progress\.png"):  # as docs/sharing-models.md says
        export_pretrained_model(500, str(dataset / "hosts.zip"), ("3d_fullres",), "nnUNetTrainerAD_1epoch", PLANS, (0,))


def test_a_model_of_our_network_can_become_one_of_nnunets_but_not_back(save_training, install, dataset, image, capsys):
    expected = predicted(save_training().parents[1], image)
    assert export(dataset / "own.zip", "--own-network") == 0
    install(dataset / "own.zip")
    assert export(dataset / "model.zip") == 0
    assert nearly(predicted(install(dataset / "model.zip"), image), expected)
    assert export(dataset / "back.zip", "--own-network") == 1
    assert "was exported as nnU-Net's own network, and goes on to others as such only" in capsys.readouterr().err
    assert not (dataset / "back.zip").exists()


def test_a_network_that_nnunets_own_differs_from_in_more_is_exported_as_ours(
    save_training, install, dataset, image, capsys
):
    file = dataset / "nnUNet_preprocessed" / DATASET / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualUNet"
    architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")
    file.write_text(json.dumps(plans))
    full = save_training()
    assert export(dataset / "model.zip") == 1
    error = capsys.readouterr().err
    assert error.startswith(
        f"nnunet_ad export: {full} can't be written as nnU-Net's own network: the plans name Residual"
    )
    assert error.endswith("; add --own-network\n")
    assert not list(dataset.glob("model.zip*"))
    expected = predicted(full.parents[1], image)
    assert export(dataset / "model.zip", "--own-network") == 0
    assert np.array_equal(predicted(install(dataset / "model.zip"), image), expected)


def test_nnunets_own_trainer_starts_from_it(save_training, install, dataset, make_trainer):
    save_training()
    assert export(dataset / "model.zip") == 0
    file = install(dataset / "model.zip") / "fold_0" / "checkpoint_final.pth"
    trainer = make_trainer(nnUNetTrainer)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(file))
    weights, found = load_checkpoint(file)["network_weights"], trainer.network.state_dict()
    for name, weight in weights.items():
        assert torch.equal(found[name], weight) or ".seg_layers." in name, name


def test_postprocessing_that_stays_behind_is_named(save_training, dataset, capsys):
    folder = save_training().parents[1]
    save_training(fold=1)
    for folds in ("0", "0_1", "0_1_2"):
        (folder / f"crossval_results_folds_{folds}").mkdir()
        (folder / f"crossval_results_folds_{folds}" / "postprocessing.pkl").touch()
    for folds, of_folds in ((["0"], "0"), (["1", "0", "1"], "0_1"), (["1"], None)):
        assert export(dataset / "model.zip", "-f", *folds) == 0
        notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("NOTE: ")]
        assert len(notes) == (of_folds is not None)
        if notes:
            assert f"{folder / f'crossval_results_folds_{of_folds}' / 'postprocessing.pkl'}, is not in" in notes[0]
            assert "nnUNetv2_apply_postprocessing" in notes[0]
    with zipfile.ZipFile(dataset / "model.zip") as archive:
        assert not [name for name in archive.namelist() if name.endswith(".pkl")]


@forms
def test_an_exported_model_does_not_train_nor_rank(
    save_training, install, dataset, make_trainer, tmp_path, capsys, form
):
    full = save_training()
    assert export(dataset / "model.zip", *form) == 0
    slim = install(dataset / "model.zip") / "fold_0" / "checkpoint_final.pth"
    with pytest.raises(ValueError, match=f"{slim} is a model exported for inference"):
        make_trainer(nnUNetTrainerAD_1epoch).load_checkpoint(str(slim))
    shutil.copy(slim, full)
    arguments = ["-d", "500", "-c", "3d_fullres", "-f", "0", "-p", PLANS, "-device", "cpu"]
    assert main(["rank-unlabeled", *arguments, "-tr", "nnUNetTrainerAD_1epoch", "-o", str(tmp_path / "ranks")]) == 1
    assert "is a model exported for inference" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "ranks").exists()


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("code_ran",)


def test_a_checkpoint_with_code_in_it_is_refused_without_running_it(
    save_training, dataset, make_trainer, monkeypatch, capsys
):
    full = save_training()
    monkeypatch.chdir(dataset)
    torch.save(torch.load(full, weights_only=False) | {"logging": RunsCode()}, full)
    with pytest.raises(ValueError, match="could be code"):
        make_trainer(nnUNetTrainerAD_1epoch).load_checkpoint(str(full))
    ranking = ["rank-unlabeled", "-d", "500", "-c", "3d_fullres", "-f", "0", "-p", PLANS, "-device", "cpu"]
    assert main([*ranking, "-tr", "nnUNetTrainerAD_1epoch", "-o", "ranks"]) == 1
    assert export(Path("model.zip")) == 1
    assert capsys.readouterr().err.count("could be code") == 2
    assert not Path("code_ran").exists()
    assert not list(dataset.glob("model.zip*"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-f", "0", "3"], "fold_3/checkpoint_final.pth; train this fold first"),
        (["-chk", "checkpoint_best.pth"], "there is no"),
        (["-d", "777"], "777"),
        (["-o", "nowhere/model.zip"], "folder to write to does not exist"),
    ],
)
def test_what_is_missing_is_said(save_training, dataset, capsys, monkeypatch, more, message):
    save_training()
    monkeypatch.chdir(dataset)
    assert export(Path("model.zip"), *more) == 1
    assert message in capsys.readouterr().err
    assert not list(dataset.glob("model.zip*"))


def test_a_damaged_checkpoint_is_named(save_training, dataset, capsys):
    full = save_training()
    for content in (full.read_bytes()[:-1000], b"", b"no checkpoint"):
        full.write_bytes(content)
        assert export(dataset / "model.zip") == 1
        assert str(full) in capsys.readouterr().err
    assert not list(dataset.glob("model.zip*"))


def test_plans_of_another_network_are_noticed(save_training, dataset, capsys):
    full = save_training()
    file = full.parents[1] / "dataset.json"
    file.write_text(file.read_text().replace('"vessel": 2', '"vessel": 2, "nerve": 3'))
    assert export(dataset / "model.zip") == 1
    assert "do not fit the network" in capsys.readouterr().err


def test_names_that_keys_had_before_are_kept_and_folds_named_twice_are_one(save_training, dataset):
    folder = save_training().parent.parent
    for name, old, new in (
        ("plans.json", "foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality"),
        ("dataset.json", "channel_names", "modality"),
    ):
        content = json.loads((folder / name).read_text())
        content[new] = content.pop(old)
        (folder / name).write_text(json.dumps(content))
    assert export(dataset / "model.zip", "-f", "0", "0") == 0
    with zipfile.ZipFile(dataset / "model.zip") as archive:
        names = archive.namelist()
        plans, dataset_json = (json.loads(archive.read(f"{FOLDER}/{name}.json")) for name in ("plans", "dataset"))
    assert len(names) == len(set(names)) == 3
    assert plans["foreground_intensity_properties_by_modality"] and dataset_json["modality"]


def test_a_stock_training_goes_to_the_hosts_command(save_training, dataset, capsys):
    save_training(nnUNetTrainer)
    assert export(dataset / "model.zip", trainer="nnUNetTrainer") == 1
    assert "export it with nnUNetv2_export_model_to_zip" in capsys.readouterr().err


@pytest.mark.slow
@forms
def test_the_real_commands(save_training, dataset, monkeypatch, form):
    """Exported, installed and used for prediction by nnU-Net's commands: the same label maps, without unpickling.

    As nnU-Net's own network it predicts where this package is not registered.
    """
    save_training()
    bin_folder = Path(sys.executable).parent

    def command(name: str, *arguments: str) -> None:
        done = subprocess.run([bin_folder / name, *arguments], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    images = dataset / "nnUNet_raw" / DATASET / "imagesTs"
    model = ["-d", "500", "-c", "3d_fullres", "-p", PLANS, "-tr", "nnUNetTrainerAD_1epoch", "-f", "0"]
    predict = ["nnUNetv2_predict", *model, "-device", "cpu", "-i", str(images), "-npp", "1", "-nps", "1"]
    command(*predict, "-o", str(dataset / "expected"))
    command("nnunet_ad", "export", *model, "-o", str(dataset / "model.zip"), *form)
    monkeypatch.setenv("nnUNet_results", str(dataset / "elsewhere"))
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    (dataset / "elsewhere").mkdir()
    command("nnUNetv2_install_pretrained_model_from_zip", str(dataset / "model.zip"))
    if not form:
        monkeypatch.setenv("NNUNET_AD_NO_REGISTRATION", "1")
        monkeypatch.delenv("nnUNet_extTrainer")
    command(*predict, "-o", str(dataset / "actual"))
    files = sorted((dataset / "expected").glob("*.nii.gz"))
    assert files
    for file in files:
        first, second = (sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in (file, dataset / "actual" / file.name))
        assert (first != second).sum() <= (0 if form else 3)
        assert first.any()
