"""Reads DICOM: image series, DICOM-SEG and RTSTRUCT. Needs the extra ``dicom``.

``files``         one file: whether it is DICOM, and what its header says
``planes``        the slices of a volume in space, and whether they make a regular grid
``series``        finds the series among files, and chooses one
``volume``        reads the volume of a series
``segmentation``  the segments of a DICOM-SEG, and their place on the grid of an image
``rtstruct``      the contours of an RTSTRUCT as masks

This module imports none of them, so that ``require_dicom`` can say what is missing.
"""

import importlib

from nnunet_ad.conversion.errors import ConversionError

PACKAGES = ("pydicom", "highdicom", "skimage")


def require_dicom() -> None:
    """Check that the packages of the extra are there; call it before importing the modules of this package.

    Raises:
        ConversionError: One of them cannot be imported.
    """
    try:
        for package in PACKAGES:
            importlib.import_module(package)
    except ImportError:
        raise ConversionError("reading DICOM needs the extra: pip install 'nnunet_ad[dicom]'") from None
