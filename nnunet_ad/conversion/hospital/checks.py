"""Checks of one image that need no other."""

import numpy as np
import SimpleITK as sitk

from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.volumes import check_image

MIN_SIZE = 4  # voxels along each axis: localizers have three slices
SPACING_RANGE = (0.005, 100.0)  # mm


def image_problems(image: sitk.Image, min_size: int) -> list[str]:
    """Return what is wrong with an image, a sentence each.

    Args:
        image: The image.
        min_size: The fewest voxels that an axis may have.
    """
    problems = []
    size, spacing = image.GetSize(), image.GetSpacing()
    if min(size) < min_size:
        extents = " x ".join(map(str, size))
        problems.append(
            f"the image has {extents} voxels, expected at least {min_size} along each axis; leave out localizers and "
            "single slices, or lower --min-size"
        )
    low, high = SPACING_RANGE
    if not all(np.isfinite(spacing)) or not low <= min(spacing) <= max(spacing) <= high:
        problems.append(
            f"the spacing is {' x '.join(f'{each:g}' for each in spacing)} mm, expected {low:g} to {high:g} mm; export "
            "the image again with its spacing in millimetres"
        )
    try:
        check_image(image)
    except ConversionError as error:
        problems.append(str(error))
    return problems
