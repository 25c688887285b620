"""Made volumes in the trees of MM-WHS.

>>> sorted(path.name for path in write_mmwhs_tree(Path("mmwhs")).rglob("*ct_train_1003*"))
['ct_train_1003_image.nii.gz', 'ct_train_1003_label.nii.gz']
"""

from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_ad.testing.benchmark_trees.volumes import draw_structures, on_scanner_grid, render_image

MODALITIES = ("ct", "mr")
NUMBERS = tuple(range(1001, 1021))
CODES = (500, 600, 420, 550, 205, 820, 850)  # all seven structures of the challenge
ATRIUM, STRAY_ATRIUM = 420, 421
LAYOUTS = ("ct_train", "imagesTr")
# How each modality shows the structures: background, darkest, brightest, noise.
_APPEARANCE = {"ct": (-120.0, 40.0, 420.0, 15.0), "mr": (90.0, 700.0, 180.0, 20.0)}


def has_stray_code(number: int) -> bool:
    """Return whether the label of a case has 421 in a part of the left atrium, which is one in five of a modality."""
    return number % 5 == 4


def write_mmwhs_tree(
    folder: Path, *, seed: int = 0, layout: str = "ct_train", shape: tuple[int, int, int] = (10, 14, 12)
) -> Path:
    """Write the 20 training cases of each modality with their labels, and a test case of each, which has none.

    ::

        ct_train/ct_train_1001_image.nii.gz  ct_train/ct_train_1001_label.nii.gz  …  mr_train/…   layout ct_train
        CT/imagesTr/ct_train_1001_image.nii.gz  CT/labelsTr/ct_train_1001_label.nii.gz  …  MR/…   layout imagesTr

    A case depends on the seed and its name only, and is the same in both layouts.

    Args:
        folder: Where to write; created if missing.
        seed: Seed of everything random.
        layout: ``ct_train`` or ``imagesTr``.
        shape: Voxels along z, y, x; at least 8 each.

    Returns:
        ``folder``.

    Raises:
        ValueError: There is no such layout, or a volume is too small.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"got the layout {layout!r}, expected one of {', '.join(LAYOUTS)}")
    folder = Path(folder)
    for modality in MODALITIES:
        images, labels, test_images = (folder / name for name in _folders(modality, layout))
        for path in (images, labels, test_images):
            path.mkdir(parents=True, exist_ok=True)
        for number in NUMBERS:
            image, label = _make_case(seed, modality, number, shape)
            name = f"{modality}_train_{number}"
            SimpleITK.WriteImage(image, str(images / f"{name}_image.nii.gz"), useCompression=True)
            SimpleITK.WriteImage(label, str(labels / f"{name}_label.nii.gz"), useCompression=True)
        image, _ = _make_case(seed, modality, 2001, shape)
        SimpleITK.WriteImage(image, str(test_images / f"{modality}_test_2001_image.nii.gz"), useCompression=True)
    return folder


def _folders(modality: str, layout: str) -> tuple[str, str, str]:
    """Return the folders of images, labels and the challenge's test images."""
    if layout == "imagesTr":
        parent = modality.upper()
        return f"{parent}/imagesTr", f"{parent}/labelsTr", f"{parent}/imagesTs"
    return f"{modality}_train", f"{modality}_train", f"{modality}_test"


def _make_case(
    seed: int, modality: str, number: int, shape: tuple[int, int, int]
) -> tuple[SimpleITK.Image, SimpleITK.Image]:
    """Return the image and the label of a case."""
    rng = np.random.default_rng([seed, MODALITIES.index(modality), number])
    structures = draw_structures(rng, shape, len(CODES))
    image = render_image(rng, structures, *_APPEARANCE[modality])
    codes = np.array([0, *CODES], dtype=np.int16)[structures]
    if has_stray_code(number):
        atrium = np.argwhere(codes == ATRIUM)
        codes[tuple(atrium[: len(atrium) // 3 + 1].T)] = STRAY_ATRIUM
    image_volume, label_volume = on_scanner_grid(rng, number, image, codes)
    return image_volume, label_volume
