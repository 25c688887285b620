import pytest
import torch

from nnunet_ad.augmentation.cutmix import cutmix


def mix(images, labels, probability, generator):
    """CutMix with the patch before in the batch."""
    return cutmix(images, labels, images.roll(1, 0), labels.roll(1, 0), probability, generator)


def batch(*size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of which each voxel tells its patch, channel and place; labels that tell patch and place."""
    images = torch.arange(torch.Size(size).numel(), dtype=torch.float32).view(size)
    return images, images[:, 0].long()


@pytest.mark.parametrize("size", [(3, 2, 16, 12, 10), (4, 1, 20, 16)])
def test_a_box_of_the_donor_replaces_image_and_label_together(size):
    images, labels = batch(*size)
    mixed, mixed_labels = mix(images, labels, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(mixed[:, 0].long(), mixed_labels)
    for i in range(size[0]):
        inside = mixed_labels[i] != labels[i]
        assert torch.equal(mixed_labels[i][inside], labels[i - 1][inside])
        assert torch.equal(mixed[i, -1][inside], images[i - 1, -1][inside])
        places = inside.nonzero()
        edges = places.max(0).values - places.min(0).values + 1
        assert edges.prod() == inside.sum()  # a box
        shares = edges / torch.tensor(size[2:])
        assert ((shares > 0.35) & (shares < 1)).all()


def test_boxes_differ_between_patches_and_draws():
    images, labels = batch(4, 1, 16, 16, 16)
    generator = torch.Generator().manual_seed(0)
    first, second = (mix(images, labels, 1.0, generator)[1] != labels for _ in range(2))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)


def test_the_probability_is_that_of_a_change():
    images, labels = batch(400, 1, 4, 4)
    generator = torch.Generator().manual_seed(0)
    mixed, mixed_labels = mix(images, labels, 0.0, generator)
    assert torch.equal(mixed, images) and torch.equal(mixed_labels, labels)
    changed = (mix(images, labels, 0.5, generator)[1] != labels).flatten(1).any(1)
    assert 0.4 < changed.float().mean() < 0.6


def test_boxes_come_from_the_generator_that_is_given():
    images, labels = batch(4, 1, 16, 16)
    first, second = (mix(images, labels, 1.0, torch.Generator().manual_seed(0))[0] for _ in range(2))
    assert torch.equal(first, second)


def test_edges_are_half_to_nine_tenths_of_the_patch():
    images, labels = batch(2000, 1, 100, 8)
    inside = mix(images, labels, 1.0, torch.Generator().manual_seed(0))[1] != labels
    edges = inside.any(2).sum(1)
    assert 50 <= edges.min() <= 51 and 89 <= edges.max() <= 90


@pytest.mark.parametrize("length", [1, 2, 16])  # fails on HEAD: defect D1
def test_both_ends_of_an_axis_are_pasted_as_often(length):
    images, labels = batch(4000, 1, length, 16)
    inside = mix(images, labels, 1.0, torch.Generator().manual_seed(0))[1] != labels
    often = inside.any(2).float().mean(0)
    assert often.min() > 0.1
    torch.testing.assert_close(often, often.flip(0), atol=0.04, rtol=0)
