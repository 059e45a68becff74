"""Tables of many files: one table to its readers, and a run rewrites only the files it must."""

import shutil
import signal
from collections.abc import Callable
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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.job import Job
from jobs.receipts import sha256_file
from jobs.records import write_record
from jobs.table_index import Index
from pipeline.cli.commands import run as run_command
from pipeline.cli.options import settings_of
from pipeline.errors import TableError
from pipeline.preflight import check_paths
from pipeline.table.labels import LABELS, SCHEMA
from pipeline.table.merge import Merge, Parts
from pipeline.table.partitioned import write_dataset
from pipeline.table.product import Product
from tests.helpers import Command, make_photos, photo, rows
from tests.test_table import RECORD, table_of


@pytest.fixture
def options(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(Product, "file_rows", 8)
    return ["--model", small_model, "--device", "cpu", "--workers", "0"]


def files(out: Path) -> dict[str, tuple[int, int]]:
    """Each file's number and rows: a file that was written again has another number."""
    return {
        path.name: (path.stat().st_ino, pq.read_metadata(path).num_rows)
        for path in sorted(out.iterdir())
    }


def test_a_folder_of_files_is_one_table(
    tmp_path: Path, command: Command, options: list[Any]
) -> None:
    photos, out, single = (
        make_photos(tmp_path / "photos", 40),
        tmp_path / "labels",
        tmp_path / "single.parquet",
    )
    ran = command(photos, "--out", f"{out}/", *options)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("40 found, 40 labelled")
    assert [n for _, n in files(out).values()] == [8] * 5
    assert command(photos, "--out", single, *options).returncode == 0
    assert rows(out) == rows(single)
    assert len(pd.read_parquet(out)) == pl.scan_parquet(f"{out}/").collect().height == 40
    assert duckdb.sql(f"SELECT count(DISTINCT path) FROM '{out}/*.parquet'").fetchall() == [(40,)]
    assert command("verify", out).stdout.startswith(f"{out}: 40 rows, 40 labelled")
    assert "table     40 rows, 40 labelled" in command("status", f"{out}/").stdout

    before = files(out)
    assert "nothing changed" in command(photos, "--out", f"{out}/", *options).stdout
    photo(100).save(photos / "0010.jpg")
    (photos / "0033.jpg").unlink()
    photo(101).save(photos / "0039x.jpg")
    ran = command(photos, "--out", out, *options)  # known to be a folder of files by now
    assert ran.stdout.startswith("40 found, 2 labelled, 38 carried over, 1 gone")
    after = files(out)
    same = [name for name in before if after[name] == before[name]]
    assert same == ["part-00000.parquet", "part-00002.parquet", "part-00003.parquet"]
    assert command(photos, "--out", single, *options).returncode == 0
    assert rows(out) == rows(single)
    assert command("verify", out).returncode == 0


def test_files_that_grow_are_split_and_empty_ones_go(
    tmp_path: Path, command: Command, options: list[Any]
) -> None:
    photos, out = make_photos(tmp_path / "photos", 20), tmp_path / "labels"
    assert command(photos, "--out", f"{out}/", *options).returncode == 0
    assert [n for _, n in files(out).values()] == [6, 7, 7]
    for seed in range(10):
        photo(seed).save(photos / f"0001-{seed}.jpg")
    for seed in range(6, 13):
        (photos / f"{seed:04}.jpg").unlink()
    ran = command(photos, "--out", f"{out}/", *options)
    assert ran.returncode == 0, ran.stderr
    assert {name: n for name, (_, n) in files(out).items()} == {
        "part-00000.parquet": 8, "part-00002.parquet": 7, "part-00003.parquet": 8
    }  # fmt: skip
    index = Job(out).index()
    assert index
    assert [file.name for file in index.files] == [
        "part-00000.parquet",
        "part-00003.parquet",
        "part-00002.parquet",
    ]
    assert command("verify", out).returncode == 0
    for path in photos.iterdir():
        path.unlink()
    photo(0).save(photos / "only.png")
    assert command(photos, "--out", f"{out}/", *options).returncode == 0
    assert [row["path"] for row in rows(out)] == ["only.png"]


def test_folders_of_others_are_left_alone(
    tmp_path: Path, command: Command, options: list[Any]
) -> None:
    photos, out = make_photos(tmp_path / "photos", 3), tmp_path / "theirs"
    out.mkdir()
    (out / "part-00000.parquet").write_bytes(b"precious")
    for extra in ([], ["--overwrite"]):
        ran = command(photos, "--out", f"{out}/", *options, *extra)
        assert (ran.returncode, "label-images knows nothing of" in ran.stderr) == (5, True), (
            ran.stderr
        )
    assert (out / "part-00000.parquet").read_bytes() == b"precious"
    ran = command(photos, "--out", out, *options)
    assert (ran.returncode, f"write {out}/ for a table of many files" in ran.stderr) == (5, True)
    single = tmp_path / "single.parquet"
    single.write_bytes(b"")
    assert command(photos, "--out", f"{single}/", *options).returncode == 5


def test_a_damaged_or_missing_file_is_found(
    tmp_path: Path, command: Command, options: list[Any]
) -> None:
    photos, out = make_photos(tmp_path / "photos", 20), tmp_path / "labels"
    assert command(photos, "--out", f"{out}/", *options).returncode == 0
    file = out / "part-00001.parquet"
    whole = file.read_bytes()
    middle = len(whole) // 3
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    ran = command("verify", out)
    assert (ran.returncode, "part-00001.parquet is not, to the byte" in ran.stdout) == (5, True)
    file.unlink()
    ran = command("verify", out)
    assert (ran.returncode, "part-00001.parquet: it cannot be read" in ran.stdout) == (5, True)
    ran = command(photos, "--out", f"{out}/", *options)
    assert (ran.returncode, "part-00001.parquet" in ran.stderr) == (5, True)
    ran = command("verify", out, "--repair")
    assert ran.returncode == 0, ran.stderr
    assert f"{out}: kept 13 of 20 rows" in ran.stdout
    ran = command(photos, "--out", f"{out}/", *options)
    assert ran.stdout.startswith("20 found, 7 labelled, 13 carried over"), ran.stderr
    assert command(photos, "--out", f"{out}/", *options, "--restart").returncode == 0
    assert command("verify", out).returncode == 0


def test_an_index_names_no_file_elsewhere(
    tmp_path: Path, command: Command, options: list[Any]
) -> None:
    photos, out = make_photos(tmp_path / "photos", 3), tmp_path / "labels"
    assert command(photos, "--out", f"{out}/", *options).returncode == 0
    path = Job(out).index_path
    index = Index.read(path)
    assert index
    for name in ("../labels/part-00000.parquet", "/etc/passwd", "part-0.parquet/../x"):
        Index(index.record, index.classes, [replace(index.files[0], name=name)]).write(path)
        assert Index.read(path) is None
    write_record(path, 1, {"files": [{}]})
    assert Index.read(path) is None
    assert command(photos, "--out", f"{out}/", *options).returncode == 5
    assert sorted(path.name for path in out.iterdir()) == ["part-00000.parquet"]


STEPS = [
    "jobs.table_index.Index.write",
    "jobs.table_index.move",
    "jobs.table_index.remove_files",
    "jobs.table_index.remove",
]


@pytest.fixture
def grown(
    tmp_path_factory: pytest.TempPathFactory, command: Command, options: list[Any]
) -> tuple[Path, list[dict[str, Any]]]:
    """A folder with photos and a table, after which some came and others went; and the rows of a
    table of one file that knows of all of it. Made once, and each time the same again.
    """
    folder = tmp_path_factory.getbasetemp() / "grown"
    saved, single = folder.with_name("grown-saved"), folder.with_name("grown-single.parquet")
    if not saved.exists():
        photos = make_photos(folder / "photos", 20)
        assert command(photos, "--out", f"{folder / 'labels'}/", *options).returncode == 0
        for seed in range(6):
            photo(seed).save(photos / f"0001-{seed}.jpg")
        for seed in range(6, 13):
            (photos / f"{seed:04}.jpg").unlink()
        assert command(photos, "--out", single, *options).returncode == 0
        shutil.copytree(folder, saved)  # with its times: else all would look changed
    shutil.rmtree(folder)
    shutil.copytree(saved, folder)
    return folder, rows(single)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_step_of_the_switch(
    step: str,
    when: str,
    grown: tuple[Path, list[dict[str, Any]]],
    command: Command,
    options: list[Any],
    process: Command,
) -> None:
    folder, expected = grown
    out = folder / "labels"
    arguments = [folder / "photos", "--out", f"{out}/", *options]
    module, _, name = step.rpartition(".")
    target = "jobs.table_index.Index" if "Index" in module else "jobs.table_index"
    script = f"""
from pipeline.table.product import Product
Product.file_rows = 8
import os, signal, jobs.table_index
target = {target}
real = target.{name}
def die(*arguments, **named):
    if {when!r} == "before": os.kill(os.getpid(), signal.SIGKILL)
    result = real(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)
import jobs.job
job = jobs.job.Job.switch
def switch(*arguments):
    target.{name} = die
    return job(*arguments)
jobs.job.Job.switch = switch
"""
    killed = process(*arguments, before=script)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = command(*arguments)
    assert again.returncode == 0, again.stderr
    assert rows(out) == expected
    assert sorted(path.name for path in Job(out).folder.iterdir()) == [
        "history.json", "lock", "manifest.json", "run.json", "table.json"
    ]  # fmt: skip
    assert command("verify", out).returncode == 0


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), size=st.integers(1, 9))
def test_any_change_leaves_each_row_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    data: st.DataObject,
    size: int,
) -> None:
    monkeypatch.setattr(Product, "file_rows", size)
    job = Job(tmp_path_factory.mktemp("tables") / "labels")
    job.folder.mkdir()
    names = st.lists(st.integers(0, 60).map("{:02}".format), unique=True, max_size=24).map(sorted)
    before: list[str] = []
    index: Index | None = None
    for _ in range(3):
        now, labelled_again = data.draw(names), set(data.draw(names))
        new = [name for name in now if name not in before or name in labelled_again]
        kept = [row for row, name in enumerate(before) if name in now and name not in new]
        positions = np.array([row for row, name in enumerate(now) if name in new], np.int64)
        merge = Merge(
            np.array(kept, np.int64), positions, Parts(LABELS, [table_of(new)], max(len(new), 1))
        )
        unchanged = {file.name: file.sha256 for file in index.files} if index else {}
        write_dataset(job, index, merge, RECORD, [])
        index = Index.read(job.index_path)
        assert index
        tables = [pq.read_table(job.out / file.name, schema=SCHEMA) for file in index.files]
        assert pa.concat_tables(tables)["path"].to_pylist() == now
        assert [len(table) for table in tables] == [file.rows for file in index.files]
        assert {path.name for path in job.out.iterdir()} == {file.name for file in index.files}
        assert all(len(table) <= 1.5 * size or len(table) == 1 for table in tables)
        if not new and len(kept) == len(before) and before:
            assert {file.name: file.sha256 for file in index.files} == unchanged
        before = now


def test_a_reader_sees_every_row_while_files_are_switched(
    tmp_path: Path, command: Command, options: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = make_photos(tmp_path / "photos", 24), tmp_path / "labels"
    assert command(photos, "--out", f"{out}/", *options).returncode == 0
    photo(99).save(photos / "0001.jpg")
    photo(98).save(photos / "0020.jpg")
    seen = []
    from jobs import table_index as index

    real: Callable[..., None] = index.move

    def move(*arguments: Any) -> None:
        real(*arguments)
        seen.append(sorted(row["path"] for row in rows(out)))

    monkeypatch.setattr(index, "move", move)
    assert command(photos, "--out", f"{out}/", *options).returncode == 0
    assert seen == [sorted(path.name for path in photos.iterdir())] * 2


def test_naming_a_table_looks_at_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path
) -> None:
    """What is said is a value; whether there is a table of many files already a run finds out."""
    table = tmp_path / "labels"
    table.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", lambda path: pytest.fail(f"looked at {path}"))
        patch.setattr(Path, "is_file", lambda path: pytest.fail(f"looked at {path}"))
        context = run_command.make_context("run", [str(photos), "--out", str(table)])
        said = settings_of(context.params)
        slashed = run_command.make_context("run", [str(photos), "--out", f"{table}/"])
        assert settings_of(slashed.params).is_dataset
    assert (said.out, said.is_dataset) == (table, False)
    assert context.params.keys() == {option.name for option in run_command.params}
    with pytest.raises(TableError, match="is a folder"):
        check_paths(said)
    index = Job(table).index_path
    index.parent.mkdir()
    index.write_text("{}")
    assert check_paths(said) == replace(said, is_dataset=True)


def test_a_table_of_many_files_of_a_version_before_gets_the_new_columns_in_all_of_them(
    tmp_path: Path, command: Command, options: list[Any]
) -> None:
    """Readers take the columns from the first file: two kinds of files would hide or break some."""
    photos, out = make_photos(tmp_path / "photos", 20), tmp_path / "labels"
    assert command(photos, "--out", f"{out}/", *options).returncode == 0
    job = Job(out)
    index = job.index()
    assert index
    assert len(index.files) > 1
    files = []
    for file in index.files:  # as they were before version 3
        earlier = pq.read_table(out / file.name, partitioning=None).drop_columns("content_hash")
        pq.write_table(earlier, out / file.name)
        files.append(replace(file, sha256=sha256_file(out / file.name)))
    replace(index, files=files, record=index.record | {"version": 2}).write(job.index_path)
    assert command("verify", out).returncode == 0
    assert "nothing changed" in command(photos, "--out", f"{out}/", *options).stdout
    photo(99).save(photos / "zzz.jpg")  # of the last file's range
    assert command(photos, "--out", f"{out}/", *options).returncode == 0
    assert command("verify", out).returncode == 0
    for path in out.iterdir():
        assert pq.read_schema(path).equals(SCHEMA), path.name
    query = f"select count(*), count(content_hash) from '{out}/*.parquet'"
    assert duckdb.sql(query).fetchall() == [(21, 1)]
