"""Made volumes in the trees of LASeg.

>>> len(list(write_laseg_tree(Path("laseg")).rglob("mri_norm2.h5")))
100
"""

from pathlib import Path

import h5py
import numpy as np
import SimpleITK
from numpy.typing import NDArray

from nnunet_ad.conversion.folds import load_public_split

LAYOUTS = ("h5", "nrrd")
PLANTED = "Planted^Name"  # in the header of every NRRD file
_SPACING = (0.625, 0.625, 0.625)  # mm


def write_laseg_tree(
    folder: Path, *, seed: int = 0, layout: str = "h5", shape: tuple[int, int, int] = (12, 10, 8)
) -> Path:
    """Write the 100 cases of the public lists; a test case has no label, in layout ``nrrd`` every second one.

    ::

        2018LA_Seg_Training Set/<id>/mri_norm2.h5                       layout h5
        {Training,Testing} Set/<id>/{lgemri,laendo}.nrrd                layout nrrd, 255 = atrium, oblique

    Args:
        folder: Where to write; created if missing.
        seed: Seed of everything random.
        layout: ``h5`` or ``nrrd``.
        shape: Voxels along x, y, z; at least 8 each.

    Returns:
        ``folder``.

    Raises:
        ValueError: There is no such layout, or a volume is too small.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"got the layout {layout!r}, expected one of {', '.join(LAYOUTS)}")
    if min(shape) < 8:
        raise ValueError(f"expected at least 8 voxels along each axis, got {shape}")
    split = load_public_split("LASeg")
    for number, case in enumerate(split["train"] + split["test"]):
        image, label = make_arrays(np.random.default_rng([seed, number]), shape)
        is_test = case in split["test"]
        if layout == "h5":
            _write_h5(folder / "2018LA_Seg_Training Set" / case, image, None if is_test else label)
        else:
            has_label = not is_test or number % 2 == 0
            name = "Testing Set" if is_test else "Training Set"
            _write_nrrd(folder / name / case, image, label if has_label else None)
    return folder


def make_arrays(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return an image and a label, both (x, y, z); the label is a box, at another place along each axis."""
    label = np.zeros(shape, dtype=np.uint8)
    x, y, z = shape
    label[x // 6 : 7 * x // 12, y // 10 : 2 * y // 5, 3 * z // 8 : 7 * z // 8] = 1
    image = rng.normal(size=shape) + 2.0 * label
    return image.astype(np.float32), label


def _write_h5(folder: Path, image: NDArray[np.float32], label: NDArray[np.uint8] | None) -> None:
    folder.mkdir(parents=True)
    with h5py.File(folder / "mri_norm2.h5", "w") as file:
        file.create_dataset("image", data=image, compression="gzip")
        if label is not None:
            file.create_dataset("label", data=label, compression="gzip")


def _write_nrrd(folder: Path, image: NDArray[np.float32], label: NDArray[np.uint8] | None) -> None:
    folder.mkdir(parents=True)
    whole_numbers = np.round(image * 20 + 100).clip(0, 255).astype(np.uint8)
    for name, values in (("lgemri", whole_numbers), ("laendo", label)):
        if values is not None:
            scale = 255 if name == "laendo" else 1
            volume = SimpleITK.GetImageFromArray(np.ascontiguousarray((values * scale).T))
            volume.SetDirection((np.cos(0.3), -np.sin(0.3), 0, np.sin(0.3), np.cos(0.3), 0, 0, 0, -1))
            volume.SetOrigin((-31.5, 12.25, 101.0))
            volume.SetSpacing(_SPACING)
            volume.SetMetaData("PatientName", PLANTED)
            SimpleITK.WriteImage(volume, str(folder / f"{name}.nrrd"), useCompression=True)
