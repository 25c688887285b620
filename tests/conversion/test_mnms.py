import base64
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from written_datasets import assert_processes_agree

from nnunet_ad.conversion.command_line import run
from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.folds import load_public_split
from nnunet_ad.conversion.frames import read_series
from nnunet_ad.conversion.mnms import CONVERTER, choose_subjects
from nnunet_ad.conversion.mnms_table import Subject, find_table, read_table
from nnunet_ad.testing.benchmark_trees.mnms import (
    FRAME_STEP,
    NON_ORTHONORMAL,
    TABLE_CSV,
    TABLE_EXCEL,
    write_mnms_tree,
)

SCRIPT = Path(__file__).parents[2] / "dataset_conversion" / "Dataset105_MnMs.py"
NAME = "Dataset105_MnMs_A_2pct"
NUM_SUBJECTS = {"A": 95, "B": 125, "C": 50, "D": 50}  # of the public lists
NUM_LABELED = {"2pct": {"A": 2, "B": 3, "C": 1, "D": 1}, "5pct": {"A": 5, "B": 7, "C": 3, "D": 3}}
DEFAULT_IDS = {
    ("A", "2pct"): 105, ("B", "2pct"): 106, ("C", "2pct"): 107, ("D", "2pct"): 108,
    ("A", "5pct"): 109, ("B", "5pct"): 110, ("C", "5pct"): 111, ("D", "5pct"): 112,
}  # fmt: skip
# An .xls file of two rows as old Excel writes it, compressed.
XLS = (
    b"c-rk)O-vI(6#izrZE2y<VljdVX-Gt^93UQ)15}X8Ndl6fF(z8*CN`8US$a?}qS&K}i6@O05-wg)FaAVL^ya|?qX!cc6N*PqCYpGFu5aG%)}kC}"
    b"q6E!;n|b@*o0<1!XWqP>-8V~-<@pCKMf`$Zcu+C}@Kxvpm4G9JLG`97S?69u#dPscAy7jL>GR@g=(S(2p<M4G6x>%|5(QSMoWV4Pa=I4VLiF<("
    b"QbLZQhp50E($u4wN7cx5g6R&X_qgRVrbk$FooNrXT^6UYlo*O1wxjrz(#Cc5kaiz&pAW3*LK9xeD876{SZ%%NGcu{{_N-`C>#zV?w?R$Uj8t|R"
    b"QCh$Sd^2OfS7)cbh`IW$)eDgR`+B{91N}`!1!iHM;{Y#Eat*820?(|{o~t8PmJpD<kk<@7m5oj0(poJrrs?UN5gSTPX+B3H=BTFU4UHl>IUva>"
    b"sroucyT`gIMn*H*l%~&61ocUE*FfjUAyN;Y&tx;xQr#bv`JMAYcwIgS@jj^|nnnZj5#B9f%J{2yzq~y@KAbqqnpu7aSZ|6w^5J0OitIt1>$%1Q"
    b"$7-B=9AJ8tt?p*Ng=v&xobK(zO*V6Ej@w-0+II4Dknt|Dw}RhCeBtxR<JQ8b#D3xz2aA`Yi|-TjXrswZQ-68Qp+j_t+qWd1B%Hgjv&u)N&A(-s"
    b"8YOIx-Lzka4Ol~v*$7ihlCvYql48%5C3#5llqHoUwJdo_^4fmH27Uzl@!9PK`|+10=||4}bL=9?W4E+?M`*sJeQ8<Qz_QgQVB50RH&~XW<yzaa"
    b"!j^;Few=BXE%z#ocqq+K?)`}%T)1%I!i5VLE?jIk2tK1)=W><La@OhGZ~xa>qf&Bzll-?hfgD|V`Y=sGr@MiRRmIOvc!gt2Y_gB@zfj^Nc{eag"
    b"UlVd1lU2treY1(m=h<|}@Sod4)%q`0GtR&4{|B>u-=F"
)


@pytest.fixture(scope="session")
def split():
    return load_public_split("MnMs")


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The made tree, which no test may change, and its subjects."""
    folder = tmp_path_factory.mktemp("made")
    return folder / "OpenDataset", write_mnms_tree(folder)


@pytest.fixture(scope="session")
def subjects(made):
    return made[1]


@pytest.fixture
def tree(made, tmp_path):
    """A copy of the made tree in which files may be replaced, but not changed in place, since they are hard links."""
    return shutil.copytree(made[0], tmp_path / "OpenDataset", copy_function=os.link)


@pytest.fixture(scope="session")
def converted(made, tmp_path_factory):
    """The dataset of target A with kept-aside subjects, which no test may change, and what the command printed."""
    raw = tmp_path_factory.mktemp("converted")
    command = [sys.executable, SCRIPT, "-i", made[0], "--target", "A", "--val", "6"]
    result = subprocess.run(
        command, env=os.environ | {"nnUNet_raw": str(raw)}, capture_output=True, text=True, check=True
    )
    return raw / NAME, result.stdout


def convert(tree, *options):
    options = options if "--target" in options else ("--target", "A", *options)
    return run(CONVERTER, ["-i", str(tree), *map(str, options)])


def names(folder):
    return sorted(path.name.removesuffix(".nii.gz").removesuffix("_0000") for path in folder.glob("*.nii.gz"))


def codes(cases):
    return {case.split("_")[0] for case in cases}


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def replace(path, content):
    """Replace a file, leaving the file it is linked to as it is."""
    path.unlink()
    path.write_bytes(content)


def replace_series(path, change, affine=None):
    """Replace a series by ``change`` of its voxels."""
    image = nib.load(path)
    values = change(np.asarray(image.dataobj))
    path.unlink()
    nib.save(nib.Nifti1Image(values, image.affine if affine is None else affine), path)


def replace_row(tree, code, **changes):
    """Replace cells of the CSV, or the whole row by nothing."""
    rows = pd.read_csv(tree / TABLE_CSV, dtype=str, index_col=0)
    if changes:
        rows.loc[rows["External code"] == code, list(changes)] = list(changes.values())
    else:
        rows = rows[rows["External code"] != code]
    replace(tree / TABLE_CSV, rows.to_csv().encode())


def assert_one_error(capsys, status, *parts):
    assert status == 1
    error = capsys.readouterr().err
    assert error.startswith("Dataset105_MnMs.py: error: ")
    assert error.count("\n") == 1
    for part in parts:
        assert part in error


# Who trains and who tests


def test_several_processes_write_what_one_writes(made, raw, shared):
    assert_processes_agree(lambda *options: convert(made[0], "--target", "D", *options), raw)


@pytest.mark.parametrize("labeled", ["2pct", "5pct"])
@pytest.mark.parametrize("target", "ABCD")
def test_numbers_of_cases_are_those_of_the_public_lists(target, labeled, made, raw, split, capsys):
    assert convert(made[0], "--target", target, "--labeled", labeled, "--dry-run") == 0
    listed = capsys.readouterr().out
    assert not raw.exists()
    name = f"Dataset{DEFAULT_IDS[target, labeled]}_MnMs_{target}_{labeled}"
    sources = set("ABCD") - {target}
    num_labelled = sum(NUM_LABELED[labeled][vendor] for vendor in sources)
    num_others = sum(NUM_SUBJECTS[vendor] for vendor in sources) - num_labelled

    def cases(folder):
        return sorted(re.findall(rf"^{name}/{folder}/(\w+?)(?:_0000)?\.nii\.gz$", listed, re.MULTILINE))

    def both_frames(subjects):
        return sorted(f"{code}_{frame}" for code in subjects for frame in ("ED", "ES"))

    assert cases("imagesTr") == cases("labelsTr")
    assert cases("imagesTr") == both_frames([code for v in sources for code in split["labeled"][labeled][v]])
    assert len(cases("imagesTr")) == 2 * num_labelled
    assert cases("imagesTs") == cases("labelsTs") == both_frames(split["vendors"][target])
    assert len(cases("imagesTs")) == 2 * NUM_SUBJECTS[target]
    assert len(cases("imagesUnlabeled")) == 2 * num_others
    assert codes(cases("imagesUnlabeled")) | codes(cases("imagesTr")) == {
        code for v in sources for code in split["vendors"][v]
    }


def test_public_lists_are_complete_and_disjoint(split):
    every = [code for vendor in "ABCD" for code in split["vendors"][vendor]]
    assert {vendor: len(split["vendors"][vendor]) for vendor in "ABCD"} == NUM_SUBJECTS
    assert len(set(every)) == 320
    for name, expected in NUM_LABELED.items():
        for vendor, count in expected.items():
            assert len(split["labeled"][name][vendor]) == count
            assert set(split["labeled"][name][vendor]) <= set(split["vendors"][vendor])


def test_written_dataset_keeps_subjects_on_one_side_and_names_domains(converted, split):
    folder, printed = converted
    (fold,) = json.loads((folder / "splits_final.json").read_text())
    subjects = choose_subjects(split, "A", "2pct", 6)
    assert fold["train"] == [f"{code}_{frame}" for code in subjects.train for frame in ("ED", "ES")]
    assert fold["val"] == [f"{code}_{frame}" for code in subjects.val for frame in ("ED", "ES")]
    assert (len(fold["train"]), len(fold["val"]), len(fold["unlabeled"])) == (10, 12, 450 - 22)
    sides = [codes(fold["train"]), codes(fold["val"]), codes(fold["unlabeled"]), codes(names(folder / "imagesTs"))]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 320

    assert names(folder / "imagesTr") == names(folder / "labelsTr") == sorted(fold["train"] + fold["val"])
    assert names(folder / "imagesUnlabeled") == fold["unlabeled"]
    sidecar = json.loads((folder / "nnunet_ad.json").read_text())
    vendors = {code: vendor for vendor, members in split["vendors"].items() for code in members}
    assert sidecar["domains"] == {
        case: vendors[case.split("_")[0]]
        for case in sorted(names(folder / "imagesTr") + fold["unlabeled"] + names(folder / "imagesTs"))
    }
    assert sidecar["protocol"] == {
        "setting": "semi-supervised domain generalisation",
        "num_labeled": 10, "num_unlabeled": 428, "num_val": 12, "num_test": 190,
        "validation": "kept aside: cases of the training set whose labels train nothing",
    }  # fmt: skip
    assert "note: 6 subjects are kept aside, each with its cases ED and ES" in printed
    description = json.loads((folder / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "cine-MR"}
    assert description["labels"] == {"background": 0, "LV": 1, "MYO": 2, "RV": 3}
    assert description["numTraining"] == 22


def test_kept_aside_subjects_are_the_last_by_code_that_are_not_labelled(split):
    fold = choose_subjects(split, "D", "5pct", 3)
    others = sorted(set().union(*(split["vendors"][v] for v in "ABC")) - set(fold.train))
    assert fold.val == tuple(others[-3:])
    assert fold.unlabeled == tuple(others[:-3])
    assert choose_subjects(split, "D", "5pct", 0).val == fold.train


def test_all_frames_trains_on_every_other_frame_of_training_subjects(made, raw, subjects, split, capsys):
    assert convert(made[0], "--val", 6, "--all-frames", "--dry-run") == 0
    listed = re.findall(r"imagesUnlabeled/(\w+)_0000", capsys.readouterr().out)
    fold = choose_subjects(split, "A", "2pct", 6)
    frames = {code: {case.split("_")[1] for case in listed if case.startswith(code)} for code in codes(listed)}
    assert set(frames) == {*fold.unlabeled, *fold.train}
    for code in fold.unlabeled:
        others = set(range(5)) - {subjects[code].ed, subjects[code].es}
        assert frames[code] == {"ED", "ES"} | {f"f{number:02d}" for number in others}
    for code in fold.train:
        assert frames[code] == {f"f{n:02d}" for n in set(range(5)) - {subjects[code].ed, subjects[code].es}}


def test_subjects_without_labels_join_the_unlabelled(made, raw, subjects, capsys):
    extra = {subject.code for subject in subjects.values() if not subject.has_label}
    assert len(extra) == 25
    assert convert(made[0], "--vendor-c-unlabeled", "--dry-run") == 0
    listed = re.findall(r"imagesUnlabeled/(\w+)_0000", capsys.readouterr().out)
    assert len(listed) == 440 + 50
    assert extra < codes(listed)


def test_subjects_without_labels_are_refused_where_they_are_of_the_target(made, raw, capsys):
    status = convert(made[0], "--target", "C", "--vendor-c-unlabeled")
    assert_one_error(capsys, status, "vendor C, the target", "--vendor-c-unlabeled")


def test_subjects_without_labels_may_lack_frames_in_the_table_with_all_frames(tree, raw, capsys):
    replace_row(tree, "Z0Z0A0", ED="", ES="")
    assert convert(tree, "--dry-run") == 0
    assert_one_error(capsys, convert(tree, "--vendor-c-unlabeled"), "case Z0Z0A0", "no frame ED or ES", "--all-frames")
    assert convert(tree, "--vendor-c-unlabeled", "--all-frames", "--dry-run") == 0
    listed = re.findall(r"Z0Z0A0_(\w+)_0000", capsys.readouterr().out)
    assert listed == ["f00", "f01", "f02", "f03", "f04"]


# What is written


def test_every_case_is_the_frame_of_the_table_voxel_by_voxel(converted, made, subjects):
    folder, _ = converted
    num_checked = 0
    for images, labels in (("imagesTr", "labelsTr"), ("imagesTs", "labelsTs"), ("imagesUnlabeled", None)):
        for case in names(folder / images)[:: 1 if images == "imagesTr" else 9]:
            code, frame_name = case.split("_")
            subject = subjects[code]
            frame = {"ED": subject.ed, "ES": subject.es}[frame_name]
            written = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / images / f"{case}_0000.nii.gz")))
            assert written.dtype == np.int16
            assert set(np.unique(written // FRAME_STEP)) == {frame}
            original = np.asarray(nib.load(subject.file(made[0])).dataobj)[..., frame]
            np.testing.assert_array_equal(written.T, original)
            if labels:
                written = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / labels / f"{case}.nii.gz")))
                assert written.dtype == np.uint8
                original = np.asarray(nib.load(subject.file(made[0], "_sa_gt.nii.gz")).dataobj)[..., frame]
                np.testing.assert_array_equal(written.T, original)
                assert set(np.unique(written)) == {0, 1, 2, 3}
            num_checked += 1
    assert num_checked > 80


def centroid_in_nifti(path, frame):
    """Return the centroid of a frame's foreground, mm in SimpleITK's axes, from the header's affine alone."""
    image = nib.load(path)
    indices = np.argwhere(np.asarray(image.dataobj)[..., frame])
    return (nib.affines.apply_affine(image.affine, indices) * (-1, -1, 1)).mean(0)


def centroid_in_written(path):
    image = sitk.ReadImage(str(path))
    indices = np.argwhere(sitk.GetArrayFromImage(image).T)
    return np.mean([image.TransformIndexToPhysicalPoint(index.tolist()) for index in indices], axis=0)


def test_label_centroids_stay_for_oblique_anisotropic_and_left_handed_grids(converted, made, subjects):
    folder, _ = converted
    handedness = set()
    for case in [*names(folder / "labelsTr"), *names(folder / "labelsTs")[:20]]:
        code, frame_name = case.split("_")
        if code == NON_ORTHONORMAL:
            continue
        labels = "labelsTr" if (folder / "labelsTr" / f"{case}.nii.gz").is_file() else "labelsTs"
        source = subjects[code].file(made[0], "_sa_gt.nii.gz")
        expected = centroid_in_nifti(source, {"ED": subjects[code].ed, "ES": subjects[code].es}[frame_name])
        written = folder / labels / f"{case}.nii.gz"
        assert np.linalg.norm(centroid_in_written(written) - expected) < 1e-3
        image = sitk.ReadImage(str(written))
        np.testing.assert_allclose(image.GetSpacing(), nib.load(source).header.get_zooms()[:3], rtol=1e-5)
        handedness.add(np.sign(np.linalg.det(np.reshape(image.GetDirection(), (3, 3)))))
    assert handedness == {-1, 1}


def test_geometry_equals_what_simpleitk_reads(made, subjects):
    series = read_series(subjects["A0S9V9"].file(made[0]))
    reference = sitk.ReadImage(str(series.path))
    assert series.geometry.moved == 0
    np.testing.assert_allclose(series.geometry.spacing, reference.GetSpacing()[:3], atol=1e-5)
    np.testing.assert_allclose(series.geometry.origin, reference.GetOrigin()[:3], atol=1e-3)
    direction = np.reshape(reference.GetDirection(), (4, 4))[:3, :3]
    np.testing.assert_allclose(np.reshape(series.geometry.direction, (3, 3)), direction, atol=1e-5)


def test_a_skewed_header_gets_the_closest_orthonormal_directions_and_is_named(converted, made, subjects):
    folder, printed = converted
    subject = subjects[NON_ORTHONORMAL]
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(subject.file(made[0])))
    (named,) = re.findall(r"note: subject (\w+): .* not orthonormal; .* at most ([\d.]+) mm", printed)
    assert named[0] == NON_ORTHONORMAL
    assert any(NON_ORTHONORMAL in note for note in json.loads((folder / "nnunet_ad.json").read_text())["notes"])
    for case, frame in ((f"{NON_ORTHONORMAL}_ED", subject.ed), (f"{NON_ORTHONORMAL}_ES", subject.es)):
        label = folder / "labelsTr" / f"{case}.nii.gz"
        image = sitk.ReadImage(str(folder / "imagesTr" / f"{case}_0000.nii.gz"))
        assert image.GetDirection() == sitk.ReadImage(str(label)).GetDirection()
        direction = np.reshape(image.GetDirection(), (3, 3))
        np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-6)
        moved = centroid_in_written(label) - centroid_in_nifti(subject.file(made[0], "_sa_gt.nii.gz"), frame)
        assert np.linalg.norm(moved) < float(named[1]) < 0.1


def test_nnunet_finds_no_fault(converted, monkeypatch):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    folder, _ = converted
    monkeypatch.setenv("nnUNet_raw", str(folder.parent))
    verify_dataset_integrity(str(folder), num_processes=1)


def test_no_path_is_written(converted, made):
    folder, _ = converted
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".gz" else content
            assert str(made[0].parent).encode() not in content, path


def test_dry_run_lists_exactly_what_is_written(converted, made, raw, capsys):
    assert convert(made[0], "--val", 6, "--dry-run") == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{NAME}/")]
    assert listed == sorted(f"{NAME}/{file}" for file in digests(converted[0]))


def test_another_run_writes_the_same_bytes_and_never_opens_a_hidden_label(converted, tree, raw, subjects, split):
    hidden = [*choose_subjects(split, "A", "2pct", 6).unlabeled]
    for code in hidden[::2]:
        replace(subjects[code].file(tree, "_sa_gt.nii.gz"), b"not a volume")
    for code in hidden[1::2]:
        subjects[code].file(tree, "_sa_gt.nii.gz").unlink()
    assert convert(tree.parent, "--val", 6) == 0
    assert digests(raw / NAME) == digests(converted[0])


def test_generator_is_seeded(made, tmp_path):
    write_mnms_tree(tmp_path)
    first, second = digests(made[0]), digests(tmp_path / "OpenDataset")
    first.pop(TABLE_EXCEL), second.pop(TABLE_EXCEL)  # an Excel file states when it was made
    assert len(first) == 2 * 320 + 25 + 1
    contents = [{name: digest for name, digest in each.items() if not name.endswith(".gz")} for each in (first, second)]
    assert contents[0] == contents[1]
    for name in sorted(first)[:: len(first) // 30]:
        if name.endswith(".gz"):  # gzip states when, too
            one, other = (gzip.decompress((root / name).read_bytes()) for root in (made[0], tmp_path / "OpenDataset"))
            assert one == other


# The tables


def test_both_tables_state_the_same(made, subjects):
    root, _ = made
    expected = {code: Subject(subject.vendor, subject.ed, subject.es) for code, subject in subjects.items()}
    assert read_table(root / TABLE_CSV) == read_table(root / TABLE_EXCEL) == expected
    assert find_table(root) == root / TABLE_CSV


def test_the_older_table_does_where_the_newest_is_absent(made, tree, raw, capsys):
    options = ("--labeled", "5pct", "--dry-run")
    assert convert(made[0], *options) == 0
    expected = capsys.readouterr().out
    (tree / TABLE_CSV).unlink()
    assert convert(tree, *options) == 0
    assert capsys.readouterr().out == expected


def test_an_xls_table_is_read(tmp_path):
    path = tmp_path / "M&Ms_Dataset_Information.xls"
    path.write_bytes(zlib.decompress(base64.b85decode(XLS)))
    assert read_table(path) == {"A0S9V9": Subject("A", 0, 9), "A1D0Q7": Subject("B", 24, 10)}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["M&Ms Dataset Information.xlsx", "M&Ms_Dataset_Information.xls"], "M&Ms_Dataset_Information.xls"),
        (["201014_M&Ms_Dataset_Information_-_opendataset.csv", TABLE_CSV], TABLE_CSV),
        (["201014_M&Ms_Dataset_Information_-_opendataset.csv", "M&Ms Dataset Information.xlsx"], None),
        (["~$M&Ms Dataset Information.xlsx", f"._{TABLE_CSV}", TABLE_CSV, "readme.csv"], TABLE_CSV),
    ],
)
def test_which_table_is_taken(names, expected, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    assert find_table(tmp_path).name == (expected or names[0])


@pytest.mark.parametrize(("suffix", "package"), [("xls", "xlrd"), ("xlsx", "openpyxl")])
def test_an_excel_table_without_its_package(suffix, package, tmp_path, monkeypatch):
    path = tmp_path / f"M&Ms_Dataset_Information.{suffix}"
    path.touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConversionError, match=rf"pip install {package}"):
        read_table(path)


@pytest.mark.parametrize("suffix", ["csv", "xls", "xlsx"])
def test_a_damaged_table(suffix, made, tmp_path, capfd):
    contents = {
        "csv": b"",
        "xls": zlib.decompress(base64.b85decode(XLS)),
        "xlsx": (made[0] / TABLE_EXCEL).read_bytes(),
    }
    path = tmp_path / f"table.{suffix}"
    for length in range(0, len(contents[suffix]) or 1, 777):
        path.write_bytes(contents[suffix][:length])
        with pytest.raises(ConversionError, match=r"table\.\w+ cannot be read"):
            read_table(path)
    assert capfd.readouterr() == ("", "")


# Errors: one sentence each, before anything is written

LABELLED, UNLABELLED, TEST = "C2J0K3", "A0S9V9", "A1D0Q7"  # for target B at 2 %


def fault_missing_subjects(tree, subjects):
    for code in (UNLABELLED, TEST):
        shutil.rmtree(subjects[code].file(tree).parent)
    return "2 of the 320 subjects are missing", "A0S9V9, A1D0Q7"


def fault_missing_image(tree, subjects):
    subjects[TEST].file(tree).unlink()
    return "1 of the 320 subjects", TEST


def fault_missing_label(tree, subjects):
    subjects[LABELLED].file(tree, "_sa_gt.nii.gz").unlink()
    return "1 of the 129 subjects with labels", LABELLED


def fault_unknown_subject(tree, subjects):
    (tree / "Testing" / "X9X9X9").mkdir()
    return "Testing/X9X9X9", "in no public list"


def fault_found_twice(tree, subjects):
    shutil.copytree(subjects[LABELLED].file(tree).parent, tree / "Testing" / LABELLED)
    return f"Training/Labeled/{LABELLED} and Testing/{LABELLED}", "more than once"


def fault_no_table(tree, subjects):
    (tree / TABLE_CSV).unlink()
    (tree / TABLE_EXCEL).unlink()
    return "no information table", TABLE_CSV


def fault_row_missing(tree, subjects):
    replace_row(tree, UNLABELLED)
    return TABLE_CSV, "lacks 1 of the 320", UNLABELLED


def fault_row_twice(tree, subjects):
    content = (tree / TABLE_CSV).read_text().splitlines()
    replace(tree / TABLE_CSV, "\n".join([*content, content[5]]).encode())
    return TABLE_CSV, content[5].split(",")[1], "twice"


def fault_column_missing(tree, subjects):
    replace(tree / TABLE_CSV, (tree / TABLE_CSV).read_text().replace(",ES,", ",End,").encode())
    return TABLE_CSV, "no column ES"


def fault_vendor(tree, subjects):
    replace_row(tree, UNLABELLED, Vendor="D")
    return "states vendor D for subject A0S9V9", "expected A"


def fault_frame_out_of_range(tree, subjects):
    replace_row(tree, UNLABELLED, ES="5", ED="0")
    return f"case {UNLABELLED}", "frame 5", "5 frames, numbered from 0"


def fault_frame_negative(tree, subjects):
    replace_row(tree, UNLABELLED, ES="-1")
    return "ES frame '-1'", UNLABELLED


def fault_frame_missing(tree, subjects):
    replace_row(tree, TEST, ES="")
    return f"case {TEST}", "no frame ED or ES"


def fault_same_frames(tree, subjects):
    replace_row(tree, LABELLED, ED="2", ES="2")
    return f"case {LABELLED}", "frame 2 as ED and as ES"


def fault_three_dimensions(tree, subjects):
    replace_series(subjects[UNLABELLED].file(tree), lambda values: values[..., 0])
    return f"case {UNLABELLED}, file Training/Labeled/{UNLABELLED}/{UNLABELLED}_sa.nii.gz", "12 x 10 x 4"


def fault_label_shape(tree, subjects):
    replace_series(subjects[TEST].file(tree, "_sa_gt.nii.gz"), lambda values: values[:, :-1])
    return f"case {TEST}", "12 x 9 x 4 x 5", "12 x 10 x 4 x 5", f"{TEST}_sa.nii.gz"


def fault_label_frames(tree, subjects):
    replace_series(subjects[TEST].file(tree, "_sa_gt.nii.gz"), lambda values: values[..., :-1])
    return f"case {TEST}", "12 x 10 x 4 x 4", "12 x 10 x 4 x 5"


def fault_not_compressed(tree, subjects):
    replace(subjects[TEST].file(tree), gzip.decompress(subjects[TEST].file(tree).read_bytes()))
    return f"case {TEST}", "cannot be read"


def fault_empty_file(tree, subjects):
    replace(subjects[LABELLED].file(tree), b"")
    return f"case {LABELLED}", "cannot be read"


def fault_complex_values(tree, subjects):
    replace_series(subjects[LABELLED].file(tree), lambda values: values.astype(np.complex64))
    return f"case {LABELLED}", "complex64"


def fault_no_spacing(tree, subjects):
    affine = np.diag([1.0, 1.0, 0.0, 1.0])
    image = nib.load(subjects[LABELLED].file(tree))
    header = image.header.copy()
    header.set_sform(affine, 1)
    header.set_qform(None, 0)
    data = bytearray(gzip.decompress(subjects[LABELLED].file(tree).read_bytes()))
    data[:348] = header.binaryblock
    replace(subjects[LABELLED].file(tree), gzip.compress(bytes(data)))
    return f"case {LABELLED}", "a spacing above 0"


def fault_axes_in_one_plane(tree, subjects):
    affine = np.array([[1, 1, 0, 0], [0, 0.1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    replace_series(subjects[LABELLED].file(tree), lambda values: values, affine)
    return f"case {LABELLED}", "far from perpendicular"


def fault_no_training_folder(tree, subjects):
    (tree / "Training").rename(tree / "Trainings")
    return "no folder Training", "-i"


FAULTS = {name.removeprefix("fault_"): fault for name, fault in globals().items() if name.startswith("fault_")}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_found_before_writing(fault, tree, raw, subjects, capsys):
    parts = FAULTS[fault](tree, subjects)
    assert_one_error(capsys, convert(tree, "--target", "B", "--dry-run"), *parts)
    assert not raw.exists()


def fault_in_voxels_truncated(tree, subjects):
    path = subjects[UNLABELLED].file(tree)
    replace(path, path.read_bytes()[:-300])
    return "_sa.nii.gz", "truncated"


def fault_in_voxels_flipped_bit(tree, subjects):
    path = subjects[UNLABELLED].file(tree)
    content = bytearray(path.read_bytes())
    content[-40] ^= 16  # behind the frames that are read
    replace(path, bytes(content))
    return "_sa.nii.gz", "cannot be read"


def fault_in_voxels_not_a_number(tree, subjects):
    def change(values):
        values = values.astype(np.float32)
        values[3, 4, 2] = np.nan
        return values

    replace_series(subjects[UNLABELLED].file(tree), change)
    return f"{UNLABELLED}_sa.nii.gz (frame {subjects[UNLABELLED].ed})", "1 NaN"


@pytest.mark.parametrize("fault", ["truncated", "flipped_bit", "not_a_number"])
def test_faults_in_image_voxels_leave_nothing_behind(fault, tree, raw, subjects, capsys):
    parts = globals()[f"fault_in_voxels_{fault}"](tree, subjects)
    assert convert(tree, "--target", "B") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    for part in (f"error: case {UNLABELLED}_E", *parts):
        assert part in error
    assert list(raw.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda values: values * 2, "the label has the values [0, 2, 4, 6]"),
        (lambda values: values * 0, "every voxel is background"),
        (lambda values: values * np.float32(0.5), "the label has the values"),
    ],
)
def test_faults_in_label_voxels(change, part, tree, raw, subjects, capsys):
    replace_series(subjects[TEST].file(tree, "_sa_gt.nii.gz"), change)
    assert convert(tree, "--target", "B") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"error: case {TEST}_ED, file " in error
    assert f"{TEST}_sa_gt.nii.gz (frame {subjects[TEST].ed})" in error
    assert part in error
    assert list(raw.iterdir()) == []


def test_a_label_on_another_grid(tree, raw, subjects, capsys):
    path = subjects[TEST].file(tree, "_sa_gt.nii.gz")
    affine = nib.load(path).affine.copy()
    affine[0, 3] += 2
    replace_series(path, lambda values: values, affine)
    assert convert(tree, "--target", "B") == 1
    assert "the label has the origin" in capsys.readouterr().err.splitlines()[-1]


def test_incomplete_subjects_without_labels(tree, raw, capsys):
    shutil.rmtree(tree / "Training" / "Unlabeled" / "Z0Z0A0")
    assert convert(tree, "--dry-run") == 0
    capsys.readouterr()
    assert_one_error(capsys, convert(tree, "--vendor-c-unlabeled"), "found 24 subjects", "expected the 25")


@pytest.mark.parametrize("num_val", [-1, 221])
def test_impossible_numbers_of_subjects(num_val, made, raw, capsys):
    assert_one_error(capsys, convert(made[0], "--val", num_val), f"{num_val} subjects", "from 0 to 220")


def test_a_given_id_is_kept(made, raw, capsys):
    assert convert(made[0], "-d", 77, "--dry-run") == 0
    assert "would write Dataset077_MnMs_A_2pct: 10 labelled, 440 unlabelled, 190 test" in capsys.readouterr().out


def test_a_changed_file_is_read_again(made, tmp_path, subjects):
    path = tmp_path / "series.nii.gz"
    shutil.copy(subjects["A0S9V9"].file(made[0]), path)
    before = sitk.GetArrayFromImage(read_series(path).read(1))
    replace_series(path, lambda values: values + 1)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_series(path).read(1)), before + 1)


def test_scaled_values_are_unscaled(tmp_path):
    image = nib.Nifti1Image(np.arange(48, dtype=np.float32).reshape(2, 3, 4, 2) / 8, np.eye(4))
    image.header.set_data_dtype(np.int16)
    path = tmp_path / "scaled.nii.gz"
    nib.save(image, path)
    values = sitk.GetArrayFromImage(read_series(path).read(1)).T
    np.testing.assert_allclose(values, image.get_fdata()[..., 1], atol=1e-3)
    with pytest.raises(ConversionError, match="frame 2 was asked for, but the file has 2 frames"):
        read_series(path).read(2)


def test_the_script_prints_help(made):
    result = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True)
    for part in ("Training/Labeled", TABLE_CSV, "--target", "--all-frames", "--vendor-c-unlabeled", "105 to 108"):
        assert part in " ".join(result.stdout.split())
