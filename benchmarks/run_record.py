"""The record of one finished run: what it was made with, scores of every case and curves, in a small JSON file.

Predictions and checkpoints of an experiment take gigabytes and stay where they were made. Records can be kept with the
code, so that a table of runs from several sittings and machines can be made anew, and tested pair by pair.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nnunet_ad.evaluation.labels import Structure
from nnunet_ad.evaluation.protocol import DEFAULT
from nnunet_ad.evaluation.result import CaseScores, Evaluation
from nnunet_ad.evaluation.result import Run as ScoredRun
from nnunet_ad.evaluation.scoring import Outcome, StructureScore
from nnunet_ad.whole_file import written_whole

DECODERS = ("theta", "psi", "xi")
_DIGITS = 5


@dataclass(frozen=True)
class RunRecord:
    """One training.

    Attributes:
        trainer: Name of the trainer or variant.
        seed: Of the training.
        made_with: Versions and commit, the device and its precision, as the training log says.
        minutes: Sum of all epochs.
        cases: Of each validation case and structure the metrics of the final checkpoint, on the original grid.
        curves: Foreground Dice on validation patches, a value an epoch: ``theta``, what the trainer validates, and for
            A&D ``psi`` and ``xi``, the two teachers, each also ``per_class``.
    """

    trainer: str
    seed: int
    made_with: str
    minutes: float
    cases: dict[str, dict[str, dict[str, float | str | None]]]
    curves: dict[str, list]

    @classmethod
    def read(cls, file: Path) -> "RunRecord":
        """Read what :meth:`write` wrote."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))

    def write(self, file: Path) -> None:
        """Write the JSON file, one line a case and a curve."""
        file.parent.mkdir(parents=True, exist_ok=True)
        parts = [f'"{name}": {_in_lines(value)}' for name, value in asdict(self).items()]
        with written_whole(file) as unfinished:
            unfinished.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")

    def scored(self) -> ScoredRun:
        """Return the run as the evaluation knows it."""
        cases = tuple(
            CaseScores(case, tuple(_structure_score(name, values) for name, values in structures.items()))
            for case, structures in self.cases.items()
        )
        return ScoredRun(f"{self.trainer}, seed {self.seed}", cases)

    @property
    def device(self) -> str:
        """The kind of device that it was made on, as nnU-Net's command wants it."""
        return "cuda" if "CUDA" in self.made_with else re.findall(r"device: (\w+)", self.made_with)[0]

    def second_half(self, decoder: str) -> float:
        """Return the mean of the second half of a curve, without epochs that have no value; NaN without a curve."""
        curve = self.curves.get(decoder, [])
        known = [value for value in curve[len(curve) // 2 :] if value is not None]
        return sum(known) / len(known) if known else float("nan")


def record_of(trainer: str, seed: int, fold: Path, scored: ScoredRun) -> RunRecord:
    """Return the record of a run.

    Args:
        trainer: Name of the trainer.
        seed: Of the training.
        fold: nnU-Net's folder of the trained fold.
        scored: Scores of the fold's validation cases.
    """
    import torch  # here, as tables of records need none

    log = torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)["logging"]
    epochs = zip(log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=True)
    return RunRecord(
        trainer=trainer,
        seed=seed,
        made_with=_made_with(fold),
        minutes=round(sum(end - start for start, end in epochs) / 60, 1),
        cases={each.case: {s.structure: _values(s) for s in each.scores} for each in scored.cases},
        curves=_curves(log, fold / "progress_ad.json"),
    )


def evaluation_of(records: Sequence[RunRecord], versus: Sequence[RunRecord]) -> Evaluation:
    """Return the evaluation of the runs of a trainer beside those of another one, perhaps none."""
    first_case = next(iter(records[0].cases.values()))
    return Evaluation(
        protocol=DEFAULT,
        dataset=None,
        structures=tuple(Structure(name, ()) for name in first_case),
        domains={},
        runs=tuple(record.scored() for record in records),
        versus=tuple(record.scored() for record in versus),
    )


def _made_with(fold: Path) -> str:
    """Return what the first training log says, for a run may be scored later by other versions than trained it."""
    log = min(fold.glob("training_log_*.txt")).read_text(encoding="utf-8")
    lines = re.findall(r"nnunet_ad \d.*; device: .*|Forward passes on the CPU in .*", log)
    return "; ".join(line.strip() for line in lines)


def _values(score: StructureScore) -> dict[str, float | str | None]:
    metrics = {metric: _rounded(value) for metric, value in score.values.items()}
    return {"outcome": score.outcome.value, **metrics}


def _structure_score(name: str, values: dict) -> StructureScore:
    metrics = {metric: float("nan") if value is None else value for metric, value in values.items()}
    return StructureScore(name, Outcome(metrics.pop("outcome")), metrics)


def _curves(log: dict, progress: Path) -> dict[str, list]:
    curves = json.loads(progress.read_text())["curves"] if progress.is_file() else {}
    curves.setdefault("val_dice_theta", log["mean_fg_dice"])
    curves.setdefault("val_dice_per_class_theta", [list(values) for values in log["dice_per_class_or_region"]])
    kept = {name: f"val_dice_{name}" for name in DECODERS}
    kept |= {f"{name}_per_class": f"val_dice_per_class_{name}" for name in DECODERS}
    return {name: _rounded(curves[key]) for name, key in kept.items() if key in curves}


def _rounded(value):
    """Return numbers, or lists of them, with few digits and None for what is not finite, which JSON does not know."""
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    finite = value is not None and abs(value) < float("inf")
    return round(float(value), _DIGITS) if finite else None


def _in_lines(value) -> str:
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    lines = [f"  {json.dumps(key)}: {json.dumps(each, ensure_ascii=False)}" for key, each in value.items()]
    return "{\n" + ",\n".join(lines) + "\n}"
