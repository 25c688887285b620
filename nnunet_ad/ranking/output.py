"""Writes a ranking as CSV and contact sheet, each file as a whole or not at all."""

import csv
import math
from pathlib import Path

from nnunet_ad.ranking.branches import DECODERS
from nnunet_ad.ranking.contact_sheet import draw_contact_sheet
from nnunet_ad.ranking.rank import CaseDisagreement, Ranking
from nnunet_ad.whole_file import LEFT_OVERS, written_whole

RANKING_FILE, CONTACT_SHEET_FILE = "ranking.csv", "contact_sheet.png"


def write(ranking: Ranking, caption: str, folder: Path) -> list[Path]:
    """Write ``ranking.csv`` and, where there are pictures, ``contact_sheet.png``; return their paths.

    Args:
        ranking: The cases in order.
        caption: Below the contact sheet: which model said so.
        folder: Existing folder.

    Raises:
        OSError: If a file can't be written.
    """
    written = [folder / RANKING_FILE]
    with written_whole(written[0]) as path:
        _write_csv(ranking, path)
    if ranking.tiles:
        written.append(folder / CONTACT_SHEET_FILE)
        with written_whole(written[1]) as path:
            draw_contact_sheet(ranking.tiles, caption, path)
    return written


def remove_left_overs(folder: Path) -> None:
    """Remove what a process that was killed while it wrote a ranking has left."""
    for name in (RANKING_FILE, CONTACT_SHEET_FILE):
        for file in folder.glob(f"{LEFT_OVERS}_{name}"):
            file.unlink(missing_ok=True)


def as_text(ranking: Ranking, most: int = 10) -> str:
    """Return the first cases as lines for a terminal, with a warning about cases of which nothing is known."""
    width = max(len(case.case) for case in ranking.cases)
    lines = [
        f"{rank:4d}  {case.case:{width}s}  {case.disagreement:.3f}"
        for rank, case in enumerate(ranking.cases[:most], start=1)
    ]
    if len(ranking.cases) > most:
        lines.append(f"      … and {len(ranking.cases) - most} more")
    if missing := ranking.without_prediction:
        lines.append(
            f"NOTE: no decoder predicts any structure in {len(missing)} case(s), which are therefore last and not "
            f"first: {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}. Look at them yourself."
        )
    return "\n".join(lines)


def _write_csv(ranking: Ranking, path: Path) -> None:
    names = list(ranking.structures)
    header = ["case", "rank", "disagreement", *(f"disagreement {name}" for name in names)]
    if ranking.has_volumes:
        header += [f"volume {name} {decoder} [ml]" for name in names for decoder in DECODERS]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(_line(rank, case, ranking.has_volumes) for rank, case in enumerate(ranking.cases, start=1))


def _line(rank: int, case: CaseDisagreement, with_volumes: bool) -> list[str | int]:
    disagreements = ["nan" if math.isnan(value) else f"{value:.6f}" for value in (case.disagreement, *case.per_class)]
    volumes = [f"{volume:.4f}" for volume in case.volumes_ml.T.flat] if with_volumes else []
    return [case.case, rank, *disagreements, *volumes]
