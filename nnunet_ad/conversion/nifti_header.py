"""NIfTI-1 files with nibabel, the rotation in the header read as SimpleITK reads it.

A header states a rotation by three of the four parts of a quaternion of length 1. Where rounding made the three a
little longer than that, nibabel refuses the file; SimpleITK shortens them.
"""

import nibabel as nib
import numpy as np

from nnunet_ad.conversion.errors import ConversionError

MAX_EXCESS = 1e-3  # of the squared length over 1, from numbers with four digits
_NO_REST = 1e-7  # of the squared length, below which SimpleITK takes the fourth part for 0


class NiftiHeader(nib.Nifti1Header):
    """A header whose quaternion may be rounded."""

    def get_qform_quaternion(self) -> np.ndarray:
        """Return the quaternion of the rotation, its real part first.

        Raises:
            ConversionError: The header's three parts are too long for rounding.
        """
        vector = np.array([self[f"quatern_{part}"] for part in "bcd"], dtype=float)
        rest = 1 - vector @ vector
        if rest < -MAX_EXCESS:
            raise ConversionError(
                f"the header states a rotation by the quaternion (b, c, d) = {np.round(vector, 4).tolist()}, expected "
                "a length of 1 at most; export the file again"
            )
        if rest < _NO_REST:
            return np.array([0, *vector / np.linalg.norm(vector)])
        return np.array([np.sqrt(rest), *vector])


class NiftiImage(nib.Nifti1Image):
    """A NIfTI-1 file with such a header."""

    header_class = NiftiHeader
