"""Image files of the cases that may be used without label."""

from glob import escape
from pathlib import Path

from nnunetv2.utilities.utils import (
    get_filenames_of_train_images_and_targets,
    get_identifiers_from_splitted_dataset_folder,
)

from nnunet_ad.data.folds import UNLABELED_IMAGES


def unlabeled_images(raw_dataset: Path, dataset_json: dict) -> dict[str, list[Path]]:
    """Return the image files of each case in ``imagesUnlabeled/``: one a channel, or one with all channels (RGB).

    Raises:
        ValueError: If the files of a case are not ``_0000`` and on without a gap, or more than dataset.json's channels.
    """
    folder = raw_dataset / UNLABELED_IMAGES
    if not folder.is_dir():
        return {}
    ending = dataset_json["file_ending"]
    cases = [str(case) for case in get_identifiers_from_splitted_dataset_folder(str(folder), ending)]
    return {case: _files_of_case(folder, case, ending, num_channels(dataset_json)) for case in cases}


def training_images(raw_dataset: Path, dataset_json: dict) -> dict[str, list[Path]]:
    """Return the image files of each case in ``imagesTr/``, one a channel."""
    if "dataset" not in dataset_json and not (raw_dataset / "imagesTr").is_dir():
        return {}
    cases = get_filenames_of_train_images_and_targets(str(raw_dataset), dataset_json)
    return {str(case): [Path(file) for file in files["images"]] for case, files in cases.items()}


def num_channels(dataset_json: dict) -> int:
    """Return the number of image channels that dataset.json declares."""
    return len(dataset_json.get("channel_names", dataset_json.get("modality", ())))


def _files_of_case(folder: Path, case: str, ending: str, channels: int) -> list[Path]:
    found = sorted(file for file in folder.glob(f"{escape(case)}_[0-9][0-9][0-9][0-9]{ending}"))
    expected = [folder / f"{case}_{channel:04d}{ending}" for channel in range(channels)]
    if found not in (expected, expected[:1]):
        raise ValueError(
            f"case {case} in {folder}: found {', '.join(file.name for file in found) or 'no file'}; dataset.json "
            f"declares {channels} channel(s), so expected {', '.join(file.name for file in expected)}."
        )
    return found
