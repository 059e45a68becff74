"""The table: opened by the engines users have, merged in order, and proved by verify."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.job import Job
from jobs.receipts import sha256_file
from jobs.records import canonical_sha256, write_record
from jobs.storage.atomic import read_json
from jobs.storage.object_store import at
from pipeline.console import Console
from pipeline.errors import TableError
from pipeline.run import run
from pipeline.settings import Settings
from pipeline.table.labels import LABELS, SCHEMA
from pipeline.table.merge import Merge, Parts, write_merged
from pipeline.table.record import TableRecord, read_record
from pipeline.table.verify import verify_table
from tests.helpers import ROOT, make_photos, photo
from vit.checkpoints.bundle import ModelSpec, write_bundle
from vit.classifier import load_classifier
from vit.config import ViTConfig
from vit.model import VisionTransformer
from vit.preprocess import Preprocess

QUIET = Console()


@pytest.fixture
def make_table(tmp_path: Path, small_model: Path) -> Any:
    def make(kind: str) -> Path:
        folder = make_photos(tmp_path / "photos", 6 if kind == "mixed" else 0)
        if kind in ("mixed", "failed"):
            for name in ("bad.jpg", "worse.png"):
                (folder / name).write_bytes(b"no photo")
        out = tmp_path / "labels.parquet"
        run(Settings(paths=(folder,), out=out, model=str(small_model), workers=0), QUIET)
        return out

    return make


COUNTS = {"mixed": (6, 2), "failed": (0, 2), "empty": (0, 0)}
kinds = pytest.mark.parametrize("kind", list(COUNTS))


@kinds
def test_pyarrow(make_table: Any, kind: str) -> None:
    table = pq.read_table(make_table(kind))
    assert table.schema.equals(SCHEMA)
    ok, failed = COUNTS[kind]
    assert table["status"].to_pylist().count("ok") == ok
    assert len(table) == ok + failed


@kinds
def test_duckdb(make_table: Any, kind: str) -> None:
    path = make_table(kind)
    ok, failed = COUNTS[kind]
    with duckdb.connect() as db:
        counted = db.sql(
            f"SELECT count(*) FILTER (status = 'ok'), count(*) FROM '{path}'"
        ).fetchall()
        assert counted == [(ok, ok + failed)]
        rows = db.sql(
            "SELECT label, probability, top_k[1].label, top_k[1].probability, len(top_k) FROM "
            f"'{path}' WHERE status = 'ok'"
        ).fetchall()
        assert all(row[:2] == row[2:4] and row[4] == 5 for row in rows)
        assert len(rows) == ok
        flat = db.sql(f"SELECT path, unnest(top_k, recursive := true) FROM '{path}'").fetchall()
        assert len(flat) == 5 * ok
        assert set(
            db.sql(f"SELECT error_code FROM '{path}' WHERE status = 'error'").fetchall()
        ) == ({("not_an_image",)} if failed else set())


@kinds
def test_pandas(make_table: Any, kind: str) -> None:
    frame = pd.read_parquet(make_table(kind))
    ok, failed = COUNTS[kind]
    assert list(frame.columns) == SCHEMA.names
    assert (frame.status == "ok").sum() == ok
    assert frame[frame.status == "error"].label.isna().all()
    assert str(frame.labelled_at.dtype) == "datetime64[us, UTC]"
    assert frame.dtypes["probability"] == np.float32
    assert len(frame) == ok + failed


@kinds
def test_polars(make_table: Any, kind: str) -> None:
    path = make_table(kind)
    ok, failed = COUNTS[kind]
    frame = pl.read_parquet(path)
    assert frame.height == ok + failed
    assert frame.schema["probability"] == pl.Float32
    top = frame.filter(pl.col("status") == "ok").explode("top_k").unnest("top_k", separator=".")
    assert top.height == 5 * ok
    lazy = pl.scan_parquet(path).group_by("label").len().collect()
    assert lazy["len"].sum() == ok + failed


def test_what_the_columns_hold(make_table: Any, tmp_path: Path) -> None:
    rows = pq.read_table(make_table("mixed")).to_pylist()
    assert [row["path"] for row in rows] == [
        *(f"{i:04}.jpg" for i in range(6)),
        "bad.jpg",
        "worse.png",
    ]
    first, last = rows[0], rows[-1]
    assert first["root"] == str(tmp_path / "photos")
    assert (first["width"], first["height"], first["format"], first["decode_notes"]) == (
        48,
        40,
        "JPEG",
        [],
    )
    assert first["label"] == f"class {first['class_id']}" == first["top_k"][0]["label"]
    probabilities = [entry["probability"] for entry in first["top_k"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert first["error_code"] is first["error_detail"] is None
    assert (last["status"], last["label"], last["top_k"], last["width"]) == (
        "error",
        None,
        None,
        None,
    )
    assert len({row["fingerprint"] for row in rows}) == len({row["run_id"] for row in rows}) == 1


def test_the_files_own_record(make_table: Any) -> None:
    path = make_table("mixed")
    record = read_record(path)
    assert record is not None
    assert record.counts == {"rows": 8, "ok": 6, "errors": {"not_an_image": 2}}
    assert record.fingerprint_fields["preprocess"]["crop_size"] == 32
    said = json.loads(pq.read_metadata(path).metadata[b"label_images"])
    assert {"tool_version", "precision", "device", "libraries", "model", "run_id"} <= said.keys()
    assert said["version"] == 3
    assert TableRecord.from_json(said, path) == record
    metadata = pq.read_metadata(path).metadata
    classes = json.loads(metadata[b"label_images_classes"])
    assert classes[3] == {"class_id": 3, "label": "class 3"}
    assert pq.read_metadata(path).row_group(0).column(0).compression == "ZSTD"


@kinds
def test_verify_finds_nothing_in_a_table_as_it_was_written(make_table: Any, kind: str) -> None:
    assert verify_table(make_table(kind))[1] == []


@pytest.mark.parametrize("n", [1, 5])
def test_verify_finds_nothing_in_row_groups_of_one_row(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    monkeypatch.setitem(vars(LABELS), "row_group_rows", 4)
    folder, out = make_photos(tmp_path / "photos", n), tmp_path / "labels.parquet"
    run(Settings(paths=(folder,), out=out, model=str(small_model), workers=0), QUIET)
    assert verify_table(out)[1] == []


def test_verify_finds_what_was_changed(make_table: Any, tmp_path: Path) -> None:
    path = make_table("mixed")
    assert verify_table(path)[1] == []
    original = pq.read_table(path)
    metadata = pq.read_metadata(path).metadata

    def problems(table: pa.Table) -> str:
        changed = tmp_path / "changed.parquet"
        with pq.ParquetWriter(changed, SCHEMA) as writer:
            writer.write_table(table.cast(SCHEMA))
            writer.add_key_value_metadata(
                {key: metadata[key] for key in (b"label_images", b"label_images_classes")}
            )
        return "; ".join(verify_table(changed)[1])

    def with_column(name: str, values: list[Any]) -> pa.Table:
        position = SCHEMA.get_field_index(name)
        return original.set_column(
            position, SCHEMA.field(name), pa.array(values, SCHEMA.field(name).type)
        )

    assert problems(original) == ""
    assert "but the record says 8" in problems(original.slice(1))
    assert "a key stands twice" in problems(pa.concat_tables([original, original]))
    assert "not in the order" in problems(original.take(pa.array([1, 0, 2, 3, 4, 5, 6, 7])))
    assert "two models are mixed" in problems(
        with_column("fingerprint", ["x", *original["fingerprint"].to_pylist()[1:]])
    )
    assert "32 hex digits" in problems(
        with_column("content_hash", ["x", *original["content_hash"].to_pylist()[1:]])
    )
    assert "not the first of top_k" in problems(
        with_column("probability", [0.0, *original["probability"].to_pylist()[1:]])
    )
    assert "neither ok nor error" in problems(
        with_column("status", ["fine", *original["status"].to_pylist()[1:]])
    )
    assert "a failed row has a label" in problems(
        with_column("label", [*original["label"].to_pylist()[:7], "cat"])
    )
    assert "no known error_code" in problems(with_column("error_code", [None] * 7 + ["odd"]))
    top = original["top_k"].to_pylist()
    assert "descending" in problems(with_column("top_k", [top[0][::-1], *top[1:]]))
    top[0][4]["label"] = "another"
    assert "not its class_id's" in problems(with_column("top_k", top))
    assert "there is no table" in verify_table(tmp_path / "none.parquet")[1][0]

    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF  # inside the first column's pages
    path.write_bytes(data)
    assert "damaged" in "; ".join(verify_table(path)[1])


def test_a_file_that_is_not_ours_is_told_from_one_that_is(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    assert read_record(path) is None
    path.write_text("not parquet")
    with pytest.raises(TableError, match="was not written by label-images"):
        read_record(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(TableError, match="was not written by label-images"):
        read_record(path)
    for said, complaint in (({"version": 1}, "is damaged"), ({"version": 99}, "a newer label-")):
        metadata = {"label_images": json.dumps(said)}
        pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(metadata), path)
        with pytest.raises(TableError, match=complaint):
            read_record(path)
    metadata = {"label_images": json.dumps(RECORD.to_json())}
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(metadata), path)
    with pytest.raises(TableError, match="other columns"):
        read_record(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(TableError):
        read_record(path)


RECORD = TableRecord("p", "now", "r", "0.1", "m", canonical_sha256({}), {}, [], [])


def be_the_model_of(record: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a model in the place of the embedded one that passes for the one a table was made by: all
    that its fingerprint knows is the same, and the weights are any.
    """
    fields = record["fingerprint_fields"]
    spec = ModelSpec(
        config=ViTConfig(**fields["architecture"]),
        preprocess=Preprocess(**fields["preprocess"]),
        labels=load_classifier().labels,
        temperature=fields["temperature"],
        name=record["model"],
    )
    write_bundle(spec, VisionTransformer(spec.config).state_dict(), out)
    monkeypatch.setattr("vit.checkpoints.locate.EMBEDDED", out)
    monkeypatch.setattr("vit.backbone.sha256_file", lambda _: fields["weights_sha256"])


@pytest.mark.parametrize(("version", "decode_rules"), [(1, "2"), (2, "3")])
def test_a_table_of_a_version_before_is_carried_over(
    command: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: int,
    decode_rules: str,
) -> None:
    """tests/data/table-v1.parquet was made by the last commit that wrote version 1, and so on."""
    monkeypatch.setattr(
        "pipeline.label.identity.DECODE_RULES", decode_rules
    )  # those it was made by
    before = ROOT / "tests" / "data" / f"table-v{version}.parquet"
    metadata, table = pq.read_metadata(before).metadata, pq.read_table(before)
    be_the_model_of(json.loads(metadata[b"label_images"]), tmp_path / "embedded", monkeypatch)
    folder, out = tmp_path / "photos", tmp_path / "l.parquet"
    folder.mkdir()
    # The same rows, of a folder that is here; nothing in it is read as long as size and time agree.
    for row in table.to_pylist():
        (folder / row["path"]).write_bytes(bytes(row["size_bytes"]))
        changed_ns = round(row["mtime"].timestamp() * 1e6) * 1000
        os.utime(folder / row["path"], ns=(changed_ns, changed_ns))
    place = table.schema.get_field_index("root")
    roots = pa.array([str(folder)] * len(table))
    with pq.ParquetWriter(out, table.schema) as writer:
        writer.write_table(table.set_column(place, table.schema.field("root"), roots))
        writer.add_key_value_metadata(
            {key: metadata[key] for key in (b"label_images", b"label_images_classes")}
        )
    assert f'"version": {version}'.encode() in metadata[b"label_images"]
    assert "content_hash" not in table.schema.names
    assert command("verify", out).returncode == 0
    assert "nothing changed: 4 found" in command(folder, "--out", out).stdout
    photo(9).save(folder / "new.jpg")
    ran = command(folder, "--out", out, "--precision", "bf16")
    assert ran.returncode == 0, ran.stderr
    assert "5 found, 1 labelled, 4 carried over (1 of them failed earlier)" in ran.stdout
    record = read_record(out)
    assert record is not None
    assert [maker.precision for maker in record.made_by] == ["fp32", "bf16"]
    assert record.made_by[0].libraries["torch"] == "2.14.1"
    now = pq.read_table(out, columns=["path", "content_hash"])
    hashes = dict(zip(now["path"].to_pylist(), now["content_hash"].to_pylist(), strict=True))
    assert hashes.pop("new.jpg") == xxhash.xxh3_128_hexdigest((folder / "new.jpg").read_bytes())
    assert set(hashes.values()) == {None}, "a carried row's file was not read"
    assert command("verify", out).returncode == 0


def test_a_table_says_what_made_its_rows_and_not_what_ended_the_job(
    photos: Path, small_model: Path, command: Any, tmp_path: Path
) -> None:
    out = tmp_path / "l.parquet"
    options = ("--shard-size", 2, "--batch-size", 2, "--workers", 0, "--audit", 0)
    arguments = (photos, "--out", out, "--model", small_model, *options)

    def makers() -> list[str]:
        record = read_record(out)
        assert record is not None
        return [f"{maker.precision} on {maker.device}" for maker in record.made_by]

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.run.merge", stop)
        with pytest.raises(Stop):
            command(*arguments, "--precision", "fp32")
    assert "10 of 10 images are done" in command(*arguments, "--precision", "bf16").stderr
    assert makers() == ["fp32 on cpu"], "the last process labelled nothing"
    again = (*arguments, "--top-k", 3)
    assert command(*again, "--precision", "bf16", "--max-runtime", "0.001s").returncode == 6
    assert command(*again, "--precision", "fp32").returncode == 0
    assert makers() == ["bf16 on cpu", "fp32 on cpu"]
    photo(77).save(photos / "new.jpg")
    assert command(*again, "--precision", "fp16").returncode == 0
    assert makers() == ["bf16 on cpu", "fp32 on cpu", "fp16 on cpu"]
    assert "bf16 and fp32 and fp16 on cpu" in command("status", out).stdout


def test_a_job_that_a_version_before_began_goes_on(
    photos: Path, small_model: Path, command: Any, tmp_path: Path
) -> None:
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out, "--model", small_model, "--shard-size", 4, "--workers", 0)

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.run.merge", stop)
        with pytest.raises(Stop):
            command(*arguments)
    job = Job(at(out))
    for shard in range(3):  # as they were when labels were the only product
        part = job.part_path(shard)
        pq.write_table(pq.read_table(part, partitioning=None).drop_columns("content_hash"), part)
        receipt = read_json(job.receipt_path(shard))
        assert receipt
        del receipt["parts"], receipt["sha256"], receipt["version"]
        write_record(job.receipt_path(shard), 2, receipt | {"part_sha256": sha256_file(part)})
    manifest = read_json(job.manifest_path)
    assert manifest
    del manifest["products"], manifest["sha256"], manifest["version"]
    write_record(job.manifest_path, 2, manifest)
    ran = command(*arguments)
    assert "10 of 10 images are done" in ran.stderr
    assert ran.returncode == 0, ran.stderr
    assert pq.read_table(out)["content_hash"].null_count == 10
    assert command("verify", out).returncode == 0


def table_of(names: list[str]) -> pa.Table:
    """Rows that differ in their path alone."""
    same = {"root": "/r", "status": "ok", "model": "m", "fingerprint": "f", "run_id": "r"}
    columns = []
    for field in SCHEMA:
        if field.name == "path":
            columns.append(pa.array(names, field.type))
        elif field.name == "labelled_at":
            columns.append(pa.array([0] * len(names), field.type))
        elif field.name in same:
            columns.append(pa.array([same[field.name]] * len(names), field.type))
        else:
            columns.append(pa.nulls(len(names), field.type))
    return pa.table(columns, schema=SCHEMA)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), group=st.integers(1, 9), shard=st.integers(1, 7))
def test_merging_puts_each_row_in_its_place(
    tmp_path: Path, data: st.DataObject, group: int, shard: int
) -> None:
    product = replace(LABELS, row_group_rows=group)
    total = data.draw(st.integers(0, 24))
    origin = data.draw(st.lists(st.sampled_from(["kept", "new"]), min_size=total, max_size=total))
    names = [f"{i:03}" for i in range(total)]
    dropped = data.draw(st.lists(st.integers(0, 60), max_size=5))
    base_names = sorted(
        [name for name, of in zip(names, origin, strict=True) if of == "kept"]
        + [f"x{i}" for i in dropped]
    )
    base = tmp_path / "base.parquet"
    pq.write_table(table_of(base_names), base, row_group_size=3)
    kept = [i for i, name in enumerate(base_names) if not name.startswith("x")]
    new = [name for name, of in zip(names, origin, strict=True) if of == "new"]
    parts = []
    for start in range(0, len(new), shard):
        parts.append(tmp_path / f"{start}.part")
        pq.write_table(table_of(new[start : start + shard]), parts[-1])
    positions = np.array([i for i, of in enumerate(origin) if of == "new"], dtype=np.int64)
    out = tmp_path / "out.parquet"
    write_merged(
        out,
        base,
        Merge(np.array(kept, np.int64), positions, Parts(product, parts, shard)),
        RECORD,
        [],
    )
    assert pq.read_table(out)["path"].to_pylist() == names
