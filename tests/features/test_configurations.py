"""Configurations, plans and channels, trained by nnU-Net's command."""

import json

import pytest
import torch
from nnunet_commands import write_tiny_plans
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor


def weights_of(model):
    return torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]


def num_axes(model):
    return weights_of(model)["unlabeled_decoder.classifier.weight"].ndim - 2


def test_3d_fullres(trained):
    assert num_axes(trained.model(500, "3d_fullres")) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("configuration", "axes"), [("2d", 2), ("3d_lowres", 3)])
def test_other_configurations(every_configuration, configuration, axes):
    model = every_configuration.model(501, configuration)
    assert num_axes(model) == axes
    assert len(list((model / "fold_0" / "validation").glob("*.nii.gz"))) == 2


def test_the_second_stage_of_a_cascade_is_refused(planned_workplace):
    assert planned_workplace.training_refusal(500, "3d_cascade_fullres", 0) == (
        "ValueError: nnUNetTrainerAD does not train 3d_cascade_fullres, the second stage of a cascade: unlabelled "
        "cases have no prediction of the first stage. Train 3d_fullres or 3d_lowres."
    )
    assert not planned_workplace.model(500, "3d_cascade_fullres").exists()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["M", "L"])
def test_residual_encoder_plans(planned_workplace, size):
    plans = f"Tiny{size}"
    planned_workplace.run("nnUNetv2_plan_experiment", "-d", 500, "-pl", f"nnUNetPlannerResEnc{size}")
    write_tiny_plans(planned_workplace.preprocessed(500), f"nnUNetResEncUNet{size}Plans", plans)
    content = json.loads((planned_workplace.preprocessed(500) / f"{plans}.json").read_text())
    architecture = content["configurations"]["3d_fullres"]["architecture"]
    assert architecture["network_class_name"].endswith("ResidualEncoderUNet")
    planned_workplace.train(500, "3d_fullres", 0, "-p", plans)
    assert any(".skip." in name for name in weights_of(planned_workplace.model(500, "3d_fullres", plans=plans)))


@pytest.mark.slow
def test_several_input_channels(every_configuration):
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(every_configuration.model(501, "3d_fullres")), (0,))
    image = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    whole, without_first, without_second = (
        predictor.predict_logits_from_preprocessed_data(image * torch.tensor(kept)[:, None, None, None])
        for kept in ((1, 1), (0, 1), (1, 0))
    )
    assert not torch.allclose(whole, without_first)
    assert not torch.allclose(whole, without_second)
