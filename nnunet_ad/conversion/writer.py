"""Writes a dataset into ``nnUNet_raw``, completely or not at all.

Everything is written into a hidden folder beside the final one, which is renamed at the end. A rerun takes over the
finished cases that a killed run left there, where they are known by a digest, and removes the rest. With ``overwrite``
the old dataset stays until the new one is complete.
"""

import filecmp
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import SimpleITK as sitk
from filelock import FileLock, Timeout
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

import nnunet_ad
from nnunet_ad.conversion.cases import Case, Role
from nnunet_ad.conversion.dataset import (
    FILE_ENDING,
    SIDECAR_JSON,
    SPLITS_JSON,
    Dataset,
    dataset_folder_name,
    image_files,
    label_file,
)
from nnunet_ad.conversion.errors import ConversionError, naming
from nnunet_ad.conversion.finished_cases import FINISHED_JSON, FinishedCases
from nnunet_ad.conversion.sidecar import make_sidecar
from nnunet_ad.conversion.volume_files import check_intact
from nnunet_ad.conversion.volumes import (
    check_image,
    check_same_grid,
    in_int16_if_equal,
    map_label_values,
    without_metadata,
)
from nnunet_ad.parallel import Workers


def raw_folder() -> Path:
    """Return nnU-Net's folder of raw datasets, which need not exist yet.

    Raises:
        ConversionError: ``nnUNet_raw`` is not set.
    """
    if not nnUNet_raw.is_set():
        raise ConversionError(
            "the environment variable nnUNet_raw is not set; set it to the folder that holds nnU-Net's raw datasets, "
            "as in: export nnUNet_raw=/data/nnUNet_raw"
        )
    return Path(nnUNet_raw)


def check_target(dataset_id: int, name: str, overwrite: bool) -> None:
    """Check that a dataset may be written.

    Raises:
        ConversionError: The id belongs to a dataset of another name in one of nnU-Net's folders, or the dataset
            exists and may not be overwritten, or is a link to nothing.
    """
    folder_name = dataset_folder_name(dataset_id, name)
    others = [str(found) for found in find_candidate_datasets(dataset_id) if found != folder_name]
    if others:
        raise ConversionError(
            f"the dataset id {dataset_id} already belongs to {others[0]} in nnUNet_raw, nnUNet_preprocessed or "
            "nnUNet_results, and nnU-Net allows one name an id; choose another id with -d"
        )
    folder = raw_folder() / folder_name
    target = folder.resolve()
    if folder.is_symlink() and target.is_dir() and (os.path.ismount(target) or not os.access(target.parent, os.W_OK)):
        raise ConversionError(
            f"{folder_name} in nnUNet_raw is a link to a folder that cannot be replaced, a mounted disk or one in a "
            "folder without permission to write; let it lead to a folder below"
        )
    if folder.is_symlink() and not folder.exists():
        raise ConversionError(
            f"{folder_name} in nnUNet_raw is a link to a folder that is not there; make the folder (or mount its "
            "disk), or remove the link"
        )
    if not overwrite and folder.exists():
        raise ConversionError(
            f"{folder_name} already exists in nnUNet_raw; add --overwrite to replace it, or choose another id with -d"
        )


def write_dataset(dataset: Dataset, workers: Workers, overwrite: bool = False) -> Path:
    """Write a dataset into ``nnUNet_raw``, with a progress bar over its cases.

    Args:
        dataset: The dataset.
        workers: Who works on the cases.
        overwrite: Replace a dataset of the same id and name; a link stays one, and what it leads to is replaced.

    Returns:
        The dataset's folder.

    Raises:
        ConversionError: A volume cannot be read or fails a check, the dataset may not be written (see
            :func:`check_target`), or another process is writing it. Nothing of the new dataset is left then, and an
            old one is untouched.
        KeyboardInterrupt: The user interrupted it. Finished cases with a digest stay in the hidden folder then.
        ChildProcessError: A worker process was killed. Finished cases stay as after an interruption.
    """
    final = raw_folder() / dataset.folder_name
    with _lock(final):
        check_target(dataset.dataset_id, dataset.name, overwrite)
        with _replacing(final.resolve()) as folder:
            finished = FinishedCases(folder, dataset.cases)
            write = partial(_write_unless_finished, labels=dataset.labels, folder=folder, finished=finished)
            with closing(workers.as_done(write, dataset.cases, dataset.folder_name)) as written:
                for index, _ in written:
                    finished.add(dataset.cases[index])
            _write_descriptions(dataset, folder)
            finished.forget()
    return final


def _write_unless_finished(case: Case, labels: Mapping[str, int], folder: Path, finished: FinishedCases) -> None:
    if case not in finished:
        _write_case(case, labels, folder)


def _write_case(case: Case, labels: Mapping[str, int], folder: Path) -> None:
    """Read, check and write the volumes of one case."""
    first_file, images = case.channels[0].file, []
    for volume, file in zip(case.channels, image_files(case), strict=True):
        with naming(case.name, volume.file):
            images.append(check_image(volume.read()))
            check_same_grid(images[-1], images[0], "the image", f"the first channel {first_file}")
        _write_volume(in_int16_if_equal(images[-1]), folder / file)
    if case.label is not None:
        with naming(case.name, case.label.file):
            label = case.label.read()
            check_same_grid(label, images[0], "the label", f"the image {first_file}")
            label = map_label_values(label, {value: value for value in labels.values()})
        _write_volume(label, folder / label_file(case))


def _write_volume(image: sitk.Image, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    try:
        sitk.WriteImage(without_metadata(image), str(path), useCompression=True)
        check_intact(path)  # the library does not notice a full disk
    except (RuntimeError, ConversionError):
        raise ConversionError(
            f"{path.name} cannot be written; check the free space and the permissions of nnUNet_raw"
        ) from None


def _write_descriptions(dataset: Dataset, folder: Path) -> None:
    """Write ``dataset.json``, ``splits_final.json`` and ``nnunet_ad.json``."""
    generate_dataset_json(
        str(folder),
        channel_names={str(index): name for index, name in enumerate(dataset.channel_names)},
        labels=dict(dataset.labels),
        num_training_cases=dataset.num_cases(Role.LABELED),
        file_ending=FILE_ENDING,
        dataset_name=dataset.name,
        reference=dataset.provenance.url,
        description=dataset.provenance.description,
        license="see the terms of the data's owners",
        converted_by=f"{nnunet_ad.__name__} {nnunet_ad.__version__}",
    )
    _write_json([fold.as_json() for fold in dataset.folds], folder / SPLITS_JSON)
    _write_json(make_sidecar(dataset), folder / SIDECAR_JSON)


def _write_json(content: Any, path: Path) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _lock(final: Path) -> Iterator[None]:
    """Keep other processes from writing the same dataset meanwhile."""
    final.parent.mkdir(parents=True, exist_ok=True)
    path = final.with_name(f".{final.name}.lock")
    try:
        with FileLock(path, timeout=0):
            try:
                yield
            finally:
                with suppress(OSError):  # a system that does not delete open files keeps this empty one
                    path.unlink(missing_ok=True)
    except Timeout:
        raise ConversionError(f"another process is writing {final.name}; wait until it has finished") from None


@contextmanager
def _replacing(final: Path) -> Iterator[Path]:
    """Give a hidden folder to write into, which takes the final name if no exception is raised, and else vanishes.

    Where it notes finished cases, it stays for the same command after an interruption, and as a killed run left it.
    """
    partial, old = final.with_name(f".{final.name}.partial"), final.with_name(f".{final.name}.old")
    _restore(old, final)  # if an earlier run was killed between its two renames
    partial.mkdir(exist_ok=True)
    goes_on = False
    try:
        yield partial
        if final.exists():
            _keep_times(partial, final)
            final.replace(old)
        partial.replace(final)
    except (KeyboardInterrupt, ChildProcessError):
        goes_on = (partial / FINISHED_JSON).is_file()
        raise
    finally:
        _restore(old, final)
        if not goes_on:
            shutil.rmtree(partial, ignore_errors=True)


def _keep_times(new: Path, old: Path) -> None:
    """Give volumes that are as before their old times, or each would be taken for another and preprocessed again."""
    for file in new.glob("*/*"):
        before = old / file.relative_to(new)
        if before.is_file() and filecmp.cmp(file, before, shallow=False):
            times = before.stat()
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def _restore(old: Path, final: Path) -> None:
    """Give the old dataset its name back if there is no new one, and else remove it."""
    if not old.exists():
        return
    if final.exists():
        shutil.rmtree(old)
    else:
        old.replace(final)
