"""What the tests of several converters ask of a written dataset, and how they damage its input."""

import gzip
import hashlib
import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import SimpleITK as sitk


def names(folder):
    """Return the cases whose files are in a folder; none if there is no such folder."""
    return sorted(path.name.removesuffix(".nii.gz").removesuffix("_0000") for path in folder.glob("*.nii.gz"))


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def voxels(path):
    """Return voxels in the order of the axes x, y, z, and the affine from them to mm."""
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def assert_same_places(source, written, value_of):
    """Assert that every structure of a source label keeps its voxels, and its centre in mm, in a written label."""
    (old, old_affine), (new, new_affine) = voxels(source), voxels(written)
    assert new.dtype == np.uint8
    np.testing.assert_array_equal(new, np.vectorize(lambda code: value_of.get(code, 0))(old))
    assert new.any()
    for value in set(value_of.values()):
        codes = [code for code, new_value in value_of.items() if new_value == value]
        centre = nib.affines.apply_affine(old_affine, np.argwhere(np.isin(old, codes)).mean(0))
        new_centre = nib.affines.apply_affine(new_affine, np.argwhere(new == value).mean(0))
        assert np.linalg.norm(new_centre - centre) < 1e-3


def assert_same_image(source, written):
    """Assert that voxels are equal, and that the far corners of the grid are at the same place in mm."""
    (old, old_affine), (new, new_affine) = voxels(source), voxels(written)
    assert new.dtype == (np.int16 if np.array_equal(old, old.astype(np.int16)) else np.float32)
    np.testing.assert_array_equal(new, old)
    corners = np.array([[0, 0, 0], np.array(old.shape) - 1, [old.shape[0] - 1, 0, old.shape[2] - 1]])
    places = nib.affines.apply_affine(old_affine, corners)
    np.testing.assert_allclose(nib.affines.apply_affine(new_affine, corners), places, rtol=0, atol=1e-3)


def assert_nowhere(folder, *words):
    """Assert that no file of a dataset, decompressed, holds one of the words."""
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".gz" else content
            assert not [word for word in words if word.encode() in content], path


def assert_verified(folder):
    """Run nnU-Net's own check of a dataset's integrity, which raises on errors."""
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    verify_dataset_integrity(str(folder), num_processes=1)


def assert_one_error(capsys, status, *parts):
    """Assert that a converter failed with one line, its last, that has all the parts."""
    assert status == 1
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if ".py: error: " in line]
    assert len(errors) == 1, lines
    assert lines[-1] == errors[0], "something follows the error"
    assert "Traceback" not in "".join(lines)
    for part in parts:
        assert part in errors[0]


def change_volume(path, change):
    """Replace a volume file by ``change`` of its volume."""
    sitk.WriteImage(change(sitk.ReadImage(str(path))), str(path), useCompression=True)


def change_voxels(path, change):
    """Replace the voxels of a volume file by ``change`` of the array (z, y, x); the grid stays."""

    def changed(volume):
        new = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(volume)))
        new.CopyInformation(volume)
        return new

    change_volume(path, changed)


def plant_note(path, text):
    """Write a text into a NIfTI header, where scanners and exporters leave notes."""
    image = nib.load(path)
    image.header["descrip"] = text
    nib.save(image, path)


def truncate(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def flip_bit(path, share):
    """Flip a bit of the compressed voxels."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 0x10
    path.write_bytes(content)


FILE_FAULTS = {
    "empty file": (lambda path: path.write_bytes(b""), ["cannot be read"]),
    "no volume": (lambda path: path.write_bytes(b"not a volume"), ["cannot be read"]),
    "cut in the middle": (lambda path: truncate(path, 0.5), ["truncated"]),
    "cut at the end": (lambda path: truncate(path, 0.98), ["truncated"]),
    "a bit flipped": (lambda path: flip_bit(path, 0.6), ["cannot be read"]),
    "flat": (lambda path: change_volume(path, lambda volume: volume[:, :, 3]), ["2 dimensions", "3-D"]),
    "4-D": (lambda path: change_volume(path, lambda volume: sitk.JoinSeries([volume, volume])), ["4 dimensions"]),
    "another size": (lambda path: change_volume(path, lambda volume: volume[:, :, :-1]), ["same grid"]),
    "mirrored": (lambda path: change_volume(path, lambda volume: volume[::-1]), ["same grid"]),
    "another spacing": (
        lambda path: change_volume(path, lambda volume: _with_spacing(volume, (0.7, 0.9, 1.1))),
        ["spacing [", "[0.7, 0.9, 1.1]", "same grid"],
    ),
}

IMAGE_FAULTS = {
    "NaN": (lambda values: _with_voxel(values.astype(np.float32), np.nan), ["1 NaN or infinite"]),
    "infinite": (lambda values: _with_voxel(values.astype(np.float32), np.inf), ["1 NaN or infinite"]),
    "constant": (np.zeros_like, ["every voxel of the image is 0"]),
}


def _with_spacing(volume, spacing):
    volume.SetSpacing(spacing)
    return volume


def _with_voxel(values, value):
    values[1, 2, 3] = value
    return values


def run_script(script, *arguments, env):
    """Run a conversion script as a user does; return the finished process."""
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], env=env, capture_output=True, text=True, check=False
    )


def assert_processes_agree(convert, raw):
    """Assert that several processes write what one does; ``convert`` runs the converter with further options."""
    assert convert("-np", 1) == 0
    expected = digests(raw)
    assert convert("-np", 3, "--overwrite") == 0
    assert digests(raw) == expected
