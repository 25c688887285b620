"""Which cases a fold trains on: labelled, validation and unlabelled ones.

The splits are nnU-Net's ``splits_final.json`` with one more list a fold, ``"unlabeled"``. Training reads the copy in
the preprocessed folder, as nnU-Net does.
"""

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id

UNLABELED_KEY = "unlabeled"
UNLABELED_IMAGES = "imagesUnlabeled"
SPLITS_FILE = "splits_final.json"
_HOST_KEYS = ("train", "val")
NUM_HOST_FOLDS = 5  # of the splits that nnU-Net makes where there are none


def unlabeled_cases_of_fold(
    fold: int | str,
    train: Sequence[str],
    val: Sequence[str],
    preprocessed_dataset: Path,
    raw_dataset: Path | None,
    known_cases: Callable[[], Iterable[str]],
) -> list[str]:
    """Return the unlabelled cases of a fold, sorted.

    Args:
        fold: Number of the fold, or ``"all"``.
        train: Labelled cases that the fold trains on.
        val: Labelled cases that the fold validates on.
        preprocessed_dataset: ``nnUNet_preprocessed/DatasetXXX_Name``; holds the splits that count.
        raw_dataset: ``nnUNet_raw/DatasetXXX_Name``, or ``None`` where there is none; its splits are compared.
        known_cases: Called if the fold does not name its unlabelled cases; returns all of ``imagesUnlabeled/``.

    Raises:
        ValueError: If the raw splits name other unlabelled cases, if a case is both labelled and unlabelled in the
            fold, or if there is no unlabelled case.
    """
    splits_file = preprocessed_dataset / SPLITS_FILE
    named = None
    if fold != "all" and splits_file.is_file():
        named = read_splits(splits_file)[int(fold)].get(UNLABELED_KEY)
        _refuse_outdated_copy(int(fold), named, splits_file, raw_dataset)
    unlabeled = sorted(set(known_cases() if named is None else named))
    if not unlabeled:
        raise ValueError(
            f"fold {fold} of {preprocessed_dataset.name} has no unlabelled case, and nnUNetTrainerAD needs at least "
            f"one. Put images into {UNLABELED_IMAGES}/ of the raw dataset (same naming as imagesTr/), or train with "
            "nnUNetTrainer."
        )
    both = sorted(set(unlabeled) & {*train, *val})
    if both:
        them = "it" if len(both) == 1 else "them"
        remedy = f"Remove {them} from one of the lists in {splits_file}."
        if named is None:
            remedy = _remedy_of_images(both, splits_file, raw_dataset)
        raise ValueError(
            f"fold {fold} of {preprocessed_dataset.name}: {_listed(both)} both labelled (train or val) and "
            f"unlabelled. {remedy}"
        )
    return unlabeled


def named_unlabeled(preprocessed_dataset: Path) -> dict[int, list[str]]:
    """Return the unlabelled cases of each fold that names them; others use all of ``imagesUnlabeled/``."""
    splits_file = preprocessed_dataset / SPLITS_FILE
    splits = read_splits(splits_file) if splits_file.is_file() else []
    return {fold: split[UNLABELED_KEY] for fold, split in enumerate(splits) if UNLABELED_KEY in split}


def dataset_number(name: str) -> int:
    """Return the number of ``DatasetXXX_Name``, as most of nnU-Net's commands take no name."""
    return convert_dataset_name_to_id(name)


def preprocess_command(dataset: str, configuration: str, plans: str) -> str:
    """Return nnU-Net's command that preprocesses the labelled cases of a dataset."""
    return f"nnUNetv2_preprocess -d {dataset_number(dataset)} -c {configuration} -plans_name {plans}"


def check_preprocessed(folder: Path, dataset: str, configuration: str, plans: str) -> None:
    """Refuse a configuration that was planned but not preprocessed.

    Raises:
        ValueError: Says what to run.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{configuration} of {dataset} is not preprocessed by {plans}: there is no {folder}. Run "
            f"{preprocess_command(dataset, configuration, plans)}."
        )


def check_copy_of_splits(
    fold: int | str, preprocessed_dataset: Path, raw_dataset: Path | None, log: Callable[[str], None]
) -> None:
    """Compare the splits of the raw dataset with the copy that planning made, which alone training reads.

    Args:
        fold: Number of the fold, or ``"all"``, which needs no splits.
        preprocessed_dataset: ``nnUNet_preprocessed/DatasetXXX_Name``.
        raw_dataset: ``nnUNet_raw/DatasetXXX_Name``, or ``None`` where there is none.
        log: Takes a line where the copy has other labelled cases, as nnU-Net's users change it on purpose.

    Raises:
        ValueError: If there is no copy, as nnU-Net would draw folds of its own.
    """
    raw_file, copy = _splits_of_raw(raw_dataset), preprocessed_dataset / SPLITS_FILE
    if fold == "all" or raw_file is None:
        return
    if not copy.is_file():
        raise ValueError(
            f"{raw_file} was not there when the dataset was planned, and training reads a copy of it: copy it to "
            f"{copy}."
        )
    splits, raw_splits = read_splits(copy), read_splits(raw_file)
    if int(fold) < min(len(splits), len(raw_splits)):
        for name in _HOST_KEYS:
            if set(splits[int(fold)][name]) != set(raw_splits[int(fold)][name]):
                log(f"WARNING: {_differing(int(fold), name, raw_file, copy)}")


def check_fold_exists(fold: int | str, preprocessed_dataset: Path) -> None:
    """Refuse a fold number beyond the split file, where nnU-Net would draw a random split of its own.

    Raises:
        ValueError: If there is a split file and the fold is not in it.
    """
    splits_file = preprocessed_dataset / SPLITS_FILE
    if fold == "all" or not splits_file.is_file():
        return
    num_folds = len(read_splits(splits_file))
    if not 0 <= int(fold) < num_folds:
        raise ValueError(
            f"fold {fold} was asked for, but {splits_file} has {num_folds} fold(s), 0 to {num_folds - 1}. "
            'Ask for one of them or "all", or add the fold to that file.'
        )


def cases_in_no_fold(labeled: Iterable[str], unlabeled: Iterable[str], preprocessed_dataset: Path) -> list[str]:
    """Return the preprocessed labelled cases that no fold uses, as one that was annotated after the folds were drawn.

    Args:
        labeled: All preprocessed labelled cases.
        unlabeled: Unlabelled cases of the fold that is trained.
        preprocessed_dataset: ``nnUNet_preprocessed/DatasetXXX_Name``.
    """
    splits_file = preprocessed_dataset / SPLITS_FILE
    if not splits_file.is_file():
        return []
    used = {case for split in read_splits(splits_file) for cases in split.values() for case in cases}
    return sorted(set(labeled) - used - set(unlabeled))


def check_enough_for_folds(labeled: Collection[str], preprocessed_dataset: Path) -> None:
    """Refuse to let nnU-Net draw its five folds from fewer labelled cases than folds.

    Raises:
        ValueError: If there is no split file and there are fewer than five labelled cases.
    """
    if (preprocessed_dataset / SPLITS_FILE).is_file() or len(labeled) >= NUM_HOST_FOLDS:
        return
    train = json.dumps(sorted(labeled))
    raise ValueError(
        f"{preprocessed_dataset.name} has {len(labeled)} labelled case(s), too few for nnU-Net's {NUM_HOST_FOLDS} "
        f'folds. Write {preprocessed_dataset / SPLITS_FILE}, for example [{{"train": {train}, "val": {train}}}], '
        'or train fold "all".'
    )


def check_cases_exist(fold: int | str, cases: Iterable[str], existing: Iterable[str], where: str) -> None:
    """Refuse cases that a fold names and that are nowhere.

    Raises:
        ValueError: Names the cases and where they were looked for.
    """
    missing = sorted(set(cases) - set(existing))
    if missing:
        raise ValueError(
            f"fold {fold} names {len(missing)} case(s) that are not in {where}: {_shortened(missing)}. "
            f"Add their files or take them out of {SPLITS_FILE}."
        )


def check_labeled_cases(
    fold: int | str, train: Collection[str], val: Collection[str], existing: Iterable[str], preprocessed_folder: Path
) -> None:
    """Refuse a fold without training or validation case, or with one that is not preprocessed.

    Raises:
        ValueError: Names the list or the cases.
    """
    for name, cases in (("train", train), ("val", val)):
        if not cases:
            raise ValueError(
                f'"{name}" of fold {fold} is empty, and needs at least one labelled case. Add one in {SPLITS_FILE}; '
                'where no case can be kept aside, "val" may repeat those of "train".'
            )
    where = f"{preprocessed_folder} (preprocessed labelled cases)"
    check_cases_exist(fold, [*train, *val], existing, where)


def _refuse_outdated_copy(fold: int, named: Sequence[str] | None, splits_file: Path, raw_dataset: Path | None) -> None:
    raw_file = _splits_of_raw(raw_dataset)
    if raw_file is None:
        return
    raw_splits = read_splits(raw_file)
    raw_named = raw_splits[fold].get(UNLABELED_KEY) if fold < len(raw_splits) else None
    if (named is None) != (raw_named is None) or set(named or ()) != set(raw_named or ()):
        raise ValueError(_differing(fold, UNLABELED_KEY, raw_file, splits_file))


def _remedy_of_images(both: Sequence[str], splits_file: Path, raw_dataset: Path | None) -> str:
    if raw_dataset is None:
        return f"If labelled since, delete the .pkl file of each in {splits_file.parent}/*_unlabeled/."
    if not any(any((raw_dataset / "imagesTr").glob(f"{escape(case)}_0000.*")) for case in both):
        them = "it" if len(both) == 1 else "them"
        return (
            f"imagesTr/ has no image of {them} any more, but the preprocessed labelled cases and the folds do: take "
            f"{them} out of {splits_file} if it is there, and run nnUNetv2_preprocess again."
        )
    return f"{UNLABELED_IMAGES}/ and imagesTr/ have images of the same name: remove or rename one of the two."


def _splits_of_raw(raw_dataset: Path | None) -> Path | None:
    file = raw_dataset / SPLITS_FILE if raw_dataset is not None else None
    return file if file is not None and file.is_file() else None


def _differing(fold: int, name: str, raw_file: Path, copy: Path) -> str:
    return (
        f'fold {fold}: the "{name}" cases of {raw_file} and of its copy {copy} differ, and training reads the copy. If '
        "the raw file is right, copy it over the other; if the copy is right, change the raw file."
    )


def read_splits(file: Path) -> list[dict[str, list[str]]]:
    """Return the folds of a split file.

    Raises:
        ValueError: If it is no JSON, or no list of folds.
    """
    try:
        splits = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{file} is not valid JSON ({error}). Repair it, or delete it and plan again.") from error
    if not isinstance(splits, list) or not all(map(_is_fold, splits)):
        raise ValueError(f'{file} should be a list of folds [{{"train": […], "val": […], "unlabeled": […]}}, …].')
    return splits


def _is_fold(split: Any) -> bool:
    if not isinstance(split, dict) or not split.keys() >= set(_HOST_KEYS):
        return False
    lists = [split[name] for name in (*_HOST_KEYS, UNLABELED_KEY) if name in split]
    return all(isinstance(cases, list) and all(isinstance(case, str) for case in cases) for cases in lists)


def _listed(cases: Sequence[str]) -> str:
    return f"{cases[0]} is" if len(cases) == 1 else f"{_shortened(cases)} are"


def _shortened(cases: Sequence[str], most: int = 5) -> str:
    return ", ".join(cases[:most]) + (f" and {len(cases) - most} more" if len(cases) > most else "")
