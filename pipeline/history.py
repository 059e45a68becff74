"""What a run leaves for whoever watches over the nights: run.json with the table, and a line in
history.json.

docs/monitoring.md lists the fields. A run that ends in an error has its line, too: only one that
finds another run at work, or nothing to write to, leaves none.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jobs.job import Job
from pipeline.label.labeller import Labelled

from .errors import exit_code_of
from .outcome import Outcome, now_text
from .settings import Settings


def write_down(
    job: Job,
    outcome: Outcome,
    settings: Settings,
    model: str,
    labelled: Labelled | None = None,
    record: dict[str, Any] | None = None,
) -> None:
    """Write what a run did, holding the job. `record` is the run.json of one that wrote the table.

    One that found nothing to do has its line in the history alone: run.json goes with the table.
    """
    if record is not None:
        job.write_run(record)
    images = outcome.images
    placement = labelled.placement if labelled and images else {}
    job.add_to_history(
        outcome.to_record()
        | {
            "finished_at": now_text(),
            "exit_code": outcome.exit_code(settings.max_errors),
            "message": outcome.last_line(job.out),
            "model": model,
            "images": images,
            "images_per_s": round(images / outcome.seconds, 3) if images else None,
            "device": placement.get("device"),
            "precision": placement.get("precision"),
        },
        [list(mount) for mount in outcome.mounts],
    )


@contextmanager
def errors_in_history(job: Job, run_id: str) -> Iterator[None]:
    """Note in the history of a job an error that ends a run; then it goes its way."""
    started = time.perf_counter()
    try:
        yield
    except BaseException as error:
        # Nothing that fails here may hide what went wrong.
        with suppress(Exception):
            if job.folder.is_dir() and not job.is_newer:
                with job.held():
                    job.add_to_history(
                        {
                            "run_id": run_id,
                            "finished_at": now_text(),
                            "seconds": round(time.perf_counter() - started, 3),
                            "exit_code": exit_code_of(error),
                            "message": str(error) or type(error).__name__,
                        }
                    )
        raise
