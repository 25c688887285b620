"""The cases to rank: the unlabelled ones of the fold, or a folder of images. No label is opened in either case."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder

from nnunet_ad.data.dataset import UnlabeledDataset
from nnunet_ad.data.folds import check_fold_exists
from nnunet_ad.data.images import num_channels
from nnunet_ad.data.preprocessing import UnlabeledPreprocessing, preprocess_unlabeled
from nnunet_ad.data.unlabeled import DatasetFolders, Log, prepare_unlabeled
from nnunet_ad.ranking.model import TrainedModel


def cases_of_fold(model: TrainedModel, configuration: str, fold: int | str, log: Log) -> UnlabeledDataset:
    """Return the unlabelled cases of the fold as training uses them; what is not preprocessed yet is now.

    Args:
        model: The training.
        configuration: Its configuration.
        fold: Its fold.
        log: Takes each line for the user.

    Raises:
        ValueError: If the fold has no unlabelled case or names unknown ones, or if a case can't be read.
    """
    predictor = model.predictor
    folders = DatasetFolders.of(predictor.plans_manager.dataset_name)
    check_fold_exists(fold, folders.preprocessed)
    return prepare_unlabeled(folders, predictor.plans_manager, configuration, predictor.dataset_json, fold, (), (), log)


@contextmanager
def cases_of_folder(
    model: TrainedModel, configuration: str, images: Path, workspace: Path
) -> Iterator[UnlabeledDataset]:
    """Preprocess the images of a folder for as long as the context lasts.

    All are preprocessed before the first is predicted, so that an unreadable one is found at once.

    Args:
        model: The training.
        configuration: Its configuration.
        images: Folder of images, named ``CASE_0000`` and so on as nnU-Net's.
        workspace: Existing folder in which a temporary one is made.

    Raises:
        ValueError: If the folder is missing or has no image, or if a case lacks a channel or can't be read.
    """
    predictor = model.predictor
    files = image_files(images, predictor.dataset_json)
    with TemporaryDirectory(prefix=".preprocessed_", dir=workspace) as temporary:
        preprocessing = UnlabeledPreprocessing(
            predictor.plans_manager, configuration, predictor.dataset_json, Path(temporary) / "images"
        )
        preprocess_unlabeled(preprocessing, files)
        yield UnlabeledDataset(preprocessing.folder, list(files), with_mask=False)


def image_files(folder: Path, dataset_json: dict) -> dict[str, list[Path]]:
    """Return the image files of each case of a folder, one a channel.

    Raises:
        ValueError: If the folder is missing or has no image, or if a case has not one file for each channel.
    """
    ending, channels = dataset_json["file_ending"], num_channels(dataset_json)
    if not folder.is_dir():
        raise ValueError(f"the folder of images {folder} does not exist")
    found = [sorted(map(Path, files)) for files in create_lists_from_splitted_dataset_folder(str(folder), ending)]
    if not found:
        raise ValueError(f"{folder} has no image; expected files named CASE_0000{ending}, as in imagesTr/")
    cases = {files[0].name.removesuffix(ending)[: -len("_0000")]: files for files in found}
    for case, files in cases.items():
        expected = [f"{case}_{channel:04d}{ending}" for channel in range(channels)]
        names = [file.name for file in files]
        if names != expected:
            raise ValueError(
                f"case {case} in {folder}: found {', '.join(names)}; the model was trained on {channels} channel(s), "
                f"so expected {', '.join(expected)}."
            )
    return cases
