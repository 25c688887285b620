"""``benchmarks/ranking.py``: the order of a ranking against true scores."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "ranking.py"
RANKING = "case,rank,disagreement\na,1,0.9\nb,2,0.5\nc,3,0.4\nd,4,0.3\ne,5,0.2\nf,6,0.1\ng,7,nan\n"
SCORES = "method,run,case,domain,structure,outcome,Dice\n"


def told(folder: Path, dice: dict[str, tuple], monkeypatch, capsys) -> str:
    rows = [f"ours,run,{case},,{i},,{value}\n" for case, values in dice.items() for i, value in enumerate(values)]
    (folder / "ranking.csv").write_text(RANKING)
    (folder / "cases.csv").write_text(SCORES + "".join(rows))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(folder / "ranking.csv"), str(folder / "cases.csv")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return capsys.readouterr().out


def test_worst_first_is_perfect_and_best_first_is_as_bad_as_can_be(tmp_path, monkeypatch, capsys):
    worst_first = {"a": (0.1, 0.3), "b": (0.4, ""), "c": (0.5,), "d": (0.6,), "e": (0.7,), "f": (0.8,), "g": (0.1,)}
    said = told(tmp_path, worst_first, monkeypatch, capsys)
    assert said.startswith("6 cases: rank correlation (Spearman) 1.00 (p = 0.000); ")
    assert said.endswith("; mean Dice of the 2 ranked first 0.300, of the others 0.650\n")
    best_first = {case: (1 - values[0],) for case, values in worst_first.items()}
    assert "(Spearman) -1.00" in told(tmp_path, best_first, monkeypatch, capsys)


def test_files_of_other_cases_are_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match=r"share 1 case\(s\) with numbers, expected 3 or more"):
        told(tmp_path, {"a": (0.5,), "g": (0.5,), "z": (0.5,)}, monkeypatch, capsys)
