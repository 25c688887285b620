"""The trainers that ``nnUNetv2_train -tr`` finds."""

from nnunet_ad.trainer.cross_pseudo_supervision import nnUNetTrainerCPS
from nnunet_ad.trainer.mean_teacher import nnUNetTrainerMeanTeacher
from nnunet_ad.trainer.supervised import nnUNetTrainerSupervised
from nnunet_ad.trainer.trainer import nnUNetTrainerAD
from nnunet_ad.trainer.variants import (
    nnUNetTrainerAD_1epoch,
    nnUNetTrainerAD_5epochs,
    nnUNetTrainerAD_20epochs,
    nnUNetTrainerAD_50epochs,
    nnUNetTrainerAD_100epochs,
    nnUNetTrainerAD_demo,
    nnUNetTrainerAD_NoDecoupling,
    nnUNetTrainerAD_NoDiffusion,
    nnUNetTrainerAD_NoDRS,
    nnUNetTrainerAD_NoRS,
    nnUNetTrainerAD_NoSVDA,
    nnUNetTrainerAD_Paper,
)

__all__ = [
    "nnUNetTrainerAD",
    "nnUNetTrainerAD_1epoch",
    "nnUNetTrainerAD_5epochs",
    "nnUNetTrainerAD_20epochs",
    "nnUNetTrainerAD_50epochs",
    "nnUNetTrainerAD_100epochs",
    "nnUNetTrainerAD_NoDRS",
    "nnUNetTrainerAD_NoDecoupling",
    "nnUNetTrainerAD_NoDiffusion",
    "nnUNetTrainerAD_NoRS",
    "nnUNetTrainerAD_NoSVDA",
    "nnUNetTrainerAD_Paper",
    "nnUNetTrainerAD_demo",
    "nnUNetTrainerCPS",
    "nnUNetTrainerMeanTeacher",
    "nnUNetTrainerSupervised",
]
