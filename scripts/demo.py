"""Run the demo in ``./demo``, or in ``$NNUNET_AD_DEMO_DIR``; ``scripts/demo`` makes an environment for it first."""

import os
import subprocess
import sys
from pathlib import Path

from nnunet_ad.testing.demo import run_demo

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run the demo and return the exit status."""
    folder = Path(os.environ.get("NNUNET_AD_DEMO_DIR") or REPOSITORY / "demo").absolute()
    try:
        run_demo(folder, REPOSITORY / "scripts" / "convert_hospital_data.py")
    except FileExistsError as error:
        print(f"demo: {error} with NNUNET_AD_DEMO_DIR", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"demo: the command above failed with exit status {error.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
