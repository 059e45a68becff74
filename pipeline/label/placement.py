"""Placement: device, precision, runtime, compilation, batch size and workers.

Each choice is made in one place and comes with its reason, which the run prints and records.
"""

import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from pipeline.errors import UsageError
from pipeline.outcome import library_versions
from pipeline.settings import Settings
from vit.devices import bf16_support

# Compiling takes a minute or so; with fewer images that is more than it saves.
COMPILE_FROM_IMAGES = 50_000

# Up to here images are decoded in this process: starting workers would take longer.
WITHOUT_WORKERS = 64

_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.float32,
}


@dataclass(frozen=True)
class Placement:
    """Where and how the model runs; `reasons` says why, by setting."""

    device: torch.device
    precision: str
    compile: bool
    batch_size: int
    workers: int
    reasons: dict[str, str]
    runtime: str = "torch"  # or openvino

    @property
    def dtype(self) -> torch.dtype:
        return _DTYPES[self.precision]

    @property
    def libraries(self) -> dict[str, str]:
        """Versions of what labels here."""
        return library_versions(*(["openvino"] if self.runtime == "openvino" else []))

    def to_record(self) -> dict[str, Any]:
        return {**asdict(self), "device": str(self.device)}

    def describe(self) -> str:
        compiled = f"{'compiled' if self.compile else 'not compiled'} ({self.reasons['compile']})"
        if self.device.type == "cpu" and not self.compile:
            name = {"torch": "torch", "openvino": "OpenVINO"}[self.runtime]
            compiled = f"{name} ({self.reasons['runtime']})"
        return (
            f"{self.device} ({self.reasons['device']}), {self.precision} "
            f"({self.reasons['precision']}), {compiled}, batches of {self.batch_size}, "
            f"workers: {self.workers}"
        )


def choose_placement(settings: Settings, n_images: int, quantised: str | None = None) -> Placement:
    """Choose what the settings leave open from the machine.

    `quantised` is the precision that the model itself has, if any. Raises UsageError for what the
    machine, or such a model, cannot do.
    """
    reasons: dict[str, str] = {}
    device, reasons["device"] = choose_device(settings.device)
    if quantised:
        _check_quantised(settings, device, quantised)
        precision, reasons["precision"] = quantised, "the model is quantised"
        settings = replace(settings, runtime="openvino", compile=False)
    else:
        precision, reasons["precision"] = _choose_precision(device, settings.precision)
    compile, reasons["compile"] = _choose_compile(device, settings.compile, n_images)
    runtime, reasons["runtime"] = _choose_runtime(device, precision, compile, settings.runtime)
    if quantised:
        reasons["runtime"] = reasons["precision"]
    on_gpu = device.type == "cuda"
    batch_size, reasons["batch_size"] = settings.batch_size, "asked for"
    if batch_size is None:
        # On a CPU what lies between two layers should fit its cache: ViT-Ti and ViT-B ran 9% faster
        # with 16 than with 32 (2 cores of an AMD EPYC).
        batch_size, reasons["batch_size"] = (256, "GPU") if on_gpu else (16, "fits a CPU's cache")
    workers, reasons["workers"] = settings.workers, "asked for"
    if workers is None:
        cores = usable_cores()
        workers, reasons["workers"] = workers_for(device, cores), f"{cores} cores"
    return Placement(device, precision, compile, batch_size, workers, reasons, runtime)


def _check_quantised(settings: Settings, device: torch.device, quantised: str) -> None:
    """Raise UsageError where a quantised model is to run otherwise than it can."""
    other = {
        f"on {device}": (device.type != "cpu", "say --device cpu"),
        f"in {settings.precision}": (settings.precision is not None, "leave out --precision"),
        "by torch": (settings.runtime == "torch", "leave out --runtime"),
        "compiled by torch": (bool(settings.compile), "leave out --compile"),
    }
    if wrong := {how: advice for how, (is_so, advice) in other.items() if is_so}:
        raise UsageError(
            f"this model is quantised to {quantised}, for CPUs, and cannot run {' or '.join(wrong)}: "
            f"{' and '.join(wrong.values())}, or use the model that it was made of"
        )


def workers_for(device: torch.device, cores: int) -> int:
    """How many processes decode on so many cores.

    On a CPU as many as there are cores, though the model needs the cores as well: large photos keep
    them all busy decoding, and with small ones the workers mostly sleep. Beside a GPU one core is
    left to the main process.
    """
    return max(1, cores - 1 if device.type == "cuda" else cores)


def choose_device(device: str | None) -> tuple[torch.device, str]:
    """Choose a device, with the reason. Raises UsageError for one that is not here."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda"), torch.cuda.get_device_name()
        if torch.backends.mps.is_available():
            return torch.device("mps"), "Apple GPU"
        return torch.device("cpu"), "no GPU here"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(
            f"--device {device} is not a device; choose auto, cpu, cuda, cuda:N or mps"
        ) from error
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(chosen.type, True):
        raise UsageError(
            f"--device {device}: torch finds no such device here; leave it out, or use cpu"
        )
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {device}: there are {torch.cuda.device_count()} GPUs, counted from cuda:0"
        )
    return chosen, "asked for"


def _choose_precision(device: torch.device, precision: str | None) -> tuple[str, str]:
    if precision is not None:
        return precision, "asked for"
    if reason := bf16_support(device):
        return "bf16", reason
    if device.type == "cpu":
        return "fp32", "this CPU has no bf16 instructions"
    return "fp16", "this GPU has no bf16" if device.type == "cuda" else "Apple GPU"


def _choose_compile(device: torch.device, compile: bool | None, n_images: int) -> tuple[bool, str]:
    if compile is not None:
        return compile, "asked for"
    if device.type != "cuda":
        return False, "only worth it on a GPU"
    if n_images < COMPILE_FROM_IMAGES:
        return False, f"fewer than {COMPILE_FROM_IMAGES:,} images"
    return True, f"at least {COMPILE_FROM_IMAGES:,} images"


def _choose_runtime(
    device: torch.device, precision: str, compile: bool, runtime: str | None
) -> tuple[str, str]:
    """Torch, or OpenVINO where its graph is kept or repays being made (runtime.py)."""
    if runtime == "openvino":
        if device.type != "cpu" or compile or precision == "fp16":
            raise UsageError(
                "--runtime openvino is for the CPU in fp32 or bf16, without --compile; here "
                f"the model would run on {device} in {precision}"
                f"{', compiled' if compile else ''}. Add --device cpu, or leave it out"
            )
        return runtime, "asked for"
    if runtime == "torch":
        return runtime, "asked for"
    if device.type != "cpu":
        return "torch", "not on a CPU"
    if compile:
        return "torch", "--compile"
    return ("torch", "in fp16") if precision == "fp16" else ("openvino", "on a CPU")


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
