"""Parts of the page: montage, curves, summary and sizes where there is much."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnunet_ad.evaluation.labels import Structure
from nnunet_ad.evaluation.protocol import DEFAULT
from nnunet_ad.evaluation.result import CaseScores, Evaluation, Run
from nnunet_ad.evaluation.scoring import Outcome, StructureScore
from nnunet_ad.report.boxplots import MAX_POINTS, draw_boxes
from nnunet_ad.report.colours import rgb
from nnunet_ad.report.curves import draw_topics
from nnunet_ad.report.montage import COLUMNS, MAX_EPOCHS, OPACITY, _coloured, draw_montage
from nnunet_ad.report.page import Page
from nnunet_ad.report.pictures import grey
from nnunet_ad.report.progress import Progress
from nnunet_ad.report.scores import rank, worst_median_best
from nnunet_ad.report.sources import Sources
from nnunet_ad.report.summary import summarise
from nnunet_ad.report.tables import case_table, structure_table


def evaluation_of(dice, domains=None) -> Evaluation:
    """Return an evaluation of an array (cases, structures): 0 is missed, -0.0 spurious, NaN absent."""

    def one(index, value):
        outcome = Outcome.BOTH if value > 0 else Outcome.MISSED if value == 0 else Outcome.ABSENT
        if value == 0 and math.copysign(1, value) < 0:
            outcome = Outcome.SPURIOUS
        distance = 10 * (1 - value) if value > 0 else math.inf if value == 0 else math.nan
        values = {"Dice": value, "Jaccard": value / (2 - value), "HD95": distance, "ASSD": distance}
        return StructureScore(f"organ {index}", outcome, values)

    dice = np.asarray(dice, dtype=float)
    cases = [
        CaseScores(f"case_{row:04d}", tuple(one(i, float(value)) for i, value in enumerate(values)))
        for row, values in enumerate(dice)
    ]
    structures = tuple(Structure(f"organ {i}", (i + 1,)) for i in range(dice.shape[1]))
    return Evaluation(DEFAULT, None, structures, domains or {}, (Run("run", tuple(cases)),))


def nothing(**changes) -> Sources:
    found = {"folder": Path("x"), "name": "x", "training": False, "predictions": None, "references": None}
    return Sources(**{**found, "dataset": None, "images": (), **changes})


def test_cases_are_ranked_by_their_mean_dice_without_absent_structures():
    cases = rank(evaluation_of([[0.9, math.nan], [0.2, 0.4], [0.8, 0.0], [math.nan, math.nan], [0.6, 0.8]]))
    assert [case.name[-1] for case in cases] == ["1", "2", "4", "0", "3"]
    assert cases[0].dice == pytest.approx(0.3)
    shown = worst_median_best(cases)
    assert [(title, case.name[-1]) for title, case in shown] == [
        ("Worst case", "1"),
        ("Median case", "2"),
        ("Best case", "0"),
    ]


def test_the_summary_counts_what_was_missed():
    evaluation = evaluation_of([[0.9, 0.0], [0.8, 0.5], [0.7, math.nan]])
    summary = summarise(nothing(), evaluation, rank(evaluation))
    facts = {fact.label: fact.value for fact in summary.facts}
    assert facts["cases compared"] == "3"
    assert facts["of 5 structures missed"] == "1"
    assert facts["mean overlap (Dice)"] == f"{(0.8 + 0.25) / 2:.2f}"
    assert any(sentence.startswith("Missed: organ 1 in case_0000.") for sentence in summary.findings)


def test_the_interval_of_the_summary_holds_the_mean():
    evaluation = evaluation_of([[0.9], [0.5], [0.7]])
    details = {fact.label: fact.detail for fact in summarise(nothing(), evaluation, rank(evaluation)).facts}
    low, high = re.match(r"95 % interval (\S+) to ([^;]+);", details["mean overlap (Dice)"]).groups()
    assert float(low) < 0.7 < float(high)


ALL_FOUND = "Every structure of the references was found at least in part, and none was invented."


def test_where_nothing_was_missed_the_summary_says_so():
    evaluation = evaluation_of([[0.9], [0.8]])
    assert ALL_FOUND in summarise(nothing(), evaluation, rank(evaluation)).findings


def test_what_was_invented_is_named():
    evaluation = evaluation_of([[0.9, -0.0], [0.8, 0.7]])
    findings = summarise(nothing(), evaluation, rank(evaluation)).findings
    assert any(sentence.startswith("Spurious: organ 1 in case_0000.") for sentence in findings)
    assert ALL_FOUND not in findings


def test_the_best_case_is_not_among_the_lowest():
    evaluation = evaluation_of([[0.9], [0.8]])
    findings = summarise(nothing(), evaluation, rank(evaluation)).findings
    assert "Lowest overlap: case_0001 (0.80). Look at these first." in findings


def test_what_lacks_a_prediction_and_what_lacks_a_reference_are_named_together():
    evaluation = evaluation_of([[0.9]])
    (run,) = evaluation.runs
    evaluation = replace(evaluation, runs=(replace(run, missing=("a",), extra=("b", "c")),))
    findings = summarise(nothing(), evaluation, rank(evaluation)).findings
    assert "Not scored, because there is no prediction: case a." in findings
    assert "Not scored, because there is no reference: 2 cases (b, c)." in findings


def test_a_training_that_saw_some_of_its_cases_says_how_many():
    evaluation = evaluation_of([[0.9], [0.8], [0.7]])
    sources = nothing(training=True, trained_on=frozenset({"case_0001", "another"}))
    limits = summarise(sources, evaluation, rank(evaluation)).limits
    assert limits[0].startswith("1 of the 3 scored cases are labelled training cases")
    assert not any("kept aside" in sentence or "themselves" in sentence for sentence in limits)


@pytest.mark.parametrize("origins", [("A", "A"), ("A", "B"), ()])
def test_images_of_one_origin_are_pointed_out(origins):
    evaluation = evaluation_of([[0.9], [0.8]], dict(zip(("case_0000", "case_0001"), origins, strict=False)))
    limits = summarise(nothing(), evaluation, rank(evaluation)).limits
    assert ("All scored images come from one origin: A." in limits) == (origins == ("A", "A"))
    assert any("one origin" in sentence for sentence in limits) == (origins == ("A", "A"))


def test_tables_have_each_number_below_its_heading_and_sort_by_it():
    evaluation = evaluation_of([[0.9, 0.0], [0.8, 0.0], [0.7, -0.0]])
    table = structure_table(evaluation)
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert [row["Structure"].text for row in rows] == ["organ 0", "organ 1", "mean over structures"]
    assert [(row["Missed"].key, row["Spurious"].key) for row in rows] == [(0, 0), (2, 1), (2, 1)]
    assert [row["Dice"].key for row in rows] == pytest.approx([0.8, 0.0, 0.4])
    table = case_table(evaluation, rank(evaluation))
    rows = {row[0].text: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert [(row["Missed"].key, row["Spurious"].key) for _, row in sorted(rows.items())] == [(1, 0), (1, 0), (0, 1)]
    assert rows["case_0001"]["Mean HD95 [mm]"].key == pytest.approx(2.0)  # the missed one has none
    assert rows["case_0001"]["Mean Dice"].key == pytest.approx(0.4)


def test_boxes_hold_the_cases_of_each_structure_also_the_missed_ones():
    drawn = draw_boxes(evaluation_of([[0.9, 0.0], [0.7, 0.5], [0.8, 0.1]]), "Dice")
    assert "organ 0: median 0.80, from 0.70 to 0.90; organ 1: median 0.10, from 0.00 to 0.50." in drawn


def test_of_many_cases_the_outliers_are_drawn():
    usual = np.linspace(0.8, 0.9, MAX_POINTS)[:, None]
    point = "stroke: var(--series-1)"
    assert point not in draw_boxes(evaluation_of([*usual, [0.85]]), "Dice")
    assert point in draw_boxes(evaluation_of([*usual, [0.1]]), "Dice")


def test_a_bright_spot_does_not_darken_the_picture():
    values = np.arange(1000.0)
    values[-1] = 1e6
    assert grey(values)[500] == pytest.approx(127, abs=3)


def test_cells_without_a_number_have_no_key():
    evaluation = evaluation_of([[0.9, 0.0], [0.8, math.nan]])
    table = case_table(evaluation, rank(evaluation))
    assert {cell.key for row in table.rows for cell in row if cell.text == "-"} == {None}
    assert len({len(row) for row in (table.header, *table.rows)}) == 1


@pytest.mark.parametrize(("size", "expected"), [((16, 32), (200, 100)), ((32, 16), (100, 200))])
def test_a_montage_in_two_dimensions(tmp_path, size, expected):
    write_snapshots(tmp_path, size, [1])
    montage = draw_montage(tmp_path)
    assert len(montage.rows) == 1
    assert [(each.width, each.height) for each in montage.rows[0].pictures] == [expected] * len(COLUMNS)


def test_a_montage_shows_the_first_and_the_last_of_many_epochs_in_the_aspect_of_the_voxels(tmp_path):
    write_snapshots(tmp_path, (4, 16, 16), range(1, 21))
    montage = draw_montage(tmp_path, (5.0, 2.0, 1.0), ["a", "b"])
    epochs = [row.epoch for row in montage.rows]
    assert len(epochs) == MAX_EPOCHS
    assert (epochs[0], epochs[-1]) == (1, 20)
    assert {(each.width, each.height) for row in montage.rows for each in row.pictures} == {(100, 200)}
    assert [entry.label for entry in montage.legend] == ["a", "b"]


def test_a_montage_leaves_out_earlier_patches_of_another_size(tmp_path):
    write_snapshots(tmp_path, (4, 16, 16), [1])
    write_snapshots(tmp_path, (8, 16, 16), [2, 5])
    assert [row.epoch for row in draw_montage(tmp_path).rows] == [2, 5]


def test_a_montage_shows_the_slice_that_is_fullest_at_the_end(tmp_path):
    write_snapshots(tmp_path, (8, 4, 4), [1])
    (file,) = (tmp_path / "snapshots").iterdir()
    maps = {name: np.zeros((8, 4, 4), np.uint8) for name in COLUMNS if name != "image"}
    maps["theta"][6, :2] = 1
    maps["psi"][4] = 1
    np.savez(file, case="case", image=np.zeros((1, 8, 4, 4), np.float32), **maps)
    (row,) = draw_montage(tmp_path).rows
    assert [each.alt.rpartition(", ")[2] for each in row.pictures[1:]] == ["0% foreground"] * 3 + ["50% foreground"]


def test_the_colours_of_a_montage_are_those_of_its_legend(tmp_path):
    write_snapshots(tmp_path, (4, 4), [1])
    legend = draw_montage(tmp_path, structures=["a", "b"]).legend
    first, second = _coloured(np.zeros((1, 2, 3), np.uint8), np.array([[1, 2]]))[0]
    for found, entry in zip((first, second), legend, strict=True):
        assert found == pytest.approx(OPACITY * np.array(rgb(entry.colour)), abs=1)


def test_curves_have_the_names_of_what_they_show_and_begin_at_epoch_1():
    curves = {
        "val_dice_per_class_theta": np.array([[0.1, 0.2], [0.5, 0.8]]),
        "class_weights": np.array([[1.0, 1.1, 0.9], [1.0, 1.3, 0.7]]),
        "dice_by_t": np.array([[np.nan, 0.2], [0.9, 0.4]]),
        "learning_rate": np.array([0.01, 0.005]),
    }
    drawn = {each.topic.title: each.svg for each in draw_topics(Progress(curves), ["a", "b"])}
    assert "a: from 0.1 to 0.5; b: from 0.2 to 0.8." in drawn["Agreement by structure"]
    assert "background: from 1 to 1; a: from 1.1 to 1.3; b: from 0.9 to 0.7." in drawn["Weight of each structure"]
    assert "noise 1: from 0.9 to 0.9; noise 2: from 0.2 to 0.4." in drawn["ξ by amount of noise"]
    assert re.findall(r">(\d)</text>", drawn["Learning rate"]) == ["1", "2"]


def test_curves_that_are_not_there_are_left_out():
    found = Progress({"mu": np.linspace(0, 10, 5), "loss_denoising": np.full(5, np.nan)})
    assert [drawn.topic.title for drawn in draw_topics(found, [])] == ["Weight of the unlabelled cases"]


def test_class_weights_have_the_names_of_the_structures():
    (drawn,) = draw_topics(Progress({"class_weights": np.ones((3, 3))}), ["$a$", "b & c"])
    assert "$a$" in drawn.svg
    assert "b &amp; c" in drawn.svg
    assert "background" in drawn.svg
    (drawn,) = draw_topics(Progress({"class_weights": np.ones((3, 5))}), ["a", "b"])
    assert "class 4" in drawn.svg


def test_a_large_evaluation_and_a_long_training_stay_small(tmp_path):
    generator = np.random.default_rng(0)
    evaluation = evaluation_of(generator.uniform(0.1, 1, (300, 14)))
    curves = {name: generator.random((1000, 14)) for name in ("class_weights", "val_dice_per_class_theta")}
    curves |= {name: generator.random(1000) for name in ("mu", "loss_denoising", "agreement", "learning_rate")}
    cases = rank(evaluation)
    page = Page(
        "title",
        "subtitle",
        "test",
        summarise(nothing(), evaluation, cases),
        tables=(structure_table(evaluation), case_table(evaluation, cases)),
        boxes=tuple((metric, draw_boxes(evaluation, metric)) for metric in ("Dice", "HD95")),
        topics=tuple(draw_topics(Progress(curves), [f"organ {i}" for i in range(14)])),
    ).as_html()
    assert len(page) < 1_500_000


def write_snapshots(training, size, epochs):
    (training / "snapshots").mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for epoch in epochs:
        maps = {name: generator.integers(0, 3, size).astype(np.uint8) for name in COLUMNS if name != "image"}
        image = generator.random((1, *size)).astype(np.float32)
        np.savez(training / "snapshots" / f"epoch_{epoch:04d}.npz", case="case", image=image, **maps)
