"""Batch and predictions -> rows of the table, by index."""

from datetime import datetime

import numpy as np
import pyarrow as pa

from vit.classifier import Classifier

from .decode import DecodeFailure, ImageFacts
from .loader import Batch
from .parquet import BEST, SCHEMA
from .predict import Predictions


class Rows:
    """Turns batches and their predictions into rows; what is the same for all rows is held here."""

    def __init__(self, pending: pa.Table, classifier: Classifier, fingerprint: str, run_id: str) -> None:
        self.pending = pending
        self.labels = pa.array(classifier.labels, pa.string())
        self.same = {"model": classifier.name, "fingerprint": fingerprint, "run_id": run_id}

    def make(self, batch: Batch, predictions: Predictions, labelled_at: datetime) -> pa.Table:
        """Return the batch's rows (SCHEMA and `index`), in no particular order."""
        failures = [
            *batch.failures,
            *(
                DecodeFailure(batch.indices[i], "not_finite", "the model's output was not finite; try --precision "
                              "fp32", batch.facts[i])
                for i in np.flatnonzero(~predictions.is_finite)
            ),
        ]  # fmt: skip
        ok = np.flatnonzero(predictions.is_finite)
        labelled = self._labelled(predictions.class_ids[ok], predictions.probabilities[ok])
        tables = [
            self._table([batch.indices[i] for i in ok], [batch.facts[i] for i in ok], labelled, labelled_at),
            self._table(
                [failure.index for failure in failures],
                [failure.facts for failure in failures],
                {
                    "status": pa.array(["error"] * len(failures), pa.string()),
                    "error_code": pa.array([failure.code for failure in failures], pa.string()),
                    "error_detail": pa.array([_printable(failure.detail) for failure in failures], pa.string()),
                },
                labelled_at,
            ),
        ]
        return pa.concat_tables(tables)

    def _labelled(self, class_ids: np.ndarray, probabilities: np.ndarray) -> dict[str, pa.Array]:
        n, k = class_ids.shape
        flat = pa.array(class_ids.reshape(-1), pa.int32())
        entries = pa.StructArray.from_arrays(
            [self.labels.take(flat), flat, pa.array(probabilities.reshape(-1), pa.float32())], fields=list(BEST)
        )
        best = pa.array(np.ascontiguousarray(class_ids[:, 0]), pa.int32())
        return {
            "status": pa.array(["ok"] * n, pa.string()),
            "label": self.labels.take(best),
            "class_id": best,
            "probability": pa.array(np.ascontiguousarray(probabilities[:, 0]), pa.float32()),
            "top_k": pa.ListArray.from_arrays(pa.array(np.arange(n + 1) * k, pa.int32()), entries),
        }

    def _table(
        self,
        indices: list[int],
        facts: list[ImageFacts],
        outcome: dict[str, pa.Array],
        labelled_at: datetime,
    ) -> pa.Table:
        n = len(indices)
        index = pa.array(indices, pa.int64())
        images = self.pending.take(index)
        columns = {name: images[name] for name in ("path", "path_bytes", "root", "size_bytes", "mtime")}
        columns |= {
            "width": [fact.width for fact in facts],
            "height": [fact.height for fact in facts],
            "format": [fact.format for fact in facts],
            "exif_orientation": [fact.exif_orientation for fact in facts],
            "decode_notes": [fact.notes for fact in facts],
            "labelled_at": [labelled_at] * n,
        }
        columns |= {name: [value] * n for name, value in self.same.items()}
        columns |= outcome
        arrays = []
        for field in SCHEMA:
            values = columns.get(field.name)
            if values is None:
                arrays.append(pa.nulls(n, field.type))
            else:
                arrays.append(
                    values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, field.type)
                )
        return pa.table(arrays, schema=SCHEMA).append_column("index", index)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
