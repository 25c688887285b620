"""Sampling-based volumetric data augmentation (SVDA): a few strong operations, drawn anew for each patch."""

from collections.abc import Sequence

import numpy as np
from batchgeneratorsv2.helpers.scalar_type import RandomScalar
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

from nnunet_ad.config import ADConfig

SPATIAL = ("rotation", "scaling")
OPERATIONS = (*SPATIAL, "blur", "brightness", "contrast", "gamma")
_SCALING = (0.7, 1.4)  # nnU-Net's range, as are those below
_LARGEST_BLUR_RADIUS = 3  # of the kernel in voxels, for sigmas up to 1
_NO_BLUR = 0.01  # a sigma whose kernel is one voxel


class SVDA(BasicTransform):
    """N_aug operations drawn without replacement from :data:`OPERATIONS`, applied once each, with nnU-Net's ranges.

    Rotation and scaling drawn together are one interpolation. Mirroring is none of them. A patch arrives
    larger than ``patch_size`` from a random place, and its centre is what stays.

    Args:
        patch_size: Final size of a patch, 2-D or 3-D.
        rotation: Range of angles in radians, nnU-Net's for this patch size.
        num_operations: N_aug, from 0 (crop only) to 6.
        slice_wise: Rotate and scale within slices only (nnU-Net's choice for very anisotropic patches).
        spatial_probability: That rotation or scaling is applied where it was drawn.

    Raises:
        ValueError: If ``num_operations`` is outside 0 to 6, or ``spatial_probability`` outside 0 to 1.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        rotation: RandomScalar,
        num_operations: int = 3,
        slice_wise: bool = False,
        spatial_probability: float = 1.0,
    ):
        super().__init__()
        if not 0 <= num_operations <= len(OPERATIONS):
            raise ValueError(f"num_operations is {num_operations}; expected 0 to {len(OPERATIONS)}")
        if not 0 <= spatial_probability <= 1:
            raise ValueError(f"spatial_probability is {spatial_probability}; expected 0 to 1")
        self.num_operations = num_operations
        self.spatial_probability = spatial_probability
        # One for all operations, since each keeps coordinates of a whole patch.
        self.crop = _crop(patch_size[1:] if slice_wise else patch_size, rotation)
        within_slices = [Convert3DTo2DTransform(), self.crop, Convert2DTo3DTransform()]
        self.spatial = ComposeTransforms(within_slices) if slice_wise else self.crop
        self.intensity = _intensity_operations()

    @classmethod
    def of(
        cls, config: ADConfig, patch_size: Sequence[int], rotation: RandomScalar, slice_wise: bool, labeled: bool
    ) -> "SVDA":
        """Return the augmentation of labelled or unlabelled patches in a training with these hyper-parameters."""
        num_operations = config.num_augmentations if config.svda and (labeled or config.svda_unlabeled) else 0
        return cls(patch_size, rotation, num_operations, slice_wise, config.spatial_probability)

    def get_parameters(self, **data_dict) -> dict:
        """Draw the names of the operations."""
        drawn = frozenset(np.random.choice(OPERATIONS, self.num_operations, replace=False).tolist())
        return {"operations": drawn - {name for name in SPATIAL if np.random.random() >= self.spatial_probability}}

    def apply(self, data_dict: dict, **params) -> dict:
        """Crop, with rotation and scaling in the same interpolation, then change intensities."""
        operations = params["operations"]
        self.crop.p_rotation, self.crop.p_scaling = (float(name in operations) for name in SPATIAL)
        data_dict = self.spatial(**data_dict)
        for name, operation in self.intensity.items():
            if name in operations:
                data_dict = operation(**data_dict)
        return data_dict


def training_transforms(
    svda: SVDA, use_mask_for_norm: Sequence[bool], mirror_axes: tuple[int, ...] | None = None
) -> BasicTransform:
    """Return SVDA followed by what nnU-Net does to any training patch.

    Args:
        svda: The augmentation.
        use_mask_for_norm: For each channel, whether it was normalised inside the non-zero mask and stays 0 outside.
        mirror_axes: Spatial axes that are mirrored at random.
    """
    masked = [channel for channel, use_mask in enumerate(use_mask_for_norm) if use_mask]
    transforms: list[BasicTransform] = [svda]
    if mirror_axes:
        transforms.append(MirrorTransform(allowed_axes=mirror_axes))
    if masked:
        transforms.append(MaskImageTransform(apply_to_channels=masked, channel_idx_in_seg=0, set_outside_to=0))
    transforms.append(RemoveLabelTansform(-1, 0))
    return ComposeTransforms(transforms)


def _crop(patch_size: Sequence[int], rotation: RandomScalar) -> SpatialTransform:
    """Return the crop of the centre, which turns and scales with the probabilities that it is given later."""
    return SpatialTransform(
        patch_size,
        patch_center_dist_from_border=0,
        random_crop=False,
        rotation=rotation,
        scaling=_SCALING,
        p_synchronize_scaling_across_axes=1,
        border_mode_seg="constant",
        padding_value_seg=-1,
    )


def _intensity_operations() -> dict[str, BasicTransform]:
    return {
        # No benchmark as in nnU-Net: how it blurs would depend on how busy the machine is, and two runs would differ.
        # For kernels as small as these the plain convolution, which remains, is several times as fast as by FFT.
        "blur": GaussianBlurTransform(
            blur_sigma=_blur_sigma, synchronize_channels=False, synchronize_axes=False, p_per_channel=1, benchmark=False
        ),
        "brightness": MultiplicativeBrightnessTransform(
            multiplier_range=BGContrast((0.75, 1.25)), synchronize_channels=False, p_per_channel=1
        ),
        "contrast": ContrastTransform(
            contrast_range=BGContrast((0.75, 1.25)), preserve_range=True, synchronize_channels=False, p_per_channel=1
        ),
        "gamma": GammaTransform(
            gamma=BGContrast((0.7, 1.5)),
            p_invert_image=0,
            synchronize_channels=False,
            p_per_channel=1,
            p_retain_stats=1,
        ),
    }


def _blur_sigma(shape: Sequence[int], dim: int) -> float:
    """Return nnU-Net's sigma for one axis of an image (C, *spatial), in voxels.

    Patches that are too thin to be padded by reflection, as those of a few slices, are not blurred across.
    """
    sigma = np.random.uniform(0.5, 1.0)
    return sigma if shape[dim] > _LARGEST_BLUR_RADIUS else _NO_BLUR
