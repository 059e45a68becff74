"""`verify` of embeddings looks at their table, too: whose images they are, and of which state."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.job import Job
from pipeline.table import beside
from pipeline.table.embeddings import EMBEDDINGS
from pipeline.table.merge import Merge, Parts
from pipeline.table.partitioned import write_dataset
from pipeline.table.record import TableRecord
from pipeline.table.table import read_record
from tests.helpers import Command, photo


@pytest.fixture
def arguments(photos: Path, small_model: Path, tmp_path: Path) -> list[Any]:
    (photos / "broken.jpg").write_bytes(b"no photo")
    return [photos, "--out", tmp_path / "l.parquet", "--model", small_model, "--max-errors", 9,
            "--precision", "fp32", "--workers", 0, "--audit", 0]  # fmt: skip


@pytest.fixture
def embeddings(arguments: list[Any], tmp_path: Path, command: Command) -> Path:
    ran = command(*arguments, "--embeddings", tmp_path / "embeddings")
    assert ran.returncode == 0, ran.stderr
    return tmp_path / "embeddings"


def rewritten(embeddings: Path, rows: pa.Table) -> None:
    """Other rows, in files that are whole, with the record that a run left."""
    record = read_record(embeddings)
    assert record is not None
    job = Job(embeddings)
    parts = Parts(EMBEDDINGS, [rows], max(1, len(rows)))
    merge = Merge(np.array([], np.int64), np.arange(len(rows)), parts)
    with job.held():
        write_dataset(job, None, merge, record, [])


def read(embeddings: Path) -> pa.Table:
    return pq.read_table(next(embeddings.iterdir()), partitioning=None)


@pytest.mark.parametrize("rows_at_once", [1, 3, 65_536])
def test_embeddings_of_a_run_go_with_its_table(
    embeddings: Path, command: Command, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    monkeypatch.setattr(beside, "_ROWS_AT_ONCE", rows_at_once)
    ran = command("verify", embeddings)
    assert ran.returncode == 0, ran.stdout
    assert ran.stdout.startswith(f"{embeddings}: 10 rows"), ran.stdout


@pytest.mark.parametrize("rows_at_once", [1, 3, 65_536])
@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("path", "0002.png", "1 embeddings of no labelled image"),
        ("path", "broken.jpg", "1 embeddings of no labelled image"),
        ("path", "zzz.jpg", "1 embeddings of no labelled image"),
        ("size_bytes", 1, "1 embeddings of another state of their image"),
        ("content_hash", "0" * 32, "1 embeddings of another state of their image"),
    ],
)
def test_rows_of_no_image_of_the_table_are_found(
    embeddings: Path, command: Command, monkeypatch: pytest.MonkeyPatch,
    column: str, value: Any, problem: str, rows_at_once: int,
) -> None:  # fmt: skip
    rows = read(embeddings).to_pylist()
    rows[2] |= {column: value}
    rows.sort(key=lambda row: (row["root"], row["path"]))
    rewritten(embeddings, pa.Table.from_pylist(rows, EMBEDDINGS.schema))
    monkeypatch.setattr(beside, "_ROWS_AT_ONCE", rows_at_once)
    ran = command("verify", embeddings)
    assert ran.returncode == 5
    assert f"{problem}, though one run wrote both" in ran.stdout
    assert f"remove it, and the next run with --embeddings {embeddings} makes it anew" in ran.stderr
    if column == "path":
        assert "1 labelled images without" in ran.stdout


def test_rows_that_are_lacking_are_said(embeddings: Path, command: Command, tmp_path: Path) -> None:
    """Those that a run could not look at are kept without."""
    rewritten(embeddings, read(embeddings).slice(0, 7))
    ran = command("verify", embeddings)
    assert ran.returncode == 0
    assert f"beside {tmp_path}/l.parquet: 3 labelled images without\n" in ran.stdout


def test_what_a_night_without_them_left_is_no_fault(
    embeddings: Path, arguments: list[Any], command: Command, photos: Path, tmp_path: Path
) -> None:
    photo(60).save(photos / "0001.jpg")
    photo(61).save(photos / "new.jpg")
    (photos / "0003.jpg").unlink()
    assert command(*arguments).returncode == 0
    ran = command("verify", embeddings)
    assert ran.returncode == 0
    said = (
        f"not in step with {tmp_path}/l.parquet: 1 embeddings of no labelled image, 1 embeddings "
        "of another state of their image, 1 labelled images without; the next run with "
        f"--embeddings {embeddings} brings them in step"
    )
    assert said in ran.stdout.splitlines()
    assert command(*arguments, "--embeddings", embeddings).returncode == 0
    assert command("verify", embeddings).stdout.startswith(f"{embeddings}: 10 rows")
    assert command(*arguments, "--model", "embedded").returncode == 0
    assert "embeddings of another model; the next run" in command("verify", embeddings).stdout


def test_a_table_that_is_gone_is_told(embeddings: Path, command: Command, tmp_path: Path) -> None:
    os.rename(tmp_path / "l.parquet", tmp_path / "moved.parquet")
    ran = command("verify", embeddings)
    assert ran.returncode == 5
    assert f"there is no table at {tmp_path}/l.parquet" in ran.stderr
    assert "Is everything mounted?" in ran.stderr


def test_a_table_of_before_content_hash_is_compared_by_the_rest(
    embeddings: Path, command: Command, tmp_path: Path
) -> None:
    table = tmp_path / "l.parquet"
    said = dict(pq.read_metadata(table).metadata)
    record = TableRecord.from_json(json.loads(said[b"label_images"]), table)
    older = replace(record, version=2)
    rows = pq.read_table(table).select(older.schema.names)
    metadata = {
        b"label_images": json.dumps(record.to_json() | {"version": 2}).encode(),
        b"label_images_classes": said[b"label_images_classes"],
    }
    pq.write_table(rows.cast(older.schema).replace_schema_metadata(metadata), table)
    ran = command("verify", embeddings)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"{embeddings}: 10 rows")
