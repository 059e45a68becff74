"""What a device can do: asked by the command that labels (pipeline/label/placement.py) and by
training.
"""

import torch


def bf16_support(device: torch.device) -> str | None:
    """Say what makes bfloat16 fast on a device; None where nothing does."""
    if device.type == "cuda":
        return (
            "this GPU has bf16 tensor cores"
            if torch.cuda.get_device_capability(device) >= (8, 0)
            else None
        )
    if device.type != "cpu":
        return None
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    for name, flag in (
        ("AMX", "amx_bf16"),
        ("AVX512-BF16", "avx512_bf16"),
        ("SVE BF16", "sve_bf16"),
    ):
        if capabilities.get(flag):
            return f"this CPU has {name}"
    return None
