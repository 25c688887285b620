"""Convert a hospital's folders of images and masks for nnU-Net; see docs/hospital-data.md and ``--help``."""

import sys

from nnunet_ad.conversion.hospital.command_line import main

if __name__ == "__main__":
    sys.exit(main())
