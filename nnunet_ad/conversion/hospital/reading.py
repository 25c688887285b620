"""Reads the volumes of a case as they go into the dataset."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.hospital.grid import Grid, on_grid
from nnunet_ad.conversion.hospital.masks import Mask, MaskOptions
from nnunet_ad.conversion.hospital.plan import PlannedCase


@dataclass(frozen=True)
class Reading:
    """How volumes are brought to one grid.

    Attributes:
        resample_channels: Bring channels on another grid onto that of the first, linearly.
        reorient: Orientation to bring all volumes to by swapping and flipping axes, as ``LPS``; None keeps theirs.
        masks: How masks are read.
    """

    resample_channels: bool
    reorient: str | None
    masks: MaskOptions

    def channel(self, case: PlannedCase, index: int, grid: Grid | None) -> sitk.Image:
        """Read a channel, not yet reoriented.

        Args:
            case: The case.
            index: Number of the channel.
            grid: The grid of the first channel; None if this is the first.

        Raises:
            ConversionError: It cannot be read, or lies on another grid and must not be resampled.
        """
        image = case.channels[index].read()
        if grid is None:
            return image
        found = Grid.of(image)
        if found.matches(grid):
            return on_grid(image, grid)
        if not self.resample_channels:
            raise ConversionError(
                f"the image lies on another grid than the first channel: {found.unlike(grid)}; find the "
                "right partner, or add --resample-channels"
            )
        image = sitk.Cast(image, sitk.sitkFloat32)
        low = float(sitk.GetArrayViewFromImage(image).min())
        resampled = sitk.Resample(image, grid.empty_image(), sitk.Transform(), sitk.sitkLinear, low)
        if sitk.GetArrayViewFromImage(resampled).max() == low < sitk.GetArrayViewFromImage(image).max():
            raise ConversionError(
                f"the image does not overlap the first channel: {found.unlike(grid)}; find the right partner"
            )
        return resampled

    def mask(self, case: PlannedCase, grid: Grid) -> Mask:
        """Read the mask of a case that has one, not yet reoriented.

        Raises:
            ConversionError: As :meth:`nnunet_ad.conversion.hospital.masks.MaskSource.read`.
        """
        assert case.mask is not None
        series = [each.source for each in case.channels if not isinstance(each.source, Path)]
        return case.mask.read(grid, self.masks, series)

    def finish(self, volume: sitk.Image) -> sitk.Image:
        """Reorient a volume, if that is wanted."""
        return sitk.DICOMOrient(volume, self.reorient) if self.reorient else volume


def digest(volume: sitk.Image) -> str:
    """Return a digest of the voxels in the order of the body's axes, whatever the type, grid and file they came in."""
    oriented = sitk.DICOMOrient(volume, "LPS")  # must outlive the view of its voxels
    voxels = sitk.GetArrayViewFromImage(oriented)
    summary = hashlib.sha256(str(voxels.shape).encode())
    summary.update(np.ascontiguousarray(voxels, dtype=np.float32).data)
    return summary.hexdigest()
