"""Parts of the page: montage, curves, summary and sizes where there is much."""

import math
from pathlib import Path

import numpy as np
import pytest

from nnunet_ad.evaluation.labels import Structure
from nnunet_ad.evaluation.protocol import DEFAULT
from nnunet_ad.evaluation.result import CaseScores, Evaluation, Run
from nnunet_ad.evaluation.scoring import Outcome, StructureScore
from nnunet_ad.report.boxplots import draw_boxes
from nnunet_ad.report.curves import draw_topics
from nnunet_ad.report.montage import COLUMNS, MAX_EPOCHS, draw_montage
from nnunet_ad.report.page import Page
from nnunet_ad.report.progress import Progress
from nnunet_ad.report.scores import rank, worst_median_best
from nnunet_ad.report.sources import Sources
from nnunet_ad.report.summary import summarise
from nnunet_ad.report.tables import case_table, structure_table


def evaluation_of(dice, domains=None) -> Evaluation:
    """Return an evaluation of an array (cases, structures): 0 is missed, NaN absent."""

    def one(index, value):
        outcome = Outcome.BOTH if value > 0 else Outcome.MISSED if value == 0 else Outcome.ABSENT
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


def test_where_nothing_was_missed_the_summary_says_so():
    evaluation = evaluation_of([[0.9], [0.8]])
    summary = summarise(nothing(), evaluation, rank(evaluation))
    assert "Every structure of the references was found at least in part, and none was invented." in summary.findings


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
