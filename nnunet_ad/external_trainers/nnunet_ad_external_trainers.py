"""Re-exports the trainers for nnU-Net's search in ``nnUNet_extTrainer``; see ``nnunet_ad/registration.py``."""

from nnunet_ad.trainer import *  # noqa: F403
