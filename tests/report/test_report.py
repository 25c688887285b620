"""The page as a whole: what is in it, what is left out and why, and what is refused."""

import json
import re
import shutil

import pytest

from nnunet_ad.cli.main import main
from nnunet_ad.report.report import write_report

MAX_BYTES = 5_000_000


def report(folder, tmp_path, **arguments) -> str:
    output = tmp_path / "out" / "report.html"
    write_report(folder, output, processes=1, progress=False, **arguments)
    assert output.stat().st_size < MAX_BYTES
    return output.read_text(encoding="utf-8")


def visible(page: str) -> str:
    """Return the text of a page in one line."""
    page = re.sub(r"<(style|script|svg).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_a_training_gives_every_part(training_page):
    assert training_page.stat().st_size < MAX_BYTES
    page = training_page.read_text(encoding="utf-8")
    text = visible(page)
    assert "Left out" not in text
    assert "cases compared 5" in text
    for part in ("In short", "Worst case: Made_002", "Median case", "Best case", "Training error", "Learning rate"):
        assert part in text
    assert page.count('<table class="sortable">') == 3  # structures, two domains, cases
    assert page.count("<img ") == 3 * 3 + 6 * 5  # planes of three cases; columns of six epochs
    assert page.count('<svg role="img"') == 2 + 9  # box plots, curves


def test_the_summary_names_what_failed_and_the_limits(training_page):
    text = visible(training_page.read_text(encoding="utf-8"))
    assert "Lowest overlap: Made_002" in text
    assert "Hardest structure: vessel" in text
    assert "Missed: vessel in Made_002." in text
    assert "The scored cases were kept aside" in text
    assert "Only 5 cases are scored" in text
    assert "no medical device" in text


def test_it_says_that_validation_cases_were_learned_from(made, tmp_path):
    (split,) = json.loads((made.preprocessed / "splits_final.json").read_text())
    split["train"] = split["val"]
    (made.preprocessed / "splits_final.json").write_text(json.dumps([split]))
    sidecar = json.loads((made.raw / "nnunet_ad.json").read_text())
    sidecar["protocol"]["validation"] = "the labelled cases themselves (the paper's choice)"
    (made.raw / "nnunet_ad.json").write_text(json.dumps(sidecar))
    text = visible(report(made.training, tmp_path))
    assert "The scored cases are the labelled training cases themselves" in text
    assert "the labelled cases themselves (the paper&#39;s choice)" in text


def test_fold_all_has_learned_from_every_case(made, tmp_path):
    training = made.training.rename(made.training.with_name("fold_all"))
    assert "The scored cases are the labelled training cases themselves" in visible(report(training, tmp_path))


def test_the_page_needs_no_network_and_has_a_text_for_each_picture(training_page, made_once):
    page = training_page.read_text(encoding="utf-8")
    addresses = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "default-src 'none'" in page
    assert all(re.search(r'alt="[^"]+"', image) for image in re.findall(r"<img [^>]*>", page))
    assert all(re.search(r'aria-label="[^"]+"', svg) for svg in re.findall(r'<svg role="img"[^>]*>', page))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert str(made_once.root) not in page


def test_predictions_with_references_and_images(made, tmp_path, capsys):
    output = tmp_path / "report.html"
    arguments = ["report", made.predictions, "-o", output, "-r", made.references, "--images", made.images, "-np", "1"]
    assert main([str(argument) for argument in arguments]) == 0
    assert "Left out curves: only a training has curves" in capsys.readouterr().out
    page = output.read_text(encoding="utf-8")
    text = visible(page)
    assert "Worst case: Made_002" in text
    assert "label 1" in text  # without a dataset, names are not known
    assert "Left out: only a training has curves" in text
    assert "Left out: only a training keeps these pictures" in text
    assert "Whether the model was trained on some of the scored cases is not known" in text
    assert len(re.findall(r"<img ", page)) == 9


def test_a_dataset_brings_references_names_and_images(made, tmp_path):
    text = visible(report(made.predictions, tmp_path, dataset="500"))
    assert "None of the scored cases is a labelled training case of a fold of this dataset." in text
    shutil.copy(made.references / "Made_000.nii.gz", made.predictions)
    text = visible(report(made.predictions, tmp_path, dataset="500"))
    assert "Scores by origin of the images" in text
    assert "vessel" in text
    assert "1 of the 6 scored cases are labelled training cases of at least one fold of this dataset (Made_000)" in text


def test_splits_that_nnunet_made_while_training_are_known(made, tmp_path):
    (made.raw / "splits_final.json").unlink(missing_ok=True)
    assert (made.preprocessed / "splits_final.json").is_file()
    shutil.copy(made.references / "Made_000.nii.gz", made.predictions)
    assert "are labelled training cases" in visible(report(made.predictions, tmp_path, dataset="500"))


def test_the_page_names_no_folder_where_an_image_cannot_be_read(made, tmp_path):
    for image in made.images.glob("Made_00*"):
        image.write_bytes(b"no image")
    page = report(made.training, tmp_path)
    assert "No picture: " in page
    assert str(made.images) not in page


def test_without_images_there_are_no_overlays(made, tmp_path):
    text = visible(report(made.predictions, tmp_path, references=made.references))
    assert "Left out: the images are not known; pass their folder with --images." in text
    empty = tmp_path / "nothing"
    empty.mkdir()
    text = visible(report(made.predictions, tmp_path, references=made.references, images=empty))
    assert "the image of this case was not found" in text


def test_an_image_of_another_shape_is_left_out_with_the_reason(made, tmp_path):
    for image in made.images.glob("Made_002_*"):
        shutil.copy(made.raw / "labelsTr" / "Made_002.nii.gz", image)
    import SimpleITK as sitk

    file = made.images / "Made_002_0000.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(file))[2:], str(file))
    text = visible(report(made.training, tmp_path))
    assert "No picture: Made_002_0000.nii.gz has (24, 32, 30) voxels, its label map (24, 32, 32)." in text
    assert "Best case" in text


def test_cases_without_prediction_are_named(made, tmp_path):
    (made.predictions / "Made_004.nii.gz").unlink()
    text = visible(report(made.training, tmp_path))
    assert "Not scored, because there is no prediction: case Made_004." in text
    assert "Made_000" not in text  # a training case of this fold is not missing


def test_an_unfinished_training_has_curves_alone(made, tmp_path):
    shutil.rmtree(made.predictions)
    shutil.rmtree(made.training / "snapshots")
    text = visible(report(made.training, tmp_path))
    assert "No case was scored" in text
    assert "Left out: the training has no predictions of its validation cases yet" in text
    assert "Left out: this training kept no snapshots" in text
    assert "Training error" in text


def test_predictions_that_are_not_read_are_said_so(made, tmp_path):
    for file in made.predictions.glob("*.nii.gz"):
        file.rename(file.with_name(file.name.replace(".nii.gz", ".tif")))
    text = visible(report(made.training, tmp_path))
    assert "Left out: TIFF files are not scored, as their spacing is in another file; expected one of .nii.gz" in text
    assert "no predictions of its validation cases" not in text


def test_a_training_without_numbers_of_its_curves_shows_the_trainers_picture(made, tmp_path):
    (made.training / "progress_ad.json").unlink()
    text = visible(report(made.training, tmp_path))
    assert "Left out: this training wrote no progress_ad.json." in text
    from matplotlib.figure import Figure

    Figure().savefig(made.training / "progress_ad.png")
    page = report(made.training, tmp_path)
    assert "Curves of the training, as the trainer drew them." in page


def test_without_the_datasets_folders_scores_are_left_out_and_given_folders_are_used(made, tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.delenv(name)
    text = visible(report(made.training, tmp_path))
    assert "Left out: the references of this dataset were not found" in text
    text = visible(report(made.training, tmp_path, references=made.references, images=made.images))
    assert "Worst case: Made_002" in text
    assert "Whether the model was trained on some of the scored cases is not known" in text


ODD = "<script>alert(\"1\")</script> & $x$ 'quoted'"


def declare_labels(folder, labels: dict) -> None:
    content = json.loads((folder / "dataset.json").read_text()) | {"labels": labels}
    (folder / "dataset.json").write_text(json.dumps(content))


def test_scores_are_of_the_regions_of_the_dataset_and_curves_of_the_classes_of_the_training(made, tmp_path):
    for folder in (made.raw, made.preprocessed):
        declare_labels(folder, {"background": 0, "whole": [1, 2], "vessel": [2]})
    declare_labels(made.training.parent, {"background": 0, "whole (1)": 1, "vessel": 2})
    page = report(made.training, tmp_path)
    curves = " ".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "whole (1): from" in curves and "whole: from" not in curves
    text = visible(page)
    assert "2 structures: vessel, whole" in text
    assert "whole (1)" in text  # the legend of the snapshots


@pytest.mark.filterwarnings("error")
def test_odd_names_of_structures_and_origins_are_text(made, tmp_path):
    for folder in (made.raw, made.preprocessed, made.training.parent):
        declare_labels(folder, {"background": 0, ODD: 1, "</svg><b>": 2})
    sidecar = json.loads((made.raw / "nnunet_ad.json").read_text())
    sidecar["domains"] = {case: f"{ODD}{number % 2}" for number, case in enumerate(sidecar["domains"])}
    (made.raw / "nnunet_ad.json").write_text(json.dumps(sidecar))
    page = report(made.training, tmp_path)
    assert "<script>alert" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;alert" in page
    assert page.count("<script>") == 1


def test_odd_names_of_cases_are_text(made, tmp_path):
    name = "a<img src=x onerror=alert(1)> & 'b'"
    for folder in (made.predictions, made.references):
        (folder / "Made_002.nii.gz").rename(folder / f"{name}.nii.gz")
    page = report(made.predictions, tmp_path, references=made.references)
    assert "<img src=x" not in page
    assert "a&lt;img src=x onerror=alert(1)&gt; &amp; &#39;b&#39;" in page


@pytest.mark.parametrize("num_cases", [1, 2])
def test_one_or_two_cases(made, tmp_path, num_cases):
    for file in sorted(made.predictions.iterdir())[num_cases:]:
        file.unlink()
    text = visible(report(made.predictions, tmp_path, references=made.references, images=made.images))
    assert ("Only case" in text) == (num_cases == 1)
    assert "Median case" not in text
    assert ("no interval from fewer than two cases" in text) == (num_cases == 1)


def refused(capsys, *arguments) -> str:
    assert main(["report", *map(str, arguments), "-np", "1"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("nnunet_ad report: ")
    return error


def test_what_is_refused(made, tmp_path, capsys):
    output = tmp_path / "report.html"
    assert "missing is not a folder" in refused(capsys, tmp_path / "missing", "-o", output)
    assert "pass one of them: fold_0" in refused(capsys, made.training.parent, "-o", output)
    assert "pass the folder of references with -r" in refused(capsys, made.predictions, "-o", output)
    assert "no label map" in refused(capsys, made.root, "-o", output)
    assert "name the HTML file" in refused(capsys, made.training, "-o", tmp_path)
    assert "expected one folder Dataset077_*" in refused(capsys, made.training, "-o", output, "-d", "77")
    assert "have no case in common" in refused(
        capsys, made.predictions, "-o", output, "-r", made.raw / "imagesUnlabeled"
    )
    assert not output.exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("progress_ad.json", "{", "is not valid JSON"),
        ("progress_ad.json", '{"learning_rate": [0.1]}', "does not hold the curves"),
        ("progress_ad.json", '{"learning_rate": ["a"], "curves": {}}', "does not hold the curves"),
        ("snapshots/epoch_0001.npz", "no archive", "is not a snapshot"),
        ("../plans.json", "[]", "holds a list; expected an object of JSON"),
    ],
)
def test_broken_files_of_a_training_are_named(made, tmp_path, capsys, file, content, message):
    (made.training / file).write_text(content)
    assert message in refused(capsys, made.training, "-o", tmp_path / "report.html")


def test_no_pickle_is_read_from_a_snapshot(made, tmp_path, capsys):
    import numpy as np

    file = made.training / "snapshots" / "epoch_0001.npz"
    np.savez(file, case=np.array([{"an": "object"}], dtype=object))
    assert "is not a snapshot" in refused(capsys, made.training, "-o", tmp_path / "report.html")
