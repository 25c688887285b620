import errno
import json
import os
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from filelock import FileLock

from nnunet_ad.conversion.hospital.command_line import main as convert_hospital_data
from nnunet_ad.data import preprocessing as module
from nnunet_ad.data import unlabeled
from nnunet_ad.data.dataset import UnlabeledDataset
from nnunet_ad.data.images import images_of_folder, training_images, unlabeled_images
from nnunet_ad.data.preprocessing import (
    missing_cases,
    preprocess_unlabeled,
    preprocessed_otherwise,
    remember_images,
    usable_cases,
)
from nnunet_ad.data.unlabeled import images_to_preprocess
from nnunet_ad.testing.hospital_folder import write_hospital_folder
from nnunet_ad.whole_file import LEFT_OVERS


@pytest.fixture
def images(made):
    return unlabeled_images(made, {"file_ending": ".nii.gz", "channel_names": {"0": "MR"}})


@pytest.fixture
def preprocessing(preprocessing_with):
    return preprocessing_with()


@pytest.fixture
def done(preprocessing, images):
    assert preprocess_unlabeled(preprocessing, images, num_processes=1) == sorted(images)
    return preprocessing


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


def test_converting_again_makes_only_changed_cases_stale(preprocessing, tmp_path, monkeypatch):
    """The loop of docs/hospital-data.md: annotate a case, convert again with the same mapping."""
    root = write_hospital_folder(
        tmp_path / "hospital", seed=0, num_labeled=2, num_unlabeled=3, num_test=0, shape=(16, 18, 17)
    )
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "nnUNet_raw"))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    monkeypatch.delenv("nnUNet_results", raising=False)
    folders = ["--labeled", root / "labeled", "--unlabeled", root / "unlabeled", "--labels", root / "labels.json"]
    command = ["-d", 501, "-n", "Made", *folders, "--mapping", tmp_path / "m.csv", "--overwrite", "--accept-outliers"]

    def convert():
        assert convert_hospital_data(list(map(str, command))) == 0
        raw = tmp_path / "nnUNet_raw" / "Dataset501_Made"
        found = unlabeled_images(raw, {"file_ending": ".nii.gz", "channel_names": {"0": "MR"}})
        remember_images(preprocessing, raw, found)
        return found

    assert preprocess_unlabeled(preprocessing, convert(), num_processes=1) == ["Made_0003", "Made_0004", "Made_0005"]
    time.sleep(0.02)  # longer than the clock of a file system ticks
    assert missing_cases(preprocessing, convert()) == []
    shutil.move(root / "unlabeled" / "scan_003.nii.gz", root / "labeled" / "images")
    shutil.copy(root / "labeled" / "masks" / "scan_000.nii.gz", root / "labeled" / "masks" / "scan_003.nii.gz")
    images = convert()
    assert sorted(images) == ["Made_0003", "Made_0005"]
    assert missing_cases(preprocessing, images) == []
    assert sorted(usable_cases(preprocessing)) == sorted(images), "the annotated one trains with its label only"
    file = str(root / "unlabeled" / "scan_002.nii.gz")
    sitk.WriteImage(sitk.ReadImage(file) + 1, file)
    assert missing_cases(preprocessing, convert()) == ["Made_0003"]


@pytest.mark.parametrize(
    "change",
    [
        {"spacing": [3.0, 2.0, 2.0]},
        {"transpose_forward": [1, 0, 2]},
        {"normalization_schemes": ["CTNormalization"]},
        {"resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}},
        {"use_mask_for_norm": [True]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_the_result_makes_it_stale(done, images, preprocessing_with, change):
    assert missing_cases(preprocessing_with(**change), images) == sorted(images)


@pytest.mark.parametrize(
    "change", [{"plans_name": "nnUNetResEncUNetMPlans"}, {"patch_size": [8, 8, 8]}, {"batch_size": 9}]
)
def test_plans_that_differ_in_name_or_network_share_it(done, images, preprocessing_with, change):
    assert missing_cases(preprocessing_with(**change), images) == []


INTENSITIES = "foreground_intensity_properties_per_channel"


@pytest.mark.parametrize(
    ("schemes", "channel", "counts"),
    [
        (["ZScoreNormalization"], "0", False),
        (["NoNormalization"], "0", False),
        (["RescaleTo01Normalization"], "0", False),
        (["RGBTo01Normalization"], "0", False),
        (["CTNormalization"], "0", True),
        (["NormalizationOfSomeone"], "0", True),
        (["CTNormalization", "ZScoreNormalization"], "0", True),
        (["CTNormalization", "ZScoreNormalization"], "1", False),
    ],
)
def test_intensities_of_the_plans_count_for_channels_normalised_by_them(preprocessing_with, schemes, channel, counts):
    of_plans = {str(number): {"mean": 1.0, "std": 2.0} for number in range(len(schemes))}
    planned = {"normalization_schemes": schemes, "use_mask_for_norm": [False] * len(schemes)}
    before = preprocessing_with(**planned, **{INTENSITIES: of_plans})
    after = preprocessing_with(**planned, **{INTENSITIES: of_plans | {channel: {"mean": 1.5, "std": 2.0}}})
    assert (before.key != after.key) == counts


def test_nnunets_schemes_that_count_as_reading_the_image_alone_do():
    from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes

    image = np.random.default_rng(0).uniform(0, 255, (4, 5, 6)).astype(np.float32)
    for name in module._BY_THE_IMAGE_ALONE:
        some, others = (getattr(schemes, name)(False, {"mean": mean}).run(image.copy()) for mean in (0.0, 9.0))
        np.testing.assert_array_equal(some, others)


def test_intensities_of_the_plans_count_with_the_preprocessor_of_someone(preprocessing_with):
    other = {"preprocessor_name": "PreprocessorOfSomeone"}
    changed = preprocessing_with(**other, **{INTENSITIES: {"0": {"mean": 1.5, "std": 2.0}}})
    assert preprocessing_with(**other).key != changed.key


def test_cases_stay_when_the_plans_of_images_normalised_by_themselves_are_made_anew(done, images, preprocessing_with):
    again = preprocessing_with(**{INTENSITIES: {"0": {"mean": 1.5, "std": 2.0}}})
    assert missing_cases(again, images) == []
    assert usable_cases(again) == dict.fromkeys(sorted(images), "imagesUnlabeled")
    assert preprocessed_otherwise(again, images) == []


def test_a_changed_image_file_makes_its_case_stale(done, images):
    case = sorted(images)[1]
    os.utime(images[case][0], ns=(1, 1))
    assert missing_cases(done, images) == [case]


def test_the_spacing_beside_a_tiff_counts(tmp_path):
    file = tmp_path / "u1_0000.tif"
    file.touch()
    assert module._spacing_file(file) == {}
    (tmp_path / "u1.json").write_text('{"spacing": [2, 1, 1]}')
    first = module._spacing_file(file)
    (tmp_path / "u1.json").write_text('{"spacing": [2, 1, 1.5]}')
    assert first["spacing"] != module._spacing_file(file)["spacing"]
    assert module._spacing_file(tmp_path / "u1_0000.nii.gz") == {}


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


def test_cases_of_other_plans_are_told_whether_or_not_these_keep_a_mask(done, images, preprocessing_with):
    assert preprocessed_otherwise(done, images) == []
    of_others = preprocessing_with(spacing=[9.0, 9.0, 9.0])
    assert preprocessed_otherwise(of_others, images) == sorted(images)
    assert preprocessed_otherwise(of_others, ["nobody"]) == []
    assert preprocessed_otherwise(preprocessing_with(use_mask_for_norm=[True]), images) == sorted(images)


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


def test_without_raw_images_stale_and_half_written_cases_are_not_usable(done, images, preprocessing_with):
    first, second = sorted(images)
    assert usable_cases(preprocessing_with(spacing=[3.0, 2.0, 2.0])) == {}
    (done.folder / f"{first}.b2nd").unlink()
    assert list(usable_cases(done)) == [second]


def test_without_raw_images_cases_that_were_taken_out_are_not_usable(done, images, made):
    first, second = sorted(images)
    remember_images(done, made, [first, second])
    assert list(usable_cases(done)) == [first, second]
    remember_images(done, made, [second])
    assert list(usable_cases(done)) == [second]
    shutil.rmtree(made / "imagesUnlabeled")  # as on a machine that has the labelled images only
    remember_images(done, made, [])
    assert list(usable_cases(done)) == [second]


def test_a_list_of_cases_that_cannot_be_written_stays(done, images, made, monkeypatch):
    def refuse(file):
        raise PermissionError(file)

    monkeypatch.setattr(module, "written_whole", refuse)
    remember_images(done, made, [])
    assert list(usable_cases(done)) == sorted(images)


def test_a_damaged_list_of_cases_is_as_none(done, images, made):
    remember_images(done, made, [])
    (done.folder / "imagesUnlabeled.json").write_text("[")
    assert list(usable_cases(done)) == sorted(images)


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


def test_a_gap_in_the_channels_is_named(made, images):
    case, (file,) = sorted(images.items())[0]
    shutil.copy(file, file.with_name(f"{case}_0002.nii.gz"))
    with pytest.raises(ValueError, match=rf"case {case} .* expected {case}_0000\.nii\.gz, {case}_0001\.nii\.gz"):
        unlabeled_images(made, {"file_ending": ".nii.gz", "channel_names": {"0": "T1", "1": "T2"}})


def test_a_file_not_named_as_nnunets_is_named(tmp_path):
    for name in ("patient_1.nii.gz", "patient_00001.nii.gz", "_0000x.nii.gz"):
        (tmp_path / name).touch()
        message = rf"{name}: expected the name of the case .* such as {name.removesuffix('.nii.gz')}_0000\.nii\.gz"
        with pytest.raises(ValueError, match=message):
            images_of_folder(tmp_path, {"file_ending": ".nii.gz", "channel_names": {"0": "T1"}})
        (tmp_path / name).unlink()


def test_unlabeled_images_that_would_be_left_out_silently_are_named(tmp_path):
    files = {"file_ending": ".nii.gz", "channel_names": {"0": "T1"}}
    folder = tmp_path / "imagesUnlabeled"
    folder.mkdir()
    (folder / "a_0000.nii.gz").touch()
    (folder / "notes.txt").touch()
    (folder / "README").symlink_to(tmp_path / "moved")
    assert list(unlabeled_images(tmp_path, files)) == ["a"]
    for name in ("b_0000.nii", "b_0000.mha", "b_0000.NII.GZ"):
        (folder / name).touch()
        with pytest.raises(ValueError, match=rf"{name}: all images of the dataset end in \.nii\.gz"):
            unlabeled_images(tmp_path, files)
        assert list(images_of_folder(folder, files)) == ["a"]
        (folder / name).unlink()
    for name in ("c_seg_0000.nii.gz", "d_seg_0000.nii.gz", "d_0000.nii.gz"):
        (folder / name).touch()
    with pytest.raises(ValueError, match=r"case d_seg in .* would be called as the mask of d\. Rename"):
        unlabeled_images(tmp_path, files)
    (folder / "d_0000.nii.gz").unlink()
    assert list(unlabeled_images(tmp_path, files)) == ["a", "c_seg", "d_seg"]
    (folder / "b_0000.nii.gz").symlink_to(tmp_path / "moved.nii.gz")
    with pytest.raises(ValueError, match=r"b_0000\.nii\.gz is a link to a file that is not there"):
        unlabeled_images(tmp_path, files)


def test_one_file_may_hold_all_channels(tmp_path):
    (tmp_path / "photo_1_0000.png").touch()
    colours = {"file_ending": ".png", "channel_names": {"0": "R", "1": "G", "2": "B"}}
    assert images_of_folder(tmp_path, colours) == {"photo_1": [tmp_path / "photo_1_0000.png"]}


def test_paths_that_dataset_json_gives_stay_as_they_are(tmp_path):
    files = {"case": {"images": ["imagesTr/case_0000.nii.gz"], "label": "labelsTr/case.nii.gz"}}
    dataset_json = {"dataset": files, "file_ending": ".nii.gz"}
    assert training_images(tmp_path, dataset_json) == {"case": [tmp_path / "imagesTr" / "case_0000.nii.gz"]}
    assert dataset_json["dataset"]["case"]["images"] == ["imagesTr/case_0000.nii.gz"]


def test_training_images_are_listed_once_for_all_folds(tmp_path, monkeypatch):
    """The host starts a dozen processes for it."""
    listings, files = [], {name: [tmp_path / f"{name}_0000.nii.gz"] for name in "abc"}
    monkeypatch.setattr(unlabeled, "training_images", lambda *_: listings.append(1) or files)
    (tmp_path / "splits_final.json").write_text(
        json.dumps([{"train": ["t"], "val": ["t"], "unlabeled": [name]} for name in "ab"])
    )
    assert images_to_preprocess({}, tmp_path, tmp_path, {}) == {name: files[name] for name in "ab"}
    assert len(listings) == 1


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


def test_without_a_folder_there_are_no_unlabeled_images(tmp_path):
    assert unlabeled_images(tmp_path, {"file_ending": ".nii.gz", "channel_names": {"0": "T1"}}) == {}


def test_another_reader_makes_it_stale(done, images, preprocessing_with):
    assert missing_cases(preprocessing_with(image_reader_writer="NibabelIO"), images) == sorted(images)


def test_a_list_of_unlabeled_images_says_nothing_of_labeled_ones(done):
    for file in done.folder.glob("*.pkl"):
        properties = pickle.loads(file.read_bytes())
        properties[module._STAMP]["source"] = "imagesTr"
        file.write_bytes(pickle.dumps(properties))
    (done.folder / "imagesUnlabeled.json").write_text("[]")
    found = usable_cases(done)
    assert found and set(found.values()) == {"imagesTr"}
