"""Batch and predictions -> rows of each product, by index."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.manifest import ModelIdentity
from jobs.plan import FOUND
from pipeline.failures import Failure, ImageFacts
from pipeline.path_names import printable
from pipeline.table import embeddings
from pipeline.table.embeddings import EMBEDDINGS
from pipeline.table.labels import BEST, LABELS, SCHEMA

from .predictions import Predictions

if TYPE_CHECKING:  # a driver, which makes rows of embeddings, has no torch
    from pipeline.load.batch import Batch


class Rows:
    """Turns batches and their predictions into rows; what is the same for all rows is held here."""

    def __init__(self, pending: pa.Table, identity: ModelIdentity, run_id: str) -> None:
        self.pending = pending
        self.labels = pa.array(identity.labels, pa.string())
        self.same: dict[str, Any] = {
            "model": identity.name,
            "fingerprint": identity.fingerprint.digest,
            "run_id": run_id,
        }
        self.features_fingerprint = identity.fingerprint.features_digest

    def make(
        self, batch: "Batch", predictions: Predictions, labelled_at: datetime
    ) -> dict[str, pa.Table]:
        """Return the batch's rows for each product by its name: its schema and `index`, in no
        particular order, a row for each image.
        """
        rows = {LABELS.name: self._labels(batch, predictions, labelled_at)}
        if predictions.features is not None:
            rows[EMBEDDINGS.name] = self._embeddings(batch, predictions, predictions.features)
        return rows

    def _labels(self, batch: "Batch", predictions: Predictions, labelled_at: datetime) -> pa.Table:
        ok = np.flatnonzero(predictions.is_finite)
        failures = [*batch.failures, *_not_finite(batch, predictions)]
        return pa.concat_tables(
            [
                self._table(
                    [batch.indices[row] for row in ok],
                    [batch.facts[row] for row in ok],
                    self._best(predictions.class_ids[ok], predictions.probabilities[ok]),
                    labelled_at,
                ),
                self._table(
                    [failure.index for failure in failures],
                    [failure.facts for failure in failures],
                    {
                        "status": ["error"] * len(failures),
                        "error_code": [failure.code for failure in failures],
                        "error_detail": [printable(failure.detail) for failure in failures],
                    },
                    labelled_at,
                ),
            ]
        )

    def relabel(self, rows: pa.Table, predictions: Predictions, labelled_at: datetime) -> pa.Table:
        """Rows of the table of labels with other labels: `predictions` are of those that have one,
        in their order. Those that failed get the fingerprint alone.
        """
        is_ok = pc.equal(rows["status"], "ok").to_numpy()
        best = self._best(predictions.class_ids, predictions.probabilities)
        nth = pa.array(np.cumsum(is_ok) - 1, mask=~is_ok)  # of the labelled ones
        n, ok = len(rows), pa.array(is_ok)
        columns = {name: rows[name] for name in SCHEMA.names}
        columns |= {
            name: best[name].take(nth) for name in ("label", "class_id", "probability", "top_k")
        }
        columns |= {name: pa.array([self.same[name]] * n) for name in ("model", "fingerprint")}
        at = pa.array([labelled_at] * n, SCHEMA.field("labelled_at").type)
        for name, now in (("run_id", pa.array([self.same["run_id"]] * n)), ("labelled_at", at)):
            columns[name] = pc.if_else(ok, now, rows[name])
        return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)

    def of_copies(self, indices: list[int], rows: pa.Table) -> pa.Table:
        """Rows of a product for images that are copies of those the rows are of, one for each. When
        and by which run it was labelled stays as it was.
        """
        images = self._images(indices)
        columns = {name: rows[name] for name in rows.column_names}
        columns |= {name: images[name] for name in FOUND.names if name in columns}
        columns["index"] = pa.array(indices, pa.int64())
        fields = [field for field in rows.schema if field.name != "index"]
        schema = pa.schema([*fields, pa.field("index", pa.int64())])
        return pa.table([columns[name] for name in schema.names], schema=schema)

    def _best(
        self, class_ids: NDArray[np.int32], probabilities: NDArray[np.float32]
    ) -> dict[str, Any]:
        """The columns that only a labelled image has, from the k best classes of each [n, k]."""
        n, k = class_ids.shape
        flat_ids, flat_probabilities = (
            pa.array(class_ids.reshape(-1)),
            pa.array(probabilities.reshape(-1)),
        )
        flat = pa.StructArray.from_arrays(
            [self.labels.take(flat_ids), flat_ids, flat_probabilities], fields=list(BEST)
        )
        best = pa.array(np.arange(n) * k)  # where in `flat` each image's first is
        return {
            "status": ["ok"] * n,
            "label": flat.field("label").take(best),
            "class_id": flat.field("class_id").take(best),
            "probability": flat.field("probability").take(best),
            "top_k": pa.ListArray.from_arrays(pa.array(np.arange(n + 1) * k, pa.int32()), flat),
        }

    def _table(
        self,
        indices: list[int],
        facts: list[ImageFacts],
        outcome: dict[str, Any],
        labelled_at: datetime,
    ) -> pa.Table:
        """Rows of some images: the plan's columns, the file's facts, and an outcome."""
        n = len(indices)
        images = self._images(indices)
        columns = {
            name: images[name] for name in ("path", "path_bytes", "root", "size_bytes", "mtime")
        }
        for name in ("content_hash", "width", "height", "format", "exif_orientation"):
            columns[name] = [getattr(fact, name) for fact in facts]
        columns["decode_notes"] = [fact.notes for fact in facts]
        columns |= outcome
        columns |= {
            name: [value] * n for name, value in (self.same | {"labelled_at": labelled_at}).items()
        }
        nothing = [None] * n
        arrays = [_as_arrow(columns.get(field.name, nothing), field.type) for field in SCHEMA]
        return pa.table(arrays, schema=SCHEMA).append_column("index", pa.array(indices, pa.int64()))

    def _images(self, indices: list[int]) -> pa.Table:
        """The plan's columns of a batch's images."""
        # Their indices lie close together: taken from the whole plan they would cost more.
        first, end = (min(indices), max(indices) + 1) if indices else (0, 0)
        near = self.pending.slice(first, end - first)
        return near.take(pa.array(np.asarray(indices, np.int64) - first))

    def _embeddings(
        self, batch: "Batch", predictions: Predictions, features: NDArray[np.float32]
    ) -> pa.Table:
        """A row for each image: its features, or null where it has no label."""
        ok, n_features = predictions.is_finite, features.shape[1]
        indices = [*batch.indices, *(failure.index for failure in batch.failures)]
        is_there = np.concatenate([ok, np.zeros(len(batch.failures), np.bool_)])
        ends = np.concatenate([[0], np.cumsum(is_there * n_features)])
        images = self._images(indices)
        columns = {name: images[name] for name in ("root", "path", "size_bytes", "mtime")}
        facts = [*batch.facts, *(failure.facts for failure in batch.failures)]
        columns["content_hash"] = pa.array([fact.content_hash for fact in facts], pa.string())
        columns["fingerprint"] = pa.array([self.features_fingerprint] * len(indices), pa.string())
        columns["embedding"] = pa.ListArray.from_arrays(
            pa.array(ends, pa.int32()),
            pa.array(features[ok].reshape(-1)),
            mask=pa.array(~is_there),
        )
        table = pa.table(columns, schema=embeddings.SCHEMA)
        return table.append_column("index", pa.array(indices, pa.int64()))


def _as_arrow(values: Any, type_: pa.DataType) -> pa.Array | pa.ChunkedArray:
    return pa.array(values, type_) if isinstance(values, list) else values


def _not_finite(batch: "Batch", predictions: Predictions) -> list[Failure]:
    detail = "the model's output was not finite; try --precision fp32"
    return [
        Failure(batch.indices[row], "not_finite", detail, batch.facts[row])
        for row in np.flatnonzero(~predictions.is_finite)
    ]
