"""Image files of the cases that may be used without label."""

import re
from collections import defaultdict
from copy import deepcopy
from glob import escape
from pathlib import Path

from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_ad.data.folds import UNLABELED_IMAGES


def unlabeled_images(raw_dataset: Path, dataset_json: dict) -> dict[str, list[Path]]:
    """Return the image files of each case in ``imagesUnlabeled/``, see :func:`images_of_folder`.

    Raises:
        ValueError: As there, or if an image file has another ending than dataset.json's or is a link to nothing, or a
            case is called as another one's mask when preprocessed.
    """
    folder = raw_dataset / UNLABELED_IMAGES
    if not folder.is_dir():
        return {}
    check_no_image_is_left_out(folder, dataset_json["file_ending"])
    cases = images_of_folder(folder, dataset_json)
    for case in cases:
        if case.endswith("_seg") and case.removesuffix("_seg") in cases:
            raise ValueError(
                f"case {case} in {folder}: its preprocessed image would be called as the mask of "
                f"{case.removesuffix('_seg')}. Rename one of the two."
            )
    return cases


def images_of_folder(
    folder: Path, dataset_json: dict, declared_by: str = "dataset.json declares"
) -> dict[str, list[Path]]:
    """Return the image files of each case of a folder, sorted: one a channel, or one with all channels (RGB).

    Args:
        folder: The folder.
        dataset_json: Of the dataset, or of the training that is to predict the images.
        declared_by: What an error says of the number of channels.

    Raises:
        ValueError: If a file is not named ``CASE_0000`` and on, if the files of a case are not ``_0000`` and on without
            a gap, or more than dataset.json's channels.
    """
    ending, channels = dataset_json["file_ending"], num_channels(dataset_json)
    cases: dict[str, list[Path]] = {}
    for file in sorted(file for file in folder.glob(f"*{escape(ending)}") if file.is_file()):
        name = file.name.removesuffix(ending)
        case, _, channel = name.rpartition("_")
        if not case or not re.fullmatch(r"\d{4}", channel, re.ASCII):
            raise ValueError(
                f"{file}: expected the name of the case and the number of the channel, such as {name}_0000{ending}, as "
                "in imagesTr/. Rename the file or move it elsewhere."
            )
        cases.setdefault(case, []).append(file)
    for case, found in cases.items():
        expected = [folder / f"{case}_{channel:04d}{ending}" for channel in range(channels)]
        if found not in (expected, expected[:1]):
            raise ValueError(
                f"case {case} in {folder}: found {', '.join(file.name for file in found)}; {declared_by} "
                f"{channels} channel(s), so expected {', '.join(file.name for file in expected)}."
            )
    return cases


def check_no_image_is_left_out(folder: Path, ending: str, which_images: str = "all images of the dataset") -> None:
    """Check that :func:`images_of_folder` passes over no image of a folder.

    Args:
        folder: The folder.
        ending: The ending of the images that it returns.
        which_images: What an error calls those that have this ending.

    Raises:
        ValueError: An image file has another ending that nnU-Net knows, or is a link to nothing.
    """
    of_images = {ending, *(known for reader in LIST_OF_IO_CLASSES for known in reader.supported_file_endings)}
    for file in sorted(folder.iterdir()):
        if not any(file.name.lower().endswith(known) for known in of_images):
            continue
        if not file.exists():
            raise ValueError(f"{file} is a link to a file that is not there. Mend or remove the link.")
        if file.is_file() and not file.name.endswith(ending):
            raise ValueError(
                f"{file}: {which_images} end in {ending} (file_ending in dataset.json). Convert the file or "
                "move it elsewhere."
            )


def training_images(raw_dataset: Path, dataset_json: dict) -> dict[str, list[Path]]:
    """Return the image files of each case in ``imagesTr/``, one a channel, or those that dataset.json names.

    As nnU-Net finds them, but without the processes that it forks for it: a training has threads and handles signals.
    """
    if "dataset" in dataset_json:
        # The host makes the paths in the given dictionary absolute, which a trainer keeps and writes into checkpoints.
        named = get_filenames_of_train_images_and_targets(str(raw_dataset), deepcopy(dataset_json))
        return {case: [Path(file) for file in files["images"]] for case, files in named.items()}
    ending, cases = dataset_json["file_ending"], defaultdict(list)
    for file in sorted((raw_dataset / "imagesTr").glob(f"*{escape(ending)}")):
        if found := re.fullmatch(r"(.+)_\d{4}", file.name.removesuffix(ending), re.ASCII):
            cases[found[1]].append(file)
    return dict(cases)


def num_channels(dataset_json: dict) -> int:
    """Return the number of image channels that dataset.json declares."""
    return len(dataset_json.get("channel_names", dataset_json.get("modality", ())))
