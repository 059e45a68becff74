"""What does it cost to compare two tables of very many rows?

    python -m benchmarks.diff 1000000

Makes two tables of so many rows, of two models of 1,000 classes that agree on four rows in five,
and runs `label-images diff` on them as a process of its own: seconds and peak memory, with and
without --out. The last line is JSON.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.measure import measure
from jobs.manifest import Fingerprint
from jobs.receipts import Provenance
from jobs.records import canonical_sha256
from pipeline.table.labels import BEST, LABELS
from pipeline.table.merge import write_file
from pipeline.table.record import TableRecord

_N_CLASSES, _TOP_K = 1_000, 5
_AT = datetime(2026, 1, 1, tzinfo=UTC)


def write_table(path: Path, n_rows: int, seed: int) -> Path:
    """A table of made-up rows: nine in ten with the label that any seed gives them, one failed row
    in a hundred.
    """
    fingerprint = Fingerprint(f"{seed:064}", {}, {}, 1.0, "0" * 64, _TOP_K, "3")
    fields = fingerprint.to_record()
    record = TableRecord(
        plan_id=f"{seed:032}",
        created_at=_AT.isoformat(),
        run_id="made-up",
        tool_version="0",
        model=f"model {seed}",
        fingerprint=canonical_sha256(fields),
        fingerprint_fields=fields,
        made_by=[Provenance("fp32", "cpu", {})],
        roots=["/photos"],
    )
    names = [f"class {number:04}" for number in range(_N_CLASSES)]
    classes = [{"class_id": number, "label": name} for number, name in enumerate(names)]
    groups = _groups(n_rows, seed, pa.array(names), record)
    write_file(LABELS, path, groups, n_rows, record, classes)
    return path


def _groups(n_rows: int, seed: int, names: pa.Array, record: TableRecord) -> Iterator[pa.Table]:
    same, other = np.random.default_rng(0), np.random.default_rng(seed)
    for first in range(0, n_rows, LABELS.row_group_rows):
        n = min(LABELS.row_group_rows, n_rows - first)
        numbers = np.arange(first, first + n)
        best = same.zipf(1.3, n) % _N_CLASSES
        best = np.where(other.random(n) < 0.1, other.integers(0, _N_CLASSES, n), best)
        class_ids = (best[:, None] + np.arange(_TOP_K)) % _N_CLASSES  # [n, k]
        top = np.sort(other.random((n, _TOP_K)) / _TOP_K)[:, ::-1].astype(np.float32)
        failed = other.random(n) < 0.01
        flat = pa.StructArray.from_arrays(
            [
                names.take(pa.array(class_ids.ravel())),
                pa.array(class_ids.ravel(), pa.int32()),
                pa.array(top.ravel()),
            ],
            fields=list(BEST),
        )
        offsets = pa.array(np.arange(n + 1) * _TOP_K, pa.int32())
        columns: dict[str, Any] = {
            "path": [f"{number // 1000:05}/photo-{number:08}.jpg" for number in numbers.tolist()],
            "root": ["/photos"] * n,
            "size_bytes": numbers + 1,
            "mtime": pa.array([_AT] * n, LABELS.schema.field("mtime").type),
            "content_hash": [f"{number:032x}" for number in numbers.tolist()],
            "status": np.where(failed, "error", "ok"),
            "error_code": pa.array(np.full(n, "corrupt"), mask=~failed),
            "label": pa.array(names.take(pa.array(best)).to_numpy(False), mask=failed),
            "class_id": pa.array(best, pa.int32(), mask=failed),
            "probability": pa.array(top[:, 0], mask=failed),
            "top_k": pa.ListArray.from_arrays(offsets, flat, mask=pa.array(failed)),
            "model": [record.model] * n,
            "fingerprint": [record.fingerprint] * n,
            "run_id": [record.run_id] * n,
            "labelled_at": pa.array([_AT] * n, LABELS.schema.field("labelled_at").type),
        }
        arrays = [_column(columns.get(field.name), field, n) for field in LABELS.schema]
        yield pa.table(arrays, schema=LABELS.schema)


def _column(values: Any, field: pa.Field, n: int) -> pa.Array:
    if values is None:
        return pa.nulls(n, field.type)
    return values if isinstance(values, pa.Array) else pa.array(values, field.type)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=int, nargs="*", default=[1_000_000])
    arguments = parser.parse_args()
    results = {}
    for n in arguments.rows:
        with tempfile.TemporaryDirectory() as work:
            tables = [Path(work) / f"{seed}.parquet" for seed in (1, 2)]
            # In processes of their own, so that their memory is not this one's.
            with get_context("spawn").Pool(1) as pool:
                pool.starmap(write_table, [(tables[0], n, 1), (tables[1], n, 2)])
            command = [sys.executable, "-m", "pipeline.cli", "diff", *map(str, tables)]
            results[n] = {
                "diff": measure(command),
                "diff --out": measure([*command, "--out", str(Path(work) / "diff.parquet")]),
            }
        for what, cost in results[n].items():
            print(f"{n:>12,} rows  {what:<10} {cost['seconds']:8.1f} s {cost['peak_mb']:8,} MB")
    print(json.dumps({"benchmark": "diff", "results": results}))


if __name__ == "__main__":
    main()
