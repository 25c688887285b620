"""``nnunet_ad compare``: prints our numbers beside the published ones."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the sub-command to the parser of ``nnunet_ad``."""
    from nnunet_ad.evaluation.published import load_benchmarks

    parser = subparsers.add_parser(
        "compare",
        help="print our numbers beside the published ones",
        description="Print the numbers of nnunet_ad evaluate beside the paper's and the best later published ones.",
    )
    parser.add_argument(
        "results",
        metavar="RESULT.json",
        type=Path,
        nargs="+",
        help="evaluation.json of nnunet_ad evaluate; for M&Ms one for each target domain",
    )
    parser.add_argument("--benchmark", choices=tuple(load_benchmarks()), required=True, help="the published table")
    parser.add_argument("-o", metavar="OUT.md", dest="output", type=Path, help="also write the table as Markdown")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare, print and, if asked for, write the table.

    Raises:
        ValueError: a result is not of this benchmark; one sentence for the user.
        OSError: a file cannot be read or written.
    """
    from nnunet_ad.evaluation.compare import compare, read_result
    from nnunet_ad.evaluation.published import load_benchmarks
    from nnunet_ad.whole_file import written_whole

    results = [read_result(path) for path in arguments.results]
    report = compare(results, load_benchmarks()[arguments.benchmark])
    print(report.as_text())
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(arguments.output) as temporary:
            temporary.write_text(report.as_markdown(), encoding="utf-8")
    return 0
