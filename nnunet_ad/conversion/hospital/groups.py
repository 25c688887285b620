"""Whose case it is, which domain it belongs to, and the folds, which no patient crosses."""

import csv
import random
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from nnunet_ad.conversion.cases import Role
from nnunet_ad.conversion.errors import ConversionError, SourceError
from nnunet_ad.conversion.folds import Fold
from nnunet_ad.conversion.hospital.names import composed
from nnunet_ad.conversion.hospital.sources import Source
from nnunet_ad.conversion.volume_files import image_suffix, stem

MIN_CASES_TO_KEEP_ASIDE = 10  # labelled; fewer all train, and validate
SHARE_KEPT_ASIDE = 5  # a fifth


def read_table(path: Path, column: str) -> dict[str, str]:
    """Read a table of cases.

    Args:
        path: CSV file, separated by commas, semicolons or tabs, with the columns ``case`` and ``column``. A case is
            named as its file or folder, with or without the ending, with ``labeled/``, ``unlabeled/`` or ``test/`` in
            front where names repeat.
        column: Name of the column, which is also that of the option: ``patient`` or ``domain``.

    Returns:
        The column's entry for each case.

    Raises:
        ConversionError: The file is missing, or a column or an entry is.
    """
    option = f"--{column}s"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConversionError(f"{option}: the file cannot be read ({error.strerror}); give a CSV file") from None
    except UnicodeDecodeError:
        raise ConversionError(f"{option}: the file is no UTF-8 text; save it as CSV in UTF-8") from None
    header = lines[0] if lines else ""
    delimiter = max(",;\t", key=header.count)
    try:
        reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
        rows = [(reader.line_num, row) for row in reader]
        columns = [name.strip().casefold() for name in next(csv.reader([header], delimiter=delimiter), [])]
    except csv.Error as error:
        raise ConversionError(f"{option}: the file is no CSV ({error}); look for a quotation mark left open") from None
    if "case" not in columns or column not in columns:
        raise ConversionError(f"{option}: the first line has not the columns 'case' and '{column}'; add them")
    table: dict[str, str] = {}
    for number, row in rows:
        entries = {(key or "").strip().casefold(): value for key, value in row.items()}
        case, entry = (composed((entries.get(key) or "").strip()) for key in ("case", column))
        if not case or not entry:
            raise ConversionError(f"{option}: line {number} lacks a case or a {column}; complete or remove it")
        if table.setdefault(_without_ending(case), entry) != entry:
            raise ConversionError(f"{option}: line {number} gives a case another {column} than before; mend the table")
    return table


def look_up(source: Source, table: Mapping[str, str], column: str) -> str:
    """Return the entry of a case.

    A folder may be called as a file, ``p.nii``, and the table has its entries without endings.

    Raises:
        ConversionError: The table has none.
    """
    for name in (source.name, _without_ending(source.name)):
        for key in (f"{source.role}/{name}", name):
            if key in table:
                return table[key]
    raise SourceError(f"the case is not in the table of --{column}s; add a line for it", source.name)


def _without_ending(case: str) -> str:
    """Return a case's name, with a role in front or not, without the ending of an image file."""
    path = Path(case)
    return case[: -len(path.name)] + stem(path) if image_suffix(path) else case


def stated_patients(source: Source) -> set[str]:
    """Return the patients that the DICOM series of a case state; none for files, which state none."""
    return {channel.patient for channel in source.channels if not isinstance(channel, Path)} - {""}


def headers_tell_patients(sources: Iterable[Source]) -> bool:
    """Return whether the patients that DICOM headers state tell cases apart.

    They do not where no case states one, nor where two or more do and all state the same: that is a placeholder, as
    ``ANONYMOUS``.
    """
    stated = [patients for source in sources if (patients := stated_patients(source))]
    return len(stated) == 1 or len(set().union(*stated)) > 1


def patient_of(
    source: Source, pattern: re.Pattern[str] | None, table: Mapping[str, str] | None, by_headers: bool = False
) -> str:
    """Return the patient that a case belongs to, by default one of its own.

    Args:
        source: The case.
        pattern: Regular expression searched in the case's name; its first group, or all it matches, is the patient.
        table: Patient of each case, as :func:`read_table` returns it.
        by_headers: Without pattern and table, take the patient that the case's DICOM headers state, if any.

    Raises:
        ConversionError: The pattern or the table does not say whose case it is, or the headers state several patients.
    """
    if table is not None:
        return look_up(source, table, "patient")
    if pattern is None:
        stated = stated_patients(source) if by_headers else set()
        if len(stated) > 1:
            raise SourceError(
                f"the DICOM series of the case state {len(stated)} patients, expected one; find the right partners, or "
                "say by --patients or --patient-regex whose case it is"
            )
        return stated.pop() if stated else f"{source.role}/{source.name}"
    match = pattern.search(source.name)
    patient = match and (match.group(1) if pattern.groups else match.group())
    if not patient:
        raise SourceError("the pattern of --patient-regex finds no patient in the case's name; mend it", source.name)
    return patient


def test_patients_elsewhere(roles: Mapping[str, Role], patients: Mapping[str, str]) -> dict[str, list[str]]:
    """Return for each test case the other cases of its patient that are not for test.

    Args:
        roles: Role of each case.
        patients: Patient of each case.
    """
    cases_of = defaultdict(list)
    for name, patient in patients.items():
        if roles[name] is not Role.TEST:
            cases_of[patient].append(name)
    return {
        name: cases_of[patient] for name, patient in patients.items() if roles[name] is Role.TEST and cases_of[patient]
    }


def make_folds(
    labeled: Sequence[str],
    unlabeled: Sequence[str],
    patients: Mapping[str, str],
    num_folds: int | None,
    seed: int,
    structures: Mapping[str, Collection[str]] | None = None,
) -> tuple[Fold, ...]:
    """Divide the cases into folds. Cases of one patient are on one side of each.

    An unlabelled case whose patient validates a fold is not used in that fold.

    Args:
        labeled: Names of the labelled cases.
        unlabeled: Names of the unlabelled cases.
        patients: Patient of each case.
        num_folds: Number of folds of a cross-validation. None makes one fold: about a fifth of the labelled cases is
            kept aside as ``val`` where there are at least ten cases and two patients, if possible such that every
            structure is in a training case; otherwise all train and validate.
        seed: Seed of the division.
        structures: The structures that each labelled case holds.

    Raises:
        ConversionError: There are fewer labelled patients than folds.
    """
    cases_of = defaultdict(list)
    for name in labeled:
        cases_of[patients[name]].append(name)
    if num_folds is not None and not 2 <= num_folds <= len(cases_of):
        raise ConversionError(
            f"--folds {num_folds} was asked for, but there are {len(cases_of)} labelled patients; ask for 2 to "
            f"{max(2, len(cases_of))} folds, or leave --folds out"
        )
    if num_folds is None and (len(labeled) < MIN_CASES_TO_KEEP_ASIDE or len(cases_of) < 2):
        return (Fold(tuple(labeled), tuple(labeled), tuple(unlabeled)),)
    parts = _divide(cases_of, num_folds or min(SHARE_KEPT_ASIDE, len(cases_of)), seed)
    folds = [_fold(part, labeled, unlabeled, patients) for part in parts]
    if num_folds is None:
        size = len(labeled) / SHARE_KEPT_ASIDE
        folds = [
            min(folds, key=lambda fold: (len(untrained_structures(fold, structures or {})), abs(len(fold.val) - size)))
        ]
    return tuple(folds)


def untrained_structures(fold: Fold, structures: Mapping[str, Collection[str]]) -> list[str]:
    """Return the structures that labelled cases hold, but none that trains in a fold.

    Args:
        fold: The fold.
        structures: The structures that each labelled case holds.
    """
    trained = {structure for name in fold.train for structure in structures.get(name, ())}
    found = dict.fromkeys(structure for held in structures.values() for structure in held)
    return [structure for structure in found if structure not in trained]


def _fold(val: Collection[str], labeled: Sequence[str], unlabeled: Sequence[str], patients: Mapping[str, str]) -> Fold:
    val_patients = {patients[name] for name in val}
    return Fold(
        train=tuple(name for name in labeled if name not in val),
        val=tuple(name for name in labeled if name in val),
        unlabeled=tuple(name for name in unlabeled if patients[name] not in val_patients),
    )


def _divide(cases_of: Mapping[str, list[str]], num_parts: int, seed: int) -> list[set[str]]:
    """Divide patients into parts of about as many cases, as far as patients with many allow."""
    groups = [cases_of[patient] for patient in sorted(cases_of, key=lambda patient: cases_of[patient][0])]
    random.Random(seed).shuffle(groups)
    parts: list[set[str]] = [set() for _ in range(num_parts)]
    for group in sorted(groups, key=len, reverse=True):
        min(parts, key=len).update(group)
    return parts
