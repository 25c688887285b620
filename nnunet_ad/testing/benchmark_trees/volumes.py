"""Made structures, their images, and the many ways in which a scanner lays a grid.

Arrays are ordered (z, y, x), as SimpleITK takes them.
"""

from itertools import count

import numpy as np
import SimpleITK
from scipy.spatial.transform import Rotation

MIN_EXTENT = 8  # voxels, below which a structure may hold no voxel centre
# Spacing in mm along x, y, z, and the directions of these axes in columns.
GRIDS = (
    ((0.7, 0.7, 3.0), np.eye(3)),
    ((0.8, 0.8, 2.5), np.diag([-1.0, -1.0, 1.0])),
    ((1.1, 0.9, 1.7), Rotation.from_euler("xyz", [12, -25, 40], degrees=True).as_matrix()),
    ((1.3, 0.6, 0.8), Rotation.from_euler("zyx", [70, 8, -15], degrees=True).as_matrix() @ np.diag([1.0, -1.0, 1.0])),
    ((0.45, 1.6, 0.5), np.eye(3)[:, [1, 2, 0]]),
)


def draw_structures(rng: np.random.Generator, shape: tuple[int, int, int], num_structures: int) -> np.ndarray:
    """Draw ellipsoids that vary a little around places which all cases share, without symmetry.

    Args:
        rng: Source of the variation between cases.
        shape: Voxels along z, y, x; at least 8 each.
        num_structures: How many.

    Returns:
        0, or the number of a structure from 1, of each voxel; uint8 of ``shape``. Every structure has a voxel.

    Raises:
        ValueError: An axis of ``shape`` is shorter than 8 voxels.
    """
    if min(shape) < MIN_EXTENT:
        raise ValueError(f"made volumes need three axes of at least {MIN_EXTENT} voxels, got shape {tuple(shape)}")
    per_axis = next(number for number in count(1) if number**3 >= num_structures)
    cells = np.random.default_rng(0).permutation(list(np.ndindex(per_axis, per_axis, per_axis)))
    axes = [(np.arange(extent) + 0.5) / extent for extent in shape]
    voxels = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    structures = np.zeros(shape, dtype=np.uint8)
    for number, cell in enumerate(cells[:num_structures], start=1):
        centre = (cell + 0.5 + rng.uniform(-0.1, 0.1, 3)) / per_axis
        radii = rng.uniform(0.4, 0.5, 3) / per_axis
        structures[(((voxels - centre) / radii) ** 2).sum(axis=-1) < 1] = number
    return structures


def render_image(
    rng: np.random.Generator, structures: np.ndarray, background: float, darkest: float, brightest: float, noise: float
) -> np.ndarray:
    """Show structures in intensities from ``darkest``, the first one, to ``brightest``, the last one.

    Args:
        rng: Source of the noise.
        structures: Result of :func:`draw_structures`.
        background: Intensity where no structure is.
        darkest: Intensity of structure 1.
        brightest: Intensity of the last structure.
        noise: Standard deviation of the noise.

    Returns:
        Intensities, int16 of the same shape.
    """
    means = np.concatenate([[background], np.linspace(darkest, brightest, int(structures.max()))])
    return np.rint(means[structures] + rng.normal(0, noise, structures.shape)).astype(np.int16)


def on_scanner_grid(rng: np.random.Generator, number: int, *arrays: np.ndarray) -> list[SimpleITK.Image]:
    """Lay arrays on one grid: by turns axial, flipped, oblique, oblique with a mirror, or of swapped axes.

    Args:
        rng: Source of the origin.
        number: Number of the case, which decides the kind of grid.
        *arrays: Arrays of one shape.

    Returns:
        A volume for each array.
    """
    spacing, direction = GRIDS[number % len(GRIDS)]
    origin = rng.uniform(-300, 300, 3)
    volumes = []
    for array in arrays:
        volume = SimpleITK.GetImageFromArray(array)
        volume.SetSpacing(spacing)
        volume.SetDirection(direction.ravel().tolist())
        volume.SetOrigin(origin.tolist())
        volumes.append(volume)
    return volumes
