"""``nnunet_ad``: the command with its sub-commands."""

import argparse
import importlib
import io
import sys
from collections.abc import Sequence

import nnunet_ad

DESCRIPTION = (
    "Semi-supervised, domain-adaptive and domain-generalising segmentation for nnU-Net v2. "
    "Train with: nnUNetv2_train DATASET CONFIGURATION FOLD -tr nnUNetTrainerAD"
)

# Modules of nnunet_ad.cli with ``add_parser(subparsers)``; heavy imports belong into their ``run``.
COMMANDS: tuple[str, ...] = (
    "doctor",
    "evaluate",
    "compare",
    "report",
    "preprocess_unlabeled",
    "plan",
    "shrink_plans",
    "rank_unlabeled",
    "export",
    "import_weights",
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line.

    Each sub-command sets ``run``, a function of the parsed arguments that returns the exit status.
    """
    parser = argparse.ArgumentParser(prog="nnunet_ad", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"nnunet_ad {nnunet_ad.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        importlib.import_module(f"nnunet_ad.cli.{command}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    A user's error, and an interruption, become one line on standard error; the status is then 1, or 130 as in a shell.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every console has θ, ψ, ξ and ±
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (ValueError, OSError, RuntimeError) as error:  # nnU-Net's errors for users are RuntimeErrors
        print(f"nnunet_ad {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"nnunet_ad {arguments.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
