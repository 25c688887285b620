"""Made M&Ms: small 4-D series of all subjects of the public lists, in the folders in which M&Ms comes.

::

    OpenDataset/
      211230_M&Ms_Dataset_information_diagnosis_opendataset.csv
      M&Ms Dataset Information.xlsx                         the older table, with the same frames
      Training/Labeled/<code>/<code>_sa.nii.gz, <code>_sa_gt.nii.gz
      Training/Unlabeled/<code>/<code>_sa.nii.gz            25 subjects of vendor C, with made codes
      Validation/<code>/…    Testing/<code>/…               as Training/Labeled

A heart of a left ventricle in a ring of myocardium and a right ventricle beside it, smaller at end systole. As in the
real files, the label series is background but in these two frames. Grids are oblique and anisotropic, every third is
left-handed, and the header of the subject :data:`NON_ORTHONORMAL` has skewed direction cosines.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from nnunet_ad.conversion.folds import load_public_split

TABLE_CSV = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
TABLE_EXCEL = "M&Ms Dataset Information.xlsx"
NON_ORTHONORMAL = "A5D0G0"  # of vendor B, labelled in both public lists
FRAME_STEP = 1000  # every voxel of frame n is from n * FRAME_STEP to less than (n + 1) * FRAME_STEP
VENDOR_NAMES = {"A": "Siemens", "B": "Philips", "C": "GE", "D": "Canon"}
LV, MYO, RV = 1, 2, 3

# Numbers of subjects in Training/Labeled and Validation, the others being in Testing.
_NUM_TRAINING = {"A": 75, "B": 75, "C": 0, "D": 0}
_NUM_VALIDATION = {"A": 4, "B": 10, "C": 10, "D": 10}
_CENTRES = {"A": (1,), "B": (2, 3), "C": (4,), "D": (5,)}
_NUM_UNLABELED = 25
_SPACING = (1.25, 1.4, 9.2)  # mm
_INTENSITIES = {
    "A": (100, 700, 300, 650),
    "B": (60, 600, 200, 600),
    "C": (150, 500, 320, 480),
    "D": (90, 800, 420, 760),
}


@dataclass(frozen=True)
class MadeSubject:
    """One subject of the made tree.

    Attributes:
        code: The external code.
        vendor: Letter of the vendor.
        folder: The folder that has the subject's, relative to ``OpenDataset``.
        ed: Number of the end-diastolic frame.
        es: Number of the end-systolic frame.
    """

    code: str
    vendor: str
    folder: str
    ed: int
    es: int

    @property
    def has_label(self) -> bool:
        """Whether the subject comes with a label series."""
        return self.folder != "Training/Unlabeled"

    def file(self, root: Path, ending: str = "_sa.nii.gz") -> Path:
        """Return one of the subject's files in the ``OpenDataset`` folder ``root``."""
        return root / self.folder / self.code / f"{self.code}{ending}"


def write_mnms_tree(
    folder: Path, *, seed: int = 0, shape: tuple[int, int, int] = (12, 10, 4), num_frames: int = 5
) -> dict[str, MadeSubject]:
    """Write a made ``OpenDataset`` into a folder.

    Args:
        folder: The folder; made if it does not exist.
        seed: Seed of frames, geometries and intensities.
        shape: Voxels along x, y and z, at least 10, 10 and 2.
        num_frames: Frames of each series, from 2 to 32.

    Returns:
        The subjects by code, those without labels included.

    Raises:
        ValueError: ``shape`` or ``num_frames`` is out of range.
    """
    if any(extent < least for extent, least in zip(shape, (10, 10, 2), strict=True)) or not 2 <= num_frames <= 32:
        raise ValueError(f"expected at least 10 x 10 x 2 voxels and 2 to 32 frames, got {shape} and {num_frames}")
    root = folder / "OpenDataset"
    subjects = {subject.code: subject for subject in _make_subjects(np.random.default_rng(seed), num_frames)}
    for number, subject in enumerate(subjects.values()):
        _write_subject(subject, root, np.random.default_rng([seed, number]), (*shape, num_frames), number % 3 == 2)
    _write_tables(list(subjects.values()), root)
    return subjects


def _make_subjects(rng: np.random.Generator, num_frames: int) -> Iterator[MadeSubject]:
    """Yield the subjects of the public lists and those without labels, with random frames."""
    public = load_public_split("MnMs")["vendors"]
    for vendor, codes in public.items():
        num_training = _NUM_TRAINING[vendor]
        for index, code in enumerate(codes):
            is_validation = index < num_training + _NUM_VALIDATION[vendor]
            folder = "Training/Labeled" if index < num_training else "Validation" if is_validation else "Testing"
            yield MadeSubject(code, vendor, folder, *_two_frames(rng, num_frames))
    for index in range(_NUM_UNLABELED):  # Z0Z0A0, …: no public code begins like this
        code = f"Z0Z0{chr(ord('A') + index)}0"
        assert not any(code in codes for codes in public.values())
        yield MadeSubject(code, "C", "Training/Unlabeled", *_two_frames(rng, num_frames))


def _two_frames(rng: np.random.Generator, num_frames: int) -> tuple[int, int]:
    ed, es = rng.choice(num_frames, 2, replace=False)
    return int(ed), int(es)


def _write_subject(
    subject: MadeSubject, root: Path, rng: np.random.Generator, shape: tuple[int, ...], left_handed: bool
) -> None:
    """Write a subject's image series and, where it comes with one, its label series."""
    affine = _make_affine(rng, left_handed)
    if subject.code == NON_ORTHONORMAL:
        affine[:3, 1] += 0.004 * affine[:3, 0]
    centre = rng.uniform(0.45, 0.55, 2)
    hearts = np.stack(
        [_draw_heart(shape[:3], centre, contraction=float(frame == subject.es)) for frame in range(shape[3])], axis=-1
    )
    intensities = np.array(_INTENSITIES[subject.vendor])[hearts] + rng.integers(0, 60, shape)
    image = (intensities + FRAME_STEP * np.arange(shape[3])).astype(np.int16)
    _write_series(image, affine, subject.file(root))
    if subject.has_label:
        label = np.zeros(shape, dtype=np.uint8)
        for frame in (subject.ed, subject.es):
            label[..., frame] = hearts[..., frame]
        _write_series(label, affine, subject.file(root, "_sa_gt.nii.gz"))


def _draw_heart(shape: tuple[int, ...], centre: np.ndarray, contraction: float) -> np.ndarray:
    """Return the label of each voxel of one frame, shape (x, y, z); it has all structures in every slice."""
    x, y, _ = np.meshgrid(*((np.arange(extent) + 0.5) / extent for extent in shape), indexing="ij")
    distance = np.hypot(x - centre[0], y - centre[1])
    radius = 0.2 - 0.06 * contraction
    heart = np.zeros(shape, dtype=np.uint8)
    heart[(np.hypot(x - centre[0] + 0.3, y - centre[1] + 0.05) < 0.2 - 0.04 * contraction)] = RV
    heart[distance < radius + 0.13] = MYO
    heart[distance < radius] = LV
    return heart


def _make_affine(rng: np.random.Generator, left_handed: bool) -> np.ndarray:
    """Return a random oblique affine from voxels to mm, axes pointing right, anterior and superior."""
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    if (np.linalg.det(rotation) < 0) != left_handed:
        rotation[:, 2] *= -1
    affine = np.eye(4)
    affine[:3, :3] = rotation * (np.array(_SPACING) * rng.uniform(0.9, 1.1, 3))
    affine[:3, 3] = rng.uniform(-150, 150, 3)
    return affine


def _write_series(values: np.ndarray, affine: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm", "sec")
    # As in the real files whose skew SimpleITK refuses: no second, orthonormal geometry in the header to fall back to.
    image.set_qform(None, code=0)
    nib.save(image, path)


def _write_tables(subjects: list[MadeSubject], root: Path) -> None:
    """Write the newest table and the older one, which differ in columns and in the order of rows."""
    rows = pd.DataFrame(
        [
            {
                "External code": subject.code,
                "VendorName": VENDOR_NAMES[subject.vendor],
                "Vendor": subject.vendor,
                "Centre": _CENTRES[subject.vendor][number % len(_CENTRES[subject.vendor])],
                "ED": subject.ed,
                "ES": subject.es,
                "Age": 20 + number % 60,
                "Pathology": ("NOR", "HCM", "DCM")[number % 3],
                "Sex": "FM"[number % 2],
                "Height": 150 + number % 45,
                "Weight": 50 + number % 50,
            }
            for number, subject in enumerate(subjects)
        ]
    ).sort_values("External code", ignore_index=True)
    rows.to_csv(root / TABLE_CSV)
    older = rows[["External code", "VendorName", "Vendor", "Centre", "ED", "ES"]].iloc[::-1]
    older.to_excel(root / TABLE_EXCEL, index=False)
