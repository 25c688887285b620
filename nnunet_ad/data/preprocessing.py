"""Preprocessing of unlabelled cases: images only, by nnU-Net's own preprocessor, redone when stale or half-written."""

import multiprocessing
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from pathlib import Path
from shutil import disk_usage

import blosc2
import numpy as np
from filelock import FileLock, Timeout
from nnunetv2.configuration import default_num_processes
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params
from tqdm import tqdm

from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.volume_files import check_intact, image_suffix
from nnunet_ad.data.images import num_channels
from nnunet_ad.data.preprocessed import (
    INTENSITIES,
    STAMP,
    UnlabeledPreprocessing,
    image_file,
    intensities_of,
    make_stamp,
    mask_file,
    missing_cases,
    properties_file,
)
from nnunet_ad.whole_file import LEFT_OVERS, written_whole
from nnunet_ad.worker_processes import ctrl_c_waits, end_with_parent

_PATIENCE = 15.0  # seconds of waiting before a word about it


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
    properties[STAMP] = make_stamp(preprocessing, [Path(file) for file in images])
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
