"""Proof of a table: `label-images verify` reads all of it and checks what the README promises.

Checks one row group at a time; between them only the last key is kept, since rows are in key order.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.job import Job
from jobs.receipts import sha256_file
from jobs.storage.object_store import AnyPath, as_arrow
from pipeline.failures import ERROR_CODES

from .record import TableRecord
from .schema import count_values
from .table import files_of, read_classes, read_index, read_record


def verify_table(path: AnyPath) -> tuple[TableRecord | None, list[str]]:
    """Return a table's record and what is wrong with it, nothing where all holds.

    Raises TableError where the file is no table of ours at all.
    """
    record = read_record(path)
    if record is None:
        return None, [f"there is no table at {path}"]
    return record, list(_problems(path, record))


def _problems(path: AnyPath, record: TableRecord) -> Iterator[str]:
    last_run = Job(path).read_run() or {}
    index = read_index(path)
    if index is not None:
        for file in index.files:
            if (path / file.name).is_file() and sha256_file(path / file.name) != file.sha256:
                yield f"{file.name} is not, to the byte, the one that was written"
    elif last_run.get("plan_id") == record.plan_id and last_run.get("table_sha256") not in (
        None,
        sha256_file(path),
    ):
        yield "the file is not, to the byte, the one that was written"
    rows, errors, last_key, damaged = 0, Counter[str](), "", False
    for name, table, problems in check_groups(path, record):
        yield from (f"{name}: {problem}" for problem in problems)
        if table is None:
            damaged = True
            continue
        keys = _keys(table)
        if len(keys) and not keys[0].as_py() > last_key:
            yield f"{name}: its rows do not come after those of the group before"
        last_key = keys[-1].as_py() if len(keys) else last_key
        rows += len(table)
        errors.update(count_values(table["error_code"]))
    counts = record.counts
    if not damaged and (counts["rows"], counts["errors"]) != (rows, dict(sorted(errors.items()))):
        yield (
            f"{rows} rows with errors {dict(errors)}, but the record says {counts['rows']} with "
            f"{counts['errors']}"
        )


def check_groups(
    path: AnyPath, record: TableRecord
) -> Iterator[tuple[str, pa.Table | None, list[str]]]:
    """Yield each row group's name, its rows or None where they cannot be read, and what is wrong
    with it by itself.
    """
    labels = pa.array([entry["label"] for entry in read_classes(path)], pa.string())
    for path_of_file in (files := files_of(path)):
        prefix = "" if len(files) == 1 else f"{path_of_file.name}, "
        try:
            with pq.ParquetFile(as_arrow(path_of_file), page_checksum_verification=True) as file:
                for group in range(file.num_row_groups):
                    yield f"{prefix}row group {group}", *_check_group(file, group, record, labels)
        except (OSError, pa.ArrowException) as error:
            yield path_of_file.name, None, [f"it cannot be read: {error}"]


def _check_group(
    file: pq.ParquetFile, group: int, record: TableRecord, labels: pa.Array
) -> tuple[pa.Table | None, list[str]]:
    try:
        table = file.read_row_group(group)
        table.validate(full=True)
        problems = list(_row_problems(table, record, labels))
    except (OSError, pa.ArrowException, ValueError) as error:
        return None, [f"it is damaged: {error}"]
    keys = _keys(table)
    if len(keys) and not pc.all(pc.greater(keys[1:], keys[:-1])).as_py():
        problems.append("rows are not in the order of root and path, or a key stands twice")
    return table, problems


def _keys(table: pa.Table) -> pa.Array:
    return pc.binary_join_element_wise(table["root"], table["path"], "\0").combine_chunks()


def _row_problems(table: pa.Table, record: TableRecord, labels: pa.Array) -> Iterator[str]:
    ok = pc.equal(table["status"], "ok")
    good, bad = table.filter(ok), table.filter(pc.invert(ok))
    if not pc.all(pc.is_in(table["status"], pa.array(["ok", "error"]))).as_py():
        yield "a status is neither ok nor error"
    if set(pc.unique(table["fingerprint"]).to_pylist()) - {record.fingerprint}:
        yield "rows of another fingerprint than the table's: labels of two models are mixed"
    if set(pc.unique(bad["error_code"]).to_pylist()) - ERROR_CODES.keys():
        yield "a failed row has no known error_code"
    if any(
        bad[name].null_count != len(bad) for name in ("label", "class_id", "probability", "top_k")
    ):
        yield "a failed row has a label"
    if good["error_code"].null_count != len(good):
        yield "a labelled row has an error_code"
    if any(good[name].null_count for name in ("label", "class_id", "probability", "top_k")):
        yield "a labelled row lacks its label"
        return
    top = good["top_k"].combine_chunks()
    k = min(record.fingerprint_fields["top_k"], len(labels))
    if not pc.all(pc.equal(pc.list_value_length(top), k)).as_py():
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
