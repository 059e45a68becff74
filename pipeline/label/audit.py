"""The audit: before a table appears, some of its new rows are labelled again on the plainest path
(reference.py).

The model is read anew, and nothing of what makes a run fast is used. A fault in any of that, or
rows that were mixed up, show as probabilities that differ. New rows are all that a job adds, also
those with the label of other images with the same bytes. Rows that are carried over, be it under a
root that moved, are not among them: no file of theirs is read in such a night.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.job import Job
from pipeline.errors import AuditError
from pipeline.path_names import printable
from pipeline.so_many import so_many

from .labeller import Labeller, Run

AUDIT_ROWS = 16
# By default at most one image in so many, so that an audit stays a small part of a run.
AUDIT_SHARE = 50

# By how much a probability may differ, in one row and on average. Half precision and scaled
# decoding move single images that are torn between two classes (benchmarks/agreement.py); rows
# mixed up, or a broken kernel, move nearly all. The average of a few rows may be farther off, and
# that of one row as far as the row itself.
EACH, MEAN = 0.5, 0.1


@dataclass(frozen=True)
class Audit:
    """How far each audited row was off, by path: the largest difference of a probability among its
    best classes.
    """

    differences: dict[str, float]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.differences.values()))) if self.differences else 0.0

    @property
    def largest(self) -> float:
        return max(self.differences.values(), default=0.0)

    @property
    def off(self) -> dict[str, float]:
        """The rows beyond the bound; all rows, where their average is beyond it."""
        mean = MEAN + (EACH - MEAN) / max(len(self.differences), 1)
        return {
            path: gap for path, gap in self.differences.items() if gap > EACH or self.mean > mean
        }

    def to_record(self) -> dict[str, Any]:
        return {
            "rows": len(self.differences),
            "largest": round(self.largest, 6),
            "mean": round(self.mean, 6),
        }


def audit(run: Run, labeller: Labeller) -> Audit:
    """Have committed rows of a job labelled again, and compare.

    Raises AuditError where they disagree.
    """
    n_rows = run.settings.audit
    if n_rows is None:
        n_rows = min(AUDIT_ROWS, -(-run.manifest.n_images // AUDIT_SHARE))
    if not n_rows or not run.manifest.n_images:
        return Audit({})
    result = Audit(labeller.label_again(run, n_rows))
    if not result.differences:
        why = "of those drawn none has a label and a photo that can be read as it was"
        run.console.info("audit", f"audit: no row labelled again: {why}")
        return result
    if result.off:
        raise AuditError(_complaint(result, run.job))
    run.console.info(
        "audit",
        f"audit: {so_many(len(result.differences), 'row')} labelled again, one by one in fp32: "
        f"probabilities differ by {result.largest:.4f} at most",
        result.to_record(),
    )
    return result


def _complaint(result: Audit, job: Job) -> str:
    shown = ", ".join(
        f"{printable(path)} by {gap:.2f}" for path, gap in list(result.off.items())[:10]
    )
    return (
        f"audit: labelled again one by one in fp32, {len(result.off)} of "
        f"{len(result.differences)} rows come out otherwise ({shown}; {EACH} each and {MEAN} on "
        f"average are allowed), so {job.out} is not written. Look at them; label all again with "
        "--restart and --runtime torch, another --device or --precision fp32 (of a quantised model: "
        "with the one it was made of), or take the labels as they are with --audit 0"
    )
