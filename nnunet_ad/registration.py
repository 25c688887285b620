"""How nnU-Net finds the trainers of this package.

nnU-Net looks for trainer classes in the folders named by the environment variable ``nnUNet_extTrainer``. The installed
file ``nnunet_ad.pth`` calls :func:`register_trainers` when an interpreter starts, so that a user need not set it.
Standard library only: this runs in every interpreter of the environment.
"""

import os
from pathlib import Path

EXT_TRAINER_VARIABLE = "nnUNet_extTrainer"
OPT_OUT_VARIABLE = "NNUNET_AD_NO_REGISTRATION"

# A folder of its own: nnU-Net forgets every module that it imported from a folder it scanned, and classes pickled
# from a forgotten module break in worker processes. The one module in there only re-exports the installed classes.
EXTERNAL_TRAINERS_FOLDER = Path(__file__).resolve().parent / "external_trainers"


def register_trainers() -> None:
    """Append :data:`EXTERNAL_TRAINERS_FOLDER` to ``nnUNet_extTrainer`` unless it is there already.

    Folders that the user set stay, and stay first. Does nothing if ``NNUNET_AD_NO_REGISTRATION`` is set to anything
    but the empty string.
    """
    if os.environ.get(OPT_OUT_VARIABLE):
        return
    folders = [folder for folder in os.environ.get(EXT_TRAINER_VARIABLE, "").split(os.pathsep) if folder]
    if not any(map(is_external_trainers_folder, folders)):
        os.environ[EXT_TRAINER_VARIABLE] = os.pathsep.join([*folders, str(EXTERNAL_TRAINERS_FOLDER)])


def is_external_trainers_folder(folder: str) -> bool:
    """Return whether a path, however it is written, is :data:`EXTERNAL_TRAINERS_FOLDER`."""
    return os.path.realpath(folder) == str(EXTERNAL_TRAINERS_FOLDER)
