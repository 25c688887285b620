"""From a fold to its unlabelled cases, preprocessed and ready to load."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ad.data.dataset import UnlabeledDataset
from nnunet_ad.data.folds import UNLABELED_IMAGES, check_cases_exist, named_unlabeled, unlabeled_cases_of_fold
from nnunet_ad.data.images import training_images, unlabeled_images
from nnunet_ad.data.preprocessed import (
    UnlabeledPreprocessing,
    preprocessed_otherwise,
    remember_images,
    usable_cases,
)
from nnunet_ad.data.preprocessing import preprocess_unlabeled

Log = Callable[[str], None]


@dataclass(frozen=True)
class DatasetFolders:
    """Where one dataset lies.

    Attributes:
        name: ``DatasetXXX_Name``.
        preprocessed: Its folder in ``nnUNet_preprocessed``.
        raw: Its folder in ``nnUNet_raw``; ``None`` where that variable is not set or has no such dataset.
    """

    name: str
    preprocessed: Path
    raw: Path | None

    @classmethod
    def of(cls, name: str) -> "DatasetFolders":
        """Look a dataset up in nnU-Net's path variables."""
        raw = Path(nnUNet_raw.get()) / name if nnUNet_raw.is_set() else None
        return cls(name, Path(nnUNet_preprocessed.require()) / name, raw if raw is not None and raw.is_dir() else None)

    def raw_with_images(self, dataset_json: dict) -> Path | None:
        """Return ``raw``; ``None`` where it has no folder of images and dataset.json names none that lie elsewhere."""
        folders = (UNLABELED_IMAGES, "imagesTr")
        if self.raw is None or "dataset" in dataset_json or any((self.raw / name).is_dir() for name in folders):
            return self.raw
        return None


def preprocessing_of(
    folders: DatasetFolders, plans: PlansManager, configuration: str, dataset_json: dict
) -> UnlabeledPreprocessing:
    """Return how and where the unlabelled cases of a configuration are preprocessed."""
    identifier = plans.get_configuration(configuration).data_identifier
    return UnlabeledPreprocessing(plans, configuration, dataset_json, folders.preprocessed / f"{identifier}_unlabeled")


def images_to_preprocess(
    in_folder: dict[str, list[Path]], raw_dataset: Path, preprocessed_dataset: Path, dataset_json: dict
) -> dict[str, list[Path]]:
    """Return the image files of all cases that some fold uses without label.

    Args:
        in_folder: Image files of the cases in ``imagesUnlabeled/``, all of which are used.
        raw_dataset: ``nnUNet_raw/DatasetXXX_Name``.
        preprocessed_dataset: ``nnUNet_preprocessed/DatasetXXX_Name``; holds the splits that count.
        dataset_json: Content of dataset.json.

    Raises:
        ValueError: If a fold names a case that has no images.
    """
    return in_folder | _images_of(named_unlabeled(preprocessed_dataset), in_folder, raw_dataset, dataset_json)


def _images_of(
    named: Mapping[int | str, Sequence[str]],
    in_folder: dict[str, list[Path]],
    raw_dataset: Path,
    dataset_json: dict,
) -> dict[str, list[Path]]:
    """Return the image files of the unlabelled cases of each fold, which are ``in_folder`` or in ``imagesTr/``."""
    images, cases = in_folder, {case for names in named.values() for case in names}
    if not cases <= set(images):
        images = training_images(raw_dataset, dataset_json) | images
    for fold, names in named.items():
        check_cases_exist(fold, names, images, f"{UNLABELED_IMAGES}/ or imagesTr/ of {raw_dataset}")
    return {case: images[case] for case in sorted(cases)}


def prepare_unlabeled(
    folders: DatasetFolders,
    preprocessing: UnlabeledPreprocessing,
    fold: int | str,
    train: Sequence[str],
    val: Sequence[str],
    log: Log,
    apart: Path | None = None,
    between_cases: Callable[[], None] = lambda: None,
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
        between_cases: See :func:`nnunet_ad.data.preprocessing.preprocess_unlabeled`.

    Raises:
        ValueError: If the fold has no unlabelled case, names unknown or doubly used ones, or if a case can't be read.
    """
    raw, dataset_json = folders.raw_with_images(preprocessing.dataset_json), preprocessing.dataset_json
    in_folder = {} if raw is None else unlabeled_images(raw, dataset_json)
    usable = usable_cases(preprocessing) if raw is None else {}

    def known_cases() -> list[str]:
        return (
            sorted(in_folder) if raw is not None else [c for c, source in usable.items() if source == UNLABELED_IMAGES]
        )

    cases = unlabeled_cases_of_fold(fold, train, val, folders.preprocessed, folders.raw, known_cases)
    log(f"{len(cases)} unlabelled cases: {', '.join(cases[:5])}{' …' if len(cases) > 5 else ''}")

    if raw is None:
        log("The raw dataset is not here (nnUNet_raw): unlabelled cases are used as they were preprocessed.")
        where = (
            f"{preprocessing.folder}, are stale there (to preprocess them, set nnUNet_raw to the raw data), or were "
            f"taken out of {UNLABELED_IMAGES}/ since"
        )
        check_cases_exist(fold, cases, usable, where)
    else:
        images = _images_of({fold: cases}, in_folder, raw, dataset_json)
        with_label_file = set(images) - set(in_folder)
        if with_label_file:
            log(
                f"NOTE: {len(with_label_file)} unlabelled case(s) of this fold are in imagesTr/. Training does not "
                "open their labels, but nnU-Net's planning has seen them."
            )
        if apart is not None and (others := preprocessed_otherwise(preprocessing, cases)):
            log(
                f"{len(others)} unlabelled case(s) are preprocessed by other plans: all are preprocessed apart for now."
            )
            preprocessing = replace(preprocessing, folder=apart)
        done = preprocess_unlabeled(preprocessing, images, log=log, between_cases=between_cases)
        remember_images(preprocessing, raw, in_folder)
        log(f"Preprocessed {len(done)} unlabelled case(s) now, {len(cases) - len(done)} were there already.")
    return UnlabeledDataset(preprocessing.folder, cases, preprocessing.keeps_mask)
