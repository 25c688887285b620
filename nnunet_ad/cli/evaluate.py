"""``nnunet_ad evaluate``: scores predictions against references."""

import argparse
from pathlib import Path
from typing import Any

PROTOCOL_NAMES = ("default", "paper")


def add_parser(subparsers: Any) -> None:
    """Add the sub-command to the parser of ``nnunet_ad``."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score predictions against references",
        description="Score label maps against references: per structure, case and domain, with uncertainty. "
        "Writes JSON, CSV and a Markdown table, and prints the table.",
    )
    parser.add_argument(
        "-p",
        metavar="PRED",
        dest="predictions",
        type=Path,
        action="append",
        required=True,
        help="folder of predicted label maps; repeat for several runs (seeds) of one method",
    )
    parser.add_argument(
        "-r", metavar="REF", dest="references", type=Path, required=True, help="folder of references, same file names"
    )
    parser.add_argument(
        "-d",
        metavar="DATASET",
        dest="dataset",
        help="number or name of the dataset in nnUNet_raw, or its folder: names labels and domains "
        "(default: the labels found in the references)",
    )
    parser.add_argument("-o", metavar="OUT", dest="output", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--protocol",
        choices=PROTOCOL_NAMES,
        default="default",
        help="paper: as the published numbers, voxel units, ASD one way, one mask empty scores Dice 0 and distance "
        "128, both empty Dice 1 and distance 0 (default: mm, symmetric distances, empty masks counted)",
    )
    parser.add_argument(
        "--versus",
        metavar="PRED",
        type=Path,
        action="append",
        default=[],
        help="folder of a second method's predictions, to test ours against; repeat for its runs",
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="score what is there if cases lack a prediction or a reference; every output says so",
    )
    parser.add_argument(
        "-np", metavar="N", dest="processes", type=int, help="parallel processes (default: one a core, at most 8)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, write the results and print the table.

    Raises:
        ValueError: the input does not fit together; one sentence for the user.
        OSError: the output cannot be written.
    """
    from nnunet_ad.evaluation import output
    from nnunet_ad.evaluation.evaluate import evaluate
    from nnunet_ad.evaluation.protocol import PROTOCOLS

    if arguments.output.exists() and not arguments.output.is_dir():
        raise ValueError(f"{arguments.output} is a file; give -o a folder for the results.")
    evaluation = evaluate(
        arguments.predictions,
        arguments.references,
        dataset=arguments.dataset,
        protocol=PROTOCOLS[arguments.protocol],
        versus=arguments.versus,
        allow_missing=arguments.allow_missing,
        processes=arguments.processes,
    )
    written = output.write(evaluation, arguments.output)
    print(output.as_text(evaluation))
    print(f"Written to {arguments.output}: {', '.join(path.name for path in written)}")
    return 0
