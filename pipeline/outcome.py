"""What a run did: Outcome, its last line, and the record in run.json."""

import platform
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from jobs.manifest import Manifest
from jobs.storage.object_store import AnyPath

from .errors import EXIT_TOO_MANY_ERRORS, EXIT_UNSEEN
from .failed import SHOWN, Failures
from .settings import ErrorBudget

if TYPE_CHECKING:  # not every run imports torch (labeller.py)
    from pipeline.label.predict import Predictions
    from pipeline.load.batch import Batch


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
        return {
            stage: round(self.images / spent, 1)
            for stage, spent in seconds.items()
            if spent and self.images
        }


def timed(batches: Iterable["Batch"], stages: Stages) -> Iterator["Batch"]:
    """Pass batches on, counting the time spent waiting for them."""
    asked = time.perf_counter()
    for batch in batches:
        stages.wait_s += time.perf_counter() - asked
        yield batch
        asked = time.perf_counter()


@dataclass(frozen=True)
class Outcome:
    """What a run did. `counts` are the plan's; `errors` the failed rows of the whole table, by
    code.

    `failures` are those of the images labelled now, `unseen_rows` and `unseen_places` what could
    not be looked at (unseen.py).
    """

    run_id: str
    counts: dict[str, int]
    errors: dict[str, int]
    labelled: int = 0
    failures: Failures = field(default_factory=Failures)
    seconds: float = 0.0
    stages: Stages = field(default_factory=Stages)
    rates: dict[str, float] = field(default_factory=dict)
    changed: bool = True

    @property
    def failed_earlier(self) -> int:
        """Failed rows that are carried over."""
        return sum(self.errors.values()) - self.failures.total

    @property
    def unseen_rows(self) -> int:
        return self.counts.get(
            "unseen", 0
        )  # of a plan that an earlier version made, none are known

    @property
    def unseen_places(self) -> int:
        return self.counts.get("unseen_places", 0)

    @property
    def slowest(self) -> str | None:
        return min(self.rates, key=lambda stage: self.rates[stage], default=None)

    def exceeds(self, budget: ErrorBudget) -> bool:
        """Whether too many failed of the images labelled now; those that only failed again are not
        counted.
        """
        return budget.is_exceeded(self.failures.new, self.labelled + self.failures.new)

    def exit_code(self, budget: ErrorBudget) -> int:
        if self.unseen_rows or self.unseen_places:
            return EXIT_UNSEEN
        return EXIT_TOO_MANY_ERRORS if self.exceeds(budget) else 0

    def last_line(self, out: AnyPath) -> str:
        """Say it all in one line: found = labelled + carried over + failed; images/s, where."""
        found, carried, gone = (self.counts[name] for name in ("found", "carried", "gone"))
        earlier = (
            f" ({self.failed_earlier:,} of them failed earlier)" if self.failed_earlier else ""
        )
        unseen = f", {self.unseen_rows:,} kept unseen" if self.unseen_rows else ""
        if not self.changed:
            line = (
                f"nothing changed: {found:,} found, all carried over{unseen}{earlier}, no image "
                f"decoded"
            )
        else:
            line = (
                f"{found:,} found, {self.labelled:,} labelled, {carried:,} carried "
                f"over{unseen}{earlier}"
            )
            line += f", {gone:,} gone" if gone else ""
            line += f", {self.failures.total:,} failed"
        if self.failures.errors:
            line += f" ({', '.join(f'{code} {count:,}' for code, count in self.failures.errors.items())})"
        if self.stages.images:
            line += f", {self.stages.images / self.seconds:.1f} images/s"
        return f"{line} -> {out}"

    def stage_line(self) -> str:
        """Say what each stage could do alone, which was the slowest, and how long the model had
        nothing to do.
        """
        rates = ", ".join(f"{stage} {rate:,.0f}" for stage, rate in self.rates.items())
        waited = self.stages.wait_s / self.stages.at_once / max(self.seconds, 1e-9)
        return (
            f"stages, images/s: {rates}; the slowest: {self.slowest}; waited for images: "
            f"{waited:.0%} of the time"
        )

    def to_record(self) -> dict[str, Any]:
        """The same for programs: of the run's result line and of run.json (docs/monitoring.md)."""
        return {
            "run_id": self.run_id,
            "changed": self.changed,
            "seconds": round(self.seconds, 3),
            "counts": self.counts
            | {
                "labelled": self.labelled,
                "failed": self.failures.total,
                "failed_again": self.failures.again,
                "failed_earlier": self.failed_earlier,
            },
            "errors": self.errors,
            "rates": self.rates,
            "slowest": self.slowest,
        }


def failure_lines(outcome: Outcome, table: AnyPath) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name the images that failed now, a line and its facts each, up to a limit; then the query for
    the rest.
    """
    failures = outcome.failures
    for image in failures.some[:SHOWN]:
        yield str(image), asdict(image)
    if failures.total > SHOWN:
        query = f"SELECT root, path, error_code, error_detail FROM '{table}' WHERE status = 'error'"
        yield f"and {failures.total - SHOWN:,} more; in DuckDB: {query}", {"query": query}


def run_record(
    outcome: Outcome, manifest: Manifest, engine: dict[str, Any], libraries: dict[str, str]
) -> dict[str, Any]:
    """What run.json keeps of the run that wrote the table."""
    return outcome.to_record() | {
        "plan_id": manifest.plan_id,
        "finished_at": now_text(),
        "failures": outcome.failures.to_record(),
        "stages": {name: round(value, 3) for name, value in asdict(outcome.stages).items()},
        "engine": engine,
        "settings": manifest.settings,
        "libraries": libraries,
    }


def library_versions() -> dict[str, str]:
    names = ("torch", "torchvision", "pillow", "pyarrow", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def now_text() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
