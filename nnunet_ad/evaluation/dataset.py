"""What evaluation needs to know of an nnU-Net dataset: its labels and the domain of each case."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_ad.evaluation.labels import LabelDefinition, labels_of_dataset
from nnunet_ad.json_file import read_json

DATASET_JSON, SIDECAR_JSON = "dataset.json", "nnunet_ad.json"


@dataclass(frozen=True)
class DatasetDescription:
    """Labels and domains of a dataset.

    Attributes:
        name: folder name, as ``Dataset101_LASeg``.
        labels: its structures.
        domains: domain (scanner, vendor, modality …) of each case; empty where the dataset has no sidecar.
    """

    name: str
    labels: LabelDefinition
    domains: Mapping[str, str] = field(default_factory=dict)


def read_dataset(identifier: str) -> DatasetDescription:
    """Read ``dataset.json`` and, where present, ``nnunet_ad.json`` of a dataset.

    Args:
        identifier: a number (``101``) or name (``Dataset101_LASeg``) of a dataset in ``$nnUNet_raw``, or a folder.

    Raises:
        ValueError: there is no such dataset, or one of its files cannot be understood.
    """
    folder = find_dataset(identifier)
    name = folder.resolve().name
    labels = labels_of_dataset(read_json(folder / DATASET_JSON), f"{DATASET_JSON} of {name}")
    sidecar = folder / SIDECAR_JSON
    domains = read_json(sidecar).get("domains", {}) if sidecar.exists() else {}
    if not isinstance(domains, dict) or not all(isinstance(domain, str) for domain in domains.values()):
        raise ValueError(f'{SIDECAR_JSON} of {name}: "domains" must give one text for each case.')
    return DatasetDescription(name, labels, domains)


def find_dataset(identifier: str) -> Path:
    """Return the folder of a dataset, see :func:`read_dataset`; a name in ``$nnUNet_raw`` goes before a folder.

    Raises:
        ValueError: there is no such dataset.
    """
    if re.fullmatch(r"\d{1,3}", identifier):
        return _in_raw(f"Dataset{int(identifier):03d}_*", f"dataset {identifier}")
    folder = Path(identifier)
    raw = os.environ.get("nnUNet_raw")  # noqa: SIM112 (the host's spelling)
    if raw and folder.name == identifier and (Path(raw) / identifier / DATASET_JSON).is_file():
        return Path(raw) / identifier
    if folder.is_dir():
        if not (folder / DATASET_JSON).is_file():
            raise ValueError(f"the folder {identifier} has no {DATASET_JSON}; pass a dataset's folder, number or name.")
        return folder
    if re.fullmatch(r"Dataset\d{3}_[^/\\*?\[]+", identifier):
        return _in_raw(identifier, identifier)
    raise ValueError(
        f"dataset {identifier!r} is neither a folder nor a dataset's number or name, such as 101 or Dataset101_LASeg."
    )


def _in_raw(pattern: str, what: str) -> Path:
    raw = os.environ.get("nnUNet_raw")  # noqa: SIM112 (the host's spelling)
    if not raw:
        raise ValueError(
            f"{what} cannot be looked up because the environment variable nnUNet_raw is not set; set it to the folder "
            "of nnU-Net's raw datasets, or pass the dataset's folder."
        )
    found = sorted(path.parent for path in Path(raw).glob(f"{pattern}/{DATASET_JSON}"))
    if len(found) != 1:
        raise ValueError(
            f"{what}: expected one folder {pattern} with a {DATASET_JSON} in nnUNet_raw ({raw}), found "
            f"{', '.join(path.name for path in found) or 'none'}."
        )
    return found[0]
