"""Made datasets, planned and trained once for all rows of ``docs/nnunet-features.md``."""

import shutil

import pytest
from nnunet_commands import PATHS, Workplace, write_tiny_plans


@pytest.fixture(scope="session")
def planned_workplace(planned, tmp_path_factory) -> Workplace:
    """Dataset 500 with plans for all four configurations; only 3d_fullres is preprocessed."""
    place = Workplace(tmp_path_factory.mktemp("features"))
    for name in PATHS:
        shutil.copytree(planned / name, place.root / name)
    write_tiny_plans(place.preprocessed(500))
    return place


@pytest.fixture(scope="session")
def trained(planned_workplace) -> Workplace:
    """The same with a model of 3d_fullres, fold 0, and the probabilities of its validation."""
    planned_workplace.train(500, "3d_fullres", 0, "--npz")
    return planned_workplace


@pytest.fixture(scope="session")
def every_configuration(tmp_path_factory) -> Workplace:
    """Dataset 501, two channels, with models of 2d, 3d_lowres and 3d_fullres, fold 0."""
    place = Workplace(tmp_path_factory.mktemp("every_configuration"))
    configurations = ("2d", "3d_lowres", "3d_fullres")
    place.prepare(501, *configurations, num_channels=2)
    for configuration in configurations:
        place.train(501, configuration, 0, "--npz")
    return place
