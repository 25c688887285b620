"""``nnunet_ad import-weights``: start a training of nnUNetTrainerAD from weights of another training."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_ad.model_sharing.import_weights import Import, Target

PLANS, CONFIGURATION = "nnUNetPlans", "3d_fullres"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command to the command line."""
    parser = subparsers.add_parser(
        "import-weights",
        help="make -pretrained_weights for nnUNetTrainerAD of another checkpoint",
        description="Fill the network of nnUNetTrainerAD from a checkpoint of stock nnU-Net with the same plans, of "
        "nnUNetTrainerAD with other classes or switches, or of an exported model, wherever shapes agree, for "
        "nnUNetv2_train -tr nnUNetTrainerAD -pretrained_weights OUT.pth.",
    )
    parser.add_argument(
        "source", metavar="CHECKPOINT.pth", type=Path, help="checkpoint, such as …/checkpoint_final.pth"
    )
    parser.add_argument(
        "output", metavar="OUT.pth", type=Path, help="the file to write; replaced only if written by this command"
    )
    parser.add_argument(
        "-d",
        metavar="DATASET",
        dest="dataset",
        help="dataset to train on (default: plans and labels in the checkpoint)",
    )
    parser.add_argument("-p", metavar="PLANS", dest="plans", help=f"with -d (default: {PLANS})")
    parser.add_argument("-c", metavar="CONFIGURATION", dest="configuration", help=f"with -d (default: {CONFIGURATION})")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the file and say what was filled and what was left; return 0.

    Raises:
        RuntimeError: nnU-Net does not know the dataset or the configuration.
        ValueError: The checkpoint does not fit, or the file must not be replaced; one sentence for the user.
        OSError: A file cannot be read or written.
    """
    from nnunet_ad.model_sharing.import_weights import import_weights

    found = import_weights(arguments.source, arguments.output, _target(arguments))
    _print(found)
    print(f"Written: {arguments.output}")
    print(f"To train: nnUNetv2_train … -tr nnUNetTrainerAD -pretrained_weights {arguments.output}")
    return 0


def _target(arguments: argparse.Namespace) -> "Target | None":
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    from nnunet_ad.model_sharing.import_weights import Target

    if arguments.dataset is None:
        if arguments.plans is not None or arguments.configuration is not None:
            raise ValueError("-p and -c are of a dataset's plans; name the dataset with -d, or leave them out.")
        return None
    name = maybe_convert_to_dataset_name(arguments.dataset)
    return Target.of_dataset(name, arguments.plans or PLANS, arguments.configuration or CONFIGURATION)


def _print(found: "Import") -> None:
    total = len(found.filled) + len(found.unknown) + len(found.other_shape)
    print(f"Filled {len(found.filled)} of {total} parameters of encoder and three decoders.")
    if len(found.filled) < total:
        print("Left as drawn:")
    for name, (own, there) in found.other_shape.items():
        print(f"  {name}: {own}, in the checkpoint {there}")
    for part in sorted({".".join(name.split(".")[:2]) for name in found.unknown}):
        count = sum(name.startswith(f"{part}.") for name in found.unknown)
        print(f"  {part}: {count} parameters that the checkpoint does not have")
