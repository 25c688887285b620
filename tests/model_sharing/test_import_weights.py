"""``nnunet_ad import-weights``: what a network of nnUNetTrainerAD takes over from a stock one."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ad import train
from nnunet_ad.cli.main import main
from nnunet_ad.trainer import (
    nnUNetTrainerAD,
    nnUNetTrainerAD_1epoch,
    nnUNetTrainerAD_Paper,
    nnUNetTrainerCPS,
    nnUNetTrainerMeanTeacher,
)

DATASET = "Dataset500_Made"
PLANS = "nnUNetPlansTiny"
DECODERS = ("denoising_decoder", "difficulty_decoder", "unlabeled_decoder")


@pytest.fixture
def imported(save_training, dataset, capsys):
    """Stock weights, those made of them, and what the command said."""
    stock = save_training(nnUNetTrainer)
    assert main(["import-weights", str(stock), str(dataset / "out.pth")]) == 0
    weights = (torch.load(file, weights_only=False)["network_weights"] for file in (stock, dataset / "out.pth"))
    return *weights, capsys.readouterr().out


def test_the_encoder_computes_what_the_stock_one_does(imported, make_trainer):
    stock, ours, _ = imported
    networks = []
    for trainer_class, weights in ((nnUNetTrainer, stock), (nnUNetTrainerAD_Paper, ours)):
        trainer = make_trainer(trainer_class)
        trainer.initialize()
        trainer.network.load_state_dict({name: w for name, w in weights.items() if not name.startswith("average.")})
        networks.append(trainer.network)
    for name, weight in networks[1].encoder.separate_stem.named_parameters():
        assert torch.equal(weight, networks[1].encoder.image_stem.get_parameter(name)), name
    x = torch.randn(2, 1, 16, 16, 16)
    for expected, actual in zip(networks[0].encoder(x), networks[1].encoder(x), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_each_decoder_takes_what_fits_and_the_command_names_the_rest(imported):
    stock, ours, said = imported
    last = max(int(name.split(".")[2]) for name in stock if "seg_layers" in name)
    for decoder in DECODERS:
        for own, theirs in (
            ("upsamplings.1.weight", "transpconvs.1.weight"),
            ("stages.0.convs.0.norm.weight", "stages.0.convs.0.norm.weight"),
            ("stages.1.convs.1.conv.weight", "stages.1.convs.1.conv.weight"),
            ("classifier.weight", f"seg_layers.{last}.weight"),
        ):
            assert torch.equal(ours[f"{decoder}.{own}"], stock[f"decoder.{theirs}"]), own
        left = f"{decoder}.stages.0.convs.0.conv.weight"
        assert ours[left].shape != stock[f"decoder.{left.split('.', 1)[1]}"].shape
        assert f"  {left}: {tuple(ours[left].shape)}, in the checkpoint" in said
        assert torch.equal(ours[left], ours[left.replace(decoder, DECODERS[0])])
    assert "encoder.label_conv: 1 parameters that the checkpoint does not have" in said
    assert "encoder.image_encoder" not in said


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerAD, nnUNetTrainerAD_Paper])
def test_nnunet_takes_it_as_pretrained_weights(imported, make_trainer, dataset, trainer_class):
    _, ours, _ = imported
    trainer = make_trainer(trainer_class)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(dataset / "out.pth"))
    started_by_torchrun = make_trainer(trainer_class)
    train._load_pretrained(started_by_torchrun, dataset / "out.pth")
    for name, weight in trainer.network.state_dict().items():
        assert torch.equal(weight, ours[name]), name
        assert torch.equal(weight, started_by_torchrun.network.state_dict()[name]), name


def test_torchrun_refuses_weights_of_other_classes_by_name(imported, make_trainer, dataset):
    other = make_trainer(nnUNetTrainerAD, labels={"background": 0, "organ": 1})
    with pytest.raises(ValueError, match=r"out.pth is of another network: encoder.label_conv.*has shape.*, found \("):
        train._load_pretrained(other, dataset / "out.pth")


@pytest.mark.parametrize(
    ("trainer_class", "prefix"),
    [(nnUNetTrainerMeanTeacher, "average.student."), (nnUNetTrainerCPS, "first.")],
)
def test_of_a_baseline_the_network_is_taken_that_predicts(save_training, dataset, trainer_class, prefix):
    source = save_training(trainer_class)
    weights = torch.load(source, weights_only=False)["network_weights"]
    for name in weights:  # the others are not to be taken
        if not name.startswith(prefix):
            weights[name].zero_()
    torch.save(torch.load(source, weights_only=False) | {"network_weights": weights}, source)
    assert main(["import-weights", str(source), str(dataset / "out.pth")]) == 0
    ours = torch.load(dataset / "out.pth", weights_only=False)["network_weights"]
    taken = {name: weight for name, weight in ours.items() if name.startswith("encoder.image_encoder.")}
    assert any(weight.any() for weight in taken.values())
    for name, weight in taken.items():
        assert torch.equal(weight, weights[prefix + name.replace("image_encoder.", "")]), name


def test_another_number_of_classes_leaves_the_classifier(save_training, dataset, capsys):
    stock = save_training(nnUNetTrainer)
    file = dataset / "nnUNet_preprocessed" / DATASET / "dataset.json"
    content = json.loads(file.read_text())
    content["labels"]["nerve"] = 3
    file.write_text(json.dumps(content))
    assert main(["import-weights", str(stock), str(dataset / "out.pth"), "-d", "500", "-p", PLANS]) == 0
    assert "unlabeled_decoder.classifier.weight: (4, 4, 1, 1, 1), in the checkpoint (3, 4, 1, 1, 1)" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("form", [[], ["--own-network"]], ids=["stock", "own"])
def test_an_exported_model_is_a_start_for_a_training(save_training, dataset, make_trainer, capsys, form):
    full = save_training()
    model = ["-d", "500", "-c", "3d_fullres", "-p", PLANS, "-tr", "nnUNetTrainerAD_1epoch", "-f", "0"]
    assert main(["export", *model, *form, "-o", str(dataset / "model.zip")]) == 0
    assert main(["import-weights", str(dataset / "model.zip"), str(dataset / "out.pth")]) == 1
    assert "is a model to install: nnUNetv2_install_pretrained_model_from_zip" in capsys.readouterr().err
    with zipfile.ZipFile(dataset / "model.zip") as archive:
        slim = archive.extract(next(name for name in archive.namelist() if name.endswith(".pth")), dataset / "unpacked")
    assert main(["import-weights", slim, str(dataset / "out.pth"), "-d", "500", "-p", PLANS]) == 0
    theirs = torch.load(full, weights_only=False)["network_weights"]
    ours = torch.load(dataset / "out.pth")["network_weights"]
    assert {name for name in ours if not name.startswith("encoder.separate_stem.")} == set(theirs)
    for name, weight in ours.items():
        if "decoder." in name:
            assert torch.equal(weight, theirs[f"average.unlabeled_decoder.{name.split('decoder.', 1)[1]}"]), name
    assert any(not torch.equal(weight, ours[name]) for name, weight in theirs.items() if "unlabeled_decoder" in name)
    with pytest.raises(AssertionError):  # without this command the host refuses it
        trainer = make_trainer(nnUNetTrainerAD)
        trainer.initialize()
        load_pretrained_weights(trainer.network, slim)


@pytest.mark.parametrize(
    ("of", "to"), [(nnUNetTrainerAD_Paper, nnUNetTrainerAD), (nnUNetTrainerAD, nnUNetTrainerAD_Paper)]
)
def test_trainings_with_other_switches_start_from_each_other(save_training, make_trainer, dataset, of, to):
    source, out = save_training(of), str(dataset / "out.pth")
    theirs = torch.load(source, weights_only=False)["network_weights"]
    trainer = make_trainer(to)
    trainer.initialize()
    with pytest.raises(AssertionError):
        load_pretrained_weights(trainer.network, str(source))
    assert main(["import-weights", str(source), out]) == 0
    load_pretrained_weights(trainer.network, out)
    ours = trainer.network.state_dict()
    shared = [name for name in ours.keys() & theirs.keys() if not name.endswith("num_iterations")]
    assert len(shared) > 50
    for name in shared:
        assert torch.equal(ours[name], theirs[name]), name
    for name in ours.keys() - theirs.keys():
        plain = name.removeprefix("average.").replace("separate_stem", "image_encoder.stem")
        if plain in theirs:
            assert torch.equal(ours[name], theirs[plain]), name


def test_where_everything_was_filled_nothing_is_left(save_training, dataset, capsys):
    source = save_training()
    capsys.readouterr()
    assert main(["import-weights", str(source), str(dataset / "out.pth")]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Filled (\d+) of \1 parameters of encoder and three decoders\.", first)
    assert second.startswith("Written: ")


def test_of_a_training_with_other_classes_all_but_what_sees_classes_is_taken(save_training, dataset, capsys):
    source, out = save_training(), dataset / "out.pth"
    theirs = torch.load(source, weights_only=False)
    one_more = {
        name: torch.cat((w, w[:1])) if "classifier" in name else w for name, w in theirs["network_weights"].items()
    }
    torch.save(theirs | {"network_weights": one_more}, source)
    assert main(["import-weights", str(source), str(out), "-d", "500", "-p", PLANS]) == 0
    ours = torch.load(out, weights_only=False)["network_weights"]
    said = capsys.readouterr().out
    for name in theirs["network_weights"].keys() & ours.keys():
        if "classifier" in name:
            assert f"  {name}: " in said
        elif not name.endswith("num_iterations"):
            assert torch.equal(ours[name], theirs["network_weights"][name]), name


def test_what_does_not_fit_is_refused(save_training, dataset, capsys):
    out, stock = str(dataset / "out.pth"), save_training(nnUNetTrainer)
    assert main(["import-weights", str(stock), out, "-d", "500", "-p", "Nothing"]) == 1
    assert "Nothing.json" in capsys.readouterr().err
    assert main(["import-weights", str(stock), out, "-c", "2d"]) == 1
    assert "name the dataset with -d" in capsys.readouterr().err
    torch.save({"network_weights": {"encoder.a": torch.zeros(1)}}, stock)
    assert main(["import-weights", str(stock), out]) == 1
    assert "name the dataset to train on with -d, -p and -c" in capsys.readouterr().err
    assert main(["import-weights", str(stock), out, "-d", "500", "-p", PLANS]) == 1
    assert "nothing that fits the encoder" in capsys.readouterr().err
    assert not list(dataset.glob("out.pth*"))


def test_no_file_of_others_is_replaced(save_training, dataset, capsys):
    source, out = save_training(nnUNetTrainer), dataset / "out.pth"
    (dataset / "link.pth").symlink_to(source)
    other, text = save_training(fold=1), dataset / "notes.txt"
    text.write_text("mine")
    files = (source, other, text)
    before = [file.read_bytes() for file in files]
    for same in (source, dataset / "link.pth", Path(os.path.relpath(source))):
        assert main(["import-weights", str(source), str(same)]) == 1
        error = capsys.readouterr().err
        assert f"{same} is the checkpoint to import from" in error and error.count("\n") == 1
    for file in (other, text):
        assert main(["import-weights", str(source), str(file)]) == 1
        error = capsys.readouterr().err
        assert f"{file} exists and was not written by nnunet_ad import-weights" in error and error.count("\n") == 1
    assert [file.read_bytes() for file in files] == before
    for _ in range(2):  # its own is
        assert main(["import-weights", str(source), str(out)]) == 0
    assert main(["import-weights", str(out), str(out), "-d", "500", "-p", PLANS]) == 1


@pytest.mark.slow
def test_the_real_commands(save_training, dataset):
    stock = save_training(nnUNetTrainer)
    bin_folder = Path(sys.executable).parent

    def command(name: str, *arguments: str) -> str:
        done = subprocess.run([bin_folder / name, *arguments], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    out = str(dataset / "out.pth")
    command("nnunet_ad", "import-weights", str(stock), out)
    training = ["500", "3d_fullres", "0", "-p", PLANS, "-tr", nnUNetTrainerAD_1epoch.__name__, "-device", "cpu"]
    assert "Loading pretrained weights from file" in command("nnUNetv2_train", *training, "-pretrained_weights", out)
    start = torch.load(out)["network_weights"]
    folder = dataset / "nnUNet_results" / DATASET / f"nnUNetTrainerAD_1epoch__{PLANS}__3d_fullres" / "fold_0"
    trained = torch.load(folder / "checkpoint_final.pth", weights_only=False)["network_weights"]
    del trained["average.num_iterations"]
    assert 0 < max((weight - start[name]).abs().max() for name, weight in trained.items()) < 0.2  # two steps away


@pytest.mark.skipif(os.name != "posix", reason="sets a limit on the size of files")
def test_a_full_disk_names_the_file_and_leaves_nothing(save_training, dataset, capsys):
    import resource

    source, folder = save_training(nnUNetTrainer), dataset / "out"
    folder.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
    try:
        assert main(["import-weights", str(source), str(folder / "out.pth")]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"File too large: '{folder / 'out.pth'}'" in capsys.readouterr().err
    assert not list(folder.iterdir())
