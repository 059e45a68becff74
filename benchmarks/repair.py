"""What time and memory it takes to prove a folder of embeddings, and to repair it.

    python -m benchmarks.repair 50000 200000

Makes so many rows of made-up embeddings of ViT-B/16's width, in files of about 65,000, then damages
a page in the middle of one and runs `verify` and `verify --repair`, each as a process of its own.
Ends with one line of JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.job import Job
from jobs.receipts import Provenance
from jobs.records import canonical_sha256
from pipeline.table.embeddings import EMBEDDINGS, SCHEMA
from pipeline.table.merge import Merge, Parts
from pipeline.table.partitioned import write_dataset
from pipeline.table.record import TableRecord

_N_FEATURES = 768
_PART_ROWS = 8_192


def main(sizes: list[int]) -> None:
    results: dict[str, Any] = {}
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "embeddings"
            # In a process of its own: a child's peak memory is at least what its parent has.
            maker = get_context("spawn").Process(target=make_embeddings, args=(place, n))
            maker.start()
            maker.join()
            assert maker.exitcode == 0
            size_mb = sum(path.stat().st_size for path in place.iterdir()) / 1e6
            damage(sorted(place.iterdir())[0])
            found: dict[str, Any] = {"size_mb": round(size_mb)}
            for what in ("verify", "repair"):
                options = ["--repair"] if what == "repair" else []
                found[what] = measure(["verify", str(place), *options])
            results[f"{n:,} rows"] = found
            print(f"{n:,} rows: {found}", flush=True)
    print(json.dumps(results))


def measure(arguments: list[str]) -> dict[str, float]:
    """Run the command; return its seconds and its peak memory in MB."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = code = os.waitstatus_to_exitcode(status)  # reaped already
    seconds = round(time.perf_counter() - started, 2)
    return {"exit_code": code, "seconds": seconds, "peak_mb": round(usage.ru_maxrss * 1024 / 1e6)}


def make_embeddings(place: Path, n: int) -> None:
    """A folder as a run leaves it, of images that are nowhere."""
    fields = {"weights_sha256": "made-up"}
    record = TableRecord(
        "made-up", "2026-01-01T00:00:00+00:00", "made-up", "0.1.0", "made-up",
        canonical_sha256(fields), fields, [Provenance("fp32", "cpu", {})], ["/photos"],
        product_name=EMBEDDINGS.name,
    )  # fmt: skip
    parts = list[Any]()
    for first in range(0, n, _PART_ROWS):
        parts.append(place.with_name(f"{first}.parquet"))
        rows = _rows(first, min(_PART_ROWS, n - first), record.fingerprint)
        EMBEDDINGS.write_part(rows, parts[-1])
    job = Job(place)
    with job.held():
        merge = Merge(np.array([], np.int64), np.arange(n), Parts(EMBEDDINGS, parts, _PART_ROWS))
        write_dataset(job, None, merge, record, [])
    for part in parts:
        part.unlink()


def _rows(first: int, n: int, fingerprint: str) -> pa.Table:
    features = np.random.default_rng(first).standard_normal(n * _N_FEATURES).astype(np.float32)
    ends = pa.array(np.arange(n + 1) * _N_FEATURES, pa.int32())
    columns = {
        "root": ["/photos"] * n,
        "path": [
            f"{number // 1000:05}/photo-{number:08}.jpg" for number in range(first, first + n)
        ],
        "size_bytes": [1000] * n,
        "mtime": [0] * n,
        "content_hash": ["0" * 32] * n,
        "fingerprint": [fingerprint] * n,
        "embedding": pa.ListArray.from_arrays(ends, pa.array(features)),
    }
    return pa.table(columns, schema=SCHEMA).append_column("index", pa.array(np.arange(n)))


def damage(path: Path) -> None:
    """Change a byte in the middle."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 255]))


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [50_000, 200_000])
