"""From a fold to its unlabelled cases, preprocessed and ready to load."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ad.data.dataset import UnlabeledDataset
from nnunet_ad.data.folds import UNLABELED_IMAGES, check_cases_exist, named_unlabeled, unlabeled_cases_of_fold
from nnunet_ad.data.images import training_images, unlabeled_images
from nnunet_ad.data.preprocessing import (
    UnlabeledPreprocessing,
    preprocess_unlabeled,
    preprocessed_otherwise,
    remember_images,
    usable_cases,
)

Log = Callable[[str], None]


@dataclass(frozen=True)
class DatasetFolders:
    """Where one dataset lies.

    Attributes:
        name: ``DatasetXXX_Name``.
        preprocessed: Its folder in ``nnUNet_preprocessed``.
        raw: Its folder in ``nnUNet_raw``; ``None`` where that variable is not set or has no images of the dataset.
    """

    name: str
    preprocessed: Path
    raw: Path | None

    @classmethod
    def of(cls, name: str) -> "DatasetFolders":
        """Look a dataset up in nnU-Net's path variables."""
        raw = Path(nnUNet_raw.get()) / name if nnUNet_raw.is_set() else None
        return cls(name, Path(nnUNet_preprocessed.require()) / name, raw if raw and _has_images(raw) else None)


def _has_images(raw_dataset: Path) -> bool:
    if any((raw_dataset / folder).is_dir() for folder in (UNLABELED_IMAGES, "imagesTr")):
        return True
    file = raw_dataset / "dataset.json"  # which may list images that lie elsewhere
    return file.is_file() and "dataset" in json.loads(file.read_text())


def preprocessing_of(
    folders: DatasetFolders, plans: PlansManager, configuration: str, dataset_json: dict
) -> UnlabeledPreprocessing:
    """Return how and where the unlabelled cases of a configuration are preprocessed."""
    identifier = plans.get_configuration(configuration).data_identifier
    return UnlabeledPreprocessing(plans, configuration, dataset_json, folders.preprocessed / f"{identifier}_unlabeled")


def images_to_preprocess(folders: DatasetFolders, dataset_json: dict) -> dict[str, list[Path]]:
    """Return the image files of all cases that some fold uses without label.

    Args:
        folders: Of a dataset whose raw folder is there.
        dataset_json: Its dataset.json.

    Raises:
        ValueError: If a fold names a case that has no images.
    """
    assert folders.raw is not None
    images = unlabeled_images(folders.raw, dataset_json)
    folds = named_unlabeled(folders.preprocessed)
    with_label_file = set().union(*folds) - set(images)
    if with_label_file:
        training = training_images(folders.raw, dataset_json)
        for fold, named in enumerate(folds):
            check_cases_exist(fold, named, training | images, f"{UNLABELED_IMAGES}/ or imagesTr/ of {folders.raw}")
        images |= {case: training[case] for case in with_label_file}
    return images


def prepare_unlabeled(
    folders: DatasetFolders,
    preprocessing: UnlabeledPreprocessing,
    fold: int | str,
    train: Sequence[str],
    val: Sequence[str],
    log: Log,
    apart: Path | None = None,
) -> UnlabeledDataset:
    """Return the unlabelled cases of a fold as a dataset, preprocessing first what is missing or stale.

    No label is opened: unlabelled cases are read from images alone, also those that have a label in ``labelsTr/``.

    Args:
        folders: Of the dataset.
        preprocessing: How the cases are preprocessed, and where they go.
        fold: Number of the fold, or ``"all"``.
        train: Labelled training cases of the fold.
        val: Validation cases of the fold.
        log: Takes each line for the user.
        apart: Folder for all of the cases where other plans made one of those that lie there, which other trainings may
            be reading; ``None`` makes these anew.

    Raises:
        ValueError: If the fold has no unlabelled case, names unknown or doubly used ones, or if a case can't be read.
    """
    images = {} if folders.raw is None else unlabeled_images(folders.raw, preprocessing.dataset_json)
    in_folder = list(images)
    usable = usable_cases(preprocessing) if folders.raw is None else {}

    def known_cases() -> list[str]:
        return (
            sorted(images)
            if folders.raw is not None
            else [c for c, source in usable.items() if source == UNLABELED_IMAGES]
        )

    cases = unlabeled_cases_of_fold(fold, train, val, folders.preprocessed, folders.raw, known_cases)
    log(f"{len(cases)} unlabelled cases: {', '.join(cases[:5])}{' …' if len(cases) > 5 else ''}")

    if folders.raw is None:
        log("The raw dataset is not here (nnUNet_raw): unlabelled cases are used as they were preprocessed.")
        where = f"{preprocessing.folder}, or are stale there (to preprocess them, set nnUNet_raw to the raw data)"
        check_cases_exist(fold, cases, usable, where)
    else:
        with_label_file = sorted(set(cases) - set(images))
        if with_label_file:
            images = training_images(folders.raw, preprocessing.dataset_json) | images
            check_cases_exist(fold, cases, images, f"{UNLABELED_IMAGES}/ or imagesTr/ of {folders.raw}")
            log(
                f"NOTE: {len(with_label_file)} unlabelled case(s) of this fold are in imagesTr/. Training does not "
                "open their labels, but nnU-Net's planning has seen them."
            )
        if apart is not None and (others := preprocessed_otherwise(preprocessing, cases)):
            log(
                f"{len(others)} unlabelled case(s) are preprocessed by other plans: all are preprocessed apart for now."
            )
            preprocessing = replace(preprocessing, folder=apart)
        done = preprocess_unlabeled(preprocessing, {case: images[case] for case in cases})
        remember_images(preprocessing, in_folder)
        log(f"Preprocessed {len(done)} unlabelled case(s) now, {len(cases) - len(done)} were there already.")
    return UnlabeledDataset(preprocessing.folder, cases, preprocessing.keeps_mask)
