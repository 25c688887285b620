"""Asks whether the decoders disagree where the prediction is wrong: the order of rank-unlabeled against true scores.

The cases that are ranked need labels for it, which neither training nor ranking may have seen: kept-aside cases, or
unlabelled ones of a benchmark. The labels score and nothing else.

    nnunet_ad rank-unlabeled -d 101 -c 3d_fullres -f 0 -i IMAGES -o RANKS
    nnunet_ad evaluate -p PREDICTIONS -r REFERENCES -d 101 -o SCORES
    python benchmarks/ranking.py RANKS/ranking.csv SCORES/cases.csv

Prints Spearman's rank correlation of disagreement and 1 - Dice, mean over the structures of a case, with its two-sided
p, and the mean Dice of the third that the ranking puts first beside that of the others.
"""

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr


def main() -> None:
    """Print one line on the cases that both files have."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ranking", type=Path, help="ranking.csv of nnunet_ad rank-unlabeled")
    parser.add_argument("scores", type=Path, help="cases.csv of nnunet_ad evaluate, of one run")
    arguments = parser.parse_args()
    disagreement, dice = read_ranking(arguments.ranking), read_scores(arguments.scores)
    cases = sorted(disagreement.keys() & dice.keys())
    if len(cases) < 3:
        sys.exit(
            f"{arguments.ranking} and {arguments.scores} share {len(cases)} case(s) with numbers, expected 3 or more"
        )
    print(agreement(np.array([disagreement[case] for case in cases]), np.array([dice[case] for case in cases])))


def read_ranking(file: Path) -> dict[str, float]:
    """Return the disagreement of each case on which some decoder predicts a structure."""
    with file.open(newline="", encoding="utf-8") as lines:
        found = {row["case"]: float(row["disagreement"]) for row in csv.DictReader(lines)}
    return {case: value for case, value in found.items() if np.isfinite(value)}


def read_scores(file: Path) -> dict[str, float]:
    """Return the mean Dice over the structures of each case, without those that neither label nor prediction has."""
    found = defaultdict(list)
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if row["Dice"]:
                found[row["case"]].append(float(row["Dice"]))
    return {case: float(np.mean(values)) for case, values in found.items()}


def agreement(disagreement: np.ndarray, dice: np.ndarray) -> str:
    """Return what the order is worth, for disagreement and Dice of each case (cases,)."""
    found = spearmanr(disagreement, 1 - dice)
    order = np.argsort(-disagreement, kind="stable")
    first, others = np.split(dice[order], [round(len(order) / 3)])
    return (
        f"{len(dice)} cases: rank correlation (Spearman) {found.statistic:.2f} (p = {found.pvalue:.3f}); "
        f"mean Dice of the {len(first)} ranked first {first.mean():.3f}, of the others {others.mean():.3f}"
    )


if __name__ == "__main__":
    main()
