"""One channel of one case: a file, one volume of a file, or a DICOM series."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import SimpleITK as sitk

from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.volume_files import GZIP_MAGIC, check_intact, image_suffix, read_file

if TYPE_CHECKING:
    from nnunet_ad.conversion.dicom.series import Series


def check_file(path: Path) -> None:
    """Check that a file is whole, and that its ending says how it is compressed.

    Raises:
        ConversionError: It is not, or does not.
    """
    if image_suffix(path) == ".nii" and _is_gzip(path):
        raise ConversionError("the file is called .nii, but is compressed by gzip; rename it to .nii.gz")
    check_intact(path)


def _is_gzip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    except OSError as error:  # its words would name the path
        raise ConversionError(f"the file cannot be opened ({error.strerror}); check its permissions") from None


@dataclass(frozen=True)
class Channel:
    """What one channel is read from.

    Attributes:
        source: A file or a DICOM series.
        frame: Number of the volume in a 4-D file, or None.
    """

    source: "Path | Series"
    frame: int | None = None

    @property
    def modality(self) -> str | None:
        """The modality that a DICOM series states, as ``CT``; None for files, which state none."""
        return None if isinstance(self.source, Path) else self.source.modality

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where to look for it: the file, or the folder of the series."""
        return (self.source,) if isinstance(self.source, Path) else (self.source.files[0].parent,)

    def check_intact(self) -> None:
        """Check that the file is whole; a DICOM series is checked when it is read.

        Raises:
            ConversionError: It is not.
        """
        if isinstance(self.source, Path):
            check_file(self.source)

    def read(self) -> sitk.Image:
        """Read the volume.

        Raises:
            ConversionError: It cannot be read, or is no single scalar 3-D volume.
        """
        if isinstance(self.source, Path):
            return read_file(self.source, self.frame)
        from nnunet_ad.conversion.dicom.volume import read_series

        return read_series(self.source)
