"""Models outside the folder where they were trained."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from nnunet_commands import PLANS, TRAINER
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor


def prediction_in_python(model: Path, image: Path) -> np.ndarray:
    """Return the label map by nnU-Net's predictor, as a program would use it."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    return predictor.predict_single_npy_array(*SimpleITKIO().read_images([str(image)]))


def label_map(file: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file))


def test_the_python_predictor(trained):
    model = trained.model(500, "3d_fullres")
    segmentation = prediction_in_python(model, trained.raw(500) / "imagesTr" / "Made_002_0000.nii.gz")
    np.testing.assert_array_equal(segmentation, label_map(model / "fold_0" / "validation" / "Made_002.nii.gz"))


@pytest.mark.slow
def test_export_to_and_installation_from_zip(trained, tmp_path):
    archive, results = tmp_path / "model.zip", tmp_path / "results"
    model = ("-d", 500, "-c", "3d_fullres", "-tr", TRAINER, "-p", PLANS, "-f", 0)
    trained.run("nnUNetv2_export_model_to_zip", *model, "-o", archive)
    results.mkdir()
    elsewhere = {"nnUNet_results": str(results)}
    trained.run("nnUNetv2_install_pretrained_model_from_zip", archive, **elsewhere)
    trained.predict(500, "3d_fullres", tmp_path / "out", "-f", 0, **elsewhere)
    (image,) = (trained.raw(500) / "imagesTs").iterdir()
    expected = prediction_in_python(trained.model(500, "3d_fullres"), image)
    np.testing.assert_array_equal(label_map(tmp_path / "out" / "Made_006.nii.gz"), expected)
