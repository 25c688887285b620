"""Which unlabelled cases lie preprocessed, whole and not stale.

Beside nnU-Net's folder ``<data_identifier>/`` stands ``<data_identifier>_unlabeled/`` with ``<case>.b2nd`` (image) and
``<case>.pkl`` (properties, the mean and SD of each channel among them), and ``<case>_seg.b2nd`` only where the plans
normalise inside the non-zero mask: it holds that mask (-1 outside), never a label. ``imagesUnlabeled.json`` lists the
cases that the raw folder had when it was last seen, as files of those that were taken out may lie here still.

The properties of a case hold a stamp: what it was made from, and how.
"""

import hashlib
import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ad.data.folds import UNLABELED_IMAGES
from nnunet_ad.whole_file import written_whole

INTENSITIES = "nnunet_ad_intensities"
STAMP = "nnunet_ad"
_CASES = "imagesUnlabeled.json"
_FORMAT = 2  # of what is written; raised when older files lack something
_BY_THE_IMAGE_ALONE = {  # nnU-Net's schemes that do not read the intensities of the plans
    "ZScoreNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
}


@dataclass(frozen=True)
class UnlabeledPreprocessing:
    """How the unlabelled cases of one configuration are preprocessed, and where they go.

    Attributes:
        plans: Plans of the dataset.
        configuration: Name of the configuration.
        dataset_json: Content of dataset.json.
        folder: ``nnUNet_preprocessed/DatasetXXX_Name/<data_identifier>_unlabeled``.
    """

    plans: PlansManager
    configuration: str
    dataset_json: dict
    folder: Path

    @property
    def manager(self) -> ConfigurationManager:
        """The configuration as nnU-Net reads it."""
        return self.plans.get_configuration(self.configuration)

    @property
    def key(self) -> str:
        """Hash of what decides the result: spacing, axes, normalisation with its intensities, resampling, reader.

        The name of the plans is not part of it: ResEnc plans share folder and result with the default ones. Nor are the
        intensities of channels that nnU-Net normalises by the image alone, which change with every annotated case.
        """
        manager = self.manager
        decisive = {
            "format": _FORMAT,
            "spacing": list(manager.spacing),
            "transpose": list(self.plans.transpose_forward),
            "normalization": list(manager.normalization_schemes),
            "mask": list(manager.use_mask_for_norm),
            "intensities": self._decisive_intensities(),
            "resampling": [
                manager.configuration.get("resampling_fn_data"),
                manager.configuration.get("resampling_fn_data_kwargs"),
            ],
            "preprocessor": manager.preprocessor_name,
            "reader": self.plans.plans.get("image_reader_writer"),
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()

    def _decisive_intensities(self) -> dict:
        intensities = self.plans.foreground_intensity_properties_per_channel
        if self.manager.preprocessor_name != "DefaultPreprocessor":
            return intensities  # which another one may use for anything
        schemes = enumerate(self.manager.normalization_schemes)
        by_image = {str(channel) for channel, scheme in schemes if scheme in _BY_THE_IMAGE_ALONE}
        return {channel: values for channel, values in intensities.items() if channel not in by_image}

    @property
    def keeps_mask(self) -> bool:
        """Whether the non-zero mask is needed after augmentation."""
        return any(self.manager.use_mask_for_norm)


def image_file(folder: Path, case: str) -> Path:
    """Return the preprocessed image of a case."""
    return folder / f"{case}.b2nd"


def mask_file(folder: Path, case: str) -> Path:
    """Return the non-zero mask of a case; exists only where the plans need it."""
    return folder / f"{case}_seg.b2nd"


def properties_file(folder: Path, case: str) -> Path:
    """Return the properties of a case; written last, so that its presence says that the case is whole."""
    return folder / f"{case}.pkl"


def missing_cases(preprocessing: UnlabeledPreprocessing, images: Mapping[str, Sequence[Path]]) -> list[str]:
    """Return the cases that are absent, half-written, stale, or made from other image files; sorted."""
    return [case for case in sorted(images) if not _is_valid(preprocessing, case, images[case])]


def usable_cases(preprocessing: UnlabeledPreprocessing) -> dict[str, str]:
    """Return the cases that are whole and not stale, as far as that shows without the raw images.

    Those of ``imagesUnlabeled/`` that were not there when it was last seen are left out.

    Returns:
        For each case the raw folder that it came from (``imagesUnlabeled`` or ``imagesTr``).
    """
    cases = sorted(file.stem for file in preprocessing.folder.glob("*.pkl"))
    stamps = {case: _stamp_if_whole(preprocessing, case) for case in cases}
    found = {case: stamp["source"] for case, stamp in stamps.items() if stamp and stamp["key"] == preprocessing.key}
    remembered = _remembered(preprocessing)
    return {
        case: source
        for case, source in found.items()
        if source != UNLABELED_IMAGES or remembered is None or case in remembered
    }


def preprocessed_otherwise(preprocessing: UnlabeledPreprocessing, cases: Iterable[str]) -> list[str]:
    """Return those of the cases that lie in the folder as other plans made them."""
    stamps = {case: _stamp_if_whole(preprocessing, case, with_mask=False) for case in cases}
    return [case for case, stamp in stamps.items() if stamp is not None and stamp["key"] != preprocessing.key]


def remember_images(preprocessing: UnlabeledPreprocessing, raw_dataset: Path, cases: Iterable[str]) -> None:
    """Keep the list of the cases in ``imagesUnlabeled/`` for trainings where the raw images are not.

    Where the raw dataset has no such folder, or the list can't be written, that of before stays.
    """
    if not preprocessing.folder.is_dir() or not (raw_dataset / UNLABELED_IMAGES).is_dir():
        return
    listed = sorted(cases)
    if _remembered(preprocessing) != set(listed):
        with suppress(OSError), written_whole(preprocessing.folder / _CASES) as temporary:
            temporary.write_text(json.dumps(listed))


def _remembered(preprocessing: UnlabeledPreprocessing) -> set[str] | None:
    try:
        return set(json.loads((preprocessing.folder / _CASES).read_text()))
    except (OSError, ValueError):
        return None


def intensities_of(image: np.ndarray) -> dict[str, list[float]]:
    """Return ``mean`` and ``sd`` of each channel of a preprocessed image (C, *spatial)."""
    axes = tuple(range(1, image.ndim))
    return {name: function(image, axes, np.float64).tolist() for name, function in (("mean", np.mean), ("sd", np.std))}


def stamp_of(properties: Mapping[str, Any]) -> dict:
    """Return what a preprocessed image was made from and how: equal ones make the same image."""
    return properties[STAMP]


def _is_valid(preprocessing: UnlabeledPreprocessing, case: str, images: Sequence[Path]) -> bool:
    return _stamp_if_whole(preprocessing, case) == make_stamp(preprocessing, images)


def _stamp_if_whole(preprocessing: UnlabeledPreprocessing, case: str, with_mask: bool = True) -> dict | None:
    try:
        properties = pickle.loads(properties_file(preprocessing.folder, case).read_bytes())
        shape = tuple(blosc2.open(str(image_file(preprocessing.folder, case)), mode="r").shape)
        if with_mask and preprocessing.keeps_mask:
            blosc2.open(str(mask_file(preprocessing.folder, case)), mode="r")
        return properties[STAMP] if shape == tuple(properties["preprocessed_shape"]) else None
    except Exception:  # whatever is wrong with these files, the answer is to write them anew
        return None


def make_stamp(preprocessing: UnlabeledPreprocessing, images: Sequence[Path]) -> dict:
    """Return what goes into the properties of a case: how it is preprocessed, and from which state of which files."""
    stats = [Path(file).stat() for file in images]
    return {
        "key": preprocessing.key,
        "source": Path(images[0]).parent.name,
        "images": [(stat.st_size, stat.st_mtime_ns) for stat in stats],
        **_spacing_file(Path(images[0])),
    }


def _spacing_file(image: Path) -> dict[str, tuple[int, int]]:
    """Return what is known of the file in which nnU-Net looks for the spacing of a TIFF, empty if there is none."""
    file = image.with_name(f"{image.stem.rpartition('_')[0]}.json")
    if image.suffix.lower() not in (".tif", ".tiff") or not file.is_file():
        return {}
    return {"spacing": (file.stat().st_size, file.stat().st_mtime_ns)}
