"""``nnunet_ad preprocess-unlabeled``: preprocess unlabelled cases ahead of the first training."""

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        "preprocess-unlabeled",
        help="preprocess the unlabelled cases ahead of training",
        description="Preprocess every case of imagesUnlabeled/, and those of imagesTr/ that a fold names as "
        "unlabelled, for some configurations. The first training would do it as well; this is for machines on which "
        "preprocessing and training are apart.",
    )
    parser.add_argument(
        "-d", dest="datasets", metavar="DATASET", nargs="+", required=True, help="dataset numbers or names"
    )
    parser.add_argument(
        "-c",
        dest="configurations",
        metavar="CONFIGURATION",
        nargs="+",
        default=["3d_fullres"],
        help="default: 3d_fullres",
    )
    parser.add_argument(
        "-p", dest="plans", metavar="PLANS", default="nnUNetPlans", help="name of the plans; default: nnUNetPlans"
    )
    parser.add_argument(
        "-np", dest="num_processes", metavar="N", type=int, default=None, help="worker processes; default: nnU-Net's"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Preprocess what is missing or stale; return 0.

    Raises:
        RuntimeError: If nnU-Net does not know the dataset or the configuration.
        ValueError: If plans, the dataset.json beside them or the raw folder are missing, or if a case can't be read.
    """
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_ad.data.folds import dataset_number
    from nnunet_ad.data.images import unlabeled_images
    from nnunet_ad.data.preprocessed import remember_images
    from nnunet_ad.data.preprocessing import preprocess_unlabeled
    from nnunet_ad.data.unlabeled import DatasetFolders, images_to_preprocess, preprocessing_of
    from nnunet_ad.json_file import read_json

    for dataset in arguments.datasets:
        folders = DatasetFolders.of(maybe_convert_to_dataset_name(dataset))
        if folders.raw is None:
            raise ValueError(f"{folders.name} is not in nnUNet_raw, from where unlabelled images are read")
        files = [folders.preprocessed / name for name in (f"{arguments.plans}.json", "dataset.json")]
        for file in files:
            if not file.is_file():
                number = dataset_number(folders.name)
                raise ValueError(f"there is no {file}; run nnUNetv2_plan_and_preprocess -d {number} first")
        settings, dataset_json = (read_json(file) for file in files)
        plans = PlansManager(settings)
        in_folder = unlabeled_images(folders.raw, dataset_json)
        images = images_to_preprocess(in_folder, folders.raw, folders.preprocessed, dataset_json)
        for configuration in arguments.configurations:
            preprocessing = preprocessing_of(folders, plans, configuration, dataset_json)
            done = preprocess_unlabeled(preprocessing, images, arguments.num_processes or default_num_processes)
            remember_images(preprocessing, folders.raw, in_folder)
            where = _tail(preprocessing.folder)
            print(f"{folders.name} {configuration}: {len(done)} of {len(images)} preprocessed now, in {where}")
    return 0


def _tail(folder: Path) -> Path:
    return Path(*folder.parts[-2:])
