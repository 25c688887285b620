"""A whole dataset as a converter describes it, and the files that it consists of."""

from dataclasses import dataclass

from nnunet_ad.conversion.cases import Case, Role
from nnunet_ad.conversion.folds import Fold

FILE_ENDING = ".nii.gz"
IMAGE_FOLDERS = {Role.LABELED: "imagesTr", Role.UNLABELED: "imagesUnlabeled", Role.TEST: "imagesTs"}
LABEL_FOLDERS = {Role.LABELED: "labelsTr", Role.TEST: "labelsTs"}
DATASET_JSON, SPLITS_JSON, SIDECAR_JSON = "dataset.json", "splits_final.json", "nnunet_ad.json"
MAX_DATASET_ID = 999  # nnU-Net reads the id from three digits of the folder's name


@dataclass(frozen=True)
class Provenance:
    """Where the data come from: name, description, address and citation of the public dataset."""

    name: str
    description: str
    url: str
    citation: str


@dataclass(frozen=True)
class Dataset:
    """One dataset to write.

    Attributes:
        dataset_id: nnU-Net's number, 1 to 999.
        name: The name behind the number, without spaces.
        channel_names: The channels in order. Any name but ``CT`` makes nnU-Net normalise each image by itself.
        labels: Value of each label name, ``background`` first, consecutive from 0.
        cases: All cases.
        folds: The folds of ``splits_final.json``.
        provenance: Where the data come from.
        setting: The setting of the paper, as ``semi-supervised``.
        notes: What the converter decided or assumed about these data, for the user and for the sidecar.
    """

    dataset_id: int
    name: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    cases: tuple[Case, ...]
    folds: tuple[Fold, ...]
    provenance: Provenance
    setting: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert all(len(case.channels) == len(self.channel_names) for case in self.cases)

    @property
    def folder_name(self) -> str:
        """The folder's name in ``nnUNet_raw``."""
        return dataset_folder_name(self.dataset_id, self.name)

    def num_cases(self, role: Role) -> int:
        """Return the number of cases of a role."""
        return sum(case.role is role for case in self.cases)

    def files(self) -> list[str]:
        """Return every file of the dataset, relative to its folder, sorted."""
        files = [DATASET_JSON, SPLITS_JSON, SIDECAR_JSON]
        for case in self.cases:
            files += case_files(case)
        return sorted(files)


def dataset_folder_name(dataset_id: int, name: str) -> str:
    """Return nnU-Net's folder name of a dataset, as ``Dataset101_LASeg``."""
    return f"Dataset{dataset_id:03d}_{name}"


def image_files(case: Case) -> list[str]:
    """Return the files of a case's channels in order, relative to the dataset folder."""
    folder = IMAGE_FOLDERS[case.role]
    return [f"{folder}/{case.name}_{channel:04d}{FILE_ENDING}" for channel in range(len(case.channels))]


def case_files(case: Case) -> list[str]:
    """Return all files of a case, relative to the dataset folder."""
    return image_files(case) + ([label_file(case)] if case.label is not None else [])


def label_file(case: Case) -> str:
    """Return the file of a case's label, relative to the dataset folder."""
    return f"{LABEL_FOLDERS[case.role]}/{case.name}{FILE_ENDING}"
