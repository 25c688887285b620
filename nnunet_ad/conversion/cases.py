"""What a converter says about one case of a dataset."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import SimpleITK as sitk


class Role(StrEnum):
    """What a case is used for, which decides its folders."""

    LABELED = "labeled"  # imagesTr and labelsTr: trains with its label, or validates
    UNLABELED = "unlabeled"  # imagesUnlabeled: trains without a label
    TEST = "test"  # imagesTs, and labelsTs where there is a label: held out


@dataclass(frozen=True)
class Volume:
    """One volume that can be read when it is needed.

    Attributes:
        file: The file as an error message names it, relative to the input folder.
        read: Reads and returns the volume; raises ConversionError without naming the case or the file, which the
            writer adds. Must be picklable, since another process may call it.
    """

    file: str
    read: Callable[[], sitk.Image]


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        name: The case identifier in the dataset.
        role: What the case is used for.
        domain: The domain (scanner, vendor, sequence, modality …) that the sidecar states for it.
        channels: One image volume a channel, all on one grid.
        label: The label volume on the grid of the images, in the dataset's label values. An unlabelled case never has
            one, so that nothing can open a label that the protocol hides.
        digest: Of all that is written of the case, by which what a killed run finished of it is known; None where that
            is not known without reading the volumes, and the case is always written anew.
    """

    name: str
    role: Role
    domain: str
    channels: tuple[Volume, ...]
    label: Volume | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        assert not (self.role is Role.UNLABELED and self.label), f"unlabelled case {self.name} was given a label"
        assert not (self.role is Role.LABELED and not self.label), f"labelled case {self.name} was given no label"
