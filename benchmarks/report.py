"""How long the pages of a large table take, and how much memory; without photos.

    python -m benchmarks.report 1000000

Makes a table of so many made-up rows (1,000 classes, and once more with 21,000; a hundredth
failed; 500 photos a folder), none of whose photos is there, then runs `label-images report`. Ends
with one line of JSON: seconds, peak memory in MB, pages, and the largest of them in KB.
"""

import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.records import canonical_sha256
from pipeline.table.labels import LABELS
from pipeline.table.record import TableRecord

from .measure import measure

_BATCH_ROWS = 100_000
_TOP_K = 5


def main(n_rows: int) -> None:
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for n_classes in (1_000, 21_000):
            table, pages = Path(folder, f"{n_classes}.parquet"), Path(folder, f"{n_classes}")
            make_table(table, n_rows, n_classes)
            name = f"{n_rows:,} rows, {n_classes:,} classes"
            results[name] = measure_report(table, pages)
            print(f"{name}: {results[name]}", flush=True)
    print(json.dumps(results))


def make_table(path: Path, n_rows: int, n_classes: int) -> None:
    """Write a table of made-up labels: frequent classes and rare ones, in the order of the paths."""
    generator = np.random.default_rng(0)
    words = [f"made-up class {number} of many" for number in range(n_classes)]
    fields: dict[str, Any] = {"top_k": _TOP_K, "activation": "softmax"}
    record = TableRecord(
        plan_id="made-up", created_at="2026-01-01T00:00:00+00:00", run_id="made-up",
        tool_version="0", model="made-up", fingerprint=canonical_sha256(fields),
        fingerprint_fields=fields, made_by=[], roots=["/nowhere"],
    )  # fmt: skip
    classes = [{"class_id": number, "label": word} for number, word in enumerate(words)]
    n_failed = 0
    with LABELS.writer(path) as writer:
        for first in range(0, n_rows, _BATCH_ROWS):
            n = min(_BATCH_ROWS, n_rows - first)
            rows, failed = made_up_rows(generator, first, n, words, record.fingerprint)
            writer.write_table(rows, row_group_size=LABELS.row_group_rows)
            n_failed += failed
        said = record.counting(n_rows, {"corrupt": n_failed}).to_json()
        writer.add_key_value_metadata(
            {"label_images": json.dumps(said), "label_images_classes": json.dumps(classes)}
        )


def made_up_rows(
    generator: np.random.Generator, first: int, n: int, words: list[str], fingerprint: str
) -> tuple[pa.Table, int]:
    """Some rows of the table from row `first` on, and how many of them failed."""
    failed = generator.random(n) < 0.01
    frequent = (generator.random((n, _TOP_K)) ** 3 * len(words)).astype(np.int32)
    scores = -np.sort(-generator.dirichlet(np.full(_TOP_K, 0.4), n).astype(np.float32), axis=1)
    entries = pa.StructArray.from_arrays(
        [pa.array(words).take(pa.array(frequent.ravel())), frequent.ravel(), scores.ravel()],
        fields=list(LABELS.schema.field("top_k").type.value_type),
    )
    top_k = pa.ListArray.from_arrays(
        pa.array(range(0, n * _TOP_K + 1, _TOP_K), pa.int32()), entries
    )
    mask = pa.array(failed)
    nothing = pa.nulls(n)
    now = pa.array([datetime.now(UTC)] * n, pa.timestamp("us", tz="UTC"))
    columns = {
        "path": [f"{row // 500:06}/IMG_{row:09}.jpg" for row in range(first, first + n)],
        "root": pa.repeat("/nowhere", n),
        "size_bytes": pa.repeat(1_000_000, n),
        "mtime": now,
        "width": pa.repeat(4000, n),
        "height": pa.repeat(3000, n),
        "format": pa.repeat("JPEG", n),
        "status": ["error" if each else "ok" for each in failed],
        "error_code": ["corrupt" if each else None for each in failed],
        "error_detail": ["made up" if each else None for each in failed],
        "label": pc.if_else(mask, None, pa.array(words).take(pa.array(frequent[:, 0]))),
        "class_id": pa.array(frequent[:, 0], mask=failed),
        "probability": pa.array(scores[:, 0], mask=failed),
        "top_k": top_k.take(pa.array(np.arange(n), mask=failed)),
        "model": pa.repeat("made-up", n),
        "fingerprint": pa.repeat(fingerprint, n),
        "run_id": pa.repeat("made-up", n),
        "labelled_at": now,
    }
    schema = LABELS.schema
    arrays = [pa.array(columns.get(field.name, nothing), type=None) for field in schema]
    return pa.table(arrays, names=schema.names).cast(schema), int(failed.sum())


def measure_report(table: Path, pages: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "pipeline.cli", "report", str(table), "--out", str(pages)]
    results: dict[str, Any] = dict(measure(command))
    sizes = [path.stat().st_size for path in pages.rglob("*.html")]
    return results | {"pages": len(sizes), "largest_page_kb": max(sizes) // 1024}


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
