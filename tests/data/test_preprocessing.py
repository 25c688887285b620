"""What is made of unlabelled images, and what ends it."""

import errno
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from filelock import FileLock

from nnunet_ad.data import preprocessing as module
from nnunet_ad.data.dataset import UnlabeledDataset
from nnunet_ad.data.preprocessed import (
    missing_cases,
    usable_cases,
)
from nnunet_ad.data.preprocessing import preprocess_unlabeled
from nnunet_ad.whole_file import LEFT_OVERS


def test_writes_image_and_properties_only(done, images):
    names = {file.name for file in done.folder.iterdir()}
    assert names == {f"{case}{ending}" for case in images for ending in (".b2nd", ".pkl")}
    assert usable_cases(done) == dict.fromkeys(sorted(images), "imagesUnlabeled")


def test_equals_what_nnunets_preprocessor_makes_of_the_image(done, images):
    case = sorted(images)[0]
    preprocessor = done.manager.preprocessor_class(verbose=False)
    expected, _, _ = preprocessor.run_case([str(f) for f in images[case]], None, done.plans, done.manager, {})
    image, mask = UnlabeledDataset(done.folder, [case], with_mask=False).load_case(case)
    np.testing.assert_array_equal(image[:], expected.astype(np.float32))
    assert mask is None


def test_nothing_is_done_twice(done, images):
    before = {file.name: file.stat().st_mtime_ns for file in done.folder.iterdir()}
    assert preprocess_unlabeled(done, images) == []
    assert {file.name: file.stat().st_mtime_ns for file in done.folder.iterdir()} == before


@pytest.mark.parametrize("damage", ["no image", "truncated image", "no properties", "truncated properties", "foreign"])
def test_half_written_cases_are_redone(done, images, damage):
    case = sorted(images)[0]
    image, properties = done.folder / f"{case}.b2nd", done.folder / f"{case}.pkl"
    match damage:
        case "no image":
            image.unlink()
        case "truncated image":
            image.write_bytes(image.read_bytes()[:200])
        case "no properties":
            properties.unlink()
        case "truncated properties":
            properties.write_bytes(properties.read_bytes()[:20])
        case "foreign":
            properties.write_bytes(pickle.dumps({"spacing": [1, 1, 1]}))
    name = image.stem
    assert missing_cases(done, images) == [name]
    assert preprocess_unlabeled(done, images, num_processes=1) == [name]
    assert missing_cases(done, images) == []


def test_the_mask_is_written_where_the_plans_normalise_inside_it(preprocessing_with, images):
    preprocessing = preprocessing_with(use_mask_for_norm=[True])
    preprocess_unlabeled(preprocessing, images, num_processes=1)
    case = sorted(images)[0]
    image, mask = UnlabeledDataset(preprocessing.folder, [case], with_mask=True).load_case(case)
    assert mask.shape == image.shape
    assert set(np.unique(mask[:])) <= {-1, 0}


def test_what_a_killed_process_left_is_removed(preprocessing, images):
    preprocessing.folder.mkdir(parents=True)
    (preprocessing.folder / ".unfinished_0123abcd_u1.b2nd").touch()
    preprocess_unlabeled(preprocessing, images, num_processes=1)
    assert not list(preprocessing.folder.glob(LEFT_OVERS))


def test_folds_that_start_at_once_do_the_work_once(preprocessing, images, monkeypatch):
    started = []
    real = module._preprocess_case

    def slow(job):
        started.append(job[1])
        time.sleep(0.2)
        real(job)

    monkeypatch.setattr(module, "_preprocess_case", slow)
    with ThreadPoolExecutor(3) as folds:
        done = [folds.submit(preprocess_unlabeled, preprocessing, images, 1) for _ in range(3)]
    assert sorted(started) == sorted(images)
    assert sorted(map(len, (fold.result() for fold in done))) == [0, 0, len(images)]


def test_waiting_for_another_process_is_said(preprocessing, images, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    lock = preprocessing.folder.with_name(preprocessing.folder.name + ".lock")
    lock.parent.mkdir(parents=True)
    said: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        with FileLock(lock, is_singleton=False):
            done = pool.submit(preprocess_unlabeled, preprocessing, images, 1, said.append)
            while not said and not done.done():
                time.sleep(0.05)
        assert done.result() == sorted(images)
    assert len(said) == 1 and f"delete {lock}" in said[0]


def test_a_folder_that_cannot_be_locked_is_said_so(preprocessing, images, monkeypatch):
    def refuse(self, timeout):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(RuntimeError, match=r"_unlabeled\.lock cannot be locked \(\[Errno \d+\] No locks available\)"):
        preprocess_unlabeled(preprocessing, images, num_processes=1)
    assert not preprocessing.folder.exists()


def test_an_unreadable_image_is_named_and_leaves_nothing(preprocessing, images):
    bad = sorted(images)[0]
    images[bad][0].write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"unlabelled case {bad}, file .*cannot be read"):
        preprocess_unlabeled(preprocessing, images, num_processes=1)
    assert not list(preprocessing.folder.glob(f"{bad}*"))


@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
def test_a_truncated_image_is_named(preprocessing, images, share):
    case = sorted(images)[1]
    file = images[case][0]
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ValueError, match=f"unlabelled case {case}.*truncated"):
        preprocess_unlabeled(preprocessing, images, num_processes=1)
    assert not list(preprocessing.folder.glob(f"{case}*"))


def test_nan_is_named(preprocessing, tmp_path):
    array = np.ones((16, 16, 16), np.float32)
    array[4, 4, 4] = np.nan
    file = tmp_path / "case_0000.mha"  # the NIfTI library reads NaN as 0
    sitk.WriteImage(sitk.GetImageFromArray(array), file)
    with pytest.raises(ValueError, match=r"unlabelled case case .* NaN or infinite"):
        preprocess_unlabeled(preprocessing, {"case": [file]}, num_processes=1)


def test_oblique_axes_are_refused_only_where_the_reader_does(made, images, preprocessing_with):
    case, (file,) = sorted(images.items())[0]
    image = nib.load(file)
    affine = image.affine.copy()
    affine[0, 1] = 0.2 * affine[0, 0]
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), file)
    with pytest.raises(ValueError, match=rf"unlabelled case {case}, file .*: the axes of the grid are"):
        preprocess_unlabeled(preprocessing_with(), images, num_processes=1)
    assert preprocess_unlabeled(preprocessing_with(image_reader_writer="NibabelIO"), images) == sorted(images)


def test_a_missing_channel_is_named(made, preprocessing_with, images):
    preprocessing = preprocessing_with()
    preprocessing.dataset_json["channel_names"]["1"] = "T2"
    with pytest.raises(ValueError, match=r"has 1 channel\(s\); dataset.json declares 2"):
        preprocess_unlabeled(preprocessing, images, num_processes=1)


@pytest.mark.skipif(os.name != "posix", reason="sets a limit on the size of files")
def test_a_full_disk_is_said_so_and_leaves_nothing(preprocessing, images):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
    try:
        with pytest.raises(RuntimeError, match=r"unlabelled case Made_001 could not be written to .* MiB are free"):
            preprocess_unlabeled(preprocessing, images, num_processes=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(preprocessing.folder.iterdir())


def test_a_killed_worker_is_said_so(preprocessing, images, monkeypatch):
    class Broken:
        def result(self):
            raise BrokenProcessPool

    monkeypatch.setattr("nnunet_ad.data.preprocessing.as_completed", lambda futures: [Broken()])
    with pytest.raises(RuntimeError, match="a worker was killed"):
        preprocess_unlabeled(preprocessing, images, num_processes=2)


def test_workers_killed_by_a_signal_to_the_whole_job_are_no_fault(preprocessing, images, monkeypatch):
    def killed(jobs, num_processes):
        yield
        raise RuntimeError("a worker was killed")

    calls = []

    def stop_when_asked():
        calls.append(None)
        if len(calls) == 3:  # after the first case nothing has been asked yet
            raise SystemExit(75)

    monkeypatch.setattr(module, "_run", killed)
    with pytest.raises(SystemExit):
        preprocess_unlabeled(preprocessing, images, between_cases=stop_when_asked)
    calls.clear()
    with pytest.raises(RuntimeError, match="a worker was killed"):
        preprocess_unlabeled(preprocessing, images, between_cases=lambda: calls.append(None))
    assert len(calls) == 3
