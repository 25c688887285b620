"""The command that converts a hospital's data.

What it prints names cases by their neutral names; with ``--show-paths``, which is for the user's own screen, it also
names files.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunet_ad.conversion.cases import Role
from nnunet_ad.conversion.command_line import PROCESSES_HELP, dataset_id, positive, print_plan, print_result
from nnunet_ad.conversion.dataset import Dataset
from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.hospital.checks import MIN_SIZE
from nnunet_ad.conversion.hospital.convert import Outcome, convert
from nnunet_ad.conversion.hospital.options import Options
from nnunet_ad.conversion.hospital.plan import ALL_FRAMES, Frames
from nnunet_ad.conversion.processes import hide_library_warnings
from nnunet_ad.conversion.writer import raw_folder

SCRIPT = "convert_hospital_data.py"
LAYOUTS = """\
layouts of --labeled, --unlabeled and --test (each folder by itself):
  DIR/images/<case>.nii.gz           and the mask DIR/masks/<case>.nii.gz; either may be a folder <case>/ of files
or
  DIR/<case>/...                     a folder a case: an image file or DICOM series, and mask files in masks/, called
                                     *mask*, *seg* or *label* at their end, or as a structure; DICOM-SEG or RTSTRUCT
or
  DIR/<case>.nii.gz                  a file a case, and <case>_mask.nii.gz beside it

Images are NIfTI (.nii, .nii.gz), NRRD (.nrrd), MHA (.mha) or DICOM. See docs/hospital-data.md.

labels.json:
  {"liver": 1, "tumour": 2}                                           values in label maps
  {"liver": {"value": 1, "sources": ["Liver", "liver_mask.nii.gz"]}}  and names of files, segments, contours
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments, by default those of the process.

    Returns:
        The exit status: 0, 1 if something could not be written because of what was printed, 130 after an interruption.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    options = _options(parser, arguments)
    hide_library_warnings()
    goes_on = "" if options.dry_run else "; the same command checks all cases again and goes on where it was"
    try:
        raw_folder()
        outcome = convert(options)
    except ConversionError as error:
        message = str(error) if arguments.show_paths else getattr(error, "public_message", str(error))
        print(f"{SCRIPT}: error: {message}", file=sys.stderr)
        return 1
    except ChildProcessError as error:
        print(f"{SCRIPT}: error: {str(error).rstrip('.')}{goes_on}", file=sys.stderr)
        return 1
    except OSError as error:  # its own words would name a path
        reason = error.strerror or type(error).__name__
        print(f"{SCRIPT}: error: {reason}; check free space and permissions of nnUNet_raw", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{SCRIPT}: interrupted{goes_on}", file=sys.stderr)
        return 130
    _print_findings(outcome, arguments.show_paths)
    return _print_outcome(outcome, options, arguments.show_paths)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog=SCRIPT,
        description="Convert a hospital's folders of images, a few of them with masks, into an nnU-Net dataset.",
        epilog=LAYOUTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("-d", "--dataset-id", type=dataset_id, required=True, metavar="ID", help="nnU-Net's number of the new dataset")
    add("-n", "--name", type=_dataset_name, required=True, help="its name; cases are called NAME_0001 and so on")
    add("--labeled", type=Path, required=True, metavar="DIR", help="folder of the cases with masks")
    add("--unlabeled", type=Path, metavar="DIR", help="folder of the cases without masks")
    add("--test", type=Path, metavar="DIR", help="folder of held-out cases, with masks or without")
    add("--labels", type=Path, required=True, metavar="JSON", help="names of the structures, see below")
    add("--overwrite", action="store_true", help="replace the dataset and the mapping if they exist")
    add("--dry-run", action="store_true", help="check everything, list what would be written, and write nothing")
    add("--skip-bad", action="store_true", help="leave out cases with errors, and write the others")
    add("-np", metavar="N", dest="processes", type=positive, help=PROCESSES_HELP)
    add("--show-paths", action="store_true", help="name files of the input in what is printed; not for logs")

    images = parser.add_argument_group("images")
    images.add_argument(
        "--channels",
        nargs="+",
        default=[],
        metavar="NAME[=PATTERN]",
        help="channels of a case, as in --channels T1 T2, whose names are words of the file names, or with patterns, "
        "as in T1='*t1*.nii.gz'",
    )
    images.add_argument(
        "--image-pattern",
        metavar="PATTERN",
        help="of a case's folder, only files so called are images, as in 'ct*.nii.gz'",
    )
    images.add_argument(
        "--mask-pattern", metavar="PATTERN", help="only files so called are masks, as in '*_roi.nii.gz'"
    )
    images.add_argument(
        "--series-description",
        nargs="+",
        default=[],
        metavar="REGEX",
        help="which DICOM series of a case is meant, by its description; one for each channel",
    )
    images.add_argument(
        "--modality",
        type=_modality,
        metavar="CT|MR|...",
        help="modality of the images; with CT, nnU-Net normalises by the training cases (default: as DICOM says)",
    )
    images.add_argument(
        "--frames",
        nargs="+",
        default=None,
        metavar="N",
        help="which volumes of 4-D files become cases, numbered from 0, or 'all'",
    )
    images.add_argument(
        "--resample-channels", action="store_true", help="bring channels on another grid onto that of the first"
    )
    images.add_argument(
        "--reorient",
        type=_orientation,
        metavar="LPS|RAS|...",
        help="swap and flip axes to this orientation, without changing a voxel",
    )

    masks = parser.add_argument_group("masks")
    masks.add_argument(
        "--resample-masks",
        action="store_true",
        help="bring masks on another grid onto that of the image, nearest neighbour",
    )
    masks.add_argument(
        "--overlaps",
        choices=["error", "later"],
        default="error",
        help="where structures overlap, stop, or take the later one in labels.json (default: %(default)s)",
    )

    masks.add_argument(
        "--accept-other-series",
        action="store_true",
        help="read DICOM masks that refer to another series than the image or state another patient, as after "
        "identifiers were replaced",
    )

    checks = parser.add_argument_group("checks")
    checks.add_argument(
        "--accept-outliers",
        action="store_true",
        help="write cases whose spacing, intensities or orientation are unlike the rest, with a warning",
    )
    checks.add_argument(
        "--min-size",
        type=positive,
        default=MIN_SIZE,
        metavar="N",
        help="the fewest voxels along an axis of an image (default: %(default)s)",
    )

    splits = parser.add_argument_group("patients, domains, folds")
    whose = splits.add_mutually_exclusive_group()
    whose.add_argument(
        "--patient-regex",
        type=_regex,
        metavar="REGEX",
        help="finds the patient in the name of a case's file or folder, as in '^(P[0-9]+)'",
    )
    whose.add_argument(
        "--patients",
        type=Path,
        metavar="CSV",
        help="table with the columns case and patient (default: as "
        "DICOM headers state it; otherwise each file or folder counts as a patient of its own)",
    )
    splits.add_argument("--domains", type=Path, metavar="CSV", help="table with the columns case and domain")
    splits.add_argument(
        "--folds",
        type=positive,
        metavar="N",
        help="cross-validation with N folds (default: one fold; val is about a fifth of ten or more labelled cases, or "
        "the labelled cases themselves)",
    )
    splits.add_argument("--seed", type=int, default=0, help="seed of the folds (default: %(default)s)")

    outputs = parser.add_argument_group("what is written beside the dataset")
    outputs.add_argument(
        "--mapping",
        type=Path,
        metavar="FILE",
        help="CSV that says which case came from where; keep it apart. With --overwrite, cases that the file has "
        "already keep their names",
    )
    outputs.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="folder of conversion_report.html and .json, written also if the dataset is not (default: the dataset's)",
    )
    return parser


def _options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Options:
    """Return the options, or exit as argparse does."""
    names, patterns = [], []
    for channel in arguments.channels:
        name, is_pattern, pattern = channel.partition("=")
        names.append(name)
        patterns.append(pattern if is_pattern else None)
    count = max(1, len(names))
    if len(set(names)) < len(names) or not all(names):
        parser.error("--channels: each channel needs a name of its own")
    if arguments.image_pattern and names:
        parser.error("--image-pattern is for one channel; give patterns as in --channels T1='*t1*'")
    if arguments.modality and names:
        parser.error("--modality is for one channel without a name; with --channels, name the channel CT")
    if len(arguments.series_description) not in (0, count):
        parser.error(f"--series-description: expected {count}, one for each channel")
    for pattern in arguments.series_description:
        try:
            re.compile(pattern)
        except re.error as error:
            parser.error(f"--series-description: {pattern!r} is no regular expression: {error}")
    return Options(
        dataset_id=arguments.dataset_id,
        name=arguments.name,
        labeled=arguments.labeled,
        labels=arguments.labels,
        unlabeled=arguments.unlabeled,
        test=arguments.test,
        channels=tuple(names),
        image_patterns=tuple(patterns) or (arguments.image_pattern,),
        mask_pattern=arguments.mask_pattern,
        series_patterns=tuple(arguments.series_description) or (None,) * count,
        modality=arguments.modality,
        frames=_frames(parser, arguments.frames),
        resample_channels=arguments.resample_channels,
        resample_masks=arguments.resample_masks,
        later_wins=arguments.overlaps == "later",
        accept_other_series=arguments.accept_other_series,
        reorient=arguments.reorient,
        patient_regex=arguments.patient_regex,
        patients=arguments.patients,
        domains=arguments.domains,
        num_folds=arguments.folds,
        seed=arguments.seed,
        min_size=arguments.min_size,
        accept_outliers=arguments.accept_outliers,
        skip_bad=arguments.skip_bad,
        mapping=arguments.mapping,
        report=arguments.report,
        overwrite=arguments.overwrite,
        dry_run=arguments.dry_run,
        processes=arguments.processes,
    )


def _frames(parser: argparse.ArgumentParser, entries: list[str] | None) -> Frames:
    if entries is None:
        return None
    if entries == [ALL_FRAMES]:
        return ALL_FRAMES
    if not all(entry.isdecimal() for entry in entries) or len(set(entries)) < len(entries):
        parser.error("--frames: expected different numbers from 0, or 'all'")
    return tuple(int(entry) for entry in entries)


def _print_findings(outcome: Outcome, show_paths: bool) -> None:
    """Print every finding as one line."""
    for each in outcome.surveyed:
        for finding in each.findings:
            message = finding.private_message if show_paths else finding.message
            print(
                f"{finding.severity}: {finding.case} ({each.case.position}), {finding.part}: {message}", file=sys.stderr
            )
            for path in finding.paths if show_paths else ():
                print(f"    {str(path).encode(errors='backslashreplace').decode()}", file=sys.stderr)


def _print_outcome(outcome: Outcome, options: Options, show_paths: bool) -> int:
    """Print the summary, what was written, and what to do next; return the exit status."""
    print(outcome.report.table())
    for path in outcome.reports if options.report else ():
        print(f"report: {path}")
    if outcome.dataset is None:
        print(_why_refused(outcome, show_paths), file=sys.stderr)
        return 1
    if outcome.folder is None:
        print_plan(outcome.dataset, _summary(outcome.dataset), options.overwrite)
        return 0
    print_result(outcome.dataset, _summary(outcome.dataset))
    if not options.report:
        print(f"report: {', '.join(path.name for path in outcome.reports)} in {outcome.dataset.folder_name}")
    return 0


def _why_refused(outcome: Outcome, show_paths: bool) -> str:
    if outcome.problem is not None:
        return f"{SCRIPT}: error: {outcome.problem}"
    bad = [each for each in outcome.surveyed if not each.is_good]
    words = f"{SCRIPT}: error: nothing was written, {len(bad)} of {len(outcome.surveyed)} cases have errors; mend them"
    if any(each.is_good and each.case.role is Role.LABELED for each in outcome.surveyed):
        words += ", or add --skip-bad to leave these cases out"
    return words if show_paths else f"{words} (--show-paths names their files)"


def _summary(dataset: Dataset) -> str:
    fold = dataset.folds[0]
    return (
        f"{dataset.folder_name}: {dataset.num_cases(Role.LABELED)} labelled, {dataset.num_cases(Role.UNLABELED)} "
        f"unlabelled, {dataset.num_cases(Role.TEST)} test cases in {len(dataset.folds)} fold(s); val of the first: "
        f"{len(fold.val)}, {fold.validation}"
    )


def _dataset_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no dataset name, which has letters, digits, - and _ only")
    return text


def _modality(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no modality, as CT or MR")
    return text.upper()


def _orientation(text: str) -> str:
    code = text.upper()
    if len(code) != 3 or any(len(set(code) & set(pair)) != 1 for pair in ("RL", "AP", "SI")):
        raise argparse.ArgumentTypeError(f"{text!r} is no orientation, as LPS or RAS")
    return code


def _regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
