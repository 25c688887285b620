import numpy as np
import pytest

from nnunet_ad.data.domain_gap import domain_gap
from nnunet_ad.data.preprocessed import INTENSITIES, intensities_of


class Labeled:
    """Two labelled cases in memory, of means -0.1 and 0.1 and SD 1."""

    identifiers = ("L1", "L2")

    def load_case(self, case):
        noise = np.random.default_rng(0).standard_normal((1, 20, 20, 20))
        noise = (noise - noise.mean()) / noise.std()
        return noise + {"L1": -0.1, "L2": 0.1}[case], None, None, {"spacing": [5.0, 1.0, {"L1": 1.0, "L2": 1.4}[case]]}


class Unlabeled:
    def __init__(self, spacing=(5, 1, 1), mean=0.0, sd=1.0):
        self.identifiers = ["near", "other"]
        self.looks = {"near": ((5, 1, 1.2), 0.0, 1.0), "other": (spacing, mean, sd)}

    def load_properties(self, case):
        spacing, mean, sd = self.looks[case]
        return {"spacing": list(spacing), INTENSITIES: {"mean": [mean], "sd": [sd]}}


@pytest.mark.parametrize(
    "look",
    [{"spacing": (2.6, 1, 1)}, {"spacing": (9.9, 1, 2.7)}, {"mean": 1.09}, {"mean": -1.09}, {"sd": 0.34}, {"sd": 2.9}],
)
def test_near_cases_give_no_warning(look):
    assert domain_gap(Labeled(), Unlabeled(**look)) == []


@pytest.mark.parametrize(
    ("look", "said"),
    [
        ({"spacing": (2.4, 1, 1)}, "other 2.4 x 1 x 1; labelled: 5 to 5 x 1 to 1 x 1 to 1.4"),
        ({"spacing": (5, 1, 2.9)}, "other 5 x 1 x 2.9;"),
        ({"mean": 1.11}, "other mean 1.11, SD 1; labelled: mean -0.1 to 0.1, SD 1 to 1"),
        ({"mean": -1.11}, "other mean -1.11, SD 1"),
        ({"sd": 0.33}, "other mean 0, SD 0.33"),
        ({"sd": 3.1}, "other mean 0, SD 3.1"),
    ],
)
def test_far_cases_are_named_with_numbers(look, said):
    (warning,) = domain_gap(Labeled(), Unlabeled(**look))
    assert "1 of 2 unlabelled case(s)" in warning
    assert said in warning


class OfTwoChannels:
    """Both as labelled and as unlabelled cases; the second channel of labelled ones has SD 100."""

    def __init__(self, mean=(0.0, 0.0), sd=(1.0, 100.0)):
        self.identifiers = ["case"]
        self.look = {"mean": list(mean), "sd": list(sd)}

    def load_case(self, case):
        values = np.array([-1.0, 1.0, -1.0, 1.0]).reshape(1, 2, 2)
        return np.stack([values, 100 * values]), None, None, {"spacing": [1.0, 1.0, 1.0]}

    def load_properties(self, case):
        return {"spacing": [1.0, 1.0, 1.0], INTENSITIES: self.look}


@pytest.mark.parametrize(
    "look", [{"mean": (1.1, 0)}, {"mean": (-1.1, 0)}, {"mean": (0, 110)}, {"sd": (0.3, 100)}, {"sd": (1, 310)}]
)
def test_one_channel_of_several_is_compared_by_its_own_numbers(look):
    assert domain_gap(OfTwoChannels(), OfTwoChannels()) == []
    (warning,) = domain_gap(OfTwoChannels(), OfTwoChannels(**look))
    assert "normalised intensity, channel by channel, of 1 of 1" in warning


def test_labeled_cases_from_the_whole_list_are_compared():
    class Many(OfTwoChannels):
        def load_case(self, case):
            return *super().load_case(case)[:3], {"spacing": [1.0 + case, 1.0, 1.0]}

    class Coarse(OfTwoChannels):
        def load_properties(self, case):
            return super().load_properties(case) | {"spacing": [30.0, 1.0, 1.0]}

    labeled = Many()
    labeled.identifiers = list(range(30))
    assert domain_gap(labeled, Coarse()) == []


@pytest.mark.parametrize(
    ("number", "said"), [(5, "; c4 mean 5 x 0, SD 1 x 100; labelled"), (7, " and 2 more; labelled")]
)
def test_of_many_far_cases_some_are_named(number, said):
    unlabeled = OfTwoChannels(mean=(5.0, 0.0))
    unlabeled.identifiers = [f"c{i}" for i in range(number)]
    (warning,) = domain_gap(OfTwoChannels(), unlabeled)
    assert said in warning
    assert "c5" not in warning


def test_intensities_are_those_of_each_channel():
    image = np.stack([np.full((2, 2, 2), 3.0), np.arange(8.0).reshape(2, 2, 2)]).astype(np.float32)
    found = intensities_of(image)
    assert found["mean"] == [3.0, 3.5]
    assert found["sd"] == pytest.approx([0.0, np.arange(8).std()])


def test_a_labeled_image_that_is_not_finite_is_named():
    class Faulty(Labeled):
        source_folder = "here"

        def load_case(self, case):
            image, *others = super().load_case(case)
            image[0, 3, 3, 3] = np.nan if case == "L2" else 0
            return image, *others

    with pytest.raises(ValueError, match=r"labelled case L2: its preprocessed image in here has NaN"):
        domain_gap(Faulty(), Unlabeled())
