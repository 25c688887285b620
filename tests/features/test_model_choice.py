"""From trained configurations to postprocessed predictions, and nnU-Net's own integration sequence.

nnU-Net's integration tests plan, add ``3d_lowres`` and ``3d_cascade_fullres`` by hand, preprocess, train every
configuration with ``--npz``, choose the best or an ensemble, predict the test images, and postprocess; for plain
labels, an ignore label, regions, and both.
"""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from nnunet_commands import PLANS, TRAINER, Workplace

from nnunet_ad.testing.made_dataset import IGNORE, ORGAN, VESSEL


@pytest.fixture(scope="session")
def chosen(every_configuration) -> Workplace:
    """The best of all models and ensembles of dataset 501 is found."""
    find_best(every_configuration, 501, "2d", "3d_lowres", "3d_fullres")
    return every_configuration


def find_best(place: Workplace, dataset_id: int, *configurations: str) -> None:
    model = ("-tr", TRAINER, "-p", PLANS, "-c", *configurations)
    place.run("nnUNetv2_find_best_configuration", dataset_id, *model, "-f", 0, "-np", 1)


def follow_instructions(place: Workplace, dataset_id: int, output: Path) -> list[str]:
    """Run what nnUNetv2_find_best_configuration says verbatim, and return the names of the commands."""
    text = (place.results(dataset_id) / "inference_instructions.txt").read_text()
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("nnUNetv2_")]
    for command, *arguments in lines:
        arguments = [place.raw(dataset_id) / "imagesTs" if word == "INPUT_FOLDER" else word for word in arguments]
        arguments = [output / word if str(word).startswith("OUTPUT_FOLDER") else word for word in arguments]
        place.run(command, *arguments, *(["-device", "cpu"] if command == "nnUNetv2_predict" else []))
    assert segmentations(output / "OUTPUT_FOLDER_PP") == place.test_cases(dataset_id)
    return [command for command, *_ in lines]


def segmentations(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("*.nii.gz")}


@pytest.mark.slow
def test_the_best_configuration_is_found(chosen):
    information = json.loads((chosen.results(501) / "inference_information.json").read_text())
    assert len(information["all_results"]) == 6  # three models, three pairs
    assert all(0 <= dice <= 1 for dice in information["all_results"].values())


@pytest.mark.slow
def test_plain_labels_from_planning_to_postprocessing(chosen, tmp_path):
    commands = follow_instructions(chosen, 501, tmp_path)
    assert commands[-1] == "nnUNetv2_apply_postprocessing"


@pytest.mark.slow
def test_an_ensemble(every_configuration, tmp_path):
    folders = [tmp_path / configuration for configuration in ("2d", "3d_fullres")]
    for folder in folders:
        model = every_configuration.model(501, folder.name)
        shutil.copytree(model / "fold_0" / "validation", folder)
        for name in ("plans.json", "dataset.json"):  # nnUNetv2_predict puts them beside what it predicts
            shutil.copy(model / name, folder)
    every_configuration.run("nnUNetv2_ensemble", "-i", *folders, "-o", tmp_path / "out", "--save_npz", "-np", 1)
    file = "Made_002.npz"
    single, other, both = (probabilities_in(folder / file) for folder in (*folders, tmp_path / "out"))
    np.testing.assert_allclose(both, (single + other) / 2, atol=1e-3)
    assert segmentations(tmp_path / "out") == {"Made_002.nii.gz", "Made_003.nii.gz"}


def probabilities_in(file: Path) -> np.ndarray:
    with np.load(file) as content:
        return content["probabilities"].astype(np.float32)


@pytest.mark.slow
def test_an_ignore_label_from_planning_to_postprocessing(tmp_path):
    place = Workplace(tmp_path)
    place.prepare(502, "3d_fullres", ignore_label=True)
    place.train(502, "3d_fullres", 0, "--npz")
    find_best(place, 502, "3d_fullres")
    follow_instructions(place, 502, tmp_path / "out")
    (file,) = (tmp_path / "out" / "OUTPUT_FOLDER_PP").glob("*.nii.gz")
    assert IGNORE not in SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file))


@pytest.mark.slow
@pytest.mark.parametrize("ignore_label", [False, True])
def test_regions_from_planning_to_scores(tmp_path, ignore_label):
    """They are trained as classes; the label maps are as for regions, which are what is scored."""
    place = Workplace(tmp_path)
    place.prepare(503, "3d_fullres", region_labels=True, ignore_label=ignore_label)
    said = place.train(503, "3d_fullres", 0, "--npz")
    assert "WARNING" not in said
    model = place.model(503, "3d_fullres")
    assert probabilities_in(model / "fold_0" / "validation" / "Made_002.npz").shape[0] == 3
    find_best(place, 503, "3d_fullres")
    follow_instructions(place, 503, tmp_path / "out")
    labels = place.raw(503) / "labelsTs"
    for file in labels.iterdir():
        predicted = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(tmp_path / "out" / "OUTPUT_FOLDER_PP" / file.name))
        assert set(np.unique(predicted)) <= {0, ORGAN, VESSEL}
    scores = tmp_path / "scores"
    place.run(
        "nnunet_ad", "evaluate", "-p", tmp_path / "out" / "OUTPUT_FOLDER_PP", "-r", labels, "-d", 503, "-o", scores
    )
    structures = json.loads((scores / "evaluation.json").read_text())["structures"]
    assert list(structures) == ["whole", "vessel"]
    place.run("nnunet_ad", "report", model / "fold_0", "-o", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "whole (1)" in page and ">whole<" in page  # curves are of classes, scores of regions


@pytest.mark.slow
def test_a_cascade_is_predicted_for_and_left_out(every_configuration):
    """The first stage writes its predictions for the second; to choose a model, the user names the others by -c."""
    next_stage = every_configuration.model(501, "3d_lowres") / "predicted_next_stage" / "3d_cascade_fullres"
    assert {file.name.split(".")[0] for file in next_stage.iterdir()} == {"Made_002", "Made_003"}
    model = ("-tr", TRAINER, "-p", PLANS)
    refusal = every_configuration.refusal("nnUNetv2_find_best_configuration", 501, *model, "-f", 0)
    assert "3d_cascade_fullres" in refusal
    assert "does not have an output folder" in refusal
