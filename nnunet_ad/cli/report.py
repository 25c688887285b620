"""``nnunet_ad report``: one page that shows how good predictions are and how a training went."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the sub-command to the parser of ``nnunet_ad``."""
    parser = subparsers.add_parser(
        "report",
        help="write one HTML page with scores, pictures and curves",
        description="Write one self-contained HTML page on a finished training or on a folder of predictions: summary "
        "in plain words, scores, worst, median and best case, and for a training its curves.",
    )
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="a training (…/Trainer__Plans__Configuration/fold_0) or predictions"
    )
    parser.add_argument("-o", metavar="OUT.html", dest="output", type=Path, required=True, help="the page to write")
    parser.add_argument(
        "-r",
        metavar="REF",
        dest="references",
        type=Path,
        help="folder of references, same file names (default: those of the dataset)",
    )
    parser.add_argument(
        "-d",
        metavar="DATASET",
        dest="dataset",
        help="number or name of the dataset in nnUNet_raw, or its folder (default for a training: the one it names)",
    )
    parser.add_argument(
        "--images",
        metavar="IMAGES",
        type=Path,
        help="folder of the images, for pictures (default: those of the dataset)",
    )
    parser.add_argument(
        "-np", metavar="N", dest="processes", type=int, help="parallel processes (default: one a core, at most 8)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page.

    Raises:
        ValueError: the input does not fit together; one sentence for the user.
        OSError: the page cannot be written.
    """
    from nnunet_ad.report.report import write_report

    page = write_report(
        arguments.folder,
        arguments.output,
        references=arguments.references,
        dataset=arguments.dataset,
        images=arguments.images,
        processes=arguments.processes,
    )
    for part, reason in (page.absent or {}).items():
        print(f"Left out {part}: {reason}")
    size = arguments.output.stat().st_size / 1e6
    print(f"Written: {arguments.output} ({size:.1f} MB)")
    return 0
