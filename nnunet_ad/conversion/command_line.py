"""The command line that all converters share."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed

from nnunet_ad.conversion.cases import Role
from nnunet_ad.conversion.dataset import MAX_DATASET_ID, Dataset
from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.processes import conversion_workers, hide_library_warnings
from nnunet_ad.conversion.writer import check_target, raw_folder, write_dataset

PROCESSES_HELP = "parallel processes (default: one a core, at most 8)"


@dataclass(frozen=True)
class Converter:
    """What distinguishes one converter's command from the others'.

    Attributes:
        script: The script's file name.
        description: What it converts, in a sentence or two.
        input_tree: The expected input tree, drawn for ``--help``.
        dataset_id: The default of ``-d``; None where other options decide it, and ``describe`` then finds None in the
            parsed arguments' ``dataset_id``.
        add_arguments: Adds the converter's own options to the parser.
        describe: Finds the cases of the parsed arguments' ``input`` and returns the dataset to write, without reading
            any voxel. Raises ConversionError.
        default_ids: The defaults of ``-d`` in words for ``--help``, where ``dataset_id`` is None.
    """

    script: str
    description: str
    input_tree: str
    dataset_id: int | None
    add_arguments: Callable[[argparse.ArgumentParser], None]
    describe: Callable[[argparse.Namespace], Dataset]
    default_ids: str = ""


def build_parser(converter: Converter) -> argparse.ArgumentParser:
    """Return the parser of a converter: the shared options and its own."""
    parser = argparse.ArgumentParser(
        prog=converter.script,
        description=converter.description,
        epilog=f"expected input:\n{converter.input_tree}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-i", "--input", type=Path, required=True, help="folder of the public dataset, see below")
    parser.add_argument(
        "-d",
        "--dataset-id",
        type=dataset_id,
        default=converter.dataset_id,
        metavar="ID",
        help=f"nnU-Net's number of the new dataset (default: {converter.dataset_id or converter.default_ids})",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset if it exists")
    parser.add_argument("--dry-run", action="store_true", help="list what would be written, and write nothing")
    parser.add_argument(
        "--val",
        type=int,
        default=0,
        metavar="N",
        help="keep N of the other training cases (M&Ms: subjects) aside, with label, to validate on: the last N of the "
        "public list (default: 0, validate on the labelled cases themselves, as the paper does)",
    )
    parser.add_argument("-np", metavar="N", dest="processes", type=positive, help=PROCESSES_HELP)
    converter.add_arguments(parser)
    return parser


def run(converter: Converter, argv: Sequence[str] | None = None) -> int:
    """Run a converter's command.

    Args:
        converter: The converter.
        argv: Arguments, by default those of the process.

    Returns:
        The exit status: 0, 1 after an error that was printed in one line, 130 after an interruption.
    """
    arguments = build_parser(converter).parse_args(argv)
    hide_library_warnings()
    try:
        raw_folder()
        if not arguments.input.is_dir():
            raise ConversionError(f"the input folder {arguments.input} does not exist; give another one with -i")
        dataset = converter.describe(arguments)
        if arguments.dry_run:
            print_plan(dataset, _summary(dataset), arguments.overwrite)
        else:
            with conversion_workers(arguments.processes) as workers:
                write_dataset(dataset, workers, arguments.overwrite)
            print_result(dataset, _summary(dataset))
    except (ConversionError, OSError) as error:
        print(f"{converter.script}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{converter.script}: interrupted, nothing was written", file=sys.stderr)
        return 130
    return 0


def positive(text: str) -> int:
    """Return a number from 1 of the command line.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)


def dataset_id(text: str) -> int:
    """Return nnU-Net's number of a dataset from the command line.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not text.isdecimal() or not 1 <= int(text) <= MAX_DATASET_ID:
        raise argparse.ArgumentTypeError(f"{text!r} is no dataset id, which is a number from 1 to {MAX_DATASET_ID}")
    return int(text)


def print_plan(dataset: Dataset, summary: str, overwrite: bool) -> None:
    """List the files of a dataset, and what would keep it from being written."""
    for file in dataset.files():
        print(f"{dataset.folder_name}/{file}")
    print(f"would write {summary}")
    try:
        check_target(dataset.dataset_id, dataset.name, overwrite)
    except ConversionError as error:
        print(f"but {error}")


def print_result(dataset: Dataset, summary: str) -> None:
    """Say what was written and decided, and what to do next."""
    print(f"wrote {summary}")
    for note in dataset.notes:
        print(f"note: {note}")
    if nnUNet_preprocessed.is_set() and (Path(nnUNet_preprocessed) / dataset.folder_name).exists():
        print(
            f"note: nnUNet_preprocessed already has a {dataset.folder_name}; remove it and plan again, "
            "since nnU-Net would go on with its old splits and images"
        )


def _summary(dataset: Dataset) -> str:
    fold = dataset.folds[0]
    return (
        f"{dataset.folder_name}: {len(fold.train)} labelled, {len(fold.unlabeled)} unlabelled, "
        f"{dataset.num_cases(Role.TEST)} test cases; val: {len(fold.val)}, {fold.validation}"
    )
