import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ad.conversion.cases import Case, Role, Volume
from nnunet_ad.conversion.dataset import Dataset, Provenance
from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.folds import VALIDATION_IS_LABELED, VALIDATION_KEPT_ASIDE, load_public_split, make_fold
from nnunet_ad.conversion.processes import conversion_workers
from nnunet_ad.conversion.volumes import check_image, check_same_grid, map_label_values, read_volume
from nnunet_ad.conversion.writer import write_dataset
from nnunet_ad.testing.benchmark_trees.laseg import write_laseg_tree


def volume(values, spacing=1.0):
    image = sitk.GetImageFromArray(np.asarray(values))
    image.SetSpacing((spacing,) * 3)
    return image


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path):
    """The library that writes volumes returns without an error when the file could not take all bytes."""
    write_laseg_tree(tmp_path / "input", shape=(24, 20, 18))
    code = (
        "import resource, signal, sys\n"
        "from nnunet_ad.conversion.command_line import run\n"
        "from nnunet_ad.conversion.laseg import CONVERTER\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "sys.exit(run(CONVERTER, ['-i', sys.argv[1]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "input")],
        env={**os.environ, "nnUNet_raw": str(tmp_path / "raw")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "cannot be written; check the free space" in done.stderr
    assert not list((tmp_path / "raw").iterdir())


def test_fold_takes_the_first_as_labelled_and_the_last_as_val():
    fold = make_fold("abcdefgh", 2, 3)
    assert ("".join(fold.train), "".join(fold.unlabeled), "".join(fold.val)) == ("ab", "cde", "fgh")
    assert fold.validation == VALIDATION_KEPT_ASIDE


def test_fold_without_val_validates_on_the_labelled_cases():
    fold = make_fold("abcdefgh", 2, 0)
    assert fold.val == fold.train
    assert "".join(fold.unlabeled) == "cdefgh"
    assert fold.validation == VALIDATION_IS_LABELED


def test_fold_may_label_everything():
    assert make_fold("abc", 2, 1).unlabeled == ()


def test_public_split_is_complete_and_disjoint():
    split = load_public_split("LASeg")
    assert (len(set(split["train"])), len(set(split["test"]))) == (80, 20)
    assert not set(split["train"]) & set(split["test"])
    assert split["train"] == sorted(split["train"])
    assert (split["labeled"]["5pct"], split["labeled"]["10pct"]) == (split["train"][:4], split["train"][:8])


def test_missing_public_split_is_named():
    with pytest.raises(ConversionError, match=r"Nowhere\.json"):
        load_public_split("Nowhere")


def test_label_values_are_mapped_on_the_same_grid():
    label = volume(np.array([[[0, 205, 420, 421]]], dtype=np.int16), spacing=2.0)
    mapped = map_label_values(label, {0: 0, 205: 1, 420: 2, 421: 2})
    assert sitk.GetArrayFromImage(mapped).ravel().tolist() == [0, 1, 2, 2]
    assert mapped.GetPixelID() == sitk.sitkUInt8
    check_same_grid(mapped, label, "mapped", "label")


def test_axes_a_little_off_a_right_angle_are_no_damage(tmp_path):
    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    affine = np.array([[-1.0, 5e-4, 0, 3], [0, -1, 0, 4], [0, 0, 2, 5], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "a.nii.gz")
    with pytest.raises(RuntimeError):
        sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    image = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, values)
    assert image.GetSpacing() == pytest.approx((1, 1, 2), abs=1e-3)


def test_images_too_large_for_float32_are_refused():
    with pytest.raises(ConversionError, match="1 NaN or infinite"):
        check_image(volume(np.array([[[0.0, 1e300]]])))


@pytest.mark.parametrize("property_name", ["Spacing", "Origin", "Direction"])
def test_grids_that_differ_are_named(property_name):
    first, second = volume(np.zeros((2, 3, 4))), volume(np.zeros((2, 3, 4)))
    getattr(second, f"Set{property_name}")({"Direction": (-1, 0, 0, 0, -1, 0, 0, 0, 1)}.get(property_name, (1, 1, 2)))
    with pytest.raises(ConversionError, match=f"the label has the {property_name.lower()} .* but the image has"):
        check_same_grid(second, first, "the label", "the image")


def make_dataset(second_channel):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    label = (values > 12).astype(np.uint8)
    channels = (Volume("t1", lambda: volume(values)), Volume("t2", lambda: second_channel))
    return Dataset(
        dataset_id=3,
        name="Two",
        channel_names=("T1", "T2"),
        labels={"background": 0, "organ": 1},
        cases=(Case("a", Role.LABELED, "site", channels, Volume("mask", lambda: volume(label))),),
        folds=(make_fold("a", 1, 0),),
        provenance=Provenance("made", "made", "none", "none"),
        setting="supervised",
    )


def test_several_channels_are_written_in_order(raw):
    dataset = make_dataset(volume(np.arange(24.0).reshape(2, 3, 4) * 7))
    folder = write_dataset(dataset, conversion_workers(1))
    assert folder == raw / "Dataset003_Two"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == dataset.files()
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "imagesTr" / "a_0001.nii.gz")))
    assert written.max() == 23 * 7


def test_channels_on_different_grids_are_refused(raw):
    dataset = make_dataset(volume(np.arange(24.0).reshape(2, 3, 4), spacing=2.0))
    with pytest.raises(ConversionError, match=r"case a, file t2: .*first channel t1"):
        write_dataset(dataset, conversion_workers(1))
    assert list(raw.iterdir()) == []
