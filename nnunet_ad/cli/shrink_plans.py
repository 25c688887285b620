"""``nnunet_ad shrink-plans``: smaller plans beside those of a planned dataset, for machines without a large GPU."""

import argparse
import json
import os
import re
from glob import escape
from pathlib import Path

VARIABLE = "nnUNet_preprocessed"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command to the command line."""
    parser = subparsers.add_parser(
        "shrink-plans",
        help="write plans with sizes of your own, such as small ones for a CPU",
        description="Write plans with features, patch and batch of your own beside those of a planned dataset, such as "
        "small ones for training on a CPU; train with -p. The preprocessed data are shared with the original plans. To "
        "change a second configuration of plans that this command wrote, name them twice: -p PLANS -o PLANS.",
    )
    parser.add_argument("-d", metavar="DATASET", dest="dataset", required=True, help="number or name of the dataset")
    parser.add_argument(
        "-c",
        metavar="CONFIGURATION",
        dest="configuration",
        default="3d_fullres",
        help="configuration to change (default: 3d_fullres)",
    )
    parser.add_argument(
        "-p", metavar="PLANS", dest="source", default="nnUNetPlans", help="plans to start from (default: nnUNetPlans)"
    )
    parser.add_argument(
        "-o",
        metavar="PLANS",
        dest="name",
        default="nnUNetPlansSmall",
        help="name of the new plans; replaced only if written by this command (default: nnUNetPlansSmall)",
    )
    parser.add_argument("--features", type=int, default=16, help="features of the first stage (default: 16)")
    parser.add_argument("--patch", type=int, nargs="+", required=True, help="patch size in voxels, slowest axis first")
    parser.add_argument("--batch", type=int, default=2, help="patches per batch (default: 2)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the plans, print their path and the sizes in them.

    Raises:
        ValueError: The dataset is not planned, the plans cannot be shrunk so, or others would be replaced; one
            sentence for the user.
        OSError: The plans do not exist or cannot be written.
    """
    from nnunet_ad.planning.small_plans import write_small_plans

    path = write_small_plans(
        _preprocessed_folder(arguments.dataset),
        arguments.configuration,
        arguments.features,
        arguments.patch,
        arguments.batch,
        arguments.name,
        arguments.source,
    )
    print(f"Written: {path}")
    settings = json.loads(path.read_text(encoding="utf-8"))["configurations"][arguments.configuration]
    rounded = ", rounded up so that every stage halves evenly" if settings["patch_size"] != arguments.patch else ""
    print(f"Patch {' x '.join(map(str, settings['patch_size']))} voxels{rounded}; batch {settings['batch_size']}")
    return 0


def _number_of(dataset: str) -> str:
    """Return a dataset's number for nnU-Net's command, which takes no name."""
    match = re.match(r"(?:Dataset)?(\d+)", dataset)
    return str(int(match.group(1))) if match else "NUMBER"


def _preprocessed_folder(dataset: str) -> Path:
    if not os.environ.get(VARIABLE):
        raise ValueError(f"the environment variable {VARIABLE} is not set; set it to nnU-Net's preprocessed folder")
    preprocessed = Path(os.environ[VARIABLE])
    name, pattern = dataset, escape(dataset)
    if dataset.isdecimal():
        name = pattern = f"Dataset{int(dataset):03d}_*"
    found = sorted(folder for folder in preprocessed.glob(pattern) if folder.is_dir())
    if len(found) != 1:
        names = ", ".join(folder.name for folder in found) or "none"
        raise ValueError(
            f"expected one folder {name} in {VARIABLE}, found {names}; plan the dataset first with "
            f"nnUNetv2_plan_and_preprocess -d {_number_of(dataset)}"
        )
    return found[0]
