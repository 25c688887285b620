"""Convert MM-WHS for nnU-Net; see nnunet_ad/conversion/mmwhs.py and ``--help``."""

import sys

from nnunet_ad.conversion.command_line import run
from nnunet_ad.conversion.mmwhs import CONVERTER

if __name__ == "__main__":
    sys.exit(run(CONVERTER))
