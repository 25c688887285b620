"""``nnunet_ad doctor``: is everything in place, and if not, what to do."""

import argparse

from nnunet_ad.diagnosis import diagnose, has_fault


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command to the command line."""
    parser = subparsers.add_parser("doctor", help="say what is installed, what is wrong and what to do about it")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report; return 0 if there is no fault and 1 otherwise."""
    del arguments
    findings = diagnose()
    for finding in findings:
        print(finding)
    faults = has_fault(findings)
    print("\nSomething is wrong: see the lines marked FAULT." if faults else "\nNo fault found.")
    return int(faults)
