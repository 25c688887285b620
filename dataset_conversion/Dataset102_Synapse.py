"""Convert Synapse for nnU-Net; see nnunet_ad/conversion/synapse.py and ``--help``."""

import sys

from nnunet_ad.conversion.command_line import run
from nnunet_ad.conversion.synapse import CONVERTER

if __name__ == "__main__":
    sys.exit(run(CONVERTER))
