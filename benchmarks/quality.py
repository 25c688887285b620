"""Runs an experiment over nnU-Net's own commands: trainers × seeds on one fold, scored on the fold's validation cases.

An experiment is a TOML file (``benchmarks/quality/*.toml``)::

    dataset = 101
    configuration = "3d_fullres"
    plans = "nnUNetPlans_coarse16"
    fold = 0
    baseline = "nnUNetTrainerSupervised"        # the tests of each trainer are against this one
    trainers = ["nnUNetTrainerAD", "nnUNetTrainerMeanTeacher"]
    seeds = [0, 1, 2]
    epochs = 50
    iterations = 24                             # an epoch
    prepare = ["..."]                           # how dataset and plans were made; printed, not run

    [variants.nnUNetTrainerAD_fewer_steps]      # optional: a trainer with other hyper-parameters of ADConfig
    base = "nnUNetTrainerAD"
    num_sampling_steps = 3

Each run has results of its own, ``OUT/<experiment>/<trainer>/seed_<s>``, and a small file in RECORDS once it is scored.
A recorded run is not repeated, one that was cut off continues, so the same command goes on until all is done, and then
prints the table and draws RECORDS/<experiment>/curves.png; with ``--table`` it does so with what there is, for which
the records are enough. Labels of validation cases score; nothing is chosen by them.

    python benchmarks/quality.py benchmarks/quality/laseg_4_3mm_cpu.toml -o RESULTS -device cpu
    python benchmarks/quality.py benchmarks/quality/laseg_4_3mm_cpu.toml --records docs/results/records --table
    python benchmarks/quality.py benchmarks/quality/laseg_4_3mm_cpu.toml --records docs/results/records --table \
        --baseline MeanTeacher_svda
"""

import argparse
import math
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from learning_curves import plot
from run_record import DECODERS, RunRecord, evaluation_of, record_of

from nnunet_ad.config import ADConfig
from nnunet_ad.evaluation.evaluate import evaluate
from nnunet_ad.evaluation.result import Comparison, Evaluation, Row
from nnunet_ad.evaluation.tables import Table, number


@dataclass(frozen=True)
class Experiment:
    """What is compared, on what, and for how long."""

    name: str
    dataset: int
    configuration: str
    plans: str
    fold: int
    baseline: str
    trainers: tuple[str, ...]
    seeds: tuple[int, ...]
    epochs: int
    iterations: int
    prepare: tuple[str, ...] = ()
    variants: Mapping[str, Mapping] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> "Experiment":
        """Read a TOML file."""
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        known = {"base", *(parameter.name for parameter in fields(ADConfig))}
        for name, variant in content.get("variants", {}).items():
            if "base" not in variant:
                sys.exit(f"{file}: {name} names no base, the trainer that it changes")
            if unknown := sorted(variant.keys() - known):
                sys.exit(f"{file}: {name} sets {', '.join(unknown)}, which is no hyper-parameter of ADConfig")
        return cls(name=file.stem, **{k: tuple(v) if isinstance(v, list) else v for k, v in content.items()})

    def tested_against(self, baseline: str) -> "Experiment":
        """Return the same experiment with tests of each trainer against another one of its trainers."""
        trainers = (self.baseline, *self.trainers)
        if baseline not in trainers:
            sys.exit(f"--baseline {baseline}: {self.name} has the trainers {', '.join(trainers)}")
        return replace(self, baseline=baseline, trainers=tuple(each for each in trainers if each != baseline))

    def write_variants(self, out: Path) -> Path:
        """Write the variants as trainers into a folder for nnU-Net to search, and return it."""
        folder = out / self.name / "trainers"
        folder.mkdir(parents=True, exist_ok=True)
        text = "from dataclasses import replace\n\nimport nnunet_ad.trainer as t\n"
        for name, variant in self.variants.items():
            values = ", ".join(f"{key}={value!r}" for key, value in variant.items() if key != "base")
            base = f"t.{variant['base']}"
            text += f"\n\nclass {name}({base}):\n    config = replace({base}.config, {values})\n"
        (folder / f"variants_of_{self.name}.py").write_text(text, encoding="utf-8")
        return folder

    @property
    def runs(self) -> list["Run"]:
        """All runs, the first seed of every trainer first."""
        return [Run(self, trainer, seed) for seed in self.seeds for trainer in (self.baseline, *self.trainers)]


@dataclass(frozen=True)
class Run:
    """One training."""

    experiment: Experiment
    trainer: str
    seed: int

    def results(self, out: Path) -> Path:
        """Return what ``nnUNet_results`` is for this run."""
        return out / self.experiment.name / self.trainer / f"seed_{self.seed}"

    def fold(self, out: Path) -> Path:
        """Return the folder of the trained fold."""
        experiment = self.experiment
        name = f"{self.trainer}__{experiment.plans}__{experiment.configuration}/fold_{experiment.fold}"
        return self.results(out) / dataset_folder(experiment.dataset, "nnUNet_raw").name / name

    def record_file(self, records: Path) -> Path:
        """Return where the record of this run is, or will be."""
        return records / self.experiment.name / f"{self.trainer}_seed_{self.seed}.json"

    def is_done(self, out: Path) -> bool:
        """Return whether the validation cases were predicted by the final checkpoint."""
        return (self.fold(out) / "validation" / "summary.json").is_file()

    def record(self, out: Path) -> RunRecord:
        """Score the validation cases."""
        dataset = self.experiment.dataset
        references = dataset_folder(dataset, "nnUNet_preprocessed") / "gt_segmentations"
        # The folder of references holds the training cases, too.
        evaluation = evaluate(
            [self.fold(out) / "validation"],
            references,
            str(dataset_folder(dataset, "nnUNet_raw")),
            allow_missing=True,
            progress=False,
        )
        return record_of(self.trainer, self.seed, self.fold(out), evaluation.runs[0])

    def command(self, device: str, continued: bool = False) -> list[str]:
        """Return nnU-Net's command."""
        experiment = self.experiment
        line = ["nnUNetv2_train", experiment.dataset, experiment.configuration, experiment.fold]
        line += ["-tr", self.trainer, "-p", experiment.plans, "-device", device]
        return [str(word) for word in line] + (["--c"] if continued else [])

    @property
    def variables(self) -> dict[str, str]:
        """Return the variables that the command is given."""
        return {
            "NNUNET_AD_SEED": str(self.seed),
            "NNUNET_AD_EPOCHS": str(self.experiment.epochs),
            "NNUNET_AD_ITERATIONS": str(self.experiment.iterations),
        }

    def train(self, out: Path, device: str) -> None:
        """Run the command, or let it continue."""
        started = any(self.fold(out).glob("checkpoint_*.pth"))
        line = self.command(device, continued=started)
        variables = self.variables | {"nnUNet_results": str(self.results(out))}
        if self.trainer in self.experiment.variants:
            found = [os.environ.get("nnUNet_extTrainer"), str(self.experiment.write_variants(out))]  # noqa: SIM112
            variables["nnUNet_extTrainer"] = os.pathsep.join(filter(None, found))
        print(" ".join([f"{name}={value}" for name, value in variables.items()] + line), flush=True)
        self.results(out).mkdir(parents=True, exist_ok=True)
        with (self.results(out) / "output.txt").open("a") as log:
            subprocess.run(line, env=os.environ | variables, stdout=log, stderr=subprocess.STDOUT, check=True)


def main() -> None:
    """Train what is not trained yet, and print the table."""
    arguments = parse_arguments()
    experiment = Experiment.read(arguments.experiment)
    if arguments.baseline:
        experiment = experiment.tested_against(arguments.baseline)
    for run in experiment.runs:
        finish(run, arguments)
    found = recorded(experiment, arguments.records)
    print(as_markdown(experiment, found))
    if found and not arguments.baseline:
        plot(found, experiment.baseline, experiment.iterations, arguments.records / experiment.name / "curves.png")


def finish(run: Run, arguments: argparse.Namespace) -> None:
    """Train a run that is not trained yet, where that is wanted, and score one that is not scored yet."""
    file, out = run.record_file(arguments.records), arguments.output
    if file.is_file():
        return
    if not arguments.table and not run.is_done(out):
        run.train(out, arguments.device)
    if out and run.is_done(out):
        run.record(out).write(file)


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="a TOML file")
    parser.add_argument("-o", dest="output", type=Path, help="folder for the results of all experiments")
    parser.add_argument("--records", type=Path, help="folder for the records of finished runs (default: OUT/records)")
    parser.add_argument("-device", choices=("cpu", "cuda", "mps"), default="cuda")
    parser.add_argument("--baseline", metavar="TRAINER", help="test each trainer against this one of the experiment")
    parser.add_argument("--table", action="store_true", help="train nothing, print the table of what there is")
    arguments = parser.parse_args()
    if not arguments.output and not (arguments.table and arguments.records):
        parser.error("say where results go (-o), or which records to make a table of (--records FOLDER --table)")
    arguments.records = arguments.records or arguments.output / "records"
    return arguments


def dataset_folder(dataset: int, variable: str) -> Path:
    """Return a dataset's folder in one of nnU-Net's three."""
    found = sorted(Path(os.environ[variable]).glob(f"Dataset{dataset:03d}_*"))
    if len(found) != 1:
        sys.exit(f"expected one Dataset{dataset:03d}_* in {variable} ({os.environ[variable]}), found {len(found)}")
    return found[0]


def recorded(experiment: Experiment, records: Path) -> list[RunRecord]:
    """Return the records that there are of an experiment."""
    files = [run.record_file(records) for run in experiment.runs]
    return [RunRecord.read(file) for file in files if file.is_file()]


def as_markdown(experiment: Experiment, found: Sequence[RunRecord]) -> str:
    """Return commands, the table of all recorded runs, and the ends of their curves."""
    names = {(record.trainer, record.seed) for record in found}
    done = [run for run in experiment.runs if (run.trainer, run.seed) in names]
    commands = [shown_command(run, record.device) for run, record in zip(done[:1], found, strict=False)]
    lines = [f"# {experiment.name}", "", "```", *experiment.prepare, *commands, "```", ""]
    rows = []
    for trainer in dict.fromkeys(record.trainer for record in found):
        evaluation = score(trainer, experiment.baseline, found)
        rows += rows_of(evaluation, trainer, [record.seed for record in found if record.trainer == trainer])
    header = ("trainer", "seeds", "structure", "Dice", "95 % interval", "against the baseline")
    header += ("p over cases (Wilcoxon)", "p over trainings (Welch)")
    lines += [Table(header, tuple(rows), text_columns=3).as_markdown(), ""]
    unfinished = [f"{run.trainer}, seed {run.seed}" for run in experiment.runs if run not in done]
    lines += [f"Not finished: {'; '.join(unfinished)}.", ""] if unfinished else []
    return "\n".join([*lines, *map(line_of, found)])


def shown_command(run: Run, device: str) -> str:
    """Return a run as one line of a shell."""
    return " ".join([f"{name}={value}" for name, value in run.variables.items()] + run.command(device))


def score(trainer: str, baseline: str, records: Sequence[RunRecord]) -> Evaluation:
    """Return the evaluation of the recorded seeds of a trainer, beside the same seeds of the baseline."""
    ours = [record for record in records if record.trainer == trainer]
    seeds = {record.seed for record in ours}
    versus = [record for record in records if record.trainer == baseline and record.seed in seeds]
    return evaluation_of(ours, versus if trainer != baseline else ())


def rows_of(evaluation: Evaluation, trainer: str, seeds: Sequence[int]) -> list[tuple[str, ...]]:
    """Return a row for each structure and one for their mean."""
    tests = {test.structure: test for test in evaluation.comparisons() if test.metric == "Dice"}
    rows = [row for row in evaluation.overall if row.structure is not None or len(evaluation.structures) > 1]
    return [
        (
            trainer,
            ", ".join(map(str, seeds)),
            row.structure or "mean",
            *dice_cells(row),
            *test_cells(tests.get(row.structure)),
        )
        for row in rows
    ]


def dice_cells(row: Row) -> tuple[str, str]:
    """Return mean ± sd over cases, and the bootstrap interval of the mean, in percent."""
    dice = row.summaries["Dice"]
    return (
        f"{number(100 * dice.mean, 1)} ± {number(100 * dice.sd, 1)}",
        f"{number(100 * dice.ci_low, 1)} to {number(100 * dice.ci_high, 1)}",
    )


def test_cells(comparison: Comparison | None) -> tuple[str, str, str]:
    """Return the median difference in percent, p over cases, and p over trainings where there are several."""
    if comparison is None:
        return "", "", ""
    difference, p = comparison.test.median_difference, (comparison.test.p_value, comparison.p_value_runs)
    return number(100 * difference, 1, sign=True), *("" if math.isnan(each) else f"{each:.4f}" for each in p)


def line_of(record: RunRecord) -> str:
    """Return what a run was made with, its time, and the Dice on validation patches, for A&D that of all decoders."""
    means = {name: record.second_half(name) for name in DECODERS if name in record.curves}
    told = ", ".join(f"{name} {100 * mean:.1f}" for name, mean in means.items())
    return (
        f"- {record.trainer}, seed {record.seed}: validation patches, second half of training: {told}; "
        f"{record.minutes:g} minutes; {record.made_with}"
    )


if __name__ == "__main__":
    main()
