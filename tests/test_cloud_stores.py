"""Photos and tables in Azure's and Google's stores: real servers of their protocols on loopback, a
proxy that makes faults, real processes. S3's are in test_store.py.
"""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from jobs.errors import JobError, JobLocked
from jobs.storage import connections
from jobs.storage import lease as lease_module
from jobs.storage.atomic import write_json
from jobs.storage.lease import Lease, hold_lease
from jobs.storage.object_store import StorePath, at
from pipeline.find.walk import walk_store
from tests.cloud_servers import ACCOUNT, KEY, KINDS, Kind, cloud_server, put_folder
from tests.forking import Running
from tests.helpers import Command, make_photos, rows
from tests.store_server import Faults, faulty_proxy
from tests.test_containers import shard

pytestmark = pytest.mark.stores
KILLS = {"s3": 30, "azure": 10, "google": 10}


@dataclass(frozen=True)
class Store:
    """A bucket of a server, and two ways to it."""

    kind: Kind
    bucket: str
    fs: pafs.FileSystem  # without faults
    port: int  # of a proxy that makes faults
    faults: Faults

    def uri(self, path: str) -> str:
        return self.kind.uri(self.bucket, path, self.port)

    def place(self, path: str) -> StorePath:
        place = at(self.uri(path))
        assert isinstance(place, StorePath)
        return place

    def put(self, folder: Path, to: str) -> None:
        put_folder(self.fs, folder, f"{self.bucket}/{to}")

    def keys(self, below: str) -> list[str]:
        found = self.fs.get_file_info(
            pafs.FileSelector(f"{self.bucket}/{below}", recursive=True, allow_not_found=True)
        )
        return sorted(
            entry.path.removeprefix(f"{self.bucket}/{below}/")
            for entry in found
            if entry.type == pafs.FileType.File
        )


@contextmanager
def started(kind: Kind, folder: Path) -> Iterator[tuple[Kind, int]]:
    if reason := kind.missing():
        pytest.skip(reason)
    with cloud_server(kind, folder) as port:
        yield kind, port


@pytest.fixture(scope="module")
def azure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kind, int]]:
    with started(KINDS["azure"], tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(scope="module")
def google_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kind, int]]:
    with started(KINDS["google"], tmp_path_factory.mktemp("google")) as server:
        yield server


@contextmanager
def connected(
    server: tuple[Kind, int], test: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    kind, upstream = server
    for name, value in kind.environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"b{abs(hash(test)):x}"[:20]
    # Google's emulator answers one connection at a time: each proxy ends one with each request.
    # And Azure's client, in pyarrow, now and then takes an answer that comes as quickly as here for a
    # part of the one before, and ends the process.
    is_quick = kind.name != "azure"
    with (
        faulty_proxy(upstream, is_quick) as (without, _),
        faulty_proxy(upstream, is_quick) as (port, faults),
    ):
        fs = kind.connect(without)
        fs.create_dir(bucket, recursive=False)
        yield Store(kind, bucket, fs, port, faults)
    connections.forget()


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kind, int]]:
    with started(KINDS["s3"], tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(
    s3_server: tuple[Kind, int], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    with connected(s3_server, request.node.name, monkeypatch) as store:
        yield store


@pytest.fixture
def azure(
    azure_server: tuple[Kind, int],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Store]:
    with connected(azure_server, request.node.name, monkeypatch) as store:
        yield store


@pytest.fixture
def google(
    google_server: tuple[Kind, int],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Store]:
    with connected(google_server, request.node.name, monkeypatch) as store:
        yield store


@pytest.fixture(params=["azure", "google"])
def store(request: pytest.FixtureRequest) -> Store:
    found: Store = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def options(small_model: Path) -> list[Any]:
    """Without workers and audit, whose processes one that uses a store starts anew, torch and all."""
    sizes = ["--workers", 0, "--audit", 0, "--shard-size", 8, "--batch-size", 4]
    return ["--model", small_model, "--device", "cpu", *sizes]


def table_in(store: Store, path: str, tmp_path: Path) -> list[dict[str, Any]]:
    copy = tmp_path / "copy.parquet"
    with store.fs.open_input_stream(f"{store.bucket}/{path}") as stream:
        copy.write_bytes(stream.read())
    return rows(copy)


def told(table: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        (row["path"], row["label"], row["error_code"], round(row["probability"] or 0, 5))
        for row in table
    ]


def test_photos_and_table_in_a_bucket(
    tmp_path: Path, store: Store, process: Command, options: list[Any]
) -> None:
    photos = make_photos(tmp_path / "photos", 10)
    make_photos(photos / "more" / "ü x", 3)
    for name in ("a%20b.jpg", "a+b #1.jpg", "[x]~{y}.jpg"):
        (photos / name).write_bytes((photos / "0000.jpg").read_bytes())
    (photos / "broken.jpg").write_bytes(b"no photo")
    shard(photos / "shard-0.tar", 30, 4)
    store.put(photos, "photos")
    local = tmp_path / "local.parquet"
    assert process(photos, "--out", local, *options).returncode == 0
    source, out = store.uri("photos"), store.uri("tables/labels.parquet")
    store.faults.requests.clear()
    ran = process(source, "--out", out, *options, "--max-errors", 4, "--audit", 2)
    assert ran.returncode == 0, ran.stderr
    assert "audit: 2 rows" in ran.stderr
    assert told(table_in(store, "tables/labels.parquet", tmp_path)) == told(rows(local))
    assert "enable_tls" not in ran.stdout + ran.stderr
    again = process(source, "--out", out, *options)
    assert "nothing changed: 21 found" in again.stdout, again.stdout + again.stderr
    ran = process("verify", out)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert store.keys("tables") == [
        ".labels.parquet.job/history.json",
        ".labels.parquet.job/manifest.json",
        ".labels.parquet.job/run.json",
        "labels.parquet",
    ]


def test_one_get_reads_an_image(store: Store, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    data = os.urandom(110_000)
    (tmp_path / "f" / "a b.jpg").write_bytes(data)
    store.put(tmp_path / "f", "f")
    place = store.place("f/a b.jpg")
    store.place("f").is_dir()  # connected
    store.faults.requests.clear()
    assert place.read_bytes() == data
    assert store.faults.requests == {"GET": 1}
    with pytest.raises(FileNotFoundError):
        store.place("f/none.jpg").read_bytes()
    if store.kind.name == "google":
        return  # pyarrow's client keeps all threads waiting, the proxy's too, while it reads a part
    store.faults.requests.clear()
    assert place.read_range(5, 1000) == data[5:1005]
    assert place.read_range(109_990, None) == data[109_990:]
    assert store.faults.requests == {"GET": 2}


def test_what_goes_wrong_on_the_way_costs_no_image(
    tmp_path: Path, store: Store, process: Command, options: list[Any]
) -> None:
    store.put(make_photos(tmp_path / "photos", 12), "photos")
    source, out, faults = store.uri("photos"), tmp_path / "l.parquet", store.faults
    faults.delay_s = 0.02
    faults.refuse |= {f"{number:04}.jpg": 2 for number in range(4)} | {"0005.jpg": 999}
    faults.cut |= {"0006.jpg": 2}
    faults.deny |= {"0007.jpg": 999}
    faults.gone |= {"0008.jpg": 999}
    impatient = "import jobs.storage.retry\njobs.storage.retry._FIRST_PAUSE_S = 0.01"
    ran = process(source, "--out", out, *options, "--max-errors", 3, before=impatient)
    assert ran.returncode == 0, ran.stderr
    failed = {row["path"]: row["error_code"] for row in rows(out) if row["error_code"]}
    assert failed == {
        "0005.jpg": "read_error",
        "0007.jpg": "permission_denied",
        "0008.jpg": "not_found",
    }
    faults.refuse, faults.deny, faults.gone = {}, {}, {}
    ran = process(source, "--out", out, *options)
    assert ran.stdout.startswith("12 found, 3 labelled, 9 carried over, 0 failed"), ran.stderr


def kill_until_done(
    store: Store,
    kills: int,
    tmp_path: Path,
    process: Command,
    starting: Callable[..., Running],
    options: list[Any],
) -> int:
    """Kill runs at random moments, each a table of its own that must end as an undisturbed one."""
    store.put(make_photos(tmp_path / "photos", 24), "photos")
    source, whole = store.uri("photos"), tmp_path / "whole.parquet"
    before = time.monotonic()
    assert process(source, "--out", whole, *options).returncode == 0
    longest, generator = time.monotonic() - before, random.Random(2026)
    killed = table = 0
    while killed < kills:
        table += 1
        name = f"tables/{table}.parquet"
        arguments = [source, "--out", store.uri(name), *options]
        for _ in range(min(3, kills - killed)):
            job = f"tables/.{table}.parquet.job"
            with starting(*arguments) as running:
                wanted = len(store.keys(f"{job}/receipts")) + generator.randrange(1, 3)
                deadline = time.monotonic() + 60 + longest
                while running.poll() is None and len(store.keys(f"{job}/receipts")) < wanted:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                time.sleep(generator.choice([0, 0.02, 0.2]) * generator.random())
                if running.poll() is None:
                    killed += 1
                running.send_signal(signal.SIGKILL)
        ran = process(*arguments)
        assert ran.returncode == 0, ran.stderr
        assert table_in(store, name, tmp_path) == rows(whole), f"table {table}"
        print(f"{store.kind.name}: {killed} of {kills} kills, {table} tables the same", flush=True)
    return killed


def test_killed_runs_go_on(
    tmp_path: Path,
    store: Store,
    process: Command,
    starting: Callable[..., Running],
    options: list[Any],
) -> None:
    assert kill_until_done(store, 1, tmp_path, process, starting, options) == 1


@pytest.mark.soak
@pytest.mark.parametrize("kind", list(KINDS))
def test_many_killed_runs_go_on(
    tmp_path: Path,
    kind: str,
    request: pytest.FixtureRequest,
    process: Command,
    starting: Callable[..., Running],
    options: list[Any],
) -> None:
    store = request.getfixturevalue(kind)
    assert kill_until_done(store, KILLS[kind], tmp_path, process, starting, options) >= KILLS[kind]


def test_readers_see_an_azure_object_before_or_after(azure: Store, tmp_path: Path) -> None:
    """Never an empty one, which pyarrow.fs puts first; also where several requests put it."""
    place, seen, done = azure.place("t.bin"), set(), threading.Event()
    sizes = [1000, 20 << 20, 2000]

    def look() -> None:
        while not done.is_set():
            seen.add(azure.fs.get_file_info(f"{azure.bucket}/t.bin").size)

    local = tmp_path / "t.bin"
    local.write_bytes(b"x" * sizes[0])
    place.upload(local)
    reader = threading.Thread(target=look)
    reader.start()
    for size in sizes[1:]:
        local.write_bytes(os.urandom(size))
        place.upload(local, "text/plain")
    done.set()
    reader.join()
    assert seen <= set(sizes), seen
    assert place.read_bytes() == local.read_bytes()


def check_for_some_time(lease: Lease) -> None:
    for _ in range(200):
        lease.check()
        time.sleep(0.05)


def test_a_lease_in_azure_is_held_by_one_and_taken_over(
    azure: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = azure.place(".l.job/lease.json")
    with hold_lease(place) as lease:
        assert lease
        lease.check()
        with pytest.raises(JobLocked, match=f"process {os.getpid()}"), hold_lease(place):
            pass
    assert azure.keys(".l.job") == [], "given back"
    write_json(place, {"pid": 1, "host": "another"})
    with pytest.raises(JobLocked, match="on another"), hold_lease(place):
        pass
    assert azure.keys(".l.job") == ["lease.json"], "no clock is left"
    monkeypatch.setattr(lease_module, "_STORE_DIFFERS_S", 1)
    monkeypatch.setattr(lease_module, "LEASE_S", 1.0)
    time.sleep(3.1)  # nobody renews it
    monkeypatch.setattr(lease_module, "_RENEW_EVERY_S", 0.1)
    with hold_lease(place) as lease:
        assert lease
        time.sleep(1.5)
        lease.check()  # renewed
        write_json(place, {"pid": 1, "host": "another"})
        with pytest.raises(JobError, match="taken by another run"):
            check_for_some_time(lease)  # until the next renewal finds it out
    assert json.loads(place.read_bytes())["host"] == "another", "it is the other's to give back"


def test_a_lease_in_azure_whose_answer_was_lost_is_known_again(azure: Store) -> None:
    azure.faults.lose["lease.json"] = 1
    with hold_lease(azure.place(".l.job/lease.json")) as lease:
        assert lease
        assert azure.faults.lose == {"lease.json": 0}
        lease.check()
    assert azure.keys(".l.job") == []


def test_folders_in_google_are_found_and_left_out(google: Store, tmp_path: Path) -> None:
    """Nothing marks them there; pyarrow.fs lists none of them."""
    photos = tmp_path / "photos"
    for name in ("a.jpg", "x/b.jpg", "x/deep/c.jpg", "no/d.jpg", "no/deep/e.jpg"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(b"x")
    google.put(photos, "photos")
    asked: list[str] = []

    def enter(folder: str) -> bool:
        asked.append(folder)
        return folder != "no"

    found = walk_store(google.place("photos"), enter, {})
    assert sorted(path for path, _ in found) == ["a.jpg", "x/b.jpg", "x/deep/c.jpg"]
    assert sorted(asked) == ["no", "x", "x/deep"]


def test_google_has_no_lease(google: Store) -> None:
    with hold_lease(google.place(".l.job/lease.json")) as lease:
        assert lease is None


@pytest.mark.parametrize(
    ("uri", "key"),
    [
        ("abfs://photos@account.dfs.core.windows.net/a/b.jpg", "photos/a/b.jpg"),
        ("abfs://account.blob.core.windows.net/photos/a/b.jpg", "photos/a/b.jpg"),
        ("abfs://account@photos/a/b.jpg", "photos/a/b.jpg"),
        (f"abfs://{ACCOUNT}@127.0.0.1:1/photos/a/b.jpg?enable_tls=false", "photos/a/b.jpg"),
    ],
)
def test_an_azure_account_may_be_written_in_four_ways(
    uri: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    place = at(uri)
    assert isinstance(place, StorePath)
    try:
        assert place.key == key
        client, name = place.client()
        assert client is not None
        assert name == "a/b.jpg"
    finally:
        connections.forget()
