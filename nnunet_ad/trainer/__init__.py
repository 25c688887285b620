"""The trainers that ``nnUNetv2_train -tr`` finds."""

from nnunet_ad.trainer.trainer import nnUNetTrainerAD

__all__ = ["nnUNetTrainerAD"]
