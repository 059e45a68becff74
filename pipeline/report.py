"""What a run did: Outcome, its last line, and the record in run.json."""

import platform
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from jobs.manifest import Manifest
from jobs.store import AnyPath

if TYPE_CHECKING:  # not every run imports torch (labeller.py)
    from .batch import Batch
    from .predict import Predictions


@dataclass
class Stages:
    """Seconds spent in each stage.

    Reading and decoding count all workers (decoding their computing time only, since a worker may
    have to let the model go first), transfer and model the device, writing its thread, and waiting
    this process: what decoding could not hide.
    """

    images: int = 0
    read_s: float = 0.0
    decode_s: float = 0.0
    wait_s: float = 0.0
    transfer_s: float = 0.0
    model_s: float = 0.0
    write_s: float = 0.0
    at_once: int = 1  # how many models ran side by side

    def __iadd__(self, other: "Stages") -> "Stages":
        self.images += other.images
        for name in ("read_s", "decode_s", "wait_s", "transfer_s", "model_s", "write_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def add(self, batch: "Batch", predictions: "Predictions") -> None:
        self.images += len(batch)
        self.read_s += batch.read_s
        self.decode_s += batch.decode_s
        self.transfer_s += predictions.transfer_s
        self.model_s += predictions.model_s

    def rates(self, workers: int) -> dict[str, float]:
        """Images a second that each stage could do alone."""
        n = max(workers, 1)
        seconds = {
            "read": self.read_s / n,
            "decode": self.decode_s / n,
            "transfer": self.transfer_s / self.at_once,
            "model": self.model_s / self.at_once,
            "write": self.write_s / self.at_once,
        }
        return {stage: round(self.images / spent, 1) for stage, spent in seconds.items() if spent and self.images}


def timed(batches: Iterable["Batch"], stages: Stages) -> Iterator["Batch"]:
    """Pass batches on, counting the time spent waiting for them."""
    asked = time.perf_counter()
    for batch in batches:
        stages.wait_s += time.perf_counter() - asked
        yield batch
        asked = time.perf_counter()


@dataclass(frozen=True)
class Outcome:
    """What a run did. `counts` are the plan's; `errors` the failed rows of the whole table, by code."""

    counts: dict[str, int]
    labelled: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    stages: Stages = field(default_factory=Stages)
    rates: dict[str, float] = field(default_factory=dict)
    changed: bool = True

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    @property
    def slowest(self) -> str | None:
        return min(self.rates, key=lambda stage: self.rates[stage], default=None)

    def last_line(self, out: AnyPath) -> str:
        """Say it all in one line: found, labelled, carried over, failed by reason, images/s, where."""
        found, carried, gone = (self.counts[name] for name in ("found", "carried", "gone"))
        if not self.changed:
            line = f"nothing changed: {found:,} found, all carried over, no image decoded"
        else:
            line = f"{found:,} found, {self.labelled:,} labelled, {carried:,} carried over"
            line += f", {gone:,} gone" if gone else ""
        line += f", {self.failed:,} failed"
        if self.errors:
            line += f" ({', '.join(f'{code} {count:,}' for code, count in self.errors.items())})"
        if self.stages.images:
            line += f", {self.stages.images / self.seconds:.1f} images/s"
        return f"{line} -> {out}"

    def stage_line(self) -> str:
        """Say what each stage could do alone, which was the slowest, and how long the model had nothing to do."""
        rates = ", ".join(f"{stage} {rate:,.0f}" for stage, rate in self.rates.items())
        waited = self.stages.wait_s / self.stages.at_once / max(self.seconds, 1e-9)
        return f"stages, images/s: {rates}; the slowest: {self.slowest}; waited for images: {waited:.0%} of the time"


def run_record(
    outcome: Outcome, manifest: Manifest, engine: dict[str, Any], libraries: dict[str, str], run_id: str
) -> dict[str, Any]:
    """What run.json keeps of a run."""
    return {
        "run_id": run_id,
        "plan_id": manifest.plan_id,
        "finished_at": now_text(),
        "seconds": round(outcome.seconds, 3),
        "counts": outcome.counts | {"labelled": outcome.labelled, "failed": outcome.failed},
        "errors": outcome.errors,
        "stages": {name: round(value, 3) for name, value in asdict(outcome.stages).items()},
        "rates": outcome.rates,
        "slowest": outcome.slowest,
        "engine": engine,
        "settings": manifest.settings,
        "libraries": libraries,
    }


def library_versions() -> dict[str, str]:
    names = ("torch", "torchvision", "pillow", "pyarrow", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def now_text() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
