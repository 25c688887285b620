"""In which precision a device computes the forward passes."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch

CPU_BF16_VARIABLE = "NNUNET_AD_CPU_BF16"


def forward_precision(device: torch.device) -> AbstractContextManager:
    """Return a context for forward passes: float16 on CUDA as nnU-Net's, bfloat16 on CPUs that have it, else float32.

    ``NNUNET_AD_CPU_BF16=0`` turns bfloat16 on the CPU off. Losses, diffusion, Gumbel noise and difficulty are float32
    in any case.
    """
    if device.type == "cuda":
        return torch.autocast("cuda")
    if device.type == "cpu" and cpu_computes_bf16():
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()


def cpu_computes_bf16() -> bool:
    """Return whether the processor multiplies bfloat16 in hardware and the user has not turned it off."""
    if os.environ.get(CPU_BF16_VARIABLE, "1").lower() in ("0", "f", "false"):
        return False
    # Older versions of torch lack these; without them float32 is the safe answer.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
