"""Variants of the trainer, found by ``-tr``: the paper's, shorter ones, the ablations of Table 6 and the appendix.

An ablation takes one part off the default, which has CutMix; the paper's tables take it off ``nnUNetTrainerAD_Paper``.
"""

from dataclasses import replace

from nnunet_ad.config import ADConfig
from nnunet_ad.trainer.trainer import nnUNetTrainerAD


class nnUNetTrainerAD_Paper(nnUNetTrainerAD):
    """As published.

    Rotation and scaling in half of the patches, no CutMix, y_t of labels in {-1, 1} read as it is by a stem of its own,
    one rate, last weights.
    """

    config = replace(
        ADConfig(),
        labeled_rate=1.0,
        label_scale=1.0,
        spatial_probability=1.0,
        cutmix=0.0,
        shrink_noisy_labels=False,
        shared_stem=False,
        num_sampling_steps=10,
        weight_averaging=0.0,
    )


class nnUNetTrainerAD_1epoch(nnUNetTrainerAD):
    """One epoch, to see whether everything works."""

    config = replace(ADConfig(), num_epochs=1)


class nnUNetTrainerAD_5epochs(nnUNetTrainerAD):
    """Five epochs."""

    config = replace(ADConfig(), num_epochs=5)


class nnUNetTrainerAD_20epochs(nnUNetTrainerAD):
    """Twenty epochs."""

    config = replace(ADConfig(), num_epochs=20)


class nnUNetTrainerAD_50epochs(nnUNetTrainerAD):
    """Fifty epochs."""

    config = replace(ADConfig(), num_epochs=50)


class nnUNetTrainerAD_100epochs(nnUNetTrainerAD):
    """A hundred epochs."""

    config = replace(ADConfig(), num_epochs=100)


class nnUNetTrainerAD_demo(nnUNetTrainerAD):
    """What ``scripts/demo`` trains: minutes on a CPU, by a learning rate above those of Table 8."""

    config = replace(ADConfig(), num_epochs=10, learning_rate=5e-2)


class nnUNetTrainerAD_NoSVDA(nnUNetTrainerAD):
    """Ablation: random crops only."""

    config = replace(ADConfig(), svda=False)


class nnUNetTrainerAD_NoDiffusion(nnUNetTrainerAD):
    """Ablation: ξ sees the image only, no noise, no DDIM."""

    config = replace(ADConfig(), diffusion=False)


class nnUNetTrainerAD_NoDRS(nnUNetTrainerAD):
    """Ablation: class weights of one."""

    config = replace(ADConfig(), difficulty_weighting=False)


class nnUNetTrainerAD_NoRS(nnUNetTrainerAD):
    """Ablation: pseudo-labels from the plain sum of two softmaxes."""

    config = replace(ADConfig(), reweighted_sampling=False)


class nnUNetTrainerAD_NoDecoupling(nnUNetTrainerAD):
    """Ablation: θ learns from labelled patches, too."""

    config = replace(ADConfig(), decoupling=False)
