"""Made volumes in the trees of Synapse.

>>> sorted(path.name for path in write_synapse_tree(Path("synapse")).rglob("*0009*"))
['img0009.nii.gz', 'label0009.nii.gz']
"""

from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_ad.testing.benchmark_trees.volumes import draw_structures, on_scanner_grid, render_image

IDS = tuple(f"{number:04d}" for number in (*range(1, 11), *range(21, 41)))
ID_WITHOUT_LABEL = "0061"  # of the challenge's test set, which the benchmark leaves out
NUM_STRUCTURES = 13
# Image and label folder of each layout, and the folder of images without label.
LAYOUTS = {
    "RawData": ("RawData/Training/img", "RawData/Training/label", "RawData/Testing/img"),
    "imagesTr": ("imagesTr", "labelsTr", "imagesTs"),
}


def write_synapse_tree(
    folder: Path, *, seed: int = 0, layout: str = "RawData", shape: tuple[int, int, int] = (10, 14, 12)
) -> Path:
    """Write the 30 training cases of the challenge, all with labels, and one of its test set, which has none.

    ::

        RawData/Training/img/img0001.nii.gz  RawData/Training/label/label0001.nii.gz  …   layout RawData
        imagesTr/img0001.nii.gz  labelsTr/label0001.nii.gz  …                             layout imagesTr

    A case depends on the seed and its id only, and is the same in both layouts.

    Args:
        folder: Where to write; created if missing.
        seed: Seed of everything random.
        layout: ``RawData`` or ``imagesTr``.
        shape: Voxels along z, y, x; at least 8 each.

    Returns:
        ``folder``.

    Raises:
        KeyError: There is no such layout.
        ValueError: A volume is too small.
    """
    images, labels, unlabeled_images = (Path(folder) / name for name in LAYOUTS[layout])
    for path in (images, labels, unlabeled_images):
        path.mkdir(parents=True, exist_ok=True)
    for case in (*IDS, ID_WITHOUT_LABEL):
        rng = np.random.default_rng([seed, int(case)])
        structures = draw_structures(rng, shape, NUM_STRUCTURES)
        hounsfield = render_image(rng, structures, background=-100, darkest=-20, brightest=300, noise=15)
        image, label = on_scanner_grid(rng, int(case), hounsfield, structures)
        if case == ID_WITHOUT_LABEL:
            SimpleITK.WriteImage(image, str(unlabeled_images / f"img{case}.nii.gz"), useCompression=True)
        else:
            SimpleITK.WriteImage(image, str(images / f"img{case}.nii.gz"), useCompression=True)
            SimpleITK.WriteImage(label, str(labels / f"label{case}.nii.gz"), useCompression=True)
    return Path(folder)
