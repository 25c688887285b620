"""The cases to rank: the unlabelled ones of the fold, or a folder of images. No label is opened in either case."""

from pathlib import Path

from nnunet_ad.data.dataset import UnlabeledDataset
from nnunet_ad.data.folds import check_fold_exists
from nnunet_ad.data.images import check_no_image_is_left_out, images_of_folder
from nnunet_ad.data.preprocessed import UnlabeledPreprocessing
from nnunet_ad.data.preprocessing import preprocess_unlabeled
from nnunet_ad.data.unlabeled import DatasetFolders, Log, prepare_unlabeled, preprocessing_of
from nnunet_ad.ranking.model import TrainedModel


def cases_of_fold(model: TrainedModel, configuration: str, fold: int | str, apart: Path, log: Log) -> UnlabeledDataset:
    """Return the unlabelled cases of the fold as training uses them; what is not preprocessed yet is now.

    Where one of them lies there as other plans made it, other trainings may be using it: then all are preprocessed
    apart.

    Args:
        model: The training.
        configuration: Its configuration.
        fold: Its fold.
        apart: Folder of cases that are preprocessed apart.
        log: Takes each line for the user.

    Raises:
        ValueError: If the fold has no unlabelled case or names unknown ones, or if a case can't be read.
    """
    predictor = model.predictor
    folders = DatasetFolders.of(predictor.plans_manager.dataset_name)
    check_fold_exists(fold, folders.preprocessed)
    preprocessing = preprocessing_of(folders, predictor.plans_manager, configuration, predictor.dataset_json)
    return prepare_unlabeled(folders, preprocessing, fold, (), (), log, apart=apart)


def cases_of_folder(model: TrainedModel, configuration: str, images: Path, preprocessed: Path) -> UnlabeledDataset:
    """Preprocess the images of a folder, as far as they are not yet.

    All are preprocessed before the first is predicted, so that an unreadable one is found at once.

    Args:
        model: The training.
        configuration: Its configuration.
        images: Folder of images, named ``CASE_0000`` and so on as nnU-Net's.
        preprocessed: Folder for what is made of them.

    Raises:
        ValueError: If the folder is missing or has no image, or if a case lacks a channel or can't be read.
    """
    predictor = model.predictor
    files = image_files(images, predictor.dataset_json)
    preprocessing = UnlabeledPreprocessing(predictor.plans_manager, configuration, predictor.dataset_json, preprocessed)
    preprocess_unlabeled(preprocessing, files)
    return UnlabeledDataset(preprocessing.folder, list(files), with_mask=False)


def image_files(folder: Path, dataset_json: dict) -> dict[str, list[Path]]:
    """Return the image files of each case of a folder, see :func:`images_of_folder`.

    Raises:
        ValueError: If the folder is missing or has no image, if a case has not the files of the model's channels, or if
            an image file has another ending than the model's or is a link to nothing.
    """
    if not folder.is_dir():
        raise ValueError(f"the folder of images {folder} does not exist")
    ending = dataset_json["file_ending"]
    check_no_image_is_left_out(folder, ending, "the images that the model was trained on")
    cases = images_of_folder(folder, dataset_json, "the model was trained on")
    if not cases:
        raise ValueError(f"{folder} has no image; expected files named CASE_0000{ending}, as in imagesTr/")
    return cases
