"""The machine runs out: disk, shared memory, memory, files, rights; each for real, in a process of
its own.
"""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.job import Job
from pipeline.console import Console
from pipeline.run import run
from pipeline.settings import Settings
from pipeline.table.table import Table
from tests.forking import Servers
from tests.helpers import ROOT, Command, make_photos, photo, rows
from tests.small_disks import copied, with_mount
from tests.test_end_to_end import without_root_rights


def limited(name: str, value: int) -> Sequence[str]:
    """A prefix that runs a command under a resource limit."""
    script = (
        f"import os, resource, sys; resource.setrlimit(resource.{name}, ({value}, {value})); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", script]


def limiting(name: str, value: int) -> str:
    """Python that sets a resource limit for the process that runs it, whose start is not the point."""
    return f"import resource; resource.setrlimit(resource.{name}, ({value}, {value}))"


@pytest.fixture(scope="module")
def sixty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("sixty") / "photos", 60)


@pytest.fixture(scope="module")
def whole(sixty: Path, small_model: Path) -> list[dict[str, Any]]:
    """The rows of a run that nothing ran out on."""
    out = sixty.with_name("whole.parquet")
    settings = Settings(
        paths=(sixty,), out=out, model=str(small_model), shard_size=8, workers=0, device="cpu"
    )
    run(settings, Console())
    return rows(out)


@pytest.mark.slow
@pytest.mark.parametrize("size", [16, pytest.param(40, marks=pytest.mark.soak), 60, 80])
def test_a_full_disk_costs_nothing_that_was_finished(
    tmp_path: Path,
    small_model: Path,
    process: Command,
    size: int,
    sixty: Path,
    whole: list[dict[str, Any]],
) -> None:
    """Sizes in KB: too small for the plan, for a part (the first is soak's), for the merge."""
    photos, disk = sixty, tmp_path / "disk"
    disk.mkdir()
    kept = tmp_path / "kept"
    arguments = ["--model", small_model, "--shard-size", 8, "--workers", 0]
    small = with_mount(disk, f"{size}k", after=copied(disk, kept))
    ran = process(photos, "--out", disk / "labels.parquet", *arguments, before=small)
    assert ran.returncode == 5, (ran.stderr, ran.stdout)
    assert "No space left on device" in ran.stderr
    assert f"{disk}/" in ran.stderr, "it names the place"
    assert "run again" in ran.stderr or "the same command again" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not list(kept.rglob("*.tmp")), "nothing half-written is left"
    assert not (kept / "labels.parquet").exists()
    job = Job(kept / "labels.parquet")
    done = len(job.receipts(job.manifest)) if job.manifest else 0
    assert done == len(list((job.folder / "receipts").glob("*.json")) if job.manifest else []), (
        "all of them proven"
    )
    # On a disk with room the same command goes on.
    ran = process(photos, "--out", kept / "labels.parquet", *arguments)
    assert ran.returncode == 0, ran.stderr
    assert (f"going on: {min(done * 8, 60)} of 60" in ran.stderr) == bool(done)
    assert rows(kept / "labels.parquet") == whole


@pytest.fixture(scope="module")
def with_plenty(
    tmp_path_factory: pytest.TempPathFactory, servers: Servers, small_model: Path
) -> tuple[Path, str, list[dict[str, Any]]]:
    """Photos and a file that is none; what a run with workers says of them where shared memory has
    room; its rows.
    """
    folder = tmp_path_factory.mktemp("plenty")
    photos, out = make_photos(folder / "photos", 40), folder / "l.parquet"
    (photos / "bad.jpg").write_bytes(b"no image")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    words = ["--out", str(out), "--model", str(small_model), "--workers", "2"]
    ran = servers(environment).run([str(photos), *words], folder, environment)
    assert ran.returncode == 0, ran.stderr
    assert b"Traceback" not in ran.stderr
    assert b"Exception ignored" not in ran.stderr
    return photos, ran.stderr.decode(), rows(out)


def embeddings_of(folder: Path) -> list[dict[str, Any]]:
    return Table(folder).scan().to_pylist()


@pytest.fixture(scope="module")
def whole_embeddings(sixty: Path, small_model: Path) -> list[dict[str, Any]]:
    out, embeddings = sixty.with_name("beside.parquet"), sixty.with_name("beside")
    settings = Settings(
        paths=(sixty,), out=out, embeddings=embeddings, model=str(small_model), shard_size=8,
        workers=0, device="cpu",
    )  # fmt: skip
    run(settings, Console())
    return embeddings_of(embeddings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("product", "size", "place"),
    [
        # A part of labels or of embeddings, or a receipt: names in the plan differ in length.
        ("labels", 60, ".labels.parquet.job/"),
        pytest.param("labels", 72, ".labels.parquet.job/", marks=pytest.mark.soak),
        ("labels", 176, ""),  # the embeddings are switched already
        ("embeddings", 8, ".embeddings.job/files/part-00000.parquet"),
        ("embeddings", 16, ".embeddings.job/"),  # the index, which is the switch
    ],
)
def test_a_full_disk_of_either_product_costs_nothing_of_the_other(
    tmp_path: Path,
    small_model: Path,
    process: Command,
    product: str,
    size: int,
    place: str,
    sixty: Path,
    whole: list[dict[str, Any]],
    whole_embeddings: list[dict[str, Any]],
) -> None:
    """Sizes in KB of a disk that has the table alone, or the embeddings alone."""
    disk, kept, plenty = (tmp_path / name for name in ("disk", "kept", "plenty"))
    disk.mkdir()
    plenty.mkdir()
    at = {"labels": plenty / "labels.parquet", "embeddings": plenty / "embeddings"}
    at[product] = disk / at[product].name
    arguments = [sixty, "--out", at["labels"], "--embeddings", at["embeddings"]]
    arguments += ["--model", small_model, "--shard-size", 8, "--workers", 0]
    small = with_mount(disk, f"{size}k", after=copied(disk, kept))
    ran = process(*arguments, before=small)
    assert ran.returncode == 5, (ran.stderr, ran.stdout)
    said = ran.stderr.splitlines()[-1]
    assert f"No space left on device: {disk}/{place}" in said
    assert said.endswith("what was finished is kept: mend it, then the same command again")
    assert "Traceback" not in ran.stderr
    assert not list(kept.rglob("*.tmp")), "nothing half-written is left"
    assert not (kept / "labels.parquet").exists()
    assert not (plenty / "labels.parquet").exists(), "the table is the last to be switched"
    # Where the disk has room, with what is on it, the same command goes on.
    shutil.copytree(kept, disk, dirs_exist_ok=True)
    job = Job(at["labels"])
    assert job.manifest is not None
    done = len(job.receipts(job.manifest))
    assert done
    assert product == "labels" or done == 8, "all were labelled before the merge"
    ran = process(*arguments)
    assert ran.returncode == 0, ran.stderr
    assert f"going on: {min(done * 8, 60)} of 60" in ran.stderr
    assert rows(at["labels"]) == whole
    assert embeddings_of(at["embeddings"]) == whole_embeddings
    for path in at.values():
        assert process("verify", path).returncode == 0


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_embeddings_merge_keeps_both_products_of_before(
    tmp_path: Path, small_model: Path, process: Command
) -> None:
    photos, out, disk = make_photos(tmp_path / "p", 60), tmp_path / "l.parquet", tmp_path / "disk"
    saved, kept, embeddings = tmp_path / "saved", tmp_path / "kept", disk / "embeddings"
    disk.mkdir()
    arguments = [photos, "--out", out, "--embeddings", embeddings, "--model", small_model]
    arguments += ["--workers", 0]
    assert process(*arguments).returncode == 0
    before, table = embeddings_of(embeddings), out.read_bytes()
    disk.rename(saved)
    disk.mkdir()
    for seed in range(60, 70):
        photo(seed).save(photos / f"{seed:04}.jpg")
    # The old file has its place, and the new one beside it has none.
    small = with_mount(disk, "28k", before=f"cp -a {saved}/. {disk}", after=copied(disk, kept))
    ran = process(*arguments, before=small)
    assert ran.returncode == 5, (ran.stderr, ran.stdout)
    assert f"No space left on device: {disk}/.embeddings.job/" in ran.stderr
    assert out.read_bytes() == table
    shutil.copytree(kept, disk, dirs_exist_ok=True)
    assert embeddings_of(embeddings) == before
    assert process("verify", embeddings).returncode == 0
    ran = process(*arguments)
    assert "going on: 10 of 10" in ran.stderr
    assert "70 found, 10 labelled, 60 carried over" in ran.stdout
    assert len(embeddings_of(embeddings)) == len(rows(out)) == 70
    for path in (out, embeddings):
        assert process("verify", path).returncode == 0


def test_a_disk_that_is_full_at_the_merge_keeps_the_old_table(
    tmp_path: Path, small_model: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = make_photos(tmp_path / "photos", 12), tmp_path / "labels.parquet"
    arguments = (photos, "--out", out, "--model", small_model, "--workers", 0)
    assert command(*arguments).returncode == 0
    before = out.read_bytes()
    make_photos(photos, 20)

    class FullDisk(pq.ParquetWriter):  # full when the parts are written
        def write_table(self, table: pa.Table, *_: Any, **named: Any) -> None:
            if ".part" not in str(self.where):
                raise OSError(28, "No space left on device")
            super().write_table(table, **named)

    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.ParquetWriter", FullDisk)
        ran = command(*arguments)
    assert ran.returncode == 5
    assert f"No space left on device: {out}" in ran.stderr
    assert out.read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))
    assert command(*arguments).returncode == 0
    assert len(rows(out)) == 20


# Takes a folder away when the second part is about to be written.
VANISHING = """
import os
from pipeline.table.product import Product
write_part, written = Product.write_part, []
def vanish_at_the_second(product, rows, path):
    written.append(path)
    if len(written) == 2:
        os.rename({folder!r}, {away!r})
    return write_part(product, rows, path)
Product.write_part = vanish_at_the_second
"""


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("what", ["the job folder", "the disk"])
def test_what_vanishes_under_a_run_is_told_and_the_same_command_goes_on(
    tmp_path: Path, small_model: Path, process: Command, what: str, workers: int
) -> None:
    photos, disk = make_photos(tmp_path / "photos", 12), tmp_path / "disk"
    disk.mkdir()
    out, away = disk / "labels.parquet", tmp_path / "away"
    arguments = (photos, "--out", out, "--model", small_model, "--shard-size", 4)
    gone = disk if what == "the disk" else Job(out).folder
    vanishing = VANISHING.format(folder=str(gone), away=str(away))
    ran = process(*arguments, "--workers", workers, before=vanishing)
    assert ran.returncode == 5, ran.stderr
    said = ran.stderr.splitlines()[-1]
    assert said.startswith(f"label-images: {gone} is not there any more")
    assert "run the same command again" in said
    assert "Traceback" not in ran.stderr
    assert away.exists()
    if what == "the disk":
        assert not disk.exists(), "nothing is made where the disk was"
        away.rename(disk)
    ran = process(*arguments, "--workers", workers)
    assert ran.returncode == 0, ran.stderr
    assert ("going on: 4 of 12" in ran.stderr) == (what == "the disk")
    assert len(rows(out)) == 12


@pytest.mark.slow
def test_a_file_size_limit_is_told_with_the_place(
    tmp_path: Path, small_model: Path, process: Command
) -> None:
    photos, out = make_photos(tmp_path / "photos", 40), tmp_path / "labels.parquet"
    arguments = (photos, "--out", out, "--model", small_model, "--workers", 0)
    ran = process(*arguments, before=limiting("RLIMIT_FSIZE", 2000))
    assert ran.returncode == 5
    assert "File too large" in ran.stderr
    assert f"{tmp_path}/.labels.parquet.job/" in ran.stderr
    assert process(*arguments).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "told"),
    [
        # As in a container: 64 MB there hold few batches for a GPU.
        ("64k", "batches come through pipes"),
        ("4k", "/dev/shm cannot be used (No space left on device)"),  # not even a lock
        ("1m,ro", "/dev/shm cannot be used (Read-only file system)"),
    ],
)
def test_shared_memory_that_cannot_be_used_costs_time_and_no_label(
    tmp_path: Path,
    small_model: Path,
    process: Command,
    with_plenty: tuple[Path, str, list[dict[str, Any]]],
    size: str,
    told: str,
) -> None:
    photos, without_fault, expected = with_plenty
    out, arguments = tmp_path / "l.parquet", ("--model", small_model, "--workers", 2)
    assert told not in without_fault
    ran = process(photos, "--out", out, *arguments, before=with_mount("/dev/shm", size))
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    assert "Exception ignored" not in ran.stderr
    assert told in ran.stderr
    assert rows(out) == expected


@pytest.mark.slow
def test_too_little_memory_is_told(tmp_path: Path, small_model: Path, process: Command) -> None:
    photos = make_photos(tmp_path / "photos", 3)
    arguments = (photos, "--out", tmp_path / "l.parquet", "--model", small_model)
    ran = process(*arguments, prefix=limited("RLIMIT_AS", 700 << 20))
    assert ran.returncode == 1
    assert "too little memory (ulimit -v)" in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr
    assert process(*arguments, before=limiting("RLIMIT_NOFILE", 64)).returncode == 0


@pytest.mark.slow
def test_too_few_open_files(tmp_path: Path, small_model: Path, process: Command) -> None:
    photos = make_photos(tmp_path / "photos", 3)
    out = tmp_path / "l.parquet"
    ran = process(
        photos,
        "--out",
        out,
        "--model",
        small_model,
        "--workers",
        2,
        prefix=limited("RLIMIT_NOFILE", 12),
    )
    assert ran.returncode == 5, ran.stderr
    assert "Too many open files" in ran.stderr
    assert not out.exists()


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, small_model: Path, process: Command
) -> None:
    photos, closed = make_photos(tmp_path / "photos", 3), tmp_path / "closed"
    closed.mkdir(mode=0o555)
    ran = process(
        photos, "--out", closed / "l.parquet", "--model", small_model, prefix=without_root_rights()
    )
    assert ran.returncode == 5
    assert (
        f"cannot write beside {closed}/l.parquet: Permission denied; choose an --out" in ran.stderr
    )
    disk = tmp_path / "disk"
    disk.mkdir()
    read_only = with_mount(disk, "1M", before=f"mount -o remount,ro {disk}")
    ran = process(photos, "--out", disk / "l.parquet", "--model", small_model, before=read_only)
    assert ran.returncode == 5
    assert "Read-only file system" in ran.stderr


def test_the_limits_are_real() -> None:
    """What the prefix is worth: a limit that is not there would make its test pass for nothing."""
    script = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    ran = subprocess.run(
        [*limited("RLIMIT_NOFILE", 33), sys.executable, "-c", script],
        capture_output=True,
        check=True,
    )
    assert ran.stdout == b"33\n"
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 33
