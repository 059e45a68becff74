"""Kept rows -> the same rows with labels of today's head, made from their embeddings.

For a table of which only the head has changed: other words, another top-k, another probe on the
same backbone. No image is read.
"""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.storage.object_store import AnyPath
from pipeline.errors import TableError
from pipeline.table.embeddings import EMBEDDINGS
from pipeline.table.merge import Stream
from pipeline.table.partitioned import rows_by_number

from .labeller import Labeller, Run
from .predictions import NO_PREDICTIONS
from .rows import Rows

_ROWS_AT_ONCE = 8_192  # 25 MB of ViT-B's features


class Rescorer:
    """Called with the kept rows, table after table, in order.

    `numbers` are the rows of the embeddings at `place` that belong to the labelled ones among them,
    ascending.
    """

    def __init__(self, run: Run, labeller: Labeller, place: AnyPath, numbers: np.ndarray) -> None:
        self.run, self.labeller, self.place = run, labeller, place
        self.rows = Rows(run.job.pending(), run.identity, run.id)
        self.embeddings = Stream(EMBEDDINGS, rows_by_number(EMBEDDINGS, place, numbers))

    def __call__(self, kept: pa.Table) -> pa.Table:
        starts = range(0, len(kept), _ROWS_AT_ONCE)
        return pa.concat_tables([self._rescored(kept.slice(at, _ROWS_AT_ONCE)) for at in starts])

    def _rescored(self, kept: pa.Table) -> pa.Table:
        labelled = kept.filter(pc.equal(kept["status"], "ok"))
        found = self.embeddings.read(len(labelled))
        if not all(found[name].equals(labelled[name]) for name in ("root", "path")):
            raise TableError(
                f"the embeddings in {self.place} are not those of the table's rows; label again "
                "with --restart"
            )
        now = datetime.now(UTC)
        if not len(found):
            return self.rows.relabel(kept, NO_PREDICTIONS, now)
        features = found["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        features = features.reshape(len(found), -1)  # [n, F]
        predictions = self.labeller.score(self.run.settings, features)
        if not predictions.is_finite.all():
            raise TableError(
                f"an embedding in {self.place} has no finite score; verify it with `label-images "
                f"verify {self.place}`"
            )
        return self.rows.relabel(kept, predictions, now)
