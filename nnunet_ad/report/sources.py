"""Finds what a report can be made from: predictions, references, images, and what the dataset says of them."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ad.evaluation.cases import ENDINGS, find_cases
from nnunet_ad.evaluation.dataset import DATASET_JSON, SIDECAR_JSON, find_dataset, read_dataset
from nnunet_ad.json_file import read_json

SPLITS_JSON, PLANS_JSON = "splits_final.json", "plans.json"


@dataclass(frozen=True)
class Sources:
    """Where the parts of a report come from; None or empty where there is nothing.

    Attributes:
        folder: what the user named.
        name: of the dataset, or of the folder of predictions.
        training: whether ``folder`` is a training (``…/fold_0``), not a folder of predictions.
        predictions: folder of label maps to score.
        references: folder of reference label maps.
        dataset: folder with the ``dataset.json`` that names the structures.
        images: folders in which images of the cases may lie.
        expected: cases that the training should have predicted.
        trained_on: cases whose labels the model may have learned from.
        validation: what the dataset's sidecar says of its validation cases, or "".
        spacing: of the patches of a training, in the order of their axes, or empty.
    """

    folder: Path
    name: str
    training: bool
    predictions: Path | None
    references: Path | None
    dataset: Path | None
    images: tuple[Path, ...]
    expected: frozenset[str] = frozenset()
    trained_on: frozenset[str] = frozenset()
    validation: str = ""
    spacing: tuple[float, ...] = ()

    def image_of(self, case: str) -> Path | None:
        """Return the file of a case's first channel, or None."""
        names = (f"{case}{channel}{ending}" for channel in ("_0000", "") for ending in ENDINGS)
        candidates = (folder / name for name in names for folder in self.images)
        return next((path for path in candidates if path.is_file()), None)


def find_sources(
    folder: Path, references: Path | None = None, dataset: str | None = None, images: Path | None = None
) -> Sources:
    """Return where the parts of a report come from.

    Args:
        folder: a training, ``…/Trainer__Plans__Configuration/fold_0``, or a folder of predictions.
        references: folder of references; for a training by default those that nnU-Net keeps beside its data.
        dataset: number, name or folder of the dataset; for a training by default the one it names.
        images: folder of images, by default those of the dataset.

    Raises:
        ValueError: a folder does not exist or is none of the two kinds, or predictions come without references.
    """
    for given in (folder, references, images):
        if given is not None and not given.is_dir():
            raise ValueError(f"{given} is not a folder.")
    if _is_training(folder):
        return _of_training(folder, references, dataset, images)
    folds = sorted(path.name for path in folder.glob("fold_*/"))
    if folds:
        raise ValueError(f"{folder} holds {len(folds)} trainings; pass one of them: {', '.join(folds)}.")
    return _of_predictions(folder, references, dataset, images)


def _is_training(folder: Path) -> bool:
    return folder.resolve().name.startswith("fold_") and (folder.resolve().parent / PLANS_JSON).is_file()


def _of_training(folder: Path, references: Path | None, dataset: str | None, images: Path | None) -> Sources:
    model, fold = folder.resolve().parent, folder.resolve().name.removeprefix("fold_")
    plans = read_json(model / PLANS_JSON)
    name = str(plans.get("dataset_name", model.parent.name))
    preprocessed = _in_variable("nnUNet_preprocessed", name)
    raw = _folder_of(dataset) if dataset is not None else _in_variable("nnUNet_raw", name)
    train, val = _split(_first([each / SPLITS_JSON for each in (preprocessed, raw) if each]), fold)
    predictions = folder / "validation"
    if fold == "all" and _has_label_maps(predictions):  # nnU-Net trains and validates on every case then
        train = frozenset(find_cases(predictions))
    known = [each for each in (raw, preprocessed, model) if each and (each / DATASET_JSON).is_file()]
    kept = [preprocessed / "gt_segmentations"] if preprocessed else []
    kept += [raw / "labelsTr"] if raw else []
    return Sources(
        folder=folder,
        name=name,
        training=True,
        predictions=predictions if _has_label_maps(predictions) else None,
        references=references or _first(kept),
        dataset=known[0] if known else None,
        images=_image_folders(images, raw),
        expected=val,
        trained_on=train,
        validation=_validation(raw),
        spacing=_spacing(plans, model),
    )


def _of_predictions(folder: Path, references: Path | None, dataset: str | None, images: Path | None) -> Sources:
    cases = find_cases(folder).keys()
    raw = _folder_of(dataset) if dataset is not None else None
    references = references or (_references_in(raw, cases) if raw else None)
    if references is None:
        raise ValueError(
            f"{folder} holds predictions, and without references there is nothing to say how good they are; "
            "pass the folder of references with -r."
        )
    planned = _in_variable("nnUNet_preprocessed", raw.name) if raw else None
    splits = _first(place / SPLITS_JSON for place in (planned, raw) if place)
    return Sources(
        folder=folder,
        name=raw.name if raw else folder.resolve().name,
        training=False,
        predictions=folder,
        references=references,
        dataset=raw,
        images=_image_folders(images, raw),
        trained_on=_trained_on_in_any_fold(splits) if splits else frozenset(),
    )


def _folder_of(dataset: str) -> Path:
    """Return the folder of a dataset given by number, name or folder, all of which `read_dataset` checks."""
    read_dataset(dataset)
    return find_dataset(dataset).resolve()


def _in_variable(variable: str, name: str) -> Path | None:
    root = os.environ.get(variable)
    folder = Path(root) / name if root else None
    return folder if folder and folder.is_dir() else None


def _first(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def _has_label_maps(folder: Path) -> bool:
    return folder.is_dir() and any(path.name.lower().endswith(ENDINGS) for path in folder.iterdir())


def _references_in(raw: Path, cases: Iterable[str]) -> Path | None:
    """Return the dataset's folder of labels that has one of the cases."""
    folders = [raw / name for name in ("labelsTs", "labelsTr")]
    return next(
        (each for each in folders if _has_label_maps(each) and not find_cases(each).keys().isdisjoint(cases)), None
    )


def _image_folders(images: Path | None, raw: Path | None) -> tuple[Path, ...]:
    if images is not None:
        return (images,)
    return tuple(raw / name for name in ("imagesTr", "imagesTs")) if raw else ()


def _split(file: Path | None, fold: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the training and validation cases of a fold; empty if unknown."""
    splits = read_json(file, list) if file is not None else []
    if not fold.isdecimal() or int(fold) >= len(splits):
        return frozenset(), frozenset()
    return frozenset(splits[int(fold)].get("train", ())), frozenset(splits[int(fold)].get("val", ()))


def _trained_on_in_any_fold(file: Path) -> frozenset[str]:
    return frozenset(case for split in read_json(file, list) for case in split.get("train", ()))


def _validation(raw: Path | None) -> str:
    sidecar = raw / SIDECAR_JSON if raw else None
    if sidecar is None or not sidecar.is_file():
        return ""
    protocol = read_json(sidecar).get("protocol", {})
    return str(protocol.get("validation", "")) if isinstance(protocol, dict) else ""


def _spacing(plans: dict[str, Any], model: Path) -> tuple[float, ...]:
    """Return the voxel spacing of the configuration, in mm along the axes of the preprocessed data."""
    configuration = model.name.rsplit("__", 1)[-1]
    found = plans.get("configurations", {}).get(configuration, {})
    while "spacing" not in found and "inherits_from" in found:
        found = plans["configurations"].get(found["inherits_from"], {})
    return tuple(float(each) for each in found.get("spacing", ()))
