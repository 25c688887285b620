"""Switches and variables of ``nnUNetv2_train``."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.logging import nnunet_logger

from nnunet_ad.trainer import nnUNetTrainerAD_1epoch


def weights_of(checkpoint):
    return torch.load(checkpoint, weights_only=False)["network_weights"]


@pytest.mark.slow
def test_fold_all(planned_workplace, tmp_path):
    planned_workplace.train(500, "3d_fullres", "all")
    validation = planned_workplace.model(500, "3d_fullres") / "fold_all" / "validation"
    assert {file.name for file in validation.glob("*.nii.gz")} == {f"Made_00{i}.nii.gz" for i in range(3)}
    planned_workplace.predict(500, "3d_fullres", tmp_path, "-f", "all")


@pytest.mark.slow
def test_val(trained):
    fold = trained.model(500, "3d_fullres") / "fold_0"
    before = (fold / "checkpoint_final.pth").read_bytes()
    summary = fold / "validation" / "summary.json"
    expected = summary.read_text()
    summary.unlink()
    trained.train(500, "3d_fullres", 0, "--val")
    assert summary.read_text() == expected
    assert (fold / "checkpoint_final.pth").read_bytes() == before


@pytest.mark.slow
def test_val_best(trained, tmp_path):
    model = trained.model(500, "3d_fullres")
    copied = tmp_path / model.parent.name / model.name
    shutil.copytree(model, copied)
    best = copied / "fold_0" / "checkpoint_best.pth"
    checkpoint = torch.load(best, weights_only=False)
    checkpoint["network_weights"]["average.unlabeled_decoder.classifier.bias"][:] = torch.tensor([0.0, 0.0, 50.0])
    torch.save(checkpoint, best)
    trained.train(500, "3d_fullres", 0, "--val", "--val_best", nnUNet_results=str(tmp_path))
    segmentation = SimpleITK.ReadImage(copied / "fold_0" / "validation" / "Made_002.nii.gz")
    assert (SimpleITK.GetArrayFromImage(segmentation) == 2).all()


def test_npz(trained):
    file = trained.model(500, "3d_fullres") / "fold_0" / "validation" / "Made_002.npz"
    with np.load(file) as content:
        np.testing.assert_allclose(content["probabilities"].sum(0), 1, atol=1e-3)


@pytest.mark.slow
def test_pretrained_weights(trained, tmp_path):
    model = trained.model(500, "3d_fullres")
    pretrained = model / "fold_0" / "checkpoint_final.pth"
    elsewhere = {"nnUNet_results": str(tmp_path), "NNUNET_AD_SEED": "2"}
    trained.train(500, "3d_fullres", 0, "-pretrained_weights", pretrained, **elsewhere)
    before = weights_of(pretrained)
    after = weights_of(tmp_path / model.parent.name / model.name / "fold_0" / "checkpoint_final.pth")
    name = "unlabeled_decoder.stages.0.convs.0.conv.weight"
    assert not torch.equal(after[name], before[name])
    # One iteration changes little; first weights of another seed would be unrelated.
    assert torch.corrcoef(torch.stack((after[name].flatten(), before[name].flatten())))[0, 1] > 0.9


def test_averages_of_pretrained_weights_begin_anew(make_trainer, tmp_path):
    first, second = (make_trainer(nnUNetTrainerAD_1epoch) for _ in range(2))
    first.initialize()
    first.network.average.num_iterations.fill_(75_000)
    torch.save({"network_weights": first.network.state_dict()}, tmp_path / "checkpoint.pth")
    maybe_load_checkpoint(second, False, False, str(tmp_path / "checkpoint.pth"))
    assert second.network.average.num_iterations == 75_000
    second.run_training()
    assert second.network.average.num_iterations == 2


def test_pretrained_weights_of_other_classes_are_refused(make_trainer, tmp_path):
    trainer = make_trainer(nnUNetTrainerAD_1epoch)
    trainer.initialize()
    torch.save({"network_weights": trainer.network.state_dict()}, tmp_path / "checkpoint.pth")
    other = make_trainer(nnUNetTrainerAD_1epoch, labels={"background": 0, "organ": 1})
    with pytest.raises(AssertionError, match="The pretrained model does not seem to be compatible with your network"):
        maybe_load_checkpoint(other, False, False, str(tmp_path / "checkpoint.pth"))


@pytest.mark.slow
def test_disable_checkpointing(trained, tmp_path):
    trained.train(500, "3d_fullres", 0, "--disable_checkpointing", nnUNet_results=str(tmp_path))
    assert not list(tmp_path.rglob("*.pth"))
    assert len(list(tmp_path.rglob("validation/summary.json"))) == 1


@pytest.mark.slow
def test_wandb_that_is_not_installed_is_refused(planned_workplace, tmp_path):
    (tmp_path / "wandb.py").write_text("raise ImportError")  # also where it is installed
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    variables = {"nnUNet_wandb_enabled": "1", "nnUNet_results": str(tmp_path), "PYTHONPATH": path}
    assert planned_workplace.training_refusal(500, "3d_fullres", 0, **variables) == (
        "RuntimeError: W&B is not installed. Please install W&B with 'pip install wandb' before using the WandbLogger."
    )


def test_wandb_is_told_the_curves(make_trainer, monkeypatch):
    logged = {}
    run = SimpleNamespace(
        config={}, summary={}, step=0, log=lambda values, step: logged.setdefault(step, {}).update(values)
    )
    monkeypatch.setattr(nnunet_logger, "wandb", SimpleNamespace(init=lambda **_: run))
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    make_trainer(nnUNetTrainerAD_1epoch).run_training()
    assert {"train_losses", "ad/loss_denoising", "ad/class_weights", "ad/val_dice_theta"} <= set(logged[0])
