"""What a run was made with, for its log."""

import hashlib
import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

import nnunet_ad


def versions() -> str:
    """Return the versions of all that decides on the numbers, and the commit where this package is a git checkout."""
    commit = git_commit(Path(nnunet_ad.__file__).resolve().parents[1])
    own = f"nnunet_ad {nnunet_ad.__version__}" + (f" (commit {commit})" if commit else "")
    return f"{own}, nnunetv2 {version('nnunetv2')}, torch {torch.__version__}, Python {platform.python_version()}"


def git_commit(folder: Path) -> str | None:
    """Return the commit that a folder is a checkout of, ``-dirty`` if files differ from it; ``None`` if it is none."""
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, or not our repository
        return None
    return described.stdout.strip()


def device_name(device: torch.device) -> str:
    """Return what computes, in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"{device.type} ({_processor()}, {torch.get_num_threads()} threads)"


def plan_hash(plans: dict) -> str:
    """Return 12 digits that change with the content of plans, not with its order."""
    return hashlib.sha256(json.dumps(plans, sort_keys=True).encode()).hexdigest()[:12]


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
