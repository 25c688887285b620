"""``nnunet_ad plan``: plans whose patch and batch fit a GPU when this package's trainer uses them."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_ad.planning.memory_planner import Choice, MemoryPlans

PLANNERS = ("plain", "resenc_m", "resenc_l", "resenc_xl")
_ROW = "{:<14}{:<11}{:<18}{:>7}{:>13}"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command to the command line."""
    parser = subparsers.add_parser(
        "plan",
        help="write plans that fit a GPU with nnUNetTrainerAD",
        description="Choose patch and batch for the memory of nnUNetTrainerAD's train step, which nnU-Net's planners "
        "do not know, and write plans for -p. 2d and 3d_fullres share the preprocessed data of nnU-Net's plans.",
    )
    parser.add_argument("-d", metavar="DATASET", dest="dataset", required=True, help="number or name of the dataset")
    parser.add_argument(
        "-gpu_memory_target",
        metavar="GB",
        type=float,
        required=True,
        help="memory of the GPU, as nnU-Net's planners take it",
    )
    parser.add_argument(
        "--planner", choices=PLANNERS, default="plain", help="nnU-Net's planner to start from (default: plain)"
    )
    parser.add_argument(
        "-o",
        metavar="PLANS",
        dest="name",
        help="name of the new plans (default: nnU-Net's name and AD, for example nnUNetPlansAD)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the plans and print what was chosen beside what nnU-Net's own planner chooses.

    Raises:
        ValueError: The dataset has no fingerprint, the target is not positive, or the plans exist.
        RuntimeError: nnU-Net does not know the dataset.
        OSError: The plans cannot be written.
    """
    from nnunet_ad.planning.memory_planner import write_memory_plans

    plans = write_memory_plans(arguments.dataset, arguments.gpu_memory_target, arguments.planner, arguments.name)
    _print_choices(plans, arguments.gpu_memory_target)
    _print_next_steps(plans)
    return 0


def _print_choices(plans: "MemoryPlans", target: float) -> None:
    print(f"Estimated memory of a train step of nnUNetTrainerAD; the target is {target:g} GB\n")
    print(_ROW.format("configuration", "", "patch", "batch", "memory"))
    for configuration, chosen in plans.chosen.items():
        print(_row(configuration, "chosen", chosen))
        if configuration in plans.stock:
            print(_row("", "nnU-Net's", plans.stock[configuration]))
    print("\nA batch is that many labelled and as many unlabelled patches.")


def _row(configuration: str, origin: str, choice: "Choice") -> str:
    patch = " x ".join(str(size) for size in choice.patch_size)
    return _ROW.format(configuration, origin, patch, choice.batch_size, f"{choice.memory:.1f} GB")


def _print_next_steps(plans: "MemoryPlans") -> None:
    from nnunet_ad.data.folds import dataset_number

    dataset = dataset_number(plans.path.parent.name)
    print(f"Written: {plans.path}")
    name = plans.path.stem
    missing = [configuration for configuration, folder in plans.data.items() if not folder.is_dir()]
    if missing:
        print(
            f"To preprocess what is missing: nnUNetv2_preprocess -d {dataset} -plans_name {name} -c {' '.join(missing)}"
        )
    print(f"To train: nnUNetv2_train {dataset} CONFIGURATION FOLD -tr nnUNetTrainerAD -p {name}")
