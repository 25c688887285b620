"""Order, pictures and table of a ranking, of label maps that are known."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import nnunet_ad
from nnunet_ad.config import ADConfig
from nnunet_ad.ranking.output import as_text, write
from nnunet_ad.ranking.rank import CaseDisagreement, Ranking, rank_cases
from nnunet_ad.ranking.so_far import RankingSoFar, key_of

STRUCTURES = {"organ": 1, "vessel": 2}
SHAPE = (4, 5, 6)
OVERLAP = {"a": 3, "b": 0, "c": 1, "d": 2}  # of the 3 voxels of ξ's organ; the other decoders agree


class MadeCases:
    """Four cases whose images hold the number of the case and of the slice."""

    identifiers = tuple(OVERLAP)
    transpose_forward = (0, 1, 2)

    def load_properties(self, identifier: str) -> dict:
        properties = {"spacing": (3.0, 2.0, 1.0), "shape_after_cropping_and_before_resampling": SHAPE}
        return properties | {"nnunet_ad": {"key": identifier}}

    def load_case(self, identifier: str) -> tuple[np.ndarray, None]:
        image = np.full((1, *SHAPE), 10.0 * self.identifiers.index(identifier))
        return image + np.arange(SHAPE[0])[:, None, None], None

    def predict(self, image: np.ndarray, on_progress) -> np.ndarray:
        maps = np.zeros((3, *SHAPE), np.uint8)
        maps[:2, 3, 0, :3] = 1
        start = 3 - OVERLAP[self.identifiers[int(image.flat[0]) // 10]]
        maps[2, 3, 0, start : start + 3] = 1
        for _ in range(3):
            on_progress()
        return maps


@pytest.fixture
def ranking(tmp_path) -> Ranking:
    made = MadeCases()
    return rank_cases(made, made, STRUCTURES, 2, RankingSoFar(tmp_path / "so_far", "key"))


def test_pictures_are_of_the_first_cases_at_the_contested_slice(ranking):
    assert [case.case for case in ranking.cases] == ["b", "c", "d", "a"]
    assert [tile.title.splitlines() for tile in ranking.tiles] == [
        ["b: disagreement 0.67 (slice 3)", "organ 0.67"], ["c: disagreement 0.44 (slice 3)", "organ 0.44"]
    ]  # fmt: skip
    assert [tile.image[0, 0] for tile in ranking.tiles] == [13, 23]
    for tile in ranking.tiles:
        assert tile.aspect == 2
        assert tile.label_maps.shape == (3, 5, 6) and tile.label_maps.any()


def test_volumes_are_in_ml_and_2d_images_have_none(ranking):
    np.testing.assert_allclose(ranking.cases[0].volumes_ml, [[0.018, 0]] * 3)
    flat = CaseDisagreement("flat", np.zeros(2), np.full((3, 2), np.nan))
    assert Ranking(STRUCTURES, (*ranking.cases, flat), ()).has_volumes
    assert not Ranking(STRUCTURES, (flat,), ()).has_volumes


def test_each_number_is_in_the_column_of_its_structure_and_decoder(tmp_path):
    case = CaseDisagreement("a", np.array([0.25, np.nan]), np.arange(6.0).reshape(3, 2))
    write(Ranking(STRUCTURES, (case,), ()), "", tmp_path)
    with (tmp_path / "ranking.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["disagreement organ"] == "0.250000" and line["disagreement vessel"] == "nan"
    for row, decoder in enumerate(("theta", "psi", "xi")):
        for column, name in enumerate(STRUCTURES):
            assert float(line[f"volume {name} {decoder} [ml]"]) == case.volumes_ml[row, column]


def test_the_terminal_shows_the_first_cases_and_names_those_without_prediction():
    cases = [CaseDisagreement(name, np.array([value]), np.zeros((3, 1))) for name, value in (("a", 0.5), ("b", np.nan))]
    assert as_text(Ranking({"organ": 1}, tuple(cases[:1]), ())) == "   1  a  0.500"
    more = as_text(Ranking({"organ": 1}, tuple(cases), ()), most=1)
    assert "… and 1 more" in more and "in 1 case(s), which are therefore last and not first: b." in more


@pytest.mark.parametrize("changed", ["plans", "dataset_json", "config", "training", "decoders", "device", "version"])
def test_what_was_found_counts_only_under_what_decides_it(tmp_path, monkeypatch, changed):
    (tmp_path / "checkpoint.pth").write_bytes(b"weights")
    parts = dict.fromkeys(("plans", "dataset_json", "training", "decoders"), "some")
    parts |= {"config": ADConfig(), "device": "cpu"}

    def key() -> str:
        plans = SimpleNamespace(plans=parts["plans"])
        predictor = SimpleNamespace(
            plans_manager=plans, dataset_json=parts["dataset_json"], device=torch.device(parts["device"])
        )
        model = SimpleNamespace(
            checkpoint=tmp_path / "checkpoint.pth",
            predictor=predictor,
            config=parts["config"],
            description=parts["training"],
        )
        return key_of(model, SimpleNamespace(description=parts["decoders"]))

    before = key()
    assert key() == before
    if changed == "version":
        monkeypatch.setattr(nnunet_ad, "__version__", "another")
    else:
        parts[changed] = {"config": ADConfig(num_epochs=7), "device": "cuda"}.get(changed, "another")
    assert key() != before
