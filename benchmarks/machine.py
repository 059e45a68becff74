"""What a benchmark ran on, for its record: a figure without that means nothing to anybody else."""

import os
import platform
from pathlib import Path
from typing import Any

# Of /proc/cpuinfo: what a ViT's matrix products can use.
_FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)


def describe_cpu() -> dict[str, Any]:
    """The CPU's name, the cores this process may use and which of the flags that count it has."""
    fields: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    has = set(fields.get("flags", "").split())
    return {
        "name": fields.get("model name", platform.processor() or platform.machine()),
        "machine": platform.machine(),
        "cores": usable_cores(),
        "flags": [flag for flag in _FLAGS if flag in has],
    }


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> float:
    """How many processes wanted a core in the last minute: 0 on a quiet machine."""
    return round(os.getloadavg()[0], 2)
