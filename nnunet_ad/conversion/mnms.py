"""M&Ms: ventricles and myocardium in short-axis cine MR of four vendors, 2020 M&Ms challenge.

Semi-supervised domain generalisation (SemiDG) of the public lists: of the subjects of three vendors a few (2 % or 5 %)
are labelled and the others unlabelled; the test set is the fourth vendor, the target. Nothing of the target trains, not
even an image. Domains are the vendors: A Siemens, B Philips, C GE, D Canon.

A case is one frame of a subject's 4-D series, ``<code>_ED`` (end-diastolic) or ``<code>_ES`` (end-systolic), at the
numbers, from 0, that the information table states; only these two have labels. Other frames, with ``--all-frames``, are
``<code>_f<number>``. All frames of a subject are on one side of the split; only a labelled subject's other frames may
train without label.

Preparations for papers resize images, or crop them around the ground truth, which a test case should not give away.
Here voxels and grid stay those of the files. Only direction cosines that are not orthonormal, which SimpleITK and so
nnU-Net cannot read, are replaced by the closest ones that are; the notes name each subject.
"""

import argparse
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nnunet_ad.conversion.cases import Case, Role, Volume
from nnunet_ad.conversion.command_line import Converter
from nnunet_ad.conversion.dataset import Dataset, Provenance
from nnunet_ad.conversion.errors import ConversionError, naming
from nnunet_ad.conversion.folds import Fold, load_public_split, make_fold
from nnunet_ad.conversion.frames import FrameSeries, check_same_shape, read_series
from nnunet_ad.conversion.mnms_table import NEWEST_TABLE, Subject, find_table, read_table

VENDORS = {"A": "Siemens", "B": "Philips", "C": "GE", "D": "Canon"}
LABELS = {"background": 0, "LV": 1, "MYO": 2, "RV": 3}
PERCENTAGES = ("2pct", "5pct")
FIRST_DATASET_ID = 105  # A to D at 2 %, then A to D at 5 %
SUBJECT_FOLDERS = ("Training/Labeled", "Validation", "Testing")
UNLABELED_FOLDER = "Training/Unlabeled"
UNLABELED_VENDOR, NUM_WITHOUT_LABELS = "C", 25  # subjects that were published without labels
IMAGE_ENDING, LABEL_ENDING = "_sa.nii.gz", "_sa_gt.nii.gz"

PROVENANCE = Provenance(
    name="M&Ms challenge 2020",
    description="Left ventricle, myocardium and right ventricle in cine MR of four vendors; public split for "
    "semi-supervised domain generalisation, three vendors train and the fourth tests.",
    url="https://www.ub.edu/mnms/",
    citation="V. M. Campello et al., Multi-centre, multi-vendor and multi-disease cardiac segmentation: the M&Ms "
    "challenge, IEEE Transactions on Medical Imaging 40(12), 2021.",
)


@dataclass(frozen=True)
class CineSubject:
    """One subject and the frames to write.

    Attributes:
        code: The external code.
        vendor: Letter of the vendor.
        image: The image series.
        label: The label series; None where labels are hidden or absent.
        role: What the end-diastolic and end-systolic frames are used for.
        frames: Number of each of these frames by its name, ``ED`` and ``ES``.
        other_frames: Numbers of the frames to train on without label, by their names.
    """

    code: str
    vendor: str
    image: FrameSeries
    label: FrameSeries | None
    role: Role
    frames: dict[str, int]
    other_frames: dict[str, int] = field(default_factory=dict)

    def cases(self, root: Path) -> list[Case]:
        """Return the subject's cases; files are named relative to ``root``."""
        cases = [self._case(name, frame, self.role, self.label, root) for name, frame in self.frames.items()]
        cases += [self._case(name, frame, Role.UNLABELED, None, root) for name, frame in self.other_frames.items()]
        return cases

    def _case(self, name: str, frame: int, role: Role, label: FrameSeries | None, root: Path) -> Case:
        volumes = [
            Volume(f"{series.path.relative_to(root).as_posix()} (frame {frame})", partial(series.read, frame))
            for series in (self.image, label)
            if series is not None
        ]
        return Case(f"{self.code}_{name}", role, self.vendor, tuple(volumes[:1]), volumes[1] if label else None)


def describe(arguments: argparse.Namespace) -> Dataset:
    """Find the subjects under ``arguments.input`` and return the dataset to write.

    Of labelled, kept-aside and test subjects the headers of image and label are read, of unlabelled ones the header of
    the image.

    Args:
        arguments: Parsed command line with ``input``, ``dataset_id``, ``target``, ``labeled``, ``val``, ``all_frames``
            and ``vendor_c_unlabeled``.

    Raises:
        ConversionError: The folders, the information table and the public lists do not fit together, or a header is
            not what it should be.
    """
    if arguments.vendor_c_unlabeled and arguments.target == UNLABELED_VENDOR:
        raise ConversionError(
            f"the subjects of {UNLABELED_FOLDER} are of vendor {UNLABELED_VENDOR}, the target, of which no image may "
            "train; leave --vendor-c-unlabeled out or choose another target"
        )
    split = load_public_split("MnMs")
    root = _find_root(arguments.input)
    vendors = {code: vendor for vendor, codes in split["vendors"].items() for code in codes}
    fold = choose_subjects(split, arguments.target, arguments.labeled, arguments.val)
    roles = dict.fromkeys(split["vendors"][arguments.target], Role.TEST) | dict.fromkeys(fold.unlabeled, Role.UNLABELED)
    roles |= dict.fromkeys((*fold.train, *fold.val), Role.LABELED)
    folders = find_subjects(root, roles)
    if arguments.vendor_c_unlabeled:
        extra = find_subjects_without_labels(root)
        folders, roles = folders | extra, roles | dict.fromkeys(extra, Role.UNLABELED)
        vendors |= dict.fromkeys(extra, UNLABELED_VENDOR)
    _check_files(folders, roles)
    table_file = find_table(root)
    table = read_table(table_file)
    _check_table(table, vendors, table_file.name)

    no_other_frames = {code for code, role in roles.items() if role is Role.TEST} | (set(fold.val) - set(fold.train))
    subjects = [
        _read_subject(
            code, table[code], folders[code], roles[code], arguments.all_frames and code not in no_other_frames, root
        )
        for code in sorted(roles)
    ]
    cases = sorted((case for subject in subjects for case in subject.cases(root)), key=lambda case: case.name)
    return Dataset(
        dataset_id=arguments.dataset_id or default_dataset_id(arguments.target, arguments.labeled),
        name=f"MnMs_{arguments.target}_{arguments.labeled}",
        channel_names=("cine-MR",),
        labels=LABELS,
        cases=tuple(cases),
        folds=(_fold_of_cases(fold, subjects, cases),),
        provenance=PROVENANCE,
        setting="semi-supervised domain generalisation",
        notes=tuple(_notes(arguments, subjects, table_file.name)),
    )


def default_dataset_id(target: str, labeled: str) -> int:
    """Return the dataset id: 105 to 108 for the targets A to D at 2 %, 109 to 112 at 5 %."""
    return FIRST_DATASET_ID + len(VENDORS) * PERCENTAGES.index(labeled) + list(VENDORS).index(target)


def choose_subjects(split: dict, target: str, labeled: str, num_val: int) -> Fold:
    """Divide the subjects of the source vendors.

    Args:
        split: The public lists.
        target: Letter of the vendor that tests.
        labeled: Name of the public list of labelled subjects, ``2pct`` or ``5pct``.
        num_val: Number of subjects to keep aside: the last, by code, that are not labelled.

    Returns:
        A fold of subjects, not of cases.

    Raises:
        ConversionError: There are not as many subjects to keep aside.
    """
    sources = [vendor for vendor in VENDORS if vendor != target]
    labelled = [code for vendor in sources for code in split["labeled"][labeled][vendor]]
    others = sorted({code for vendor in sources for code in split["vendors"][vendor]} - set(labelled))
    if not 0 <= num_val <= len(others):
        raise ConversionError(
            f"{num_val} subjects to keep aside were asked for, but the source vendors have {len(others)} that are not "
            f"labelled; give --val a number from 0 to {len(others)}"
        )
    return make_fold([*labelled, *others], len(labelled), num_val)


def find_subjects(root: Path, codes: Collection[str]) -> dict[str, Path]:
    """Find the folder of each subject of the public lists.

    Args:
        root: The folder that has ``Training``, ``Validation`` and ``Testing``.
        codes: The subjects.

    Returns:
        The folder of each subject that has one.

    Raises:
        ConversionError: A subject is there twice, or is in no public list.
    """
    found: dict[str, Path] = {}
    for folder in _subject_folders(root, SUBJECT_FOLDERS):
        name = folder.relative_to(root).as_posix()
        if folder.name not in codes:
            raise ConversionError(
                f"the subject {name} is in no public list, so it is unknown whether it trains or tests; move its "
                "folder out of the input"
            )
        if folder.name in found:
            raise ConversionError(
                f"subject {folder.name} was found more than once, as {found[folder.name].relative_to(root).as_posix()} "
                f"and {name}; leave one of them in the input"
            )
        found[folder.name] = folder
    return found


def find_subjects_without_labels(root: Path) -> dict[str, Path]:
    """Find the folders of the subjects that were published without labels.

    Raises:
        ConversionError: There are more or fewer than were published.
    """
    found = {folder.name: folder for folder in _subject_folders(root, [UNLABELED_FOLDER])}
    if len(found) != NUM_WITHOUT_LABELS:
        raise ConversionError(
            f"found {len(found)} subjects in {UNLABELED_FOLDER}, expected the {NUM_WITHOUT_LABELS} that were "
            "published; give the folder of the complete dataset with -i, or leave --vendor-c-unlabeled out"
        )
    return found


def _find_root(folder: Path) -> Path:
    """Return the folder that has the subjects' folders: the input itself or its ``OpenDataset``."""
    for root in (folder, folder / "OpenDataset"):
        if (root / "Training").is_dir():
            return root
    raise ConversionError(
        f"there is no folder Training in {folder} or its OpenDataset; give the unpacked OpenDataset folder with -i"
    )


def _subject_folders(root: Path, names: Iterable[str]) -> list[Path]:
    """Return all subjects' folders in the named folders, those that exist."""
    parents = [root / name for name in names if (root / name).is_dir()]
    return [
        folder
        for parent in parents
        for folder in sorted(parent.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    ]


def _check_files(folders: dict[str, Path], roles: dict[str, Role]) -> None:
    """Check that every subject has its image, and those whose labels are used their label."""
    without_image = [code for code in roles if code not in folders or not _file(folders[code], IMAGE_ENDING).is_file()]
    if without_image:
        raise ConversionError(
            f"{len(without_image)} of the {len(roles)} subjects are missing, {_first(without_image)}; expected "
            f"<code>/<code>{IMAGE_ENDING} in {', '.join(SUBJECT_FOLDERS)}; give the folder of the complete dataset "
            "with -i, and compress files again that were unpacked to .nii"
        )
    with_label = [code for code, role in roles.items() if role is not Role.UNLABELED]
    without_label = [code for code in with_label if not _file(folders[code], LABEL_ENDING).is_file()]
    if without_label:
        raise ConversionError(
            f"{len(without_label)} of the {len(with_label)} subjects with labels have no <code>{LABEL_ENDING}, "
            f"{_first(without_label)}; give the folder of the complete dataset with -i"
        )


def _check_table(table: dict[str, Subject], vendors: dict[str, str], table_name: str) -> None:
    """Check that the table has every subject, with the vendor that the public lists state."""
    missing = [code for code in vendors if code not in table]
    if missing:
        raise ConversionError(
            f"the table {table_name} lacks {len(missing)} of the {len(vendors)} subjects, {_first(missing)}; "
            "get it again from its source"
        )
    wrong = [code for code, vendor in vendors.items() if table[code].vendor != vendor]
    if wrong:
        code = min(wrong)
        raise ConversionError(
            f"the table {table_name} states vendor {table[code].vendor or 'nothing'} for subject {code}, expected "
            f"{vendors[code]} ({len(wrong)} such subjects); get it again from its source"
        )


def _read_subject(code: str, row: Subject, folder: Path, role: Role, all_frames: bool, root: Path) -> CineSubject:
    """Read and check the headers of a subject's files."""
    image_path = _file(folder, IMAGE_ENDING)
    with naming(code, image_path.relative_to(root).as_posix()):
        image = read_series(image_path)
        frames = _table_frames(row, all_frames and folder.parent == root / UNLABELED_FOLDER)
        for frame in frames.values():
            image.check_frame(frame)
    label = None
    if role is not Role.UNLABELED:
        label_path = _file(folder, LABEL_ENDING)
        with naming(code, label_path.relative_to(root).as_posix()):
            label = read_series(label_path)
            check_same_shape(label, image, f"the image {image_path.name}")
    numbers = set(range(image.num_frames)) - set(frames.values()) if all_frames else set()
    other_frames = {f"f{number:02d}": number for number in sorted(numbers)}
    return CineSubject(code, row.vendor, image, label, role, frames, other_frames)


def _table_frames(row: Subject, may_be_unknown: bool) -> dict[str, int]:
    """Return the numbers of the frames ED and ES; without them nothing where they may be unknown."""
    if row.ed is None or row.es is None:
        if may_be_unknown:
            return {}
        raise ConversionError(
            "the information table states no frame ED or ES for this subject, expected both; get the table again, or, "
            f"if the subject is of {UNLABELED_FOLDER}, add --all-frames, which needs neither"
        )
    if row.ed == row.es:
        raise ConversionError(
            f"the information table states frame {row.ed} as ED and as ES, expected two frames; get the table again"
        )
    return {"ED": row.ed, "ES": row.es}


def _fold_of_cases(fold: Fold, subjects: list[CineSubject], cases: list[Case]) -> Fold:
    """Return the fold of cases that belongs to a fold of subjects."""
    names = {subject.code: [f"{subject.code}_{name}" for name in subject.frames] for subject in subjects}
    return Fold(
        train=tuple(name for code in fold.train for name in names[code]),
        val=tuple(name for code in fold.val for name in names[code]),
        unlabeled=tuple(case.name for case in cases if case.role is Role.UNLABELED),
    )


def _notes(arguments: argparse.Namespace, subjects: list[CineSubject], table_name: str) -> list[str]:
    """Return what the user should know about the choice of cases, and every changed geometry."""
    sources = ", ".join(f"{letter} ({name})" for letter, name in VENDORS.items() if letter != arguments.target)
    notes = [
        f"vendors {sources} train, vendor {arguments.target} ({VENDORS[arguments.target]}) only tests; "
        f"frames ED and ES as in the table {table_name}"
    ]
    if arguments.val:
        notes.append(f"{arguments.val} subjects are kept aside, each with its cases ED and ES")
    if arguments.all_frames:
        notes.append("all frames of unlabelled subjects and the other frames of labelled ones train without label")
    if arguments.vendor_c_unlabeled:
        notes.append(f"{NUM_WITHOUT_LABELS} subjects of vendor {UNLABELED_VENDOR} without labels train, too")
    notes += [
        f"subject {subject.code}: the header's direction cosines are not orthonormal; its cases have the closest ones "
        f"that are, which moves a voxel by at most {subject.image.geometry.moved:.2g} mm"
        for subject in subjects
        if subject.image.geometry.moved
    ]
    return notes


def _file(folder: Path, ending: str) -> Path:
    return folder / f"{folder.name}{ending}"


def _first(codes: Collection[str], limit: int = 3) -> str:
    return f"the first of them {', '.join(sorted(codes)[:limit])}"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", choices=VENDORS, required=True, help="vendor that only tests: A Siemens, B Philips, C GE, D Canon"
    )
    parser.add_argument(
        "--labeled",
        choices=PERCENTAGES,
        default=PERCENTAGES[0],
        help="public list of the labelled subjects (default: %(default)s)",
    )
    parser.add_argument(
        "--all-frames",
        action="store_true",
        help="train without label on every frame of unlabelled subjects and on the other frames of labelled ones, "
        "never on frames of kept-aside subjects",
    )
    parser.add_argument(
        "--vendor-c-unlabeled",
        action="store_true",
        help=f"train also on the {NUM_WITHOUT_LABELS} subjects of {UNLABELED_FOLDER}; not with --target C",
    )


CONVERTER = Converter(
    script="Dataset105_MnMs.py",
    description="Convert M&Ms (LV, myocardium and RV in cine MR of four vendors) for nnU-Net: three vendors train, a "
    "fourth tests.",
    input_tree=f"""\
  INPUT/[OpenDataset/]{NEWEST_TABLE}
                                                or an older CSV, .xlsx or .xls of the M&Ms dataset information
  INPUT/[OpenDataset/]Training/Labeled/<code>/<code>{IMAGE_ENDING} and <code>{LABEL_ENDING}
  INPUT/[OpenDataset/]Validation/<code>/…       the same
  INPUT/[OpenDataset/]Testing/<code>/…          the same
  INPUT/[OpenDataset/]{UNLABELED_FOLDER}/<code>/<code>{IMAGE_ENDING}   only for --vendor-c-unlabeled

Both files are 4-D: x, y, z, frame. Labels are 1 LV, 2 MYO, 3 RV. All 320 subjects of the public lists are needed.
A case is one frame, <code>_ED or <code>_ES. --val counts subjects, each with both frames: the last, by code, of the
source vendors' subjects that are not labelled.""",
    dataset_id=None,
    default_ids="105 to 108 for the targets A to D at 2pct, 109 to 112 at 5pct",
    add_arguments=_add_arguments,
    describe=describe,
)
