"""Preprocessing of unlabelled cases: images only, by nnU-Net's own preprocessor, redone when stale or half-written.

Beside nnU-Net's folder ``<data_identifier>/`` stands ``<data_identifier>_unlabeled/`` with ``<case>.b2nd`` (image) and
``<case>.pkl`` (properties, the mean and SD of each channel among them), and ``<case>_seg.b2nd`` only where the plans
normalise inside the non-zero mask: it holds that mask (-1 outside), never a label. ``imagesUnlabeled.json`` lists the
cases that the raw folder had when it was last seen, as files of those that were taken out may lie here still.
"""

import hashlib
import json
import multiprocessing
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from typing import Any

import blosc2
import numpy as np
from filelock import FileLock, Timeout
from nnunetv2.configuration import default_num_processes
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from tqdm import tqdm

from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.volume_files import check_intact, image_suffix
from nnunet_ad.data.folds import UNLABELED_IMAGES
from nnunet_ad.data.images import num_channels
from nnunet_ad.whole_file import LEFT_OVERS, written_whole
from nnunet_ad.worker_processes import ctrl_c_waits, end_with_parent

INTENSITIES = "nnunet_ad_intensities"
_STAMP = "nnunet_ad"
_CASES = "imagesUnlabeled.json"
_PATIENCE = 15.0  # seconds of waiting before a word about it
_FORMAT = 2  # of what is written; raised when older files lack something
_BY_THE_IMAGE_ALONE = {  # nnU-Net's schemes that do not read the intensities of the plans
    "ZScoreNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
}


@dataclass(frozen=True)
class UnlabeledPreprocessing:
    """How the unlabelled cases of one configuration are preprocessed, and where they go.

    Attributes:
        plans: Plans of the dataset.
        configuration: Name of the configuration.
        dataset_json: Content of dataset.json.
        folder: ``nnUNet_preprocessed/DatasetXXX_Name/<data_identifier>_unlabeled``.
    """

    plans: PlansManager
    configuration: str
    dataset_json: dict
    folder: Path

    @property
    def manager(self) -> ConfigurationManager:
        """The configuration as nnU-Net reads it."""
        return self.plans.get_configuration(self.configuration)

    @property
    def key(self) -> str:
        """Hash of what decides the result: spacing, axes, normalisation with its intensities, resampling, reader.

        The name of the plans is not part of it: ResEnc plans share folder and result with the default ones. Nor are the
        intensities of channels that nnU-Net normalises by the image alone, which change with every annotated case.
        """
        manager = self.manager
        decisive = {
            "format": _FORMAT,
            "spacing": list(manager.spacing),
            "transpose": list(self.plans.transpose_forward),
            "normalization": list(manager.normalization_schemes),
            "mask": list(manager.use_mask_for_norm),
            "intensities": self._decisive_intensities(),
            "resampling": [
                manager.configuration.get("resampling_fn_data"),
                manager.configuration.get("resampling_fn_data_kwargs"),
            ],
            "preprocessor": manager.preprocessor_name,
            "reader": self.plans.plans.get("image_reader_writer"),
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()

    def _decisive_intensities(self) -> dict:
        intensities = self.plans.foreground_intensity_properties_per_channel
        if self.manager.preprocessor_name != "DefaultPreprocessor":
            return intensities  # which another one may use for anything
        schemes = enumerate(self.manager.normalization_schemes)
        by_image = {str(channel) for channel, scheme in schemes if scheme in _BY_THE_IMAGE_ALONE}
        return {channel: values for channel, values in intensities.items() if channel not in by_image}

    @property
    def keeps_mask(self) -> bool:
        """Whether the non-zero mask is needed after augmentation."""
        return any(self.manager.use_mask_for_norm)


def missing_cases(preprocessing: UnlabeledPreprocessing, images: Mapping[str, Sequence[Path]]) -> list[str]:
    """Return the cases that are absent, half-written, stale, or made from other image files; sorted."""
    return [case for case in sorted(images) if not _is_valid(preprocessing, case, images[case])]


def preprocess_unlabeled(
    preprocessing: UnlabeledPreprocessing,
    images: Mapping[str, Sequence[Path]],
    num_processes: int = default_num_processes,
    log: Callable[[str], None] = print,
    between_cases: Callable[[], None] = lambda: None,
) -> list[str]:
    """Preprocess whatever is missing of ``images``; return the cases done now.

    Several trainings may call this at the same time: one does the work, the others wait. Each case appears as a whole
    or not at all.

    Args:
        preprocessing: What to do, and where.
        images: Image files of each case, one a channel.
        num_processes: Worker processes.
        log: Takes a line if another process does the work.
        between_cases: Called before the first case, after each, and now and then while another process does the work;
            an error that it raises ends the work.

    Raises:
        ValueError: If a case cannot be read or preprocessed; names it.
        RuntimeError: If a case cannot be written, if the folder cannot be locked, or if a worker process was killed.
    """
    if not missing_cases(preprocessing, images):
        return []
    preprocessing.folder.parent.mkdir(parents=True, exist_ok=True)
    between_cases()
    with _one_at_a_time(preprocessing.folder.with_name(preprocessing.folder.name + ".lock"), log, between_cases):
        todo = missing_cases(preprocessing, images)
        preprocessing.folder.mkdir(exist_ok=True)
        for file in preprocessing.folder.glob(LEFT_OVERS):
            file.unlink()
        jobs = [(preprocessing, case, [str(file) for file in images[case]]) for case in todo]
        try:
            with closing(_run(jobs, num_processes)) as done:
                for _ in tqdm(done, total=len(jobs), desc="Preprocessing unlabelled cases"):
                    between_cases()
        except RuntimeError:
            between_cases()  # what killed a worker may have been a signal to all processes of the job
            raise
    return todo


@contextmanager
def _one_at_a_time(lock_file: Path, log: Callable[[str], None], while_waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock; where the file system knows none, a file stands for it, which a killed process leaves behind."""
    lock = FileLock(lock_file)
    if not _is_acquired(lock, _PATIENCE):
        log(
            "Waiting for another process, which preprocesses unlabelled cases of this dataset. If there is none, "
            f"on no other machine either, delete {lock_file}."
        )
        while_waiting()
        while not _is_acquired(lock, seconds=1.0):
            while_waiting()
    try:
        yield
    finally:
        lock.release()


def _is_acquired(lock: FileLock, seconds: float) -> bool:
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        raise RuntimeError(
            f"{lock.lock_file} cannot be locked ({error}), and two trainings could spoil each other's files. Look at "
            "the permissions of the folder, mount its file system with locks, or set another nnUNet_preprocessed."
        ) from error
    return True


def _run(jobs: list, num_processes: int) -> Iterator[None]:
    if min(num_processes, len(jobs)) <= 1:
        yield from map(_preprocess_case, jobs)
        return
    spawn = multiprocessing.get_context("spawn")
    # Unlike multiprocessing.Pool, this notices a worker that was killed.
    with ProcessPoolExecutor(min(num_processes, len(jobs)), spawn, end_with_parent) as pool:
        with ctrl_c_waits():
            futures = [pool.submit(_preprocess_case, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker was killed while it preprocessed unlabelled cases, probably for lack of memory. Lower "
                "nnUNet_def_n_proc (or -np) and start again; what was finished is kept."
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def remember_images(preprocessing: UnlabeledPreprocessing, raw_dataset: Path, cases: Iterable[str]) -> None:
    """Keep the list of the cases in ``imagesUnlabeled/`` for trainings where the raw images are not.

    Where the raw dataset has no such folder, or the list can't be written, that of before stays.
    """
    if not preprocessing.folder.is_dir() or not (raw_dataset / UNLABELED_IMAGES).is_dir():
        return
    listed = sorted(cases)
    if _remembered(preprocessing) != set(listed):
        with suppress(OSError), written_whole(preprocessing.folder / _CASES) as temporary:
            temporary.write_text(json.dumps(listed))


def _remembered(preprocessing: UnlabeledPreprocessing) -> set[str] | None:
    try:
        return set(json.loads((preprocessing.folder / _CASES).read_text()))
    except (OSError, ValueError):
        return None


def usable_cases(preprocessing: UnlabeledPreprocessing) -> dict[str, str]:
    """Return the cases that are whole and not stale, as far as that shows without the raw images.

    Those of ``imagesUnlabeled/`` that were not there when it was last seen are left out.

    Returns:
        For each case the raw folder that it came from (``imagesUnlabeled`` or ``imagesTr``).
    """
    cases = sorted(file.stem for file in preprocessing.folder.glob("*.pkl"))
    stamps = {case: _stamp_if_whole(preprocessing, case) for case in cases}
    found = {case: stamp["source"] for case, stamp in stamps.items() if stamp and stamp["key"] == preprocessing.key}
    remembered = _remembered(preprocessing)
    return {
        case: source
        for case, source in found.items()
        if source != UNLABELED_IMAGES or remembered is None or case in remembered
    }


def preprocessed_otherwise(preprocessing: UnlabeledPreprocessing, cases: Iterable[str]) -> list[str]:
    """Return those of the cases that lie in the folder as other plans made them."""
    stamps = {case: _stamp_if_whole(preprocessing, case, with_mask=False) for case in cases}
    return [case for case, stamp in stamps.items() if stamp is not None and stamp["key"] != preprocessing.key]


def intensities_of(image: np.ndarray) -> dict[str, list[float]]:
    """Return ``mean`` and ``sd`` of each channel of a preprocessed image (C, *spatial)."""
    axes = tuple(range(1, image.ndim))
    return {name: function(image, axes, np.float64).tolist() for name, function in (("mean", np.mean), ("sd", np.std))}


def stamp_of(properties: Mapping[str, Any]) -> dict:
    """Return what a preprocessed image was made from and how: equal ones make the same image."""
    return properties[_STAMP]


def image_file(folder: Path, case: str) -> Path:
    """Return the preprocessed image of a case."""
    return folder / f"{case}.b2nd"


def mask_file(folder: Path, case: str) -> Path:
    """Return the non-zero mask of a case; exists only where the plans need it."""
    return folder / f"{case}_seg.b2nd"


def properties_file(folder: Path, case: str) -> Path:
    """Return the properties of a case; written last, so that its presence says that the case is whole."""
    return folder / f"{case}.pkl"


def _is_valid(preprocessing: UnlabeledPreprocessing, case: str, images: Sequence[Path]) -> bool:
    return _stamp_if_whole(preprocessing, case) == _stamp(preprocessing, images)


def _stamp_if_whole(preprocessing: UnlabeledPreprocessing, case: str, with_mask: bool = True) -> dict | None:
    try:
        properties = pickle.loads(properties_file(preprocessing.folder, case).read_bytes())
        shape = tuple(blosc2.open(str(image_file(preprocessing.folder, case)), mode="r").shape)
        if with_mask and preprocessing.keeps_mask:
            blosc2.open(str(mask_file(preprocessing.folder, case)), mode="r")
        return properties[_STAMP] if shape == tuple(properties["preprocessed_shape"]) else None
    except Exception:  # whatever is wrong with these files, the answer is to write them anew
        return None


def _stamp(preprocessing: UnlabeledPreprocessing, images: Sequence[Path]) -> dict:
    stats = [Path(file).stat() for file in images]
    return {
        "key": preprocessing.key,
        "source": Path(images[0]).parent.name,
        "images": [(stat.st_size, stat.st_mtime_ns) for stat in stats],
        **_spacing_file(Path(images[0])),
    }


def _spacing_file(image: Path) -> dict[str, tuple[int, int]]:
    """Return what is known of the file in which nnU-Net looks for the spacing of a TIFF, empty if there is none."""
    file = image.with_name(f"{image.stem.rpartition('_')[0]}.json")
    if image.suffix.lower() not in (".tif", ".tiff") or not file.is_file():
        return {}
    return {"spacing": (file.stat().st_size, file.stat().st_mtime_ns)}


def _preprocess_case(job: tuple[UnlabeledPreprocessing, str, list[str]]) -> None:
    preprocessing, case, images = job
    _check_intact(case, images, issubclass(preprocessing.plans.image_reader_writer_class, SimpleITKIO))
    try:
        preprocessor = preprocessing.manager.preprocessor_class(verbose=False)
        image, mask, properties = preprocessor.run_case(
            images, None, preprocessing.plans, preprocessing.manager, preprocessing.dataset_json
        )
    except Exception as error:
        _check_channels(preprocessing, case, images, _count_channels(preprocessing, images))
        raise ValueError(
            f"unlabelled case {case} could not be preprocessed from {', '.join(images)}: {type(error).__name__}: "
            f"{error}. Repair or remove these files."
        ) from error
    _check_channels(preprocessing, case, images, len(image))
    if not np.isfinite(image).all():
        raise ValueError(
            f"unlabelled case {case} ({', '.join(images)}) has NaN or infinite values after normalisation. "
            "Repair or remove it."
        )
    properties["preprocessed_shape"] = tuple(image.shape)
    properties[INTENSITIES] = intensities_of(image)
    properties[_STAMP] = _stamp(preprocessing, [Path(file) for file in images])
    try:
        _write_case(preprocessing, case, image, mask, properties)
    except (OSError, RuntimeError) as error:  # the latter is what blosc2 raises on a full disk
        folder = preprocessing.folder
        raise RuntimeError(
            f"unlabelled case {case} could not be written to {folder} ({error}), where {disk_usage(folder).free >> 20} "
            "MiB are free. Make room or see to the permissions, and start again; what was finished is kept."
        ) from error


def _write_case(
    preprocessing: UnlabeledPreprocessing, case: str, image: np.ndarray, mask: np.ndarray, properties: dict
) -> None:
    folder, patch_size = preprocessing.folder, preprocessing.manager.patch_size
    properties_file(folder, case).unlink(missing_ok=True)
    _write_array(image_file(folder, case), image.astype(np.float32, copy=False), patch_size)
    if preprocessing.keeps_mask:
        _write_array(mask_file(folder, case), mask.astype(np.int16, copy=False), patch_size)
    with written_whole(properties_file(folder, case)) as temporary:
        temporary.write_bytes(pickle.dumps(properties))


def _check_channels(preprocessing: UnlabeledPreprocessing, case: str, images: Sequence[str], found: int | None) -> None:
    expected = num_channels(preprocessing.dataset_json)
    if found not in (None, expected):
        raise ValueError(
            f"unlabelled case {case} ({', '.join(images)}) has {found} channel(s); dataset.json declares {expected}. "
            "Correct its files or remove the case."
        )


def _count_channels(preprocessing: UnlabeledPreprocessing, images: Sequence[str]) -> int | None:
    """Return the number of channels of a case that nnU-Net's preprocessor failed on; ``None`` if it is not readable."""
    try:
        return len(preprocessing.plans.image_reader_writer_class().read_images(images)[0])
    except Exception:  # the caller reports the preprocessor's own error
        return None


def _check_intact(case: str, images: Sequence[str], rectangular: bool) -> None:
    """Check that image files are whole: the reading library takes truncated ones and fills them with zeros.

    Where the plans' reader takes oblique grids, so does this.
    """
    for image in map(Path, images):
        if image_suffix(image):
            try:
                check_intact(image, rectangular)
            except ConversionError as error:
                raise ValueError(f"unlabelled case {case}, file {image}: {error}") from None


def _write_array(file: Path, array: np.ndarray, patch_size: Sequence[int]) -> None:
    blocks, chunks = comp_blosc2_params(array.shape, tuple(patch_size), array.itemsize)
    with written_whole(file) as temporary:
        blosc2.asarray(
            np.ascontiguousarray(array), urlpath=str(temporary), chunks=chunks, blocks=blocks, cparams={"clevel": 5}
        )
