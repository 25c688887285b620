import json

import numpy as np
import pytest
import SimpleITK
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ad.conversion.dataset import Dataset, Provenance
from nnunet_ad.conversion.folds import Fold
from nnunet_ad.conversion.sidecar import make_sidecar
from nnunet_ad.testing.made_dataset import DIRECTION, ORIGIN, SPACING, write_made_dataset

TINY = {"shape": (24, 28, 24), "num_labeled": 2, "num_unlabeled": 3, "num_test": 2}


def _read_json(folder, name):
    return json.loads((folder / name).read_text())


def _arrays(folder):
    return {
        str(path.relative_to(folder)): SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        for path in sorted(folder.rglob("*.nii.gz"))
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_made_dataset(tmp_path_factory.mktemp("raw"), **TINY, num_val=2, num_channels=2)


def test_files_follow_the_data_contract(folder):
    assert folder.name == "Dataset500_Made"
    assert {path.name for path in folder.iterdir()} == {
        *("imagesTr", "labelsTr", "imagesUnlabeled", "imagesTs", "labelsTs"),
        *("dataset.json", "splits_final.json", "nnunet_ad.json"),
    }
    (split,) = _read_json(folder, "splits_final.json")
    assert [len(split[role]) for role in ("train", "val", "unlabeled")] == [2, 2, 3]
    assert not set(split["train"]) & set(split["val"])
    labelled = split["train"] + split["val"]
    assert {path.name for path in (folder / "labelsTr").iterdir()} == {f"{case}.nii.gz" for case in labelled}
    for images, cases in (("imagesTr", labelled), ("imagesUnlabeled", split["unlabeled"])):
        expected = {f"{case}_{channel:04d}.nii.gz" for case in cases for channel in range(2)}
        assert {path.name for path in (folder / images).iterdir()} == expected
    assert _read_json(folder, "dataset.json")["numTraining"] == 4


def test_sidecar_names_the_domain_of_every_case_and_no_path(folder):
    sidecar = _read_json(folder, "nnunet_ad.json")
    (split,) = _read_json(folder, "splits_final.json")
    test_cases = [path.name.removesuffix(".nii.gz") for path in (folder / "labelsTs").iterdir()]
    assert set(sidecar["domains"]) == {*split["train"], *split["val"], *split["unlabeled"], *test_cases}
    assert {sidecar["domains"][case] for case in split["train"]} == {"A"}
    for cases in (split["val"], split["unlabeled"], test_cases):
        assert {sidecar["domains"][case] for case in cases} == {"A", "B"}
    assert str(folder.parent) not in (folder / "nnunet_ad.json").read_text()


def test_sidecar_has_the_format_of_the_converters(folder):
    fold = Fold(**{role: tuple(cases) for role, cases in _read_json(folder, "splits_final.json")[0].items()})
    converted = make_sidecar(Dataset(1, "Any", ("MR",), {}, (), (fold,), Provenance("", "", "", ""), "any"))
    sidecar = _read_json(folder, "nnunet_ad.json")
    assert sidecar.keys() == converted.keys()
    for part in ("converter", "provenance", "protocol"):
        assert sidecar[part].keys() == converted[part].keys()
    assert sidecar["protocol"]["validation"] == converted["protocol"]["validation"]


def test_geometry_survives_the_file(folder):
    for path in folder.rglob("*.nii.gz"):
        image = SimpleITK.ReadImage(str(path))
        assert image.GetSize() == (24, 28, 24)
        np.testing.assert_allclose(image.GetSpacing(), SPACING, atol=1e-5)
        np.testing.assert_allclose(image.GetOrigin(), ORIGIN, atol=1e-4)
        np.testing.assert_allclose(image.GetDirection(), DIRECTION, atol=1e-5)


def test_nnunet_reads_all_channels_of_a_case(folder):
    files = [str(path) for path in sorted((folder / "imagesUnlabeled").glob("Made_004_*"))]
    array, properties = SimpleITKIO().read_images(files)
    assert array.shape == (2, 24, 28, 24)
    np.testing.assert_allclose(properties["spacing"], SPACING[::-1], atol=1e-5)


def test_the_same_seed_gives_the_same_dataset_and_another_seed_another(tmp_path):
    first, again, other = (
        _arrays(write_made_dataset(tmp_path / str(i), **TINY, seed=seed)) for i, seed in enumerate((1, 1, 2))
    )
    assert first.keys() == again.keys() == other.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
        assert (array != other[name]).any()


def test_all_cases_differ(folder):
    images = [array.tobytes() for name, array in _arrays(folder).items() if name.startswith("images")]
    assert len(set(images)) == len(images)


def test_without_val_cases_the_labelled_cases_are_val(tmp_path):
    folder = write_made_dataset(tmp_path, **TINY)
    (split,) = _read_json(folder, "splits_final.json")
    assert split["val"] == split["train"]
    assert "themselves" in _read_json(folder, "nnunet_ad.json")["protocol"]["validation"]


def test_ignore_and_region_labels_are_what_nnunet_expects(tmp_path):
    folder = write_made_dataset(tmp_path, **TINY, ignore_label=True, region_labels=True)
    dataset_json = _read_json(folder, "dataset.json")
    manager = LabelManager(dataset_json["labels"], dataset_json["regions_class_order"])
    assert manager.has_regions and manager.ignore_label == 3
    for name, array in _arrays(folder).items():
        if name.startswith("labelsTr"):
            assert set(np.unique(array)) == {0, 1, 2, 3}
            assert (array[:6] == 3).all() and not (array[6:] == 3).any()
        elif name.startswith("labelsTs"):
            assert set(np.unique(array)) == {0, 1, 2}


def test_an_existing_dataset_is_not_overwritten(tmp_path):
    write_made_dataset(tmp_path, **TINY)
    with pytest.raises(FileExistsError):
        write_made_dataset(tmp_path, **TINY)


@pytest.mark.parametrize("wrong", [{"num_labeled": 0}, {"num_channels": 0}])
def test_a_dataset_needs_a_labelled_case_and_a_channel(tmp_path, wrong):
    with pytest.raises(ValueError, match="need a labelled case and a channel"):
        write_made_dataset(tmp_path, **{**TINY, **wrong})
    assert not list(tmp_path.iterdir())
