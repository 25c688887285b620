"""One made volume: an organ, a vessel that leaves it, structures that look like them, in one of two scanner domains.

The anatomy (:func:`draw_anatomy`) is random in shape and position; the appearance (:func:`render_image`) depends on the
domain. Both are pure functions of a random generator. Arrays are ordered (z, y, x), as nnU-Net reads them.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

BACKGROUND, ORGAN, VESSEL = 0, 1, 2

# Tissue numbers of an anatomy; the labels above are the first entries, so that the label map is a lookup.
AIR, BODY, LIKE_ORGAN, LIKE_VESSEL = 3, 4, 5, 6
_LABEL_OF_TISSUE = np.array([BACKGROUND, ORGAN, VESSEL, BACKGROUND, BACKGROUND, BACKGROUND, BACKGROUND], dtype=np.uint8)

_VESSEL_DIRECTION = np.array([0.2, -0.9, 0.4])  # where the vessel leaves the organ on average
_NUM_BLOBS, _NUM_RODS = 1, 1  # look-alikes of the organ and of the vessel


@dataclass(frozen=True)
class Domain:
    """How a scanner shows the tissues.

    Attributes:
        name: Name of the domain in the sidecar of the dataset.
        intensities: Mean intensity of air, body, organ and vessel, in [0, 1].
        gamma: Exponent applied to intensities in [0, 1].
        texture: Standard deviation of the smooth variation inside a tissue.
        noise: Standard deviation of the voxel noise.
        bias: Standard deviation of the logarithm of the smooth bias field.
        blur: Standard deviation of the point spread, in voxels.
        scale: Factor from [0, 1] to stored intensities.
    """

    name: str
    intensities: tuple[float, float, float, float]
    gamma: float
    texture: float
    noise: float
    bias: float
    blur: float
    scale: float


DOMAINS = (
    Domain("A", (0.03, 0.35, 0.62, 0.90), gamma=1.0, texture=0.03, noise=0.05, bias=0.10, blur=0.5, scale=1000.0),
    Domain("B", (0.06, 0.38, 0.66, 0.90), gamma=1.2, texture=0.03, noise=0.03, bias=0.06, blur=0.6, scale=300.0),
)


def draw_anatomy(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Draw the tissues of one patient.

    Args:
        rng: Source of the variation between patients.
        shape: Voxels along z, y and x; at least 16 each.

    Returns:
        Tissue numbers, uint8 of ``shape``; :func:`label_map` turns them into labels.

    Raises:
        ValueError: An axis of ``shape`` is shorter than 16 voxels.
    """
    if len(shape) != 3 or min(shape) < 16:
        raise ValueError(f"made volumes need three axes of at least 16 voxels, got shape {tuple(shape)}")
    grid = _grid(shape)
    wobble = 0.08 * _smooth_field(rng, shape, num_waves=5)
    centre = rng.uniform(-0.15, 0.15, 3)
    rotation = _random_rotation(rng)
    radii = np.array([0.46, 0.42, 0.34]) * rng.uniform(0.85, 1.15, 3)

    tissues = np.full(shape, AIR, dtype=np.uint8)
    # The body reaches beyond the volume but for the corners: where body borders on air, a small patch shows the same
    # contrast as organ in body, and a network that normalises each patch can't tell them apart.
    tissues[_ellipsoid(grid, np.zeros(3), np.array([1.6, 1.55, 1.55])) < 1] = BODY
    organ = _ellipsoid(grid, centre, radii, rotation) < 1 + wobble
    vessel = _tube(grid, _vessel_centreline(rng, centre, radii, rotation), _tube_radius(rng, shape)) & ~organ
    _add_look_alikes(rng, tissues, grid, organ | vessel)
    tissues[organ] = ORGAN
    tissues[vessel] = VESSEL
    return tissues


def label_map(tissues: np.ndarray) -> np.ndarray:
    """Return the label (0 background, 1 organ, 2 vessel) of each voxel of an anatomy, uint8 of the same shape."""
    return _LABEL_OF_TISSUE[tissues]


def render_image(rng: np.random.Generator, tissues: np.ndarray, domain: Domain, channel: int = 0) -> np.ndarray:
    """Show an anatomy as a scanner of ``domain`` would.

    Args:
        rng: Source of texture, bias field and noise.
        tissues: Anatomy of :func:`draw_anatomy`, shape (z, y, x).
        domain: The scanner.
        channel: Channels after the first show organ and vessel in the opposite order of intensity.

    Returns:
        Intensities, int16 of the same shape, at least 0.
    """
    air, body, organ, vessel = domain.intensities
    if channel % 2:
        organ, vessel = vessel, organ
    intensity_of_tissue = np.zeros(7)
    intensity_of_tissue[[AIR, BODY, ORGAN, LIKE_ORGAN, VESSEL, LIKE_VESSEL]] = [air, body, organ, organ, vessel, vessel]
    image = intensity_of_tissue[tissues]
    image = image + domain.texture * _smooth_field(rng, tissues.shape, num_waves=12)
    image = ndimage.gaussian_filter(image, domain.blur) * np.exp(domain.bias * _smooth_field(rng, tissues.shape, 2))
    image = np.clip(image, 0, None) ** domain.gamma + rng.normal(0, domain.noise, tissues.shape)
    return np.rint(np.clip(image, 0, 2) * domain.scale).astype(np.int16)


def _grid(shape: tuple[int, ...]) -> np.ndarray:
    """Return coordinates of the voxel centres, (3, z, y, x), from -1 to 1 along each axis."""
    return np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))


def _ellipsoid(grid: np.ndarray, centre: np.ndarray, radii: np.ndarray, rotation: np.ndarray | None = None):
    """Return the distance to ``centre`` in units of the ellipsoid's radius, (z, y, x); 1 on the surface."""
    offset = grid - centre[:, None, None, None]
    if rotation is not None:
        offset = np.einsum("ij,jzyx->izyx", rotation, offset)
    return np.sqrt(((offset / radii[:, None, None, None]) ** 2).sum(0))


def _tube(grid: np.ndarray, centreline: np.ndarray, radius: float) -> np.ndarray:
    """Return the voxels within ``radius`` of the points ``centreline`` (N, 3)."""
    squared = np.full(grid.shape[1:], np.inf)
    for point in centreline:
        np.minimum(squared, ((grid - point[:, None, None, None]) ** 2).sum(0), out=squared)
    return squared < radius**2


def _tube_radius(rng: np.random.Generator, shape: tuple[int, ...]) -> float:
    """Return a radius in grid units, never under 1.3 voxels of the coarsest axis."""
    return max(rng.uniform(0.13, 0.16), 1.3 * 2 / (min(shape) - 1))


def _vessel_centreline(rng, centre: np.ndarray, radii: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Return points (N, 3) from inside the organ's surface outwards, in a direction that varies between patients."""
    direction = _unit(_unit(_VESSEL_DIRECTION) + rng.uniform(-0.6, 0.6, 3))
    bend = np.cross(direction, _unit(rng.normal(size=3))) * rng.uniform(0.05, 0.25)
    surface = 1 / np.linalg.norm((rotation @ direction) / radii)  # distance from the centre to the surface
    along = np.linspace(0.8 * surface, surface + rng.uniform(0.3, 0.4), 24)
    return centre + along[:, None] * direction + ((along - along[0]) / np.ptp(along))[:, None] ** 2 * bend


def _add_look_alikes(rng, tissues: np.ndarray, grid: np.ndarray, foreground: np.ndarray) -> None:
    """Draw structures with the organ's or the vessel's intensity into the body, at a distance from both, in place."""
    free = (tissues == BODY) & (ndimage.distance_transform_edt(~foreground) > 3)
    for _ in range(_NUM_BLOBS):
        radii = rng.uniform(0.08, 0.15, 3)
        blob = _ellipsoid(grid, rng.uniform(-0.75, 0.75, 3), radii, _random_rotation(rng)) < 1
        tissues[blob & free] = LIKE_ORGAN
    for _ in range(_NUM_RODS):
        start, direction = rng.uniform(-0.75, 0.75, 3), _unit(rng.normal(size=3))
        rod = _tube(grid, start + np.linspace(0, 0.5, 24)[:, None] * direction, rng.uniform(0.05, 0.08))
        tissues[rod & free] = LIKE_VESSEL


def _smooth_field(rng: np.random.Generator, shape: tuple[int, ...], num_waves: int) -> np.ndarray:
    """Return a smooth random field, (z, y, x), mean 0, standard deviation 1, ``num_waves`` bumps along an axis."""
    coarse = rng.normal(size=(num_waves + 2,) * 3)
    field = ndimage.zoom(coarse, [n / (num_waves + 2) for n in shape], order=3, mode="nearest", grid_mode=True)
    return (field - field.mean()) / field.std()


def _random_rotation(rng: np.random.Generator) -> np.ndarray:
    """Return a rotation matrix (3, 3) of at most about 30 degrees an axis."""
    rotation = np.eye(3)
    for (first, second), angle in zip(((0, 1), (1, 2), (0, 2)), rng.uniform(-0.5, 0.5, 3), strict=True):
        plane = np.eye(3)
        plane[[first, first, second, second], [first, second, first, second]] = (
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        )
        rotation = rotation @ plane
    return rotation


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
