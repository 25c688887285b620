"""From folders to a dataset: find, read and check everything, then write it, or say all that is wrong."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import SimpleITK as sitk

from nnunet_ad.conversion.cases import Case, Role, Volume
from nnunet_ad.conversion.dataset import Dataset, Provenance, dataset_folder_name
from nnunet_ad.conversion.errors import ConversionError, SourceError
from nnunet_ad.conversion.hospital.cohort import check_cohort
from nnunet_ad.conversion.hospital.findings import Finding
from nnunet_ad.conversion.hospital.groups import (
    headers_tell_patients,
    look_up,
    make_folds,
    patient_of,
    read_table,
    test_patients_elsewhere,
)
from nnunet_ad.conversion.hospital.labels import IGNORE, Labels, read_labels
from nnunet_ad.conversion.hospital.mapping import (
    check_mapping_path,
    earlier_rows,
    mapping_text,
    names_in,
    private_file,
)
from nnunet_ad.conversion.hospital.masks import MaskOptions
from nnunet_ad.conversion.hospital.names import is_utf8
from nnunet_ad.conversion.hospital.notes import notes_on_folds, notes_on_patients, notes_on_volumes
from nnunet_ad.conversion.hospital.options import DEFAULT_CHANNEL, Options
from nnunet_ad.conversion.hospital.plan import plan_cases
from nnunet_ad.conversion.hospital.reading import Reading, digest
from nnunet_ad.conversion.hospital.report import Report, check_report_folder, write_report
from nnunet_ad.conversion.hospital.sources import Rules, Source, find_sources
from nnunet_ad.conversion.hospital.survey import SurveyedCase, channel_part, survey_cases
from nnunet_ad.conversion.processes import conversion_workers
from nnunet_ad.conversion.sidecar import UNSPECIFIED
from nnunet_ad.conversion.writer import check_target, raw_folder, write_dataset
from nnunet_ad.parallel import Workers

PROVENANCE_TEXT = "Images and masks of a hospital, converted without names; case names say nothing about patients."


@dataclass(frozen=True)
class Outcome:
    """What a conversion came to.

    Attributes:
        surveyed: Every case that was found, with its findings.
        dataset: The dataset of the good cases, or None where errors keep it from being written.
        folder: The written dataset, or None.
        report: The report.
        problem: Why the dataset as a whole may not be written, though its cases may, or None.
        reports: Its files, none if nothing was written.
    """

    surveyed: tuple[SurveyedCase, ...]
    dataset: Dataset | None
    folder: Path | None
    report: Report
    problem: str | None
    reports: tuple[Path, ...]


def convert(options: Options) -> Outcome:
    """Convert a hospital's folders.

    Args:
        options: What to convert, and how.

    Returns:
        What it came to. With errors in cases and without ``skip_bad`` nothing is written, but a report that was asked
        for.

    Raises:
        ConversionError: A setting or a folder as a whole is wrong, or a file changed while it was converted. Nothing is
            written then. Or what goes beside the dataset cannot be written, which says that the dataset is complete.
        ChildProcessError: A worker process was killed. What is finished stays for the same command.
    """
    with conversion_workers(options.processes) as workers:
        return _convert(options, workers)


def _convert(options: Options, workers: Workers) -> Outcome:
    if not options.dry_run:
        check_target(options.dataset_id, options.name, options.overwrite)
    _check_names(options)
    _check_apart(options)
    earlier: list[dict[str, str]] = []
    if options.mapping:
        check_mapping_path(options.mapping, options.overwrite, _inputs(options).values())
        earlier = earlier_rows(options.mapping)
    if options.report and not options.dry_run:
        check_report_folder(options.report)
    labels = read_labels(options.labels)
    tables = {
        column: read_table(path, column)
        for column, path in (("patient", options.patients), ("domain", options.domains))
        if path
    }
    channels = options.channels or (DEFAULT_CHANNEL,)
    rules = Rules(channels, options.image_patterns, options.series_patterns, options.mask_pattern, labels)
    cases = plan_cases(options.name, _find_all(options, rules, workers), options.frames, names_in(earlier))
    reading = Reading(
        options.resample_channels,
        options.reorient,
        MaskOptions(labels, options.resample_masks, options.later_wins, options.accept_other_series),
    )
    surveyed = survey_cases(cases, reading, channels, options.min_size, not options.dry_run, workers)
    patients = _assign_patients(surveyed, options, tables.get("patient"))
    domains = _assign_domains(surveyed, tables.get("domain"))
    check_cohort(surveyed, domains, channels, options.accept_outliers)

    good = [each for each in surveyed if each.is_good]
    is_refused = len(good) < len(surveyed) and not options.skip_bad
    if not is_refused and not any(each.case.role is Role.LABELED for each in good):
        is_refused = True
    problem = None if is_refused else _lacking_structures(good, labels)
    dataset = None
    if not is_refused and problem is None:
        dataset = _describe(options, good, reading, patients, domains)
    report = Report.of(options, surveyed, domains, labels, dataset, problem)
    if dataset is None or options.dry_run:
        reports = write_report(report, options.report) if options.report and not options.dry_run else ()
        return Outcome(tuple(surveyed), dataset, None, report, problem, reports)
    with ExitStack() as stack:
        if options.mapping:
            stack.enter_context(private_file(options.mapping, mapping_text(surveyed, patients, earlier)))
        folder = write_dataset(dataset, workers, options.overwrite)
    try:
        reports = write_report(report, options.report or folder)
    except ConversionError as error:
        raise ConversionError(
            f"{dataset.folder_name} is complete in nnUNet_raw, but {error} and add --overwrite"
        ) from None
    return Outcome(tuple(surveyed), dataset, folder, report, None, reports)


def _inputs(options: Options) -> dict[str, Path]:
    """Return the input folders and files by their options."""
    paths = {
        "labeled": options.labeled,
        "unlabeled": options.unlabeled,
        "test": options.test,
        "labels": options.labels,
        "patients": options.patients,
        "domains": options.domains,
    }
    return {option: path for option, path in paths.items() if path is not None}


def _check_names(options: Options) -> None:
    """Check that the paths of all inputs can be opened by the libraries that read volumes.

    Raises:
        ConversionError: One is no valid UTF-8.
    """
    for option, path in _inputs(options).items():
        if not is_utf8(path.absolute()):
            raise ConversionError(f"--{option}: the path is no valid UTF-8; rename its folders or move the input")


def _check_apart(options: Options) -> None:
    """Check that writing the dataset cannot replace input, nor put files among it.

    Raises:
        ConversionError: An input or the report lies inside the dataset's folder, or that folder or the report inside an
            input.
    """
    name = dataset_folder_name(options.dataset_id, options.name)
    target = (raw_folder() / name).resolve()
    if options.report and options.report.resolve().is_relative_to(target):
        raise ConversionError("--report: the folder is the dataset's, where the report goes anyway; leave --report out")
    for option, path in _inputs(options).items():
        if path.resolve().is_relative_to(target):
            raise ConversionError(
                f"--{option}: the input lies inside {name} in nnUNet_raw, which is to be written; keep it elsewhere"
            )
        if target.is_relative_to(path.resolve()):
            raise ConversionError(
                f"--{option}: nnUNet_raw lies inside the folder, where its datasets would be taken for cases; set "
                "another nnUNet_raw"
            )
        if options.report and options.report.resolve().is_relative_to(path.resolve()):
            raise ConversionError(
                f"--report: the folder lies inside that of --{option}, where it would be taken for a case; name "
                "another one"
            )


def _lacking_structures(good: Sequence[SurveyedCase], labels: Labels) -> str | None:
    """Return what is wrong if a structure is in no labelled case, from which nothing could be learned about it."""
    labeled = [each for each in good if each.case.role is Role.LABELED]
    lacking = [
        structure.name
        for structure in labels.structures
        if structure.name != IGNORE and not any(each.millilitres[structure.name] for each in labeled)
    ]
    if not lacking:
        return None
    return (
        f"the dataset: no labelled case has a voxel of {', '.join(lacking)}, expected each structure in at least one; "
        "add a case with it, look for its value and sources, or take it out of labels.json"
    )


def _find_all(options: Options, rules: Rules, workers: Workers) -> list[Source]:
    folders = ((Role.LABELED, options.labeled), (Role.UNLABELED, options.unlabeled), (Role.TEST, options.test))
    sources: list[Source] = []
    for role, folder in folders:
        if folder is None:
            continue
        if not folder.is_dir():
            raise ConversionError(f"--{role}: there is no such folder; give another one")
        sources += find_sources(folder, role, rules, workers)
    return sources


def _assign_patients(
    surveyed: Sequence[SurveyedCase], options: Options, table: dict[str, str] | None
) -> dict[str, str]:
    """Return the patient of each case, and find test patients that have other cases."""
    by_headers = headers_tell_patients(each.case.source for each in surveyed)
    patients = {}
    for each in surveyed:
        try:
            patients[each.case.name] = patient_of(each.case.source, options.patient_regex, table, by_headers)
        except ConversionError as error:
            patients[each.case.name] = f"{each.case.role}/{each.case.source.name}"
            each.findings.append(Finding.of(error, each.case.name, "patient", each.case.source.paths))
    roles = {each.case.name: each.case.role for each in surveyed}
    elsewhere = test_patients_elsewhere(roles, patients)
    other_way = "" if options.tell_patients else ", or say by --patients or --patient-regex whose case it is"
    for each in surveyed:
        if others := elsewhere.get(each.case.name):
            words = (
                f"the patient of this test case also has {', '.join(others[:3])}{', ...' if len(others) > 3 else ''} "
                f"for training, expected test patients in --test only; move or remove the case{other_way}"
            )
            each.findings.append(Finding(each.case.name, "patient", words, words, paths=each.case.source.paths))
    return patients


def _assign_domains(surveyed: Sequence[SurveyedCase], table: dict[str, str] | None) -> dict[str, str]:
    domains = {}
    for each in surveyed:
        domains[each.case.name] = UNSPECIFIED
        if table is not None:
            try:
                domains[each.case.name] = look_up(each.case.source, table, "domain")
            except ConversionError as error:
                each.findings.append(Finding.of(error, each.case.name, "domain", each.case.source.paths))
    return domains


def _describe(
    options: Options,
    good: Sequence[SurveyedCase],
    reading: Reading,
    patients: dict[str, str],
    domains: dict[str, str],
) -> Dataset:
    """Describe the dataset of the good cases."""
    names = {role: [each.case.name for each in good if each.case.role is role] for role in Role}
    labeled, unlabeled, structures = names[Role.LABELED], names[Role.UNLABELED], _structures_of(good)
    folds = make_folds(labeled, unlabeled, patients, options.num_folds, options.seed, structures)
    channel_names = options.channels or (options.modality or _stated_modality(good) or DEFAULT_CHANNEL,)
    return Dataset(
        dataset_id=options.dataset_id,
        name=options.name,
        channel_names=channel_names,
        labels=reading.masks.labels.numbers,
        cases=tuple(_case(each, reading, channel_names, domains[each.case.name]) for each in good),
        folds=folds,
        provenance=Provenance(options.name, PROVENANCE_TEXT, "", ""),
        setting="semi-supervised" if unlabeled else "supervised",
        notes=(
            *notes_on_volumes(options, good, channel_names),
            *notes_on_folds(folds, unlabeled, structures),
            *notes_on_patients(options, good, patients),
        ),
    )


def _structures_of(good: Sequence[SurveyedCase]) -> dict[str, list[str]]:
    """Return the structures that each labelled case holds."""
    return {
        each.case.name: [structure for structure, volume in each.millilitres.items() if volume]
        for each in good
        if each.case.role is Role.LABELED
    }


def _stated_modality(good: Sequence[SurveyedCase]) -> str | None:
    """Return the modality that DICOM states for every case, or None if one states none or another."""
    stated = {each.channels[0].modality for each in good}
    return stated.pop() if len(stated) == 1 else None


def _case(each: SurveyedCase, reading: Reading, channel_names: tuple[str, ...], domain: str) -> Case:
    case = each.case
    channels = tuple(
        Volume(channel_part(index, channel_names), partial(_read_channel, each, index, reading))
        for index in range(len(case.channels))
    )
    label = Volume("mask", partial(_read_mask, each, reading)) if case.mask else None
    return Case(case.name, case.role, domain, channels, label, each.digest)


def _read_channel(each: SurveyedCase, index: int, reading: Reading) -> sitk.Image:
    with _public_words():
        image = reading.finish(reading.channel(each.case, index, each.source_grid if index else None))
    _check_unchanged(image, each.channels[index].digest)
    return image


def _read_mask(each: SurveyedCase, reading: Reading) -> sitk.Image:
    assert each.source_grid is not None
    with _public_words():
        mask = reading.finish(reading.mask(each.case, each.source_grid).image)
    _check_unchanged(mask, each.mask_digest)
    return mask


@contextmanager
def _public_words() -> Iterator[None]:
    """Let errors through without names from the source, since the writer quotes them."""
    try:
        yield
    except SourceError as error:
        raise ConversionError(error.public_message) from None


def _check_unchanged(volume: sitk.Image, expected: str | None) -> None:
    if digest(volume) != expected:
        raise ConversionError("the file changed since it was checked, expected it to stay; run the command again")
