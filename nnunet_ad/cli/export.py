"""``nnunet_ad export``: a trained model as a zip file, to give to others."""

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command to the command line."""
    parser = subparsers.add_parser(
        "export",
        help="write a trained model as a zip file with what inference needs only",
        description="Write a trained model as a zip file to give to others, who need nnU-Net only, and not this "
        "package. It holds what inference needs, and no name of a case, path or state of the training. "
        "nnUNetv2_install_pretrained_model_from_zip installs it.",
    )
    parser.add_argument("-d", metavar="DATASET", dest="dataset", required=True, help="number or name of the dataset")
    parser.add_argument(
        "-c", metavar="CONFIGURATION", dest="configurations", nargs="+", required=True, help="such as 3d_fullres"
    )
    parser.add_argument(
        "-f",
        metavar="FOLD",
        dest="folds",
        nargs="+",
        default=["0", "1", "2", "3", "4"],
        help='folds to export, numbers or "all" (default: 0 1 2 3 4)',
    )
    parser.add_argument(
        "-tr", metavar="TRAINER", dest="trainer", default="nnUNetTrainerAD", help="default: %(default)s"
    )
    parser.add_argument("-p", metavar="PLANS", dest="plans", default="nnUNetPlans", help="default: %(default)s")
    parser.add_argument(
        "-chk", metavar="CHECKPOINT", dest="checkpoint", default="checkpoint_final.pth", help="default: %(default)s"
    )
    parser.add_argument(
        "--own-network",
        action="store_true",
        help="write the network of this package, for who has it, too: the training's results to the bit, and on a CPU "
        "faster",
    )
    parser.add_argument("--half", action="store_true", help="weights of convolutions in half precision: half the size")
    parser.add_argument("-o", metavar="MODEL.zip", dest="output", type=Path, required=True, help="the file to write")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print how to install it and predict with it; return 0.

    Raises:
        RuntimeError: nnU-Net does not know the dataset.
        ValueError: A training is missing or not one of nnUNetTrainerAD; one sentence for the user.
        OSError: A file cannot be read or written.
    """
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    from nnunet_ad.model_sharing.export import Form, ModelName, export_model, postprocessing_of

    dataset = maybe_convert_to_dataset_name(arguments.dataset)
    model = ModelName(dataset, arguments.trainer, arguments.plans, arguments.checkpoint)
    form = Form(arguments.own_network, arguments.half)
    share = export_model(model, arguments.configurations, arguments.folds, arguments.output, form)
    size = arguments.output.stat().st_size / 1e6
    print(f"Written: {arguments.output} ({size:.1f} MB, {share:.0%} of the checkpoints of the training)")
    print(f"Who receives it needs {'this package' if form.own_network else 'nnU-Net only, not this package'}.")
    print(f"To install: nnUNetv2_install_pretrained_model_from_zip {arguments.output.name}")
    checkpoint = f" -chk {model.checkpoint}" if model.checkpoint != "checkpoint_final.pth" else ""
    for configuration in arguments.configurations:
        print(
            f"To predict: nnUNetv2_predict -d {dataset} -i IMAGES -o OUT -c {configuration} -tr {model.trainer} "
            f"-p {model.plans} -f {' '.join(arguments.folds)}{checkpoint}"
        )
    for file in postprocessing_of(model, arguments.configurations, arguments.folds):
        print(
            f"NOTE: nnU-Net's postprocessing for these folds, {file}, is not in {arguments.output.name}: it is a "
            "pickle, which can run code when it is loaded. Give it along for nnUNetv2_apply_postprocessing."
        )
    return 0
