"""Real DICOM where there is any, and a made volume on an oblique grid."""

from pathlib import Path

import numpy as np
import pytest

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "dicom"


def oblique_direction():
    """Return direction cosines that are rotated about two axes."""
    a, b = 0.3, -0.2
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return tuple((about_z @ about_x).ravel().tolist())


@pytest.fixture
def values():
    """Voxels (z, y, x), all different from their neighbours."""
    return np.random.default_rng(0).integers(-500, 1500, size=(6, 9, 7))


@pytest.fixture
def grid():
    """Keyword arguments that put a made series on an oblique, anisotropic grid away from the origin."""
    return {"spacing": (0.7, 0.8, 2.5), "origin": (-31.5, 12.25, 101.0), "direction": oblique_direction()}


@pytest.fixture
def real():
    """The folder of real DICOM."""
    if not REAL.is_dir():
        pytest.skip("the real DICOM files are not there")
    return REAL
