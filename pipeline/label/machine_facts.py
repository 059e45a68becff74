"""What a machine is to a graph: by these facts one that is kept fits, or another one is made."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .graph import NoGraph, NotThere, first_line, openvino

# What /proc/cpuinfo says of a core: its model, on x86 and on ARM, and what it can compute with. Of
# x86's flags those, as others come and go with the kernel.
_MODEL = ("vendor_id", "cpu family", "model", "stepping", "cache size", "CPU ", "Features")
_INSTRUCTIONS = ("sse", "ssse", "avx", "amx", "fma", "f16c", "bmi")

CPUINFO = Path("/proc/cpuinfo")


def machine_facts() -> dict[str, Any]:
    """What a compiled graph, and the size of batch that suits it, depend on beside the model.

    On Linux OpenVINO is not imported for it: that may go on while workers decode. Raises NoGraph
    where OpenVINO is not installed, or does not load.
    """
    try:
        openvino_version = version("openvino")
    except PackageNotFoundError as error:
        raise NotThere("OpenVINO is not installed") from error
    return {
        "openvino": openvino_version,
        "torch": torch.__version__,
        "cpu": _cpu_facts() or _cpu_by_openvino(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        # They may forbid instructions to the library that computes in OpenVINO.
        "environment": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("ONEDNN_", "DNNL_")) and not name.endswith("_VERBOSE")
        },
        "threads": torch.get_num_threads(),
    }


def _cpu_facts() -> list[str]:
    """The CPU's model and instructions, as the kernel has them; empty where it does not say."""
    try:
        text = CPUINFO.read_text()
    except OSError:  # not Linux
        return []
    lines = text.split("\n\n")[0].splitlines()  # all cores are alike
    facts = [line for line in lines if line.startswith(_MODEL)]
    for line in lines:
        if line.startswith("flags"):
            facts.append(" ".join(f for f in line.split() if f.startswith(_INSTRUCTIONS)))
    return facts


def _cpu_by_openvino() -> list[str]:
    core = openvino().Core()
    try:
        name = str(core.get_property("CPU", "FULL_DEVICE_NAME"))
        return [name, *sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))]
    except RuntimeError as error:
        raise NoGraph(f"OpenVINO has nothing for this CPU ({first_line(error)})") from error
