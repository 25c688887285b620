"""The command on small label maps: what it writes, and one clear sentence for each error."""

import csv
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from volumes_on_disk import LEFT, LEFT_SHIFTED, RIGHT, SHAPE, SPACING, box, write_dataset, write_labels

from nnunet_ad import parallel
from nnunet_ad.cli.main import main
from nnunet_ad.evaluation import metrics
from nnunet_ad.evaluation.evaluate import evaluate, run_names
from nnunet_ad.evaluation.metrics import surface_distances
from nnunet_ad.evaluation.protocol import PAPER
from nnunet_ad.evaluation.volumes import read_labels

LABELS = {"background": 0, "left": 1, "right": 2}


@pytest.fixture
def data(tmp_path):
    """Return a folder with references of three cases and predictions of varying quality, and a dataset."""
    for case in ("a", "b", "c"):
        write_labels(tmp_path / "ref" / f"{case}.nii.gz", box({1: LEFT, 2: RIGHT}))
    write_labels(tmp_path / "pred" / "a.nii.gz", box({1: LEFT, 2: RIGHT}))
    write_labels(tmp_path / "pred" / "b.nii.gz", box({1: LEFT_SHIFTED, 2: RIGHT}))
    write_labels(tmp_path / "pred" / "c.nii.gz", box({1: LEFT_SHIFTED}))
    write_dataset(tmp_path, LABELS, {"a": "CT", "b": "MR", "c": "MR"})
    return tmp_path


def run(data, *extra, predictions=("pred",), dataset="Dataset007_Toy"):
    """Run the command and return its exit status."""
    folders = [argument for folder in predictions for argument in ("-p", str(data / folder))]
    chosen = ["-d", str(data / dataset)] if dataset else []
    return main(["evaluate", *folders, "-r", str(data / "ref"), *chosen, "-o", str(data / "out"), "-np", "1", *extra])


def result(data):
    return json.loads((data / "out" / "evaluation.json").read_text())


def row(rows, structure="mean", domain=None):
    (found,) = [each for each in rows if (each["structure"], each["domain"]) == (structure, domain)]
    return found


def error_of(data, capsys, *extra, **options):
    """Return the one line that a failing command prints."""
    assert run(data, *extra, **options) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nnunet_ad evaluate:")]
    assert len(lines) == 1
    assert not (data / "out").exists()
    return lines[0]


def test_every_case_and_structure_is_scored(data):
    assert run(data) == 0
    scores = result(data)["runs"][0]["cases"]
    assert scores["a"]["left"] == {"outcome": "both", "Dice": 1, "Jaccard": 1, "HD95": 0, "ASSD": 0}
    left = box({1: LEFT}) > 0, box({1: LEFT_SHIFTED}) > 0
    assert scores["b"]["left"]["Dice"] == 0.75
    assert scores["b"]["left"]["ASSD"] == pytest.approx(metrics.assd(*left, SPACING))
    assert scores["b"]["left"]["HD95"] == 3.0  # one voxel along z


def test_a_missed_structure_has_no_distance_and_is_counted(data):
    run(data)
    found = result(data)
    expected = {"outcome": "missed", "Dice": 0, "Jaccard": 0, "HD95": None, "ASSD": None}
    assert found["runs"][0]["cases"]["c"]["right"] == expected
    right = row(found["overall"], "right")
    assert right["outcomes"] == {"both": 2, "missed": 1, "spurious": 0, "absent": 0}
    assert right["metrics"]["Dice"]["mean"] == pytest.approx(2 / 3)
    assert right["metrics"]["ASSD"] | {"mean": 0, "num_cases": 2} == right["metrics"]["ASSD"]


def test_an_absent_structure_is_left_out_and_counted(data):
    write_labels(data / "ref" / "c.nii.gz", box({1: LEFT_SHIFTED}))
    run(data)
    right = row(result(data)["overall"], "right")
    assert right["outcomes"]["absent"] == 1
    assert (right["metrics"]["Dice"]["mean"], right["metrics"]["Dice"]["num_cases"]) == (1, 2)


def test_a_spurious_structure_scores_no_dice_and_is_counted(data):
    write_labels(data / "ref" / "a.nii.gz", box({1: LEFT}))
    run(data)
    assert result(data)["runs"][0]["cases"]["a"]["right"]["Dice"] == 0
    assert row(result(data)["overall"], "right")["outcomes"]["spurious"] == 1


def test_domains_come_from_the_sidecar(data):
    run(data)
    found = result(data)
    assert found["domains"] == {"a": "CT", "b": "MR", "c": "MR"}
    assert row(found["per_domain"], domain="CT")["metrics"]["Dice"]["mean"] == 1
    assert row(found["per_domain"], domain="MR")["metrics"]["Dice"]["mean"] == pytest.approx((0.75 + 0.5) / 2)


def test_the_dataset_is_found_in_raw_by_number_and_name(data, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(data))
    for name in ("7", "007", "Dataset007_Toy"):
        evaluation = evaluate([data / "pred"], data / "ref", dataset=name, processes=1, progress=False)
        assert evaluation.dataset == "Dataset007_Toy"


def test_without_a_dataset_the_references_name_the_labels(data):
    assert run(data, dataset=None) == 0
    assert result(data)["structures"] == {"label 1": [1], "label 2": [2]}
    assert result(data)["per_domain"] == []


def test_regions_are_unions_of_labels(data):
    write_dataset(data, {"background": 0, "both": [1, 2], "right": 2})
    run(data)
    scores = result(data)["runs"][0]["cases"]["c"]
    prediction, reference = box({1: LEFT_SHIFTED}) > 0, box({1: LEFT, 2: RIGHT}) > 0
    assert scores["both"]["Dice"] == pytest.approx(metrics.dice(prediction, reference))
    assert scores["both"]["HD95"] == pytest.approx(metrics.hd95(prediction, reference, SPACING))


def test_ignored_voxels_count_in_neither(data):
    write_dataset(data, {**LABELS, "ignore": 3})
    write_labels(data / "ref" / "c.nii.gz", box({1: LEFT, 2: RIGHT, 3: (slice(6, 7), slice(2, 6), slice(1, 5))}))
    reference = box({1: LEFT, 3: (slice(2, 3), slice(2, 6), slice(1, 5))})
    reference[6, 2:6, 1:5] = 3
    write_labels(data / "ref" / "b.nii.gz", reference)
    run(data)
    # In b the two slices in which the shifted prediction differs are ignored.
    assert result(data)["runs"][0]["cases"]["b"]["left"]["Dice"] == 1
    assert result(data)["runs"][0]["cases"]["c"]["left"]["Dice"] == pytest.approx(2 * 48 / (64 + 48))


def test_every_output_is_written_and_printed(data, capsys):
    run(data)
    printed = capsys.readouterr().out
    markdown = (data / "out" / "table.md").read_text()
    assert "| left | 3 | 83.33 ± 14.43 [75.00, 100.00] |" in markdown
    assert "| MR | Mean | 2 |" in markdown
    assert re.search(r"^left +3 +83.33 ± 14.43 ", printed, re.MULTILINE)
    assert re.search(r"^MR +Mean +2 +62.50 ± 35.36 ", printed, re.MULTILINE)
    assert "Mean over structures in each domain" in printed
    with (data / "out" / "cases.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6
    assert lines[5] | {"case": "c", "domain": "MR", "structure": "right", "Dice": "0.0", "ASSD": ""} == lines[5]
    with (data / "out" / "summary.csv").open() as file:
        summary = list(csv.DictReader(file))
    assert {line["complete"] for line in summary} == {"yes"}
    assert len(summary) == (3 + 2 * 3) * 4


def test_outputs_hold_no_path_of_the_machine(data):
    run(data)
    assert not [path.name for path in (data / "out").iterdir() if str(data) in path.read_text()]


def test_several_runs_are_seeds(data):
    shutil.copytree(data / "ref", data / "perfect")
    assert run(data, predictions=("pred", "perfect")) == 0
    dice = row(result(data)["overall"])["metrics"]["Dice"]
    means = [pytest.approx((2.5 / 3 + 2 / 3) / 2), 1]
    assert dice["run_means"] == means
    assert dice["mean"] == pytest.approx(np.mean(dice["run_means"]))
    assert dice["sd_runs"] == pytest.approx(np.std(dice["run_means"], ddof=1))
    assert "| perfect | 100.00 |" in (data / "out" / "table.md").read_text()


def test_versus_adds_a_paired_test(data):
    shutil.copytree(data / "ref", data / "perfect")
    assert run(data, "--versus", str(data / "perfect")) == 0
    tests = {(each["structure"], each["metric"]): each for each in result(data)["comparisons"]}
    assert set(tests) == {(s, m) for s in ("left", "right", "mean") for m in ("Dice", "Jaccard", "HD95", "ASSD")}
    assert tests["mean", "Dice"]["median_difference"] == pytest.approx(-0.125)
    assert tests["mean", "Dice"]["num_cases"] == 3
    assert 0 < tests["mean", "Dice"]["p_value"] <= 1
    assert result(data)["versus"][0]["name"] == "perfect"
    assert tests["mean", "Dice"]["p_value_runs"] is None  # one run tells nothing about runs
    assert "Tests against perfect" in (data / "out" / "table.md").read_text()


def test_a_method_that_invents_a_structure_does_not_win_by_it(data):
    for case in ("a", "b", "c"):
        write_labels(data / "ref" / f"{case}.nii.gz", box({2: RIGHT} if case == "a" else {1: LEFT, 2: RIGHT}))
    shutil.copytree(data / "ref", data / "careful")
    assert run(data, "--versus", str(data / "careful")) == 0
    tests = {each["metric"]: each for each in result(data)["comparisons"] if each["structure"] == "left"}
    assert tests["Dice"]["num_cases"] == tests["HD95"]["num_cases"] == 3
    assert tests["Dice"]["median_difference"] < 0 < tests["HD95"]["median_difference"]


def test_axes_off_a_right_angle_are_named(data, capsys):
    affine = np.eye(4)
    affine[0, 1] = 5e-4
    image = nib.Nifti1Image(box({1: LEFT}).T, None)
    image.set_sform(affine, code=1)
    nib.save(image, data / "pred" / "a.nii.gz")
    assert "its axes are not perpendicular, resample it" in error_of(data, capsys)


def test_tests_are_over_the_cases_that_all_runs_have(data):
    shutil.copytree(data / "ref", data / "first")
    shutil.copytree(data / "ref", data / "second")
    (data / "second" / "c.nii.gz").unlink()
    others = ("--versus", str(data / "first"), "--versus", str(data / "second"), "--allow-missing")
    assert run(data, *others) == 0
    assert {test["num_cases"] for test in result(data)["comparisons"]} == {2}


def test_one_slice_is_scored_as_the_picture_that_it_is(data):
    disc = np.zeros((40, 40), np.uint8)
    disc[10:30, 10:30] = 1
    for index, folder in enumerate(("ref", "pred")):
        shutil.rmtree(data / folder)
        shifted = np.roll(disc, 3 * index, axis=1)
        write_labels(data / folder / "a.nii.gz", shifted[None], (5.0, 2.0, 2.0))
    assert run(data, dataset=None) == 0
    mean = row(result(data)["overall"])["metrics"]
    expected = surface_distances(np.roll(disc, 3, axis=1) == 1, disc == 1, (2.0, 2.0))
    assert mean["HD95"]["mean"] == pytest.approx(expected.hd95)
    assert mean["ASSD"]["mean"] == pytest.approx(expected.assd)


def test_bitmaps_that_nnunet_wrote_are_scored(tmp_path):
    labels = np.zeros((20, 20), np.uint8)
    labels[3:9, 4:8] = 2
    for folder in ("p", "r"):
        (tmp_path / folder).mkdir()
        NaturalImage2DIO().write_seg(labels[None], str(tmp_path / folder / "a.bmp"), {"spacing": (999, 1, 1)})
    assert sitk.ReadImage(str(tmp_path / "p" / "a.bmp")).GetNumberOfComponentsPerPixel() == 3
    np.testing.assert_array_equal(read_labels(tmp_path / "p" / "a.bmp").labels, labels)
    assert main(["evaluate", "-p", str(tmp_path / "p"), "-r", str(tmp_path / "r"), "-o", str(tmp_path / "o")]) == 0


def test_versus_tests_over_runs_where_there_are_several(data):
    shutil.copytree(data / "ref", data / "perfect")
    for name in ("first", "second"):
        shutil.copytree(data / "pred", data / name)
    others = [argument for name in ("first", "second") for argument in ("--versus", str(data / name))]
    assert run(data, *others, predictions=("perfect", "pred")) == 0
    (test,) = [e for e in result(data)["comparisons"] if (e["structure"], e["metric"]) == ("mean", "Dice")]
    assert test["p_value_runs"] == pytest.approx(0.5)  # t = 1 with one degree of freedom
    table = (data / "out" / "table.md").read_text()
    assert "p over runs (Welch)" in table
    (row_of_means,) = re.findall(r"\| Mean \| Dice \[%\] \|.*", table)
    assert row_of_means.endswith("| 0.5 |")


def test_two_processes_agree_with_one(data, monkeypatch):
    monkeypatch.setattr(parallel, "START_UP_SECONDS", -1.0)
    run(data)
    alone = result(data)
    assert run(data, "-np", "2") == 0
    assert result(data) == alone


class TestPaperProtocol:
    """The conventions of the published code, on the same label maps."""

    def test_distances_are_in_voxels_and_one_way(self, data):
        assert run(data, "--protocol", "paper") == 0
        scores = result(data)["runs"][0]["cases"]["b"]["left"]
        prediction, reference = box({1: LEFT_SHIFTED}) > 0, box({1: LEFT}) > 0
        assert scores["ASD"] == pytest.approx(metrics.asd(prediction, reference, (1, 1, 1)))
        assert scores["HD95"] == 1.0
        assert "ASSD" not in scores

    def test_one_empty_mask_scores_0_and_128(self, data):
        write_labels(data / "ref" / "a.nii.gz", box({1: LEFT}))
        run(data, "--protocol", "paper")
        cases = result(data)["runs"][0]["cases"]
        numbers = {"Dice": 0, "Jaccard": 0, "HD95": 128, "ASD": 128}
        assert cases["c"]["right"] == {"outcome": "missed", **numbers}
        assert cases["a"]["right"] == {"outcome": "spurious", **numbers}

    def test_both_empty_score_as_full_agreement(self, data):
        write_labels(data / "ref" / "c.nii.gz", box({1: LEFT}))
        run(data, "--protocol", "paper")
        numbers = {"Dice": 1, "Jaccard": 1, "HD95": 0, "ASD": 0}
        assert result(data)["runs"][0]["cases"]["c"]["right"] == {"outcome": "absent", **numbers}

    def test_means_and_spread_are_those_of_the_published_tables(self, data):
        shutil.copytree(data / "ref", data / "perfect")
        run(data, "--protocol", "paper", predictions=("pred", "perfect"))
        dice, asd = (row(result(data)["overall"])["metrics"][metric] for metric in ("Dice", "ASD"))
        values = np.array([[[1, 1], [0.75, 1], [0.75, 0]], [[1, 1]] * 3])  # runs, cases, structures
        assert dice["mean"] == pytest.approx(values.mean(0).mean(0).mean(0))
        assert dice["sd_runs"] == pytest.approx(np.std(values.mean(1).mean(1)))
        assert asd["num_cases"] == 3
        assert "| Mean | 3 | 87.50 ± 12.50 |" in (data / "out" / "table.md").read_text()

    def test_the_protocol_is_named_in_every_output(self, data, capsys):
        run(data, "--protocol", "paper")
        assert result(data)["protocol"]["name"] == "paper"
        assert "Protocol paper" in (data / "out" / "table.md").read_text()
        assert "Protocol paper" in capsys.readouterr().out
        assert "\npaper," in (data / "out" / "summary.csv").read_text()

    def test_a_two_dimensional_image_is_scored(self, tmp_path):
        for folder, region in (("ref", np.s_[2:6, 2:6]), ("pred", np.s_[3:7, 2:6])):
            labels = np.zeros((9, 9), np.uint8)
            labels[region] = 1
            write_labels(tmp_path / folder / "a.nii.gz", labels, spacing=(2.0, 1.0))
        for protocol, hd95 in (("default", 2.0), ("paper", 1.0)):
            run(tmp_path, "--protocol", protocol, dataset=None)
            assert result(tmp_path)["runs"][0]["cases"]["a"]["label 1"]["HD95"] == hd95


class TestMissing:
    """Cases that lack a prediction or a reference."""

    def test_a_missing_case_is_refused(self, data, capsys):
        (data / "pred" / "b.nii.gz").unlink()
        assert "case b has a reference but no prediction" in error_of(data, capsys)

    def test_many_missing_cases_are_listed_shortly(self, data, capsys):
        for index in range(8):
            write_labels(data / "ref" / f"x{index}.nii.gz", box({1: LEFT}))
        message = error_of(data, capsys)
        assert "8 cases (x0, x1, x2, x3, x4 and 3 more): each has a reference but no prediction" in message
        assert "--allow-missing" in message

    def test_an_extra_case_is_refused(self, data, capsys):
        write_labels(data / "pred" / "d.nii.gz", box({1: LEFT}))
        assert "case d has a prediction but no reference" in error_of(data, capsys)

    def test_allow_missing_scores_what_is_there_and_says_so_everywhere(self, data, capsys):
        (data / "pred" / "b.nii.gz").unlink()
        write_labels(data / "pred" / "d.nii.gz", box({1: LEFT}))
        assert run(data, "--allow-missing") == 0
        found = result(data)
        assert not found["complete"]
        assert (found["runs"][0]["missing"], found["runs"][0]["extra"]) == (["b"], ["d"])
        assert set(found["runs"][0]["cases"]) == {"a", "c"}
        for text in (capsys.readouterr().out, (data / "out" / "table.md").read_text()):
            assert "Incomplete: pred has no prediction for 1 (b)" in text
            assert "Incomplete: no reference for 1 of pred (d)" in text
        cases = (data / "out" / "cases.csv").read_text()
        assert "ours,pred,b,,,not predicted" in cases and "ours,pred,d,,,no reference" in cases
        assert "default,no," in (data / "out" / "summary.csv").read_text()

    def test_nothing_in_common_is_refused_even_then(self, data, capsys):
        shutil.rmtree(data / "pred")
        write_labels(data / "pred" / "z.nii.gz", box({1: LEFT}))
        assert "no case in common" in error_of(data, capsys, "--allow-missing")


class TestErrors:
    @pytest.mark.parametrize("folder", ["pred", "ref"])
    @pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
    def test_a_truncated_label_map_is_no_result(self, data, capsys, folder, share):
        file = data / folder / "b.nii.gz"
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
        assert run(data) == 1
        error = capsys.readouterr().err
        assert str(file) in error and "truncated" in error
        assert not (data / "out").exists()

    def test_a_flipped_bit_and_half_a_plain_file(self, data, capsys):
        file = data / "pred" / "b.nii.gz"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0x10
        file.write_bytes(content)
        assert "b.nii.gz" in error_of(data, capsys)
        file.unlink()
        plain = write_labels(data / "pred" / "b.nii", box({1: LEFT}))
        plain.write_bytes(plain.read_bytes()[:600])
        assert "b.nii" in error_of(data, capsys)

    def test_nan_is_no_background(self, data, capsys):
        write_labels(data / "pred" / "b.nii.gz", np.full(SHAPE, np.nan, np.float32))
        assert "NaN" in error_of(data, capsys)

    def test_an_output_that_is_a_file_shows_before_the_work(self, data, capsys):
        (data / "out").write_text("mine")
        shutil.rmtree(data / "pred")
        assert run(data) == 1
        assert "is a file; give -o a folder" in capsys.readouterr().err
        assert (data / "out").read_text() == "mine"

    """One clear sentence for each mistake."""

    def test_shape(self, data, capsys):
        write_labels(data / "pred" / "b.nii.gz", np.zeros((8, 10, 11), np.uint8))
        message = error_of(data, capsys)
        assert "case b: the prediction has (8, 10, 11) voxels" in message and str(SHAPE) in message

    @pytest.mark.parametrize(
        ("geometry", "part"),
        [
            ({"spacing": (3.0, 1.0, 0.6)}, "spacing (3.0, 1.0, 0.6) and (3.0, 1.0, 0.5) mm"),
            ({"origin": (4.0, 0.0, 0.0)}, "origin (4.0, 0.0, 0.0) and (0.0, 0.0, 0.0) mm"),
            ({"direction": (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)}, "their directions differ"),
        ],
    )
    def test_geometry(self, data, capsys, geometry, part):
        write_labels(data / "pred" / "b.nii.gz", box({1: LEFT}), **geometry)
        message = error_of(data, capsys)
        assert "case b: prediction and reference lie on different grids" in message and part in message

    def test_rounded_headers_are_no_other_grid(self, data):
        write_labels(data / "pred" / "b.nii.gz", box({1: LEFT}), spacing=(3.000002, 1.0, 0.5))
        assert run(data) == 0

    @pytest.mark.parametrize(("folder", "which"), [("pred", "prediction"), ("ref", "reference")])
    def test_unknown_label(self, data, capsys, folder, which):
        write_labels(data / folder / "b.nii.gz", box({1: LEFT, 7: RIGHT}))
        message = error_of(data, capsys)
        assert f"case b: the {which} has values [0, 1, 7]" in message
        assert "dataset.json of Dataset007_Toy declares [0, 1, 2]" in message

    def test_unknown_label_without_a_dataset(self, data, capsys):
        write_labels(data / "pred" / "b.nii.gz", box({1: LEFT, 7: RIGHT}))
        assert "the references hold [0, 1, 2]" in error_of(data, capsys, dataset=None)

    def test_an_error_in_a_worker_process_is_one_line_too(self, data, capsys, monkeypatch):
        monkeypatch.setattr(parallel, "START_UP_SECONDS", -1.0)
        write_labels(data / "pred" / "b.nii.gz", box({7: RIGHT}))
        assert "case b" in error_of(data, capsys, "-np", "2")

    def test_probabilities(self, data, capsys):
        write_labels(data / "pred" / "b.nii.gz", np.full(SHAPE, 0.3, np.float32))
        assert "values that are not integers" in error_of(data, capsys)

    @pytest.mark.parametrize("value", [-1.0, 70000.0])
    def test_values_that_are_no_labels(self, data, capsys, value):
        labels = np.zeros(SHAPE, np.float32)
        labels[0, 0, 0] = value
        write_labels(data / "pred" / "b.nii.gz", labels)
        assert "label values are integers from 0 to 65535" in error_of(data, capsys)

    def test_unreadable_file(self, data, capsys):
        (data / "pred" / "b.nii.gz").write_bytes(b"no image")
        assert "b.nii.gz: the file cannot be read" in error_of(data, capsys)

    def test_colour_image(self, data, capsys):
        image = sitk.GetImageFromArray(np.zeros((*SHAPE, 3), np.uint8), isVector=True)
        sitk.WriteImage(image, str(data / "pred" / "b.nii.gz"))
        assert "3 dimensions and 3 channels; a label map is 2-D or 3-D" in error_of(data, capsys)

    def test_no_folder(self, data, capsys):
        assert "is not a folder" in error_of(data, capsys, predictions=("nowhere",))

    def test_empty_folder(self, data, capsys):
        (data / "empty").mkdir()
        assert "holds no label map" in error_of(data, capsys, predictions=("empty",))

    def test_two_files_of_one_case(self, data, capsys):
        write_labels(data / "pred" / "b.nrrd", box({1: LEFT}))
        assert "case b:" in error_of(data, capsys)

    def test_a_run_given_twice(self, data, capsys):
        assert "was given twice" in error_of(data, capsys, predictions=("pred", "pred"))

    def test_processes(self, data, capsys):
        assert "processes is 0" in error_of(data, capsys, "-np", "0")

    def test_background_only(self, data, capsys):
        for case in ("a", "b", "c"):
            write_labels(data / "ref" / f"{case}.nii.gz", np.zeros(SHAPE, np.uint8))
        assert "nothing but background" in error_of(data, capsys, dataset=None)


class TestDataset:
    """What -d may be, and what its files may hold."""

    def test_unknown_name(self, data, capsys):
        assert "neither a folder nor" in error_of(data, capsys, dataset="Nonsense")

    def test_unknown_number(self, data, monkeypatch):
        monkeypatch.setenv("nnUNet_raw", str(data))
        with pytest.raises(ValueError, match="expected one folder Dataset099_\\*"):
            evaluate([data / "pred"], data / "ref", dataset="99", processes=1, progress=False)

    def test_raw_is_not_set(self, data, monkeypatch):
        monkeypatch.delenv("nnUNet_raw", raising=False)
        with pytest.raises(ValueError, match="nnUNet_raw is not set"):
            evaluate([data / "pred"], data / "ref", dataset="7", processes=1, progress=False)

    def test_a_folder_without_dataset_json(self, data, capsys):
        assert "has no dataset.json" in error_of(data, capsys, dataset="ref")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "is not valid JSON"),
            ("[]", "expected an object of JSON"),
            ("{}", "has no labels"),
            ('{"labels": {"background": 0}}', "declares no structure"),
            ('{"labels": {"LA": "1"}}', "label 'LA' is '1'"),
        ],
    )
    def test_broken_dataset_json(self, data, capsys, content, message):
        (data / "Dataset007_Toy" / "dataset.json").write_text(content)
        assert message in error_of(data, capsys)

    def test_broken_sidecar(self, data, capsys):
        (data / "Dataset007_Toy" / "nnunet_ad.json").write_text('{"domains": ["CT"]}')
        assert '"domains" must give one text for each case' in error_of(data, capsys)

    @pytest.mark.parametrize(("domains", "shown"), [(["unspecified"] * 3, []), (["CT"] + ["unspecified"] * 2, ["CT"])])
    def test_a_domain_that_conversion_did_not_know_is_none(self, data, domains, shown):
        write_dataset(data, LABELS, dict(zip("abc", domains, strict=True)))
        run(data)
        found = {row["domain"] for row in result(data)["per_domain"]}
        assert found == ({*shown, "(no domain)"} if shown else set())

    def test_a_case_without_a_domain_is_shown_as_such(self, data):
        write_dataset(data, LABELS, {"a": "CT", "b": "MR"})
        run(data)
        assert row(result(data)["per_domain"], domain="(no domain)")["metrics"]["Dice"]["num_cases"] == 1


def test_runs_get_the_shortest_names_that_tell_them_apart(tmp_path):
    assert run_names([tmp_path / "seed0", tmp_path / "seed1"]) == ["seed0", "seed1"]
    folds = [tmp_path / fold / "validation" for fold in ("fold_0", "fold_1")]
    assert run_names(folds) == ["fold_0/validation", "fold_1/validation"]


def test_the_function_returns_what_the_command_writes(data):
    evaluation = evaluate([data / "pred"], data / "ref", protocol=PAPER, processes=1, progress=False)
    assert evaluation.cases == ("a", "b", "c")
    assert evaluation.overall[-1].summaries["Dice"].mean == pytest.approx(0.75)
    assert evaluation.is_complete
