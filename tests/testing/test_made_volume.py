import numpy as np
import pytest
from scipy import ndimage

from nnunet_ad.testing import made_volume
from nnunet_ad.testing.made_volume import DOMAINS, ORGAN, VESSEL, draw_anatomy, label_map, render_image

SHAPES = [(24, 28, 24), (48, 64, 64), (16, 16, 16)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_every_anatomy_has_a_large_organ_and_a_small_vessel_that_touches_it(shape, seed):
    label = label_map(draw_anatomy(np.random.default_rng(seed), shape))
    assert label.shape == shape and label.dtype == np.uint8
    assert (label == ORGAN).sum() > 5 * (label == VESSEL).sum() > 0
    assert (ndimage.binary_dilation(label == ORGAN) & (label == VESSEL)).any()


def test_anatomy_depends_on_the_generator_only():
    first, again, other = (draw_anatomy(np.random.default_rng(seed), (24, 28, 24)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_look_alikes_keep_a_distance_from_the_foreground():
    tissues = draw_anatomy(np.random.default_rng(0), (48, 64, 64))
    look_alike = np.isin(tissues, (made_volume.LIKE_ORGAN, made_volume.LIKE_VESSEL))
    assert look_alike.sum() > 100
    assert ndimage.distance_transform_edt(label_map(tissues) == 0)[look_alike].min() > 3
    assert not label_map(tissues)[look_alike].any()


def test_intensity_alone_does_not_separate_the_vessel():
    tissues = draw_anatomy(np.random.default_rng(0), (48, 64, 64))
    image = render_image(np.random.default_rng(1), tissues, DOMAINS[0]).astype(float)
    vessel, look_alike = image[tissues == VESSEL], image[tissues == made_volume.LIKE_VESSEL]
    assert abs(vessel.mean() - look_alike.mean()) < vessel.std() + look_alike.std()


def test_the_domains_differ_in_contrast_after_normalisation():
    tissues = draw_anatomy(np.random.default_rng(0), (48, 64, 64))
    body, organ = [], []
    for domain in DOMAINS:
        image = render_image(np.random.default_rng(1), tissues, domain).astype(float)
        normalised = (image - image.mean()) / image.std()
        body.append(normalised[tissues == made_volume.BODY].mean())
        organ.append(normalised[tissues == ORGAN].mean())
    assert abs((organ[0] - body[0]) - (organ[1] - body[1])) > 0.2


def test_further_channels_exchange_the_contrast_of_organ_and_vessel():
    tissues = draw_anatomy(np.random.default_rng(0), (48, 64, 64))
    images = [render_image(np.random.default_rng(1), tissues, DOMAINS[0], channel) for channel in (0, 1)]
    difference = [image[tissues == VESSEL].mean() - image[tissues == ORGAN].mean() for image in images]
    assert difference[0] > 0 > difference[1]


def test_a_volume_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="at least 16 voxels"):
        draw_anatomy(np.random.default_rng(0), (8, 32, 32))
