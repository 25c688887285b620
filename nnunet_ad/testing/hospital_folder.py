"""Made volumes as a hospital has them: folders of images, some with masks, a list of structures, a table of scanners.

>>> folder = write_hospital_folder(Path("hospital"), seed=0, num_labeled=4, num_unlabeled=12, num_test=4)
>>> sorted(path.name for path in folder.iterdir())
['domains.csv', 'labeled', 'labels.json', 'test', 'unlabeled']
"""

import csv
import json
from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_ad.testing.made_dataset import DIRECTION, ORIGIN, SPACING
from nnunet_ad.testing.made_volume import DOMAINS, ORGAN, VESSEL, draw_anatomy, label_map, render_image

LABELS = {"organ": ORGAN, "vessel": VESSEL}
LABELS_FILE, DOMAINS_FILE = "labels.json", "domains.csv"
ROLES = ("labeled", "unlabeled", "test")


def write_hospital_folder(
    folder: Path,
    *,
    seed: int,
    num_labeled: int,
    num_unlabeled: int,
    num_test: int,
    shape: tuple[int, int, int] = (48, 64, 64),
    num_channels: int = 1,
    suffix: str = ".nii.gz",
) -> Path:
    """Write what ``scripts/convert_hospital_data.py`` reads.

    The volumes equal those of :func:`nnunet_ad.testing.made_dataset.write_made_dataset` with the same seed and numbers
    of cases: labelled cases are of domain A, the others alternate between A and B.

    ::

        labeled/images/scan_000.nii.gz  labeled/masks/scan_000.nii.gz
        unlabeled/scan_004.nii.gz
        test/images/…  test/masks/…
        labels.json  domains.csv

    With several channels, an image is a folder of ``MR0.nii.gz``, ``MR1.nii.gz`` …

    Args:
        folder: Where to write; created if missing.
        seed: Seed of everything random.
        num_labeled: Cases with a mask.
        num_unlabeled: Cases without.
        num_test: Held-out cases, with masks.
        shape: Voxels along z, y, x; at least 16 each.
        num_channels: Images a case.
        suffix: Format of the volumes: ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha``.

    Returns:
        ``folder``.

    Raises:
        FileExistsError: The folder has such cases.
        ValueError: A volume is too small.
    """
    domains, number = [("case", "domain")], 0
    for role, count in zip(ROLES, (num_labeled, num_unlabeled, num_test), strict=True):
        (folder / role).mkdir(parents=True)
        has_masks = role != "unlabeled"
        images = folder / role / "images" if has_masks else folder / role
        for index in range(count):
            name = f"scan_{number:03d}"
            domain = DOMAINS[0 if role == "labeled" else index % len(DOMAINS)]
            tissues = draw_anatomy(np.random.default_rng([seed, number]), shape)
            for channel in range(num_channels):
                image = render_image(np.random.default_rng([seed, number, channel]), tissues, domain, channel)
                file = images / f"{name}{suffix}" if num_channels == 1 else images / name / f"MR{channel}{suffix}"
                _write(file, image)
            if has_masks:
                _write(folder / role / "masks" / f"{name}{suffix}", label_map(tissues))
            domains.append((name, domain.name))
            number += 1
    (folder / LABELS_FILE).write_text(json.dumps(LABELS) + "\n", encoding="utf-8")
    with (folder / DOMAINS_FILE).open("w", newline="", encoding="utf-8") as table:
        csv.writer(table, lineterminator="\n").writerows(domains)
    return folder


def _write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = SimpleITK.GetImageFromArray(array)
    volume.SetSpacing(SPACING)
    volume.SetOrigin(ORIGIN)
    volume.SetDirection(DIRECTION)
    SimpleITK.WriteImage(volume, str(path), useCompression=True)
