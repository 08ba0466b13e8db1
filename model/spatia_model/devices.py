"""What a device can do."""

from __future__ import annotations

import torch


def computes_bfloat16(device: str | torch.device) -> bool:
    """Whether arithmetic in bfloat16 pays: on accelerators, and on CPUs that have it; others imitate it, many times slower than float32."""
    if torch.device(device).type != "cpu":
        return True
    return bool(getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16", False))
