"""What a run did: Outcome, its last line, and the record in run.json."""

import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jobs.manifest import Manifest

from .engine import Engine


@dataclass
class Stages:
    """Seconds spent in each stage; decoding counts the workers' time, the others this process's."""

    images: int = 0
    decode_s: float = 0.0
    wait_s: float = 0.0  # for a batch: what decoding could not hide
    model_s: float = 0.0
    write_s: float = 0.0

    def add(self, images: int, decode_s: float, wait_s: float, model_s: float, write_s: float) -> None:
        self.images += images
        self.decode_s += decode_s
        self.wait_s += wait_s
        self.model_s += model_s
        self.write_s += write_s

    def rates(self, workers: int) -> dict[str, float]:
        """Images a second that each stage could do alone."""
        seconds = {"decode": self.decode_s / max(workers, 1), "model": self.model_s, "write": self.write_s}
        return {stage: round(self.images / spent, 1) for stage, spent in seconds.items() if spent and self.images}


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

    def last_line(self, out: Path) -> str:
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
        """Say what each stage could do alone, and which was the slowest."""
        rates = ", ".join(f"{stage} {rate:,.0f}" for stage, rate in self.rates.items())
        return f"stages, images/s: {rates}; the slowest: {self.slowest}"


def run_record(outcome: Outcome, manifest: Manifest, engine: Engine, run_id: str) -> dict[str, Any]:
    """What run.json keeps of a run."""
    return {
        "version": 1,
        "run_id": run_id,
        "plan_id": manifest.plan_id,
        "finished_at": now_text(),
        "seconds": round(outcome.seconds, 3),
        "counts": outcome.counts | {"labelled": outcome.labelled, "failed": outcome.failed},
        "errors": outcome.errors,
        "stages": {name: round(value, 3) for name, value in asdict(outcome.stages).items()},
        "rates": outcome.rates,
        "slowest": outcome.slowest,
        "engine": engine.to_record(),
        "settings": manifest.settings,
        "libraries": library_versions(),
    }


def library_versions() -> dict[str, str]:
    names = ("torch", "torchvision", "pillow", "pyarrow", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def now_text() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
