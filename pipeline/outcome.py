"""What a run did: Outcome, its last line, and the record in run.json."""

import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from jobs.manifest import Manifest
from jobs.storage.object_store import AnyPath

from .drift import Drift
from .errors import EXIT_TOO_MANY_ERRORS, EXIT_UNSEEN
from .failed_images import SHOWN, Failures
from .settings import ErrorBudget


@dataclass(frozen=True)
class Outcome:
    """What a run did. `counts` are the plan's; `errors` the failed rows of the whole table, by
    code.

    `reused` images got the label of another with the same bytes, and were not decoded. `images` were
    labelled by this run itself, `stages` are its seconds in each stage, and `waited` is the share of
    its time in which the model had no images. `failures` are those of the images labelled now,
    `unseen_rows` and `unseen_places` what could not be looked at (find/unseen.py), `mounts` the
    (root, folder) to be remembered as mount points. `drift` is None where there were no new photos,
    or none before them. `report_failed` is the exit code where the table was written and its --report
    was not.
    """

    run_id: str
    counts: dict[str, int]
    errors: dict[str, int]
    labelled: int = 0
    reused: int = 0
    failures: Failures = field(default_factory=Failures)
    seconds: float = 0.0
    images: int = 0
    waited: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    changed: bool = True
    mounts: tuple[tuple[str, str], ...] = ()
    drift: Drift | None = None
    report_failed: int = 0

    @property
    def failed_earlier(self) -> int:
        """Failed rows that are carried over."""
        return sum(self.errors.values()) - self.failures.total

    @property
    def unseen_rows(self) -> int:
        return self.counts.get("unseen", 0)  # a plan of an earlier version does not say

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
        done = self.labelled + self.reused + self.failures.new
        return budget.is_exceeded(self.failures.new, done)

    def exit_code(self, budget: ErrorBudget) -> int:
        """What the command leaves with: 7 where something could not be looked at, 3 where more failed
        than the budget allows, 5 where the report could not be made, else 0.
        """
        if self.unseen_rows or self.unseen_places:
            return EXIT_UNSEEN
        return EXIT_TOO_MANY_ERRORS if self.exceeds(budget) else self.report_failed

    def last_line(self, out: AnyPath) -> str:
        """Say it all in one line: found = labelled + reused + relabelled + carried over + failed;
        images/s, where.
        """
        found, carried, gone = (self.counts[name] for name in ("found", "carried", "gone"))
        earlier = (
            f" ({self.failed_earlier:,} of them failed earlier)" if self.failed_earlier else ""
        )
        unseen = f", {self.unseen_rows:,} kept unseen" if self.unseen_rows else ""
        if not self.changed:
            line = (
                f"nothing changed: {found:,} found, all carried over{unseen}{earlier}, no image "
                "decoded"
            )
        else:
            relabelled = self.counts.get("relabelled", 0)  # of a plan of an earlier version
            line = f"{found:,} found, {self.labelled:,} labelled, "
            line += f"{self.reused:,} reused, " if self.reused else ""
            line += f"{relabelled:,} relabelled from embeddings, " if relabelled else ""
            line += f"{carried:,} carried over{unseen}{earlier}"
            line += f", {gone:,} gone" if gone else ""
            line += f", {self.failures.total:,} failed"
        if self.failures.errors:
            line += f" ({', '.join(f'{code} {count:,}' for code, count in self.failures.errors.items())})"
        if self.images:
            line += f", {self.images / self.seconds:.1f} images/s"
        return f"{line} -> {out}"

    def stage_line(self) -> str:
        """Say how fast each stage could be alone, which was the slowest, and for how long the model
        had nothing to do.
        """
        rates = ", ".join(f"{stage} {rate:,.0f}" for stage, rate in self.rates.items())
        return (
            f"stages, images/s: {rates}; the slowest: {self.slowest}; waited for images: "
            f"{self.waited:.0%} of the time"
        )

    def to_record(self) -> dict[str, Any]:
        """The same for programs: of the run's result line and of run.json (docs/programs.md)."""
        return {
            "run_id": self.run_id,
            "changed": self.changed,
            "seconds": round(self.seconds, 3),
            "counts": self.counts
            | {
                "labelled": self.labelled,
                "reused": self.reused,
                "failed": self.failures.total,
                "failed_again": self.failures.again,
                "failed_earlier": self.failed_earlier,
            },
            "errors": self.errors,
            "rates": self.rates,
            "slowest": self.slowest,
            "drift": self.drift.to_record() if self.drift else None,
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
    outcome: Outcome, manifest: Manifest, placement: dict[str, Any], libraries: dict[str, str]
) -> dict[str, Any]:
    """What run.json keeps of the run that wrote the table."""
    return outcome.to_record() | {
        "plan_id": manifest.plan_id,
        "finished_at": now_text(),
        "failures": outcome.failures.to_record(),
        "stages": outcome.stages,
        "placement": placement,
        "settings": manifest.settings,
        "libraries": libraries,
    }


def library_versions(*others: str) -> dict[str, str]:
    names = ("torch", "torchvision", "pillow", "pyarrow", "numpy", *others)
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def now_text() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
