"""The table of labels: its columns, and what must hold for its rows.

Every part and every table has exactly SCHEMA; nothing is inferred from data.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.manifest import Fingerprint
from pipeline.failures import ERROR_CODES

from .product import Product, all_true

if TYPE_CHECKING:
    from .record import TableRecord

BEST = pa.struct(
    [
        pa.field("label", pa.string(), nullable=False),
        pa.field("class_id", pa.int32(), nullable=False),
        pa.field("probability", pa.float32(), nullable=False),
    ]
)


SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("path_bytes", pa.binary()),
        pa.field("root", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64()),
        pa.field("mtime", pa.timestamp("us", tz="UTC")),
        pa.field("content_hash", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("exif_orientation", pa.int32()),
        pa.field("decode_notes", pa.list_(pa.string())),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_code", pa.string()),
        pa.field("error_detail", pa.string()),
        pa.field("label", pa.string()),
        pa.field("class_id", pa.int32()),
        pa.field("probability", pa.float32()),
        pa.field("top_k", pa.list_(BEST)),
        pa.field("model", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("labelled_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)


def _problems(table: pa.Table, record: "TableRecord", labels: pa.Array) -> Iterator[str]:
    """Yield what is wrong with rows by themselves; `labels` are the names of the classes."""
    ok = pc.equal(table["status"], "ok")
    good, bad = table.filter(ok), table.filter(pc.invert(ok))
    if not all_true(pc.is_in(table["status"], pa.array(["ok", "error"]))):
        yield "a status is neither ok nor error"
    if set(pc.unique(table["fingerprint"]).to_pylist()) - {record.fingerprint}:
        yield "rows of another fingerprint than the table's: labels of two models are mixed"
    if set(pc.unique(bad["error_code"]).to_pylist()) - ERROR_CODES.keys():
        yield "a failed row has no known error_code"
    if any(
        bad[name].null_count != len(bad) for name in ("label", "class_id", "probability", "top_k")
    ):
        yield "a failed row has a label"
    hashes = table["content_hash"].drop_null()
    if not all_true(pc.match_substring_regex(hashes, "^[0-9a-f]{32}$")):
        yield "a content_hash is not 32 hex digits"
    if good["error_code"].null_count != len(good):
        yield "a labelled row has an error_code"
    if any(good[name].null_count for name in ("label", "class_id", "probability", "top_k")):
        yield "a labelled row lacks its label"
        return
    top = good["top_k"].combine_chunks()
    k = min(record.fingerprint_fields["top_k"], len(labels))
    if not all_true(pc.equal(pc.list_value_length(top), k)):
        yield f"a top_k has not {k} entries"
        return
    entries = top.flatten()
    class_ids = entries.field("class_id").to_numpy(zero_copy_only=False).reshape(-1, k)
    probabilities = entries.field("probability").to_numpy(zero_copy_only=False).reshape(-1, k)
    if class_ids.size and not (class_ids.min() >= 0 and class_ids.max() < len(labels)):
        yield "a class_id is not one of the model's"
        return
    if not entries.field("label").equals(labels.take(entries.field("class_id"))):
        yield "a label is not its class_id's"
    # Those of a sigmoid are of each class by itself, and may add up to as many as there are.
    of_one_label = record.fingerprint_fields.get("activation", "softmax") == "softmax"
    most = (probabilities.sum(axis=1) if of_one_label else probabilities) > 1.001
    if not np.isfinite(probabilities).all() or (probabilities < 0).any() or most.any():
        yield (
            "probabilities are not between 0 and 1"
            + (", or add up to more" if of_one_label else "")
        )
    if (np.diff(probabilities, axis=1) > 0).any():
        yield "a top_k is not in descending order"
    first = pa.table({name: entries.field(name).take(pa.array(np.arange(len(good)) * k)) for name in
                      ("label", "class_id", "probability")})  # fmt: skip
    if any(
        first[name].combine_chunks() != good[name].combine_chunks() for name in first.column_names
    ):
        yield "label, class_id and probability are not the first of top_k"


LABELS = Product(
    name="labels",
    schema=SCHEMA,
    row_group_rows=122_880,  # what DuckDB parallelises over
    decided_by=Fingerprint.to_record,
    problems=_problems,
    added={"content_hash": 3},
)
