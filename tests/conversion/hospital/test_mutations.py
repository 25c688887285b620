"""Damaged input: refused cleanly, or, where the volumes are provably as they were, the very dataset of good input.

Every mutation is drawn from a seed and done to a copy of the small hospital's folders. An uncompressed file has no
checksum, so that changed bytes in it cannot be told from another image; bytes are flipped in compressed files, and in
headers of uncompressed ones, where the reference is what another library reads.
"""

import gzip
import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hospital_helpers import (
    CASES,
    NAME,
    change,
    change_voxels,
    convert,
    files_below,
    make_arrays,
    make_volume,
    write,
    write_hospital,
    written,
)

REFUSED, SAME = "refused", "same"


@dataclass(frozen=True)
class Damage:
    """What was done, and what must come of it: REFUSED or SAME; None if either is right."""

    outcome: str | None
    what: str


def pick(rng, items):
    return items[int(rng.integers(len(items)))]


def volumes(root, pattern="**/*.nii.gz"):
    return sorted(root.glob(pattern))


def flip_bytes(root, rng):
    path = pick(rng, volumes(root))
    content = bytearray(path.read_bytes())
    before = gzip.decompress(content)
    for _ in range(int(rng.integers(1, 4))):
        content[int(rng.integers(len(content)))] ^= int(rng.integers(1, 256))
    path.write_bytes(content)
    try:
        is_same = gzip.decompress(content) == before
    except (OSError, EOFError, gzip.zlib.error):
        is_same = False
    return Damage(None if is_same else REFUSED, f"{path.name} flipped")


def flip_bytes_of_gzip_header(root, rng):
    path = pick(rng, volumes(root))
    content = bytearray(path.read_bytes())
    content[int(rng.integers(4, 10))] ^= int(rng.integers(1, 256))  # time, extra flags, operating system
    path.write_bytes(content)
    return Damage(SAME, f"{path.name} flipped in its gzip header")


def truncate(root, rng):
    path = pick(rng, volumes(root))
    content = path.read_bytes()
    path.write_bytes(content[: int(rng.integers(len(content)))])
    return Damage(REFUSED, f"{path.name} truncated")


def truncate_before_compression(root, rng):
    path = pick(rng, volumes(root))
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[: int(rng.integers(len(content)))]))
    return Damage(REFUSED, f"{path.name} truncated inside")


def swap_partners(root, rng):
    folder = root / "labeled" / pick(rng, ["images", "masks"])
    first, second = rng.choice(sorted(folder.iterdir()), 2, replace=False)
    _swap(first, second)
    return Damage(REFUSED, f"{first.name} and {second.name} swapped")


def swap_image_and_mask(root, rng):
    case = pick(rng, CASES["labeled"])
    _swap(*(root / "labeled" / folder / f"{case}.nii.gz" for folder in ("images", "masks")))
    return Damage(REFUSED, f"image and mask of {case} swapped")


def _swap(first, second):
    aside = first.with_name("aside")
    Path(first).rename(aside)
    Path(second).rename(first)
    aside.rename(second)


def rename_one(root, rng):
    path = pick(rng, [*volumes(root, "labeled/*/*"), *volumes(root, "test/masks/*")])
    path.rename(path.with_name(f"renamed_{path.name}"))
    return Damage(REFUSED, f"{path.name} renamed")


def rename_ending(root, rng):
    path = pick(rng, volumes(root))
    ending = pick(rng, [".bak", ".gz", ".mha", ".nrrd", ".nii", ".nii.gz.part", ".dcm", ""])
    path.rename(path.with_name(path.name.replace(".nii.gz", ending)))
    return Damage(REFUSED, f"{path.name} renamed to {ending}")


def rename_both(root, rng):
    case = pick(rng, CASES["labeled"])
    for path in volumes(root, f"labeled/*/{case}.nii.gz"):
        path.rename(path.with_name(f"{case}{rng.bit_generator.seed_seq.entropy[-1]}.nii.gz"))
    return Damage(SAME, f"{case} renamed")


def move_mask_to_unlabeled(root, rng):
    path = pick(rng, volumes(root, "labeled/masks/*"))
    path.rename(root / "unlabeled" / path.name)
    return Damage(REFUSED, f"{path.name} moved")


def reorient(root, rng):
    path = pick(rng, volumes(root))
    code = pick(rng, ["RAS", "LPI", "RPS", "PIR", "ASL", "LAS"])
    change(path, lambda volume: sitk.DICOMOrient(volume, code))
    return Damage(REFUSED, f"{path.name} reoriented to {code}")


def reorient_header(root, rng):
    path = pick(rng, volumes(root))
    signs = np.diag(pick(rng, [(-1, -1, 1), (-1, 1, 1), (1, 1, -1), (-1, -1, -1)]))

    def turn(volume):
        volume.SetDirection((np.reshape(volume.GetDirection(), (3, 3)) @ signs).ravel().tolist())
        return volume

    change(path, turn)
    return Damage(REFUSED, f"{path.name} turned in its header")


def rescale_grid(root, rng):
    path = pick(rng, volumes(root))
    factor = pick(rng, [0.1, 0.3, 0.5, 2.0, 3.0, 10.0, 1000.0])

    def stretch(volume):
        volume.SetSpacing([factor * spacing for spacing in volume.GetSpacing()])
        return volume

    change(path, stretch)
    return Damage(REFUSED, f"{path.name} {factor} times as large")


def rescale_values(root, rng):
    path = pick(rng, volumes(root))
    factor = pick(rng, [0.1, 0.2, 5, 12, -1, 1000])
    change_voxels(path, lambda array: factor * array.astype(np.float32))
    return Damage(REFUSED, f"{path.name} times {factor}")


def shift_values(root, rng):
    path = pick(rng, [*volumes(root, "labeled/images/*"), *volumes(root, "unlabeled/*")])
    shift = pick(rng, [-3000, -1024, 1024, 5000])
    change_voxels(path, lambda array: array + np.int16(shift))
    return Damage(REFUSED, f"{path.name} plus {shift}")


def not_finite(root, rng):
    path = pick(rng, volumes(root))
    value = pick(rng, [np.nan, np.inf, -np.inf])

    def put(array):
        array = array.astype(np.float32)
        array.flat[rng.integers(array.size, size=int(rng.integers(1, 50)))] = value
        return array

    change_voxels(path, put)
    return Damage(REFUSED, f"{path.name} with {value}")


def flat_or_empty(root, rng):
    path = pick(rng, volumes(root))
    change_voxels(path, np.zeros_like)
    return Damage(REFUSED, f"{path.name} all zero")


def wrong_codes(root, rng):
    path = pick(rng, volumes(root, "*/masks/*"))
    old, new = pick(rng, [1, 2]), pick(rng, [3, 7, 205, 255, 421, -1, 0.5, 1.00001])
    change_voxels(path, lambda array: np.where(array == old, new, array.astype(np.float64)))
    return Damage(REFUSED, f"{path.name} with {new} for {old}")


def duplicate(root, rng):
    path = pick(rng, [*volumes(root, "*/images/*"), *volumes(root, "unlabeled/*")])
    target = root / "unlabeled" / f"copy{pick(rng, ['.nii.gz', '.nrrd', '.mha'])}"
    volume = sitk.ReadImage(str(path))
    write(sitk.Cast(volume, pick(rng, [sitk.sitkInt16, sitk.sitkFloat32, sitk.sitkInt32])), target)
    return Damage(REFUSED, f"{path.name} duplicated as {target.name}")


def four_dimensions(root, rng):
    path = pick(rng, volumes(root))
    count = int(rng.integers(2, 4))
    change(path, lambda volume: sitk.JoinSeries([volume] * count, 0.0, 1.0))
    return Damage(REFUSED, f"{path.name} as 4-D")


def four_dimensions_with_one_volume(root, rng):
    path = pick(rng, volumes(root))
    change(path, lambda volume: sitk.JoinSeries([volume], 0.0, 1.0))
    return Damage(SAME, f"{path.name} as 4-D with one volume")


def fewer_dimensions(root, rng):
    path = pick(rng, volumes(root))
    change(path, lambda volume: volume[:, :, 2] if rng.integers(2) else volume[:, :, 2:3])
    return Damage(REFUSED, f"{path.name} as a slice")


def other_format(root, rng):
    path = pick(rng, volumes(root))
    volume = sitk.ReadImage(str(path))
    path.unlink()
    write(volume, path.with_name(path.name.replace(".nii.gz", pick(rng, [".nrrd", ".mha", ".nii"]))))
    return Damage(SAME, f"{path.name} in another format")


def remove_file(root, rng):
    path = pick(rng, volumes(root, "labeled/*/*"))
    path.unlink()
    return Damage(REFUSED, f"{path.name} removed")


def empty_or_garbage(root, rng):
    path = pick(rng, volumes(root))
    path.write_bytes(rng.bytes(int(rng.integers(0, 2000))))
    return Damage(REFUSED, f"{path.name} is garbage")


def flip_compressed_voxels_of_other_formats(root, rng):
    path = pick(rng, volumes(root))
    volume = sitk.ReadImage(str(path))
    path.unlink()
    suffix = pick(rng, [".nrrd", ".mha"])
    path = write(volume, path.with_name(path.name.replace(".nii.gz", suffix)))
    content = bytearray(path.read_bytes())
    marker = b"\n\n" if suffix == ".nrrd" else b"LOCAL\n"
    start = content.index(marker) + len(marker) + (10 if suffix == ".nrrd" else 0)  # behind the gzip header
    content[int(rng.integers(start, len(content)))] ^= int(rng.integers(1, 256))
    path.write_bytes(content)
    return Damage(REFUSED, f"{path.name} flipped")


MUTATIONS = [
    flip_bytes,
    flip_bytes_of_gzip_header,
    truncate,
    truncate_before_compression,
    swap_partners,
    swap_image_and_mask,
    rename_one,
    rename_ending,
    rename_both,
    move_mask_to_unlabeled,
    reorient,
    reorient_header,
    rescale_grid,
    rescale_values,
    shift_values,
    not_finite,
    flat_or_empty,
    wrong_codes,
    duplicate,
    four_dimensions,
    four_dimensions_with_one_volume,
    fewer_dimensions,
    other_format,
    remove_file,
    empty_or_garbage,
    flip_compressed_voxels_of_other_formats,
]
SEEDS_OF = {"flip_bytes": 24, "truncate": 16}
DEFAULT_SEEDS = 8


def contents(folder):
    """Return voxels, grid and text of everything in a dataset, in a form that compares."""
    found = {}
    for file in files_below(folder):
        if file.endswith(".nii.gz"):
            volume = sitk.ReadImage(str(folder / file))
            grid = (*volume.GetSpacing(), *volume.GetOrigin(), *volume.GetDirection())
            found[file] = (sitk.GetArrayFromImage(volume).tobytes(), tuple(np.round(grid, 4) + 0.0))
        else:
            found[file] = (folder / file).read_text()
    return found


@pytest.fixture(scope="module")
def expected(pristine_hospital, tmp_path_factory):
    """What becomes of the folders as they are."""
    raw = tmp_path_factory.mktemp("expected")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_raw", str(raw))
        assert convert(pristine_hospital) == 0
    return contents(raw / NAME)


def assert_refused(raw, printed):
    assert files_below(raw) == []
    assert not list(raw.iterdir()) if raw.exists() else True
    assert "Traceback" not in printed.err
    bars = ("finding ", "checking:", f"{NAME}:")  # of progress
    lines = [line for line in printed.err.splitlines() if line.strip() and not line.startswith(bars)]
    assert lines and all(
        line.startswith(("error: ", "warning: ", "convert_hospital_data.py: error: ")) for line in lines
    )
    assert all(": " in line and line.count("error: ") == 1 for line in lines if "error: " in line)


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_mutations(mutate, pristine_hospital, expected, tmp_path, monkeypatch, capsys):
    assert sum(SEEDS_OF.get(each.__name__, DEFAULT_SEEDS) for each in MUTATIONS) >= 200
    for seed in range(SEEDS_OF.get(mutate.__name__, DEFAULT_SEEDS)):
        folder = tmp_path / str(seed)
        raw = folder / "raw"
        monkeypatch.setenv("nnUNet_raw", str(raw))
        root = shutil.copytree(pristine_hospital, folder / "hospital")
        damage = mutate(root, np.random.default_rng([MUTATIONS.index(mutate), seed]))
        capsys.readouterr()
        status = convert(root)
        printed = capsys.readouterr()
        where = f"{damage.what}, seed {seed}\n{printed.err}"
        assert status in (0, 1), where
        if status == 1:
            assert damage.outcome != SAME, where
            assert_refused(raw, printed)
        else:
            assert damage.outcome != REFUSED, f"silently accepted: {where}"
            assert contents(raw / NAME) == expected, where


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_flipped_bytes_of_uncompressed_headers(suffix, tmp_path, monkeypatch, capsys):
    """Refused, or what another library reads from the same file; text headers have no other reader here."""
    pristine = write_hospital(tmp_path / "pristine")
    for seed in range(12):
        rng = np.random.default_rng([7, seed])
        root = shutil.copytree(pristine, tmp_path / f"hospital {seed}")
        raw = tmp_path / f"raw {seed}"
        monkeypatch.setenv("nnUNet_raw", str(raw))
        (root / "unlabeled" / "eva.nii.gz").unlink()
        path = write(make_volume(make_arrays("eva")[0], "eva"), root / "unlabeled" / f"eva{suffix}", False)
        content = bytearray(path.read_bytes())
        for _ in range(2):
            content[int(rng.integers(348 if suffix == ".nii" else 200))] ^= int(rng.integers(1, 256))
        path.write_bytes(content)
        capsys.readouterr()
        status = convert(root, "--accept-outliers")
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        if status == 1:
            assert_refused(raw, printed)
        elif suffix == ".nii":
            found, reference = written(raw, "imagesUnlabeled/Liver_0005_0000.nii.gz"), nib.load(path)
            values = np.asarray(reference.get_fdata(), dtype=np.float32).T
            np.testing.assert_allclose(sitk.GetArrayFromImage(found), values.reshape(found.GetSize()[::-1]), rtol=1e-5)
            if reference.header["sform_code"] > 0 or reference.header["qform_code"] > 0:
                corner = np.diag([-1, -1, 1, 1]) @ reference.affine @ [3, 4, 5, 1]
                np.testing.assert_allclose(found.TransformIndexToPhysicalPoint((3, 4, 5)), corner[:3], atol=1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_damaged_dicom(seed, pristine_hospital, tmp_path, raw, capsys):
    """A slice removed, doubled, cut, moved or scrambled: refused, since no such series is a volume."""
    pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    from nnunet_ad.testing.dicom_files import write_series

    rng = np.random.default_rng([9, seed])
    root = shutil.copytree(pristine_hospital, tmp_path / "hospital")
    files = write_series(root / "unlabeled" / "zoe", make_arrays("eva")[0] + 7, (0.8, 0.9, 2.5))
    assert convert(root, "--dry-run") == 0
    index = int(rng.integers(1, len(files) - 1))
    kind = ("remove", "double", "cut", "scramble", "remove two", "empty", "header", "garbage")[seed]
    file = files[index]
    match kind:
        case "remove":
            file.unlink()
        case "remove two":
            file.unlink()
            files[max(1, (index + 3) % (len(files) - 1))].unlink(missing_ok=True)
        case "double":
            shutil.copy(file, file.with_name("again.dcm"))
        case "cut":
            file.write_bytes(file.read_bytes()[:-60])
        case "empty":
            file.write_bytes(b"")
        case "garbage":
            file.write_bytes(rng.bytes(3000))
        case "header":
            content = bytearray(file.read_bytes())
            content[128:132] = b"XXXX"
            file.write_bytes(content)
        case "scramble":
            content = bytearray(file.read_bytes())
            content[200:400] = rng.bytes(200)
            file.write_bytes(content)
    capsys.readouterr()
    assert convert(root) == 1, kind
    assert_refused(raw, capsys.readouterr())
