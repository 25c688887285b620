import gc
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ad.augmentation.svda import OPERATIONS, SVDA, training_transforms
from nnunet_ad.trainer import nnUNetTrainerAD, nnUNetTrainerAD_NoSVDA, nnUNetTrainerAD_Paper

ROTATION = (-np.pi / 6, np.pi / 6)


def sample(size=(20, 22, 18)) -> dict:
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(1, *size, dtype=torch.int16)
    label[(0, *[slice(s // 3, 2 * s // 3) for s in size])] = 1
    return {"image": torch.rand(2, *size, generator=generator), "segmentation": label}


def centre(tensor: torch.Tensor, size) -> torch.Tensor:
    start = [(s - p) // 2 for s, p in zip(tensor.shape[1:], size, strict=True)]
    return tensor[(slice(None), *[slice(a, a + p) for a, p in zip(start, size, strict=True)])]


@pytest.mark.parametrize("num_operations", range(7))
def test_draws_that_many_operations_without_replacement(num_operations):
    svda = SVDA((8, 8, 8), ROTATION, num_operations)
    drawn = [svda.get_parameters()["operations"] for _ in range(200)]
    assert all(len(operations) == num_operations for operations in drawn)
    if 0 < num_operations < 6:
        assert Counter(itertools.chain(*drawn)).keys() == set(OPERATIONS)


def test_all_triples_are_equally_likely():
    np.random.seed(0)
    svda = SVDA((8, 8, 8), ROTATION, 3)
    counts = Counter(svda.get_parameters()["operations"] for _ in range(4000))
    assert len(counts) == 20
    assert all(130 < count < 280 for count in counts.values())


def test_rotation_and_scaling_are_as_rare_as_asked_for():
    np.random.seed(0)
    svda = SVDA((8, 8, 8), ROTATION, 3, spatial_probability=0.4)
    counts = Counter(itertools.chain(*(svda.get_parameters()["operations"] for _ in range(4000))))
    for name in OPERATIONS:
        assert counts[name] / 4000 == pytest.approx(0.2 if name in ("rotation", "scaling") else 0.5, abs=0.03)


@pytest.mark.parametrize(
    ("trainer_class", "num_operations", "spatial"),
    [(nnUNetTrainerAD, 3, 0.4), (nnUNetTrainerAD_NoSVDA, 0, 0.4), (nnUNetTrainerAD_Paper, 3, 1.0)],
)
def test_the_hyper_parameters_say_what_is_drawn(trainer_class, num_operations, spatial):
    svda = SVDA.of(trainer_class.config, (8, 8, 8), ROTATION, slice_wise=False, labeled=True)
    assert (svda.num_operations, svda.spatial_probability) == (num_operations, spatial)


def test_no_operation_is_a_plain_crop_of_the_centre():
    data = sample()
    out = SVDA((12, 14, 10), ROTATION, 0)(**{k: v.clone() for k, v in data.items()})
    torch.testing.assert_close(out["image"], centre(data["image"], (12, 14, 10)))
    assert torch.equal(out["segmentation"], centre(data["segmentation"], (12, 14, 10)))


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_changes_the_image_and_only_spatial_ones_the_label(name):
    np.random.seed(1)
    torch.manual_seed(1)
    data, svda = sample(), SVDA((12, 14, 10), ROTATION, 1)
    out = svda.apply({k: v.clone() for k, v in data.items()}, operations=frozenset([name]))
    assert not torch.allclose(out["image"], centre(data["image"], (12, 14, 10)))
    same_label = torch.equal(out["segmentation"], centre(data["segmentation"], (12, 14, 10)))
    assert same_label == (name not in ("rotation", "scaling"))


@pytest.mark.parametrize("slices", [1, 2, 3, 4])
def test_patches_of_a_few_slices_are_blurred_within_them(slices):
    np.random.seed(0)
    size, svda = (slices, 16, 16), SVDA((slices, 12, 12), ROTATION, 1)
    for _ in range(20):
        data = sample(size)
        data["image"][:] = torch.arange(slices)[:, None, None]  # blurring within slices changes nothing
        out = svda.apply(data, operations=frozenset(["blur"]))["image"]
        expected = torch.arange(slices).expand(2, 12, 12, slices).movedim(-1, 1).float()
        assert torch.allclose(out, expected, atol=1e-5) == (slices < 4)


@pytest.mark.parametrize("slice_wise", [False, True])
@pytest.mark.parametrize("operations", [{"rotation"}, {"scaling"}, {"rotation", "scaling"}])
def test_image_and_label_are_turned_and_scaled_alike(operations, slice_wise):
    np.random.seed(4)
    label = torch.zeros(1, 12, 80, 80, dtype=torch.int16)
    label[:, 3:9, 20:50, 30:60] = 1
    svda = SVDA((12, 56, 56), (-np.pi, np.pi), 2, slice_wise)
    changed = []
    for _ in range(4):
        out = svda.apply({"image": label.float(), "segmentation": label.clone()}, operations=frozenset(operations))
        image, label_map = out["image"] > 0.5, out["segmentation"] > 0.5
        assert 2 * (image & label_map).sum() / (image.sum() + label_map.sum()) > 0.99
        changed.append(not torch.equal(out["segmentation"], centre(label, (12, 56, 56))))
    assert any(changed)  # a factor near 1 moves no voxel


def test_rotation_and_scaling_together_are_one_interpolation(monkeypatch):
    svda = SVDA((12, 12, 12), ROTATION, 2)
    calls, interpolate = [], svda.crop._apply_to_image
    monkeypatch.setattr(svda.crop, "_apply_to_image", lambda *args, **kw: calls.append(1) or interpolate(*args, **kw))
    svda.apply(sample(), operations=frozenset(["rotation", "scaling"]))
    assert calls == [1]


def test_coordinates_of_a_patch_are_kept_once():
    svda = SVDA((12, 12, 12), ROTATION, 2)
    for operations in ({"rotation"}, {"scaling"}, {"rotation", "scaling"}):
        svda.apply(sample(), operations=frozenset(operations))
    tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor]
    assert [tuple(each.shape) for each in tensors].count((12, 12, 12, 3)) == 1


def test_never_mirrors():
    """A ramp keeps its direction through everything that may be drawn."""
    np.random.seed(2)
    ramp = torch.linspace(1, 2, 24).view(1, -1, 1, 1).expand(1, 24, 24, 24).contiguous()
    svda = SVDA((10, 10, 10), ROTATION, 3)
    for _ in range(40):
        image = svda(image=ramp.clone())["image"]
        assert (image[0, 8] - image[0, 1]).mean() > 0


@pytest.mark.parametrize("axes", [(0, 2), (0, 1, 2)])
def test_mirrors_image_and_label_alike_along_the_axes_asked_for(axes):
    torch.manual_seed(0)
    place = torch.arange(6**3.0).view(1, 6, 6, 6)
    transforms, seen = training_transforms(SVDA((6, 6, 6), ROTATION, 0), [], axes), set()
    flips = {tuple(place.flip(which).flatten().tolist()) for which in _subsets([axis + 1 for axis in axes])}
    for _ in range(80):
        out = transforms(image=place.clone(), segmentation=place.to(torch.int16))
        torch.testing.assert_close(out["image"], out["segmentation"].float())
        seen.add(tuple(out["image"].flatten().tolist()))
    assert seen == flips


def _subsets(items):
    return [which for size in range(len(items) + 1) for which in itertools.combinations(items, size)]


def test_slice_wise_keeps_slices_apart():
    np.random.seed(3)
    image = torch.arange(6.0).view(1, 6, 1, 1).expand(1, 6, 20, 20).contiguous() + 1
    svda = SVDA((6, 12, 12), ROTATION, 2, slice_wise=True)
    out = svda.apply({"image": image}, operations=frozenset(["rotation", "scaling"]))["image"]
    assert out.shape == (1, 6, 12, 12)
    for i in range(6):
        torch.testing.assert_close(out[0, i, 4:8, 4:8], torch.full((4, 4), i + 1.0))


def test_two_dimensions():
    out = SVDA((12, 10), ROTATION, 6)(**sample((20, 20)))
    assert out["image"].shape == (2, 12, 10)


@pytest.mark.parametrize("num_operations", [-1, 7])
def test_impossible_numbers_are_refused(num_operations):
    with pytest.raises(ValueError, match="expected 0 to 6"):
        SVDA((8, 8, 8), ROTATION, num_operations)


def test_an_impossible_probability_is_refused():
    with pytest.raises(ValueError, match=r"spatial_probability is 1\.5; expected 0 to 1"):
        SVDA((8, 8, 8), ROTATION, spatial_probability=1.5)


def test_outside_the_mask_stays_zero_and_its_label_becomes_background():
    data = sample()
    data["segmentation"][:, :10] = -1
    out = training_transforms(SVDA((20, 22, 18), ROTATION, 0), [True, False])(**data)
    assert (out["image"][0, :10] == 0).all()
    assert (out["image"][1, :10] != 0).any()
    assert out["segmentation"].min() == 0


def test_how_fast_the_machine_is_changes_nothing(monkeypatch):
    """nnU-Net's blur may time two ways of computing and take the faster one, which rounds differently."""
    blurred = []
    for growth in (2, -2):  # of the clock's steps: what is timed later seems slower, or faster
        clock = itertools.accumulate(itertools.count(1000, growth))
        monkeypatch.setattr("batchgeneratorsv2.transforms.noise.gaussian_blur.time", lambda clock=clock: next(clock))
        torch.manual_seed(4)
        np.random.seed(4)
        blurred.append(SVDA((20, 22, 18), ROTATION, 1).apply(sample(), operations=frozenset(["blur"]))["image"])
    assert torch.equal(*blurred)


def settings(transform) -> dict:
    """Return how a transform was set up, without how often it is applied."""
    others = ("p_rotation", "p_scaling", "p_per_channel", "benchmark", "blur_sigma")
    found = {name: value for name, value in vars(transform).items() if isinstance(value, int | float | str | tuple)}
    found |= {name: vars(value) for name, value in vars(transform).items() if type(value).__name__ == "BGContrast"}
    return {name: value for name, value in found.items() if not name.startswith("_") and name not in others}


@pytest.mark.parametrize("name", ["spatial", "brightness", "contrast", "gamma"])
def test_ranges_and_borders_are_those_of_nnunet(name):
    svda = SVDA((12, 12, 12), ROTATION)
    ours = svda.crop if name == "spatial" else svda.intensity[name]
    host = nnUNetTrainer.get_training_transforms((12, 12, 12), ROTATION, None, None, False).transforms
    host = [getattr(each, "transform", each) for each in host]
    assert settings(ours) in [settings(each) for each in host if type(each) is type(ours)]
    assert len(settings(ours)) > 1


def test_gamma_does_not_invert_the_image():
    """As one of the host's two, which the other test can't tell from each other."""
    assert SVDA((12, 12, 12), ROTATION).intensity["gamma"].p_invert_image == 0
