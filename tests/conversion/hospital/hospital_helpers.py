"""A small hospital: four labelled, three unlabelled and one test case, each on a grid of its own."""

import json

import numpy as np
import SimpleITK as sitk

from nnunet_ad.conversion.hospital.command_line import main

SHAPE = (10, 14, 12)  # z, y, x
NAME = "Dataset501_Liver"
LABELS = {"liver": 1, "tumour": 2}
CASES = {"labeled": ("ann", "bob", "cid", "dan"), "unlabeled": ("eva", "fay", "gus"), "test": ("hal",)}
ALL_CASES = [case for cases in CASES.values() for case in cases]


def make_arrays(case):
    """Return image and mask of a case, (z, y, x); no mask is symmetric in any axis."""
    rng = np.random.default_rng(ALL_CASES.index(case))
    mask = np.zeros(SHAPE, dtype=np.uint8)
    z, y, x = rng.integers(1, 4, 3)
    mask[z : z + 4, y : y + 7, x : x + 5] = 1
    mask[z : z + 2, y + 1 : y + 3, x : x + 2] = 2
    image = np.rint(rng.normal(100, 10, SHAPE) + 60 * mask).astype(np.int16)
    return image, mask


def make_volume(array, case, spacing=(0.8, 0.9, 2.5), direction=None):
    """Return a volume on the grid of a case; every case lies elsewhere, as patients do."""
    volume = sitk.GetImageFromArray(array)
    volume.SetSpacing(spacing)
    volume.SetOrigin((-40.0 - 7.5 * ALL_CASES.index(case), 21.25, 133.0))
    cos, sin = np.cos(0.2), np.sin(0.2)
    volume.SetDirection(direction or (cos, -sin, 0, sin, cos, 0, 0, 0, 1))
    return volume


def write(volume, path, compressed=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(volume, str(path), compressed)
    return path


def change(path, function):
    """Replace a volume file by ``function`` of it."""
    return write(function(sitk.ReadImage(str(path))), path)


def change_voxels(path, function):
    """Replace the voxels of a volume file."""

    def replace(volume):
        replaced = sitk.GetImageFromArray(function(sitk.GetArrayFromImage(volume)))
        replaced.CopyInformation(volume)
        return replaced

    return change(path, replace)


def write_hospital(root, suffix=".nii.gz"):
    for role, cases in CASES.items():
        for case in cases:
            image, mask = make_arrays(case)
            folder = root / role / "images" if role != "unlabeled" else root / role
            write(make_volume(image, case), folder / f"{case}{suffix}")
            if role != "unlabeled":
                write(make_volume(mask, case), root / role / "masks" / f"{case}{suffix}")
    (root / "labels.json").write_text(json.dumps(LABELS))
    return root


def convert(root, *options):
    """Run the command on a hospital's folders."""
    folders = [part for role in CASES if (root / role).is_dir() for part in (f"--{role}", str(root / role))]
    arguments = ["-d", "501", "-n", "Liver", *folders, "--labels", str(root / "labels.json"), *map(str, options)]
    return main(arguments)


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def written(raw, file):
    return sitk.ReadImage(str(raw / NAME / file))
