"""Evaluates folders of predictions against a folder of references."""

from collections.abc import Sequence
from pathlib import Path

from nnunet_ad.conversion.sidecar import UNSPECIFIED
from nnunet_ad.evaluation.cases import Pairing, find_cases, pair_cases
from nnunet_ad.evaluation.dataset import DatasetDescription, read_dataset
from nnunet_ad.evaluation.labels import LabelDefinition, labels_of_values
from nnunet_ad.evaluation.protocol import DEFAULT, Protocol
from nnunet_ad.evaluation.result import NO_DOMAIN, CaseScores, Evaluation, Run
from nnunet_ad.evaluation.scoring import find_label_values, score_cases
from nnunet_ad.parallel import Workers


def evaluate(
    predictions: Sequence[Path],
    references: Path,
    dataset: str | None = None,
    protocol: Protocol = DEFAULT,
    versus: Sequence[Path] = (),
    allow_missing: bool = False,
    processes: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Score every case of one or several runs of a method, and of a second method if one is given.

    Args:
        predictions: one folder of label maps for each run (seed, fold …) of the method.
        references: folder of the references, with the same file names.
        dataset: number, name or folder of the nnU-Net dataset that names the labels and the domains. Without it, each
            value found in the references is a structure.
        protocol: the conventions of the numbers.
        versus: folders of a second method's runs, for a paired test.
        allow_missing: score what is there if cases lack a prediction or a reference; the result says which.
        processes: parallel processes; by default one a core, at most eight. Above one, processes are spawned, so a
            script that calls this needs ``if __name__ == "__main__":``.
        progress: show a progress bar.

    Raises:
        ValueError: no predictions or twice the same, a folder or file is missing or cannot be read, a case is missing,
            grids differ, or a label is unknown.
        OSError: a worker process was killed.
    """
    if not predictions:
        raise ValueError("no folder of predictions was given.")
    folders = [Path(folder) for folder in (*predictions, *versus)]
    names = run_names(folders)
    pairings = [pair_cases(folder, Path(references), allow_missing) for folder in folders]
    description = read_dataset(dataset) if dataset is not None else None
    with Workers(processes, progress) as workers:
        labels = description.labels if description else _labels_in(Path(references), workers)
        runs = _score(names, pairings, labels, protocol, workers)
    first_versus = len(predictions)
    return Evaluation(
        protocol=protocol,
        dataset=description.name if description else None,
        structures=labels.structures,
        domains=_domains(description, runs[:first_versus]),
        runs=tuple(runs[:first_versus]),
        versus=tuple(runs[first_versus:]),
    )


def run_names(folders: Sequence[Path]) -> list[str]:
    """Return short names that tell folders apart: the last part of each path, or as many as it takes.

    Raises:
        ValueError: a folder is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    for index, part in enumerate(parts):
        if part in parts[:index]:
            raise ValueError(f"{folders[index]} was given twice; each run or method needs a folder of its own.")
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
    return ["/".join(part[-length:]) for part in parts]


def _labels_in(references: Path, workers: Workers) -> LabelDefinition:
    return labels_of_values(find_label_values(list(find_cases(references).values()), workers))


def _score(
    names: Sequence[str],
    pairings: Sequence[Pairing],
    labels: LabelDefinition,
    protocol: Protocol,
    workers: Workers,
) -> list[Run]:
    """Score the cases of all runs in one go, so that no process idles between runs."""
    pairs = [pair for pairing in pairings for pair in pairing.pairs]
    scores = iter(score_cases(pairs, labels, protocol, workers))
    return [
        Run(
            name=name,
            cases=tuple(CaseScores(pair.case, tuple(next(scores))) for pair in pairing.pairs),
            missing=pairing.missing,
            extra=pairing.extra,
        )
        for name, pairing in zip(names, pairings, strict=True)
    ]


def _domains(description: DatasetDescription | None, runs: Sequence[Run]) -> dict[str, str]:
    """Return the domain of each scored case, or nothing where the dataset states no domains."""
    if description is None:
        return {}
    cases = {scored.case for run in runs for scored in run.cases}
    stated = {case: domain for case, domain in description.domains.items() if domain != UNSPECIFIED}
    return {case: stated.get(case, NO_DOMAIN) for case in sorted(cases)} if cases & stated.keys() else {}
