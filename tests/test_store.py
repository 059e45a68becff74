"""Photos and tables in a bucket: a real S3 server on loopback, a proxy that makes faults, real
processes.
"""

import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import JobError, JobLocked
from jobs.job import Job
from jobs.receipts import sha256_file
from jobs.storage import client as store_client
from jobs.storage import connections
from jobs.storage import lease as lease_module
from jobs.storage import object_store as store
from jobs.storage.atomic import atomic_output, write_bytes
from jobs.storage.conditional import AzureObject, Found, S3Object
from jobs.storage.lease import LEASE_S, Lease, hold_lease
from jobs.storage.object_store import StorePath, as_arrow, at
from jobs.storage.retry import persistent
from pipeline.find.tar_archives import members
from pipeline.settings import Settings
from tests.forking import Running
from tests.helpers import ROOT, Command, make_photos, rows
from tests.store_server import CREDENTIALS, Faults, client, faulty_proxy, s3_server, upload
from tests.test_containers import shard

pytest.importorskip("moto")
from botocore.exceptions import ClientError


@pytest.fixture(scope="session")
def server() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture
def bucket(server: int, request: pytest.FixtureRequest) -> str:
    name = f"b{abs(hash(request.node.name)):x}"[:20]
    client(server).create_bucket(Bucket=name)
    return name


@pytest.fixture
def proxy(server: int) -> Iterator[tuple[int, Faults]]:
    with faulty_proxy(server) as started:
        yield started


@pytest.fixture
def faults(proxy: tuple[int, Faults]) -> Faults:
    return proxy[1]


@pytest.fixture
def environment(proxy: tuple[int, Faults]) -> dict[str, str]:
    return CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy[0]}"}


@pytest.fixture
def options(small_model: Path) -> list[Any]:
    return [
        "--model",
        small_model,
        "--device",
        "cpu",
        "--workers",
        2,
        "--shard-size",
        8,
        "--batch-size",
        4,
    ]


@pytest.fixture
def alone(options: list[Any]) -> list[Any]:
    """Without workers and audit, whose processes one that uses a store starts anew, torch and all:
    for runs whose test has seen them at work, or is about something else.
    """
    return [*options, "--workers", 0, "--audit", 0]


@pytest.fixture
def connected(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process may use the store, and forgets it afterwards."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    yield
    connections.forget()


def table_at(text: str, tmp_path: Path) -> Path:
    """A copy of a table in the store."""
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(at(text).read_bytes())
    return copy


def names_and_labels(table: Path) -> list[tuple[Any, ...]]:
    """To five places: alone in its batch an image's probabilities may differ in the last bit."""
    return [
        (row["path"], row["label"], row["error_code"], round(row["probability"] or 0, 5))
        for row in rows(table)
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
def test_photos_and_table_in_a_bucket(
    tmp_path: Path,
    server: int,
    bucket: str,
    environment: dict[str, str],
    process: Command,
    command: Command,
    options: list[Any],
    alone: list[Any],
) -> None:
    photos = make_photos(tmp_path / "photos", 11)
    make_photos(photos / "more" / "ü x", 3)
    (photos / "broken.jpg").write_bytes(b"no photo")
    (photos / "notes.txt").write_bytes(b"no image by name")
    shard(photos / "shard-0.tar", 30, 6)
    upload(client(server), photos, bucket, "photos")
    local = tmp_path / "local.parquet"
    assert command(photos, "--out", local, *alone).returncode == 0

    source, out = f"s3://{bucket}/photos", f"s3://{bucket}/tables/labels.parquet"
    embeddings = f"s3://{bucket}/embeddings"
    beside = ("--embeddings", embeddings)
    planned = command("plan", source, "--out", out, *options, *beside)
    assert (planned.returncode, "21  new" in planned.stdout) == (0, True), planned.stderr
    # With workers, which such a process starts in another way: the one run here that has them.
    ran = process(source, "--out", out, *options, *beside, "--audit", 4, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith(f"-> {out}\n")
    assert "audit: 4 rows" in ran.stderr
    assert names_and_labels(table_at(out, tmp_path)) == names_and_labels(local)
    assert {row["root"] for row in rows(table_at(out, tmp_path))} == {source}
    again = command(source, "--out", out, *alone, *beside)
    assert "nothing changed: 21 found" in again.stdout, again.stderr
    for words in (("verify", out), ("status", out), ("verify", embeddings)):
        ran = command(*words)
        assert ran.returncode == 0, ran.stderr
    assert "20 rows" in ran.stdout
    differing = f"s3://{bucket}/differing.parquet"
    ran = command("diff", local, out, "--out", differing)
    # By the path below the roots, which differ.
    assert "21 compared: the same file in both\n" in ran.stdout, ran.stdout + ran.stderr
    assert "0 of 20 changed (0.00%)" in ran.stdout
    assert len(pq.read_table(as_arrow(at(differing)))) == 0
    s3 = client(server)
    left = [
        entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket, Prefix="tables/")["Contents"]
    ]
    assert [key for key in left if not key.endswith("/")] == [
        "tables/.labels.parquet.job/history.json",
        "tables/.labels.parquet.job/manifest.json",
        "tables/.labels.parquet.job/run.json",
        "tables/labels.parquet",
    ]

    s3.put_object(Bucket=bucket, Key="photos/0000.jpg", Body=(photos / "0001.jpg").read_bytes())
    s3.delete_object(Bucket=bucket, Key="photos/0002.jpg")
    ran = command(source, "--out", out, *alone, *beside)
    assert ran.stdout.startswith(
        "20 found, 1 labelled, 19 carried over (1 of them failed earlier), 1 gone"
    ), ran.stdout
    ran = command("verify", embeddings)
    assert "19 rows" in ran.stdout
    mixed = command(photos, source, "--out", f"s3://{bucket}/many/", *alone)
    assert mixed.stdout.startswith("41 found"), mixed.stderr
    assert [path.name for path in at(f"s3://{bucket}/many").iterdir()] == ["part-00000.parquet"]
    ran = command("verify", f"s3://{bucket}/many")
    assert "41 rows" in ran.stdout, ran.stdout + ran.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
def test_of_an_archive_that_grew_in_a_bucket_only_the_new_images_are_labelled(
    tmp_path: Path,
    server: int,
    bucket: str,
    command: Command,
    alone: list[Any],
) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    arguments = (f"s3://{bucket}/photos", "--out", f"s3://{bucket}/l.parquet", *alone)
    for n, said in ((6, "6 found, 6 labelled"), (9, "9 found, 3 labelled, 6 carried over")):
        if n == 9:
            time.sleep(1.1)  # a store's times are in seconds
        shard(packed / "x.tar", 0, n)
        upload(client(server), packed, bucket, "photos")
        ran = command(*arguments)
        assert ran.stdout.startswith(said), ran.stdout + ran.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
def test_what_goes_wrong_on_the_way_costs_no_image(
    tmp_path: Path,
    server: int,
    bucket: str,
    faults: Faults,
    command: Command,
    alone: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jobs.storage.retry._FIRST_PAUSE_S", 0.01)
    photos = make_photos(tmp_path / "photos", 24)
    upload(client(server), photos, bucket, "photos")
    source, out = f"s3://{bucket}/photos", tmp_path / "l.parquet"
    faults.delay_s = 0.02
    faults.refuse |= {f"{number:04}.jpg": 2 for number in range(12)} | {"0012.jpg": 999}
    faults.cut |= {"0013.jpg": 2, "0014.jpg": 999}  # what broke off is gone on with, and whole
    faults.deny |= {"0015.jpg": 999}
    faults.gone |= {"0016.jpg": 999}
    ran = command(source, "--out", out, *alone, "--max-errors", 4)
    assert ran.returncode == 0, ran.stderr
    failed = {row["path"]: row["error_code"] for row in rows(out) if row["error_code"]}
    assert failed == {
        "0012.jpg": "read_error",
        "0015.jpg": "permission_denied",
        "0016.jpg": "not_found",
    }
    assert faults.most_at_once >= 4, "reads wait for one another"
    faults.refuse, faults.cut, faults.deny, faults.gone = {}, {}, {}, {}
    ran = command(source, "--out", out, *alone)
    assert ran.stdout.startswith("24 found, 3 labelled, 21 carried over, 0 failed")


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
def test_a_killed_run_goes_on_and_two_are_kept_apart(
    tmp_path: Path,
    server: int,
    bucket: str,
    faults: Faults,
    starting: Callable[..., Running],
    command: Command,
    alone: list[Any],
) -> None:
    photos = make_photos(tmp_path / "photos", 24)
    upload(client(server), photos, bucket, "photos")
    source, out = f"s3://{bucket}/photos", f"s3://{bucket}/labels.parquet"
    whole = tmp_path / "whole.parquet"
    assert command(source, "--out", whole, *alone).returncode == 0
    faults.delay_s = 0.02  # so that there is time between the first shard and the last
    with starting(source, "--out", out, *alone) as running:
        s3, deadline = client(server), time.monotonic() + 90
        while not s3.list_objects_v2(Bucket=bucket, Prefix=".labels.parquet.job/receipts/0").get(
            "KeyCount"
        ):
            assert running.poll() is None, running.said()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running.send_signal(signal.SIGSTOP)
        faults.delay_s = 0
        second = command(source, "--out", out, *alone)
        assert (second.returncode, f"process {running.pid}" in second.stderr) == (4, True), (
            second.stderr
        )
    ran = command(source, "--out", out, *alone)
    assert ran.returncode == 0, ran.stderr
    assert "going on: " in ran.stderr
    assert rows(table_at(out, tmp_path)) == rows(whole)
    assert command("verify", out).returncode == 0


def check_for_a_minute(lease: Lease) -> None:
    for _ in range(600):
        lease.check()
        time.sleep(0.1)


@pytest.mark.usefixtures("connected")
def test_a_lease_is_held_by_one_and_runs_out(
    bucket: str, monkeypatch: pytest.MonkeyPatch, server: int, faults: Faults
) -> None:
    place = at(f"s3://{bucket}/.l.job/lease.json")
    assert isinstance(place, StorePath)
    s3 = client(server)

    def put(**holder: Any) -> None:
        s3.put_object(Bucket=bucket, Key=".l.job/lease.json", Body=json.dumps(holder).encode())

    with hold_lease(place) as lease:
        assert lease
        lease.check()
        with (
            pytest.raises(JobLocked, match=f"process {os.getpid()} on {socket.gethostname()}"),
            hold_lease(place),
        ):
            pass
    assert not place.exists(), "given back"
    put(pid=1, host="another")
    with pytest.raises(JobLocked, match="on another"), hold_lease(place):
        pass
    faults.later_s = LEASE_S + 10
    with hold_lease(place) as lease:
        assert lease, "nobody renewed it"
    faults.later_s = 0
    monkeypatch.setattr("jobs.storage.lease._RENEW_EVERY_S", 0.05)
    with hold_lease(place) as lease:
        assert lease
        time.sleep(0.5)
        lease.check()  # renewed
        put(pid=1, host="another")
        with pytest.raises(JobError, match="taken by another run"):
            check_for_a_minute(lease)  # until the next renewal finds it out
    assert place.exists(), "it is the other's to give back"
    monkeypatch.setitem(sys.modules, "boto3", None)
    with hold_lease(place) as lease:
        assert lease is None


@pytest.fixture
def put_lease(bucket: str, server: int) -> Callable[..., None]:
    """Put a lease as another run would have."""

    def put(**holder: Any) -> None:
        body = json.dumps(holder).encode()
        client(server).put_object(Bucket=bucket, Key=".l.job/lease.json", Body=body)

    return put


@pytest.fixture
def lease_place(connected: None, bucket: str) -> StorePath:
    place = at(f"s3://{bucket}/.l.job/lease.json")
    assert isinstance(place, StorePath)
    return place


def test_a_lease_whose_answer_was_lost_is_known_again(
    lease_place: StorePath, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has it; the request that is sent again is refused, as if it were another's."""
    monkeypatch.setattr("jobs.storage.lease._RENEW_EVERY_S", 0.05)
    faults.lose["lease.json"] = 1
    with hold_lease(lease_place) as lease:
        assert lease, "taken"
        lease.check()
        for _ in range(2):
            before, faults.lose["lease.json"] = lease._tag, 1
            deadline = time.monotonic() + 30
            while faults.lose["lease.json"] or lease._tag == before:
                lease.check()  # renewed
                assert time.monotonic() < deadline
                time.sleep(0.02)
        # No answer at all, also to what was sent again: the next renewal finds an older one of its.
        lease._ended.set()
        lease._renewer.join()
        faults.lose["lease.json"] = 999
        counts_until = lease._until
        with pytest.raises(OSError, match="closed"):
            lease._put(lease._tag)
        faults.lose.clear()
        monkeypatch.setattr("jobs.storage.lease._now", lambda: counts_until + 30)
        assert lease._put(lease._tag)
        assert counts_until < lease._until < counts_until + 30, "it counts from when it was put"
        monkeypatch.undo()
        lease.check()
    assert not lease_place.exists(), "given back"


def test_who_put_the_lease_is_told_by_its_nonce(
    lease_place: StorePath, put_lease: Callable[..., None]
) -> None:
    with hold_lease(lease_place) as lease:
        assert lease
        said = json.loads(lease_place.read_bytes())
        put_lease(**said | {"nonce": "another run in the same process"})
        assert not lease._put(lease._tag)
    assert lease_place.exists(), "it is the other's to give back"


def test_a_lease_that_another_took_meanwhile_is_not_deleted(
    lease_place: StorePath, put_lease: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is looked at, and between the look and the deletion."""
    with hold_lease(lease_place):
        put_lease(pid=1, host="another")
    assert json.loads(lease_place.read_bytes())["host"] == "another"
    lease_place.unlink()
    read = Lease._read

    def read_then_lost(lease: Lease) -> Any:
        found = read(lease)
        put_lease(pid=1, host="another")
        return found

    with hold_lease(lease_place):
        monkeypatch.setattr(Lease, "_read", read_then_lost)
    assert json.loads(lease_place.read_bytes())["host"] == "another"


class Unconditional:
    """A store's object that is deleted without a condition, as Azure's; to read it takes `wait_s`."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s, self.now, self.data = wait_s, 0.0, b""
        self.is_deleted = False

    def put(self, data: bytes, tag: str | None) -> str:
        self.data = data
        return "1"

    def read(self) -> Found:
        self.now += self.wait_s
        return Found(self.data, "1", lambda: 0.0)

    def delete(self, tag: str) -> None:
        self.is_deleted = True


@pytest.mark.parametrize(("wait_s", "is_deleted"), [(1, True), (LEASE_S + 1, False)])
def test_a_lease_that_ran_out_while_it_was_read_is_not_deleted(
    wait_s: float, is_deleted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be another's by then."""
    stored: Any = Unconditional(wait_s)
    monkeypatch.setattr(lease_module, "_now", lambda: stored.now)
    lease = Lease(stored, StorePath("abfs://photos/lease.json"))
    lease.acquire()
    lease.release()
    assert stored.is_deleted == is_deleted


def test_an_azure_token_is_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.storage.retry._FIRST_PAUSE_S", 0.001)
    token = "se=2027&sig=SECRET%3D&sp=r"
    address = f"http://127.0.0.1:1/account/photos/a%20b?{token}"
    text, shown = f"no answer of '{address}': it is away", "/account/photos/a%20b': it"
    for error in (OSError(text), OSError(5, text), FileNotFoundError(2, text)):

        def fail(error: OSError = error) -> None:
            raise error

        with pytest.raises(type(error)) as raised:
            persistent(fail)()
        told = "".join(traceback.format_exception(raised.value)) + str(raised.value.strerror)
        assert "SECRET" not in told
        assert shown in told
    # With its question mark and without, as Azure's own tools print it.
    for given in (token, f"?{token}"):
        monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", given)
        place = at("abfs://photos@account.dfs.core.windows.net/a.jpg?enable_tls=true")
        assert isinstance(place, StorePath)
        try:
            assert place.fs.__reduce__()[1][0]["sas_token"] == f"?{token}"
        finally:
            connections.forget()


def test_azure_s_clock_may_be_swept_by_the_run_that_holds_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever looks at its lease then still hears that the job is held."""
    monkeypatch.setattr("jobs.storage.retry._FIRST_PAUSE_S", 0.001)
    now, swept = datetime.now(UTC), [True, False]

    class Swept:
        def put_if(self, key: str, data: bytes, tag: str | None) -> str:
            return "1"

        def read_with_tag(self, key: str) -> tuple[bytes, str, datetime]:
            if key.endswith(".new") and swept.pop(0):
                raise FileNotFoundError
            return b"", "1", now

        def delete(self, key: str) -> None:
            raise FileNotFoundError

    client: Any = Swept()
    found = AzureObject(client, "lease.json").read()
    assert found
    assert found.age_s() == 0


def test_a_store_without_conditional_deletes_has_the_lease_deleted(
    lease_place: StorePath,
) -> None:
    with hold_lease(lease_place) as lease:
        assert lease
        assert isinstance(lease.stored, S3Object)
        s3 = lease.stored.client
        delete = s3.delete_object

        def delete_object(**request: Any) -> Any:
            if "IfMatch" in request:
                answer: Any = {
                    "Error": {"Code": "NotImplemented"},
                    "ResponseMetadata": {"HTTPStatusCode": 501},
                }
                raise ClientError(answer, "DeleteObject")
            return delete(**request)

        s3.delete_object = delete_object
    assert not lease_place.exists()


def test_only_a_process_of_this_boot_and_namespace_is_known_to_be_dead(
    lease_place: StorePath, put_lease: Callable[..., None]
) -> None:
    """Containers may share a host's name, and none sees the processes of another."""
    with hold_lease(lease_place):
        holder = json.loads(lease_place.read_bytes())
    assert holder["pid"] == os.getpid()
    dead = subprocess.Popen(["true"])
    dead.wait()
    holder["pid"] = dead.pid
    nowhere = {
        name: holder[name] for name in holder if name not in ("boot_id", "pid_namespace", "nonce")
    }
    for another in (
        nowhere,
        holder | {"boot_id": "another"},
        holder | {"pid_namespace": "pid:[1]"},
        holder | {"host": "another"},
        holder | {"pid": os.getpid()},
        holder | {"pid": 1 << 80},
        holder | {"pid": None},
    ):
        put_lease(**another)
        with pytest.raises(JobLocked), hold_lease(lease_place):
            pass
    put_lease(**holder)
    with hold_lease(lease_place) as lease:
        assert lease, "its process is dead"


def test_where_the_system_names_no_namespace_no_process_is_known_to_be_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    monkeypatch.setattr(lease_module, "_where_pids", dict)
    assert not lease_module._is_dead({"pid": dead.pid, "host": socket.gethostname()})


@pytest.mark.parametrize("skew_s", [-3600, 3600], ids=["behind", "ahead"])
@pytest.mark.usefixtures("connected")
def test_a_lease_knows_no_clock_but_the_store_s(
    bucket: str, monkeypatch: pytest.MonkeyPatch, faults: Faults, skew_s: int
) -> None:
    """The holder's clock is an hour off, and so is, the other way round, that of who comes next."""
    place = at(f"s3://{bucket}/.l.job/lease.json")
    assert isinstance(place, StorePath)
    now = time.time

    def contend(skew_s: int) -> Any:
        patch.setattr(time, "time", lambda: now() + skew_s)
        # As if it ran on another machine, where nobody knows which processes live.
        patch.setattr(socket, "gethostname", lambda: f"of {skew_s}")
        return hold_lease(place)

    with monkeypatch.context() as patch, contend(skew_s) as lease:
        assert lease
        for of_another in (0, -skew_s):
            with pytest.raises(JobLocked, match=f"on of {skew_s}"), contend(of_another):
                pass
        lease.check()
        # The holder hangs. Its lease is the next one's, and it finds that out whatever its clock.
        lease._ended.set()
        lease._renewer.join()
        faults.later_s = LEASE_S + 10
        with contend(0) as taken:
            assert taken
            taken.check()
        faults.later_s = 0
        boot = time.clock_gettime
        patch.setattr(time, "clock_gettime", lambda clock: boot(clock) + LEASE_S)
        with pytest.raises(JobError, match="could not be renewed"):
            lease.check()


@pytest.mark.usefixtures("connected")
def test_places_in_a_store_are_used_as_paths_are(bucket: str, tmp_path: Path) -> None:
    root = at(f"s3://{bucket}/a%20folder/?region=us-east-1")
    assert isinstance(root, StorePath)
    assert (str(root), root.name, str(root.parent)) == (
        f"s3://{bucket}/a folder",
        "a folder",
        f"s3://{bucket}",
    )
    file = root / ".x.job" / "y.json"
    assert not file.exists()
    assert not root.is_dir()
    local = tmp_path / "file"
    local.write_bytes(os.urandom(20 << 20))  # more than one request takes
    file.upload(local)
    assert file.is_file()
    assert root.is_dir()
    assert file.read_bytes() == local.read_bytes()
    assert file.read_range(5, 3) == local.read_bytes()[5:8]
    assert [path.name for path in file.parent.iterdir()] == ["y.json"]
    assert list(file.parent.glob("*.part")) == []
    assert store.local_copy(file).read_bytes() == local.read_bytes()
    copy = pickle.loads(pickle.dumps(file))
    assert copy == file
    assert copy.is_file()
    file.unlink()
    file.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    assert at(tmp_path) == at(f"file://{tmp_path}") == tmp_path
    assert store.start_method() == "forkserver"


@pytest.mark.usefixtures("connected")
def test_a_place_carries_how_to_connect_and_does_not_tell(bucket: str, tmp_path: Path) -> None:
    query = "region=us-east-1&allow_bucket_creation=true"
    root = at(f"s3://{bucket}/photos?{query}")
    assert isinstance(root, StorePath)
    assert store.start_method() == "fork", "naming a place connects to nothing"
    assert not connections.is_connected()
    for place in (
        root,
        root / "a.jpg",
        root.parent,
        root.with_name("x"),
        pickle.loads(pickle.dumps(root)),
        store.at_one_of([Path("/photos"), at("s3://another"), root], f"s3://{bucket}/photos/x.tar"),
    ):
        assert place.query == query
        assert place.client_options()["region_name"] == "us-east-1"
        settings = Settings(paths=(root, place), out=place, forget=(place,))
        for told in (str(place), repr(place), repr(settings), json.dumps(settings.to_record())):
            assert "us-east-1" not in told
    assert root == at(f"s3://{bucket}/photos"), "it is the same place"
    assert store.start_method() == "forkserver"
    # Of one bucket named in two ways each keeps its own.
    assert (
        at(f"s3://{bucket}/photos?region=eu-west-1").client_options()["region_name"] == "eu-west-1"
    )
    assert root.client_options()["region_name"] == "us-east-1"


@pytest.mark.usefixtures("connected")
def test_a_store_that_is_not_there_is_told(
    tmp_path: Path, bucket: str, command: Command, alone: list[Any]
) -> None:
    for arguments, code, advice in (
        (
            (f"s3://{bucket}/nothing", "--out", tmp_path / "l.parquet"),
            2,
            "does not exist; name a bucket",
        ),
        (
            ("nix://bucket/photos", "--out", tmp_path / "l.parquet"),
            2,
            "nix://bucket cannot be used",
        ),
        (
            (ROOT / "examples", "--out", "s3://no-such-bucket-here/l.parquet"),
            5,
            "no-such-bucket-here",
        ),
    ):
        ran = command(*arguments, *alone)
        assert (ran.returncode, advice in ran.stderr, "Traceback" in ran.stderr) == (
            code,
            True,
            False,
        ), ran.stderr
    assert not (tmp_path / "l.parquet").exists()


READS: dict[str, Any] = {
    "digest": sha256_file,
    "table": lambda path: pq.read_table(as_arrow(path)).num_rows,
    "metadata": lambda path: pq.read_metadata(as_arrow(path)).num_rows,
    "tar": lambda path: list(members(path.with_name("x.tar").open())),
    "copy": lambda path: store.local_copy(path).read_bytes(),
}


def stored(bucket: str, server: int, tmp_path: Path) -> StorePath:
    """A table in the store, and an archive beside it."""
    pq.write_table(pa.table({"a": range(100_000)}), tmp_path / "t.parquet")
    shard(tmp_path / "x.tar", 1, 3)
    upload(client(server), tmp_path, bucket, "f")
    path = at(f"s3://{bucket}/f/t.parquet")
    assert isinstance(path, StorePath)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "name"), [("refuse", "table"), pytest.param("cut", "tar", marks=pytest.mark.soak)]
)
@pytest.mark.usefixtures("connected")
def test_what_is_read_as_a_file_is_asked_for_again(
    bucket: str, server: int, faults: Faults, tmp_path: Path, fault: str, name: str
) -> None:
    """Once more than the store's client does by itself, which gives up after 31 answers.

    CI has the answers that refuse; those that break off are soak's.
    """
    path, read = stored(bucket, server, tmp_path), READS[name]
    expected = read(path)
    setattr(faults, fault, {bucket: 33})
    assert read(path) == expected
    assert getattr(faults, fault) == {bucket: 0}, "nothing went wrong"
    faults.gone[bucket] = 999
    with pytest.raises(FileNotFoundError):
        path.open()


class Unreliable:
    """A file system whose first requests fail, and each first one to a file that was opened."""

    def __init__(self, fs: Any) -> None:
        self.fs, self.failures = fs, 0

    def fail(self, most: int) -> None:
        if self.failures < most:
            self.failures += 1
            raise OSError("AWS Error NETWORK_CONNECTION during GetObject operation")

    def open_input_file(self, key: str) -> Any:
        self.fail(2)
        file = self.fs.open_input_file(key)

        def read_at(size: int, start: int) -> bytes:
            self.fail(4)
            return bytes(file.read_at(size, start))

        return SimpleNamespace(
            size=file.size, read_at=read_at, metadata=file.metadata, close=file.close
        )


@pytest.mark.parametrize("name", READS)
@pytest.mark.usefixtures("connected")
def test_each_way_of_reading_goes_on_after_a_request_that_failed(
    bucket: str, server: int, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = stored(bucket, server, tmp_path), READS[name]
    expected = read(path)
    unreliable = Unreliable(path.fs)
    monkeypatch.setattr("jobs.storage.retry._FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(StorePath, "fs", unreliable)
    assert read(path) == expected
    assert unreliable.failures == 4


@pytest.mark.usefixtures("connected")
def test_bytes_of_two_objects_of_one_name_are_never_joined(bucket: str, server: int) -> None:
    """Where a request fails, the file is opened anew: by then a run may have replaced it."""
    put = {"Bucket": bucket, "Key": "t"}
    client(server).put_object(**put, Body=b"a" * 3000)
    path = at(f"s3://{bucket}/t")
    assert isinstance(path, StorePath)
    file = path.as_file()
    assert file.read(1000) == b"a" * 1000
    file._file = None  # as after a request that failed
    assert file.read(1000) == b"a" * 1000, "it is the same object"
    client(server).put_object(**put, Body=b"b" * 3000)
    file._file = None
    before = time.monotonic()
    with pytest.raises(OSError, match="replaced while it was read"):
        file.read(1000)
    assert time.monotonic() - before < 1, "asked again it would be no other"


class _Trickle(BaseHTTPRequestHandler):
    """Answers a byte at a time."""

    def do_GET(self) -> None:
        self.send_response(200)
        for name, value in (
            ("Content-Length", "16"),
            ("ETag", '"1"'),
            ("Last-Modified", "Sun, 29 Nov 2026 00:00:00 GMT"),
        ):
            self.send_header(name, value)
        self.end_headers()
        for _ in range(16):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.1)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.mark.usefixtures("connected")
def test_a_slow_line_is_no_fault_as_long_as_something_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here a hundred times as fast as in earnest: 32 photos at once over a home's line take so long."""
    seconds = {name: int(text[:-1]) for name, text in store_client._TIMES.items()}
    monkeypatch.setattr(
        store_client, "_TIMES", {name: f"{s * 10}ms" for name, s in seconds.items()}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Trickle)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    try:
        place = at("s3://bucket/slow.jpg?region=us-east-1")
        assert isinstance(place, StorePath)
        client, key = place.client()
        assert client is not None
        assert client.read(key, 0, None) == b"x" * 16
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.usefixtures("connected")
def test_a_signal_leaves_no_part_of_an_object(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that is closed puts what it has: here half of a table in the place of the old one."""

    class Interrupted(BaseException):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    def copy(source: Any, stream: Any, size: int) -> None:
        stream.write(source.read(6 << 20))
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.2)
        stream.write(source.read())

    path, local = at(f"s3://{bucket}/t.parquet"), tmp_path / "t"
    assert isinstance(path, StorePath)
    local.write_bytes(b"old")
    path.upload(local)
    data = os.urandom(12 << 20)
    local.write_bytes(data)
    monkeypatch.setattr(store, "_MOST_COPIED", 1)  # it is put under its name at once
    monkeypatch.setattr(shutil, "copyfileobj", copy)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(Interrupted):
            path.upload(local)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert path.read_bytes() == data


@pytest.mark.parametrize("one_put", [1, 100])
@pytest.mark.usefixtures("connected")
def test_who_lost_the_lease_while_a_table_was_put_does_not_switch_it(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_put: int
) -> None:
    """To put a large one takes minutes, in which another run may have taken over and ended."""
    monkeypatch.setattr(store, "_ONE_PUT", one_put)
    path = at(f"s3://{bucket}/t.parquet")
    assert isinstance(path, StorePath)
    write_bytes(path, b"old")
    put, lost = StorePath._upload, [one_put == 100]

    def slow(self: StorePath, *arguments: Any) -> None:
        put(self, *arguments)
        lost[0] = True

    def check() -> None:
        if lost[0]:
            raise JobError("taken by another run")

    monkeypatch.setattr(StorePath, "_upload", slow)
    with pytest.raises(JobError, match="another run"), atomic_output(path, check) as temporary:
        temporary.write_bytes(b"12345")
    assert path.read_bytes() == b"old"


@pytest.mark.usefixtures("connected")
def test_one_get_reads_an_object_or_a_part_of_it(
    bucket: str, server: int, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(110_000)
    client(server).put_object(Bucket=bucket, Key="p/a b.jpg", Body=data)
    place = at(f"s3://{bucket}/p/a b.jpg")
    assert isinstance(place, StorePath)
    place.client()  # connected
    monkeypatch.setattr("jobs.storage.retry._FIRST_PAUSE_S", 0.001)
    for start, size in ((0, None), (5, 1000), (109_990, None)):
        faults.requests.clear()
        end = len(data) if size is None else start + size
        assert place.read_range(start, size) == data[start:end]
        assert faults.requests == {"GET": 1}
    with pytest.raises(OSError, match="of 20 bytes"):
        place.read_range(109_990, 20)
    assert place.read_range(5, 0) == b""
    connections.forget()
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    faults.requests.clear()
    assert place.read_bytes() == data, "pyarrow.fs reads it, where obstore is not installed"
    assert faults.requests["GET"] == 1
    assert faults.requests["HEAD"]


@pytest.mark.usefixtures("connected")
def test_objects_of_odd_names_are_read(bucket: str, server: int) -> None:
    for name in ("a%20b", "a+b #1?&=", "[x]~{y}*", "ü x/ .jpg ", "tab\there", "a\\b", "'\"<>|`^"):
        data = name.encode()
        client(server).put_object(Bucket=bucket, Key=f"odd/{name}", Body=data)
        place = StorePath(f"s3://{bucket}/odd") / name
        assert place.read_bytes() == data, name
        assert place.read_range(1, 1) == data[1:2], name


@pytest.mark.usefixtures("connected")
def test_credentials_come_from_a_profile_or_from_nowhere(
    bucket: str, server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the environment has no keys, boto3 finds those that pyarrow.fs finds."""
    client(server).put_object(Bucket=bucket, Key="x", Body=b"abc", ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    profiles = tmp_path / "credentials"
    profiles.write_text("[mine]\naws_access_key_id = test\naws_secret_access_key = test\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profiles))
    place = at(f"s3://{bucket}/x")
    assert isinstance(place, StorePath)
    for profile in ("mine", None, "of nobody"):
        if profile:
            monkeypatch.setenv("AWS_PROFILE", profile)
        else:
            monkeypatch.delenv("AWS_PROFILE")
        connections.forget()
        assert place.read_bytes() == b"abc"
        assert (place.client()[0] is None) == (profile == "of nobody")


def test_azure_without_its_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow.fs would put an empty table before it puts the table."""
    monkeypatch.setattr("jobs.storage.client.find_spec", lambda _: None)
    place = at("abfs://photos@account.dfs.core.windows.net/a")
    assert isinstance(place, StorePath)
    with pytest.raises(JobError, match=r"label-images\[azure\]"):
        _ = place.fs


@pytest.mark.usefixtures("connected")
def test_an_object_is_read_as_a_file_is(bucket: str, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "f").write_bytes(data)
    path = at(f"s3://{bucket}/f")
    assert isinstance(path, StorePath)
    path.upload(tmp_path / "f")
    with path.open() as file, (tmp_path / "f").open("rb") as same:
        for step in (
            lambda file: file.read(10),
            lambda file: file.seek(-5, os.SEEK_END),
            lambda file: file.read(10),
            lambda file: file.read(1),
            lambda file: file.seek(1 << 20),
            lambda file: file.seek(7, os.SEEK_CUR),
            lambda file: file.read(1 << 21),
            lambda file: file.tell(),
            lambda file: file.seek(100, os.SEEK_END),
            lambda file: file.read(),
            lambda file: file.seek(1),
            lambda file: file.read(),
        ):
            assert step(file) == step(same)
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("t.parquet", ".t.parquet.job/t.parquet"),
        (".t.parquet.job/parts/00001.part", ".t.parquet.job/parts/00001.part"),
        ("my.job/t.parquet", "my.job/.t.parquet.job/t.parquet"),
    ],
)
@pytest.mark.usefixtures("connected")
def test_the_largest_of_files_are_switched_by_one_copy(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, first: str
) -> None:
    """Each writer puts its own first, where the next run that holds the job finds what is left."""
    monkeypatch.setattr(store, "_ONE_PUT", 1)
    path, local = at(f"s3://{bucket}/{name}"), tmp_path / "t"
    assert isinstance(path, StorePath)
    local.write_bytes(b"12345")
    path.upload(local)
    assert path.read_bytes() == b"12345"
    seen: list[tuple[str, str]] = []
    with monkeypatch.context() as patch:
        patch.setattr(StorePath, "copy_to", lambda new, to: seen.append((new.text, to.text)))
        patch.setattr(StorePath, "unlink", lambda path: None)  # killed between
        for _ in range(2):
            path.upload(local)
    for new, to in seen:
        assert re.fullmatch(rf"s3://{bucket}/{re.escape(first)}\.[0-9a-f]{{8}}\.new", new)
        assert (to, at(new).exists()) == (path.text, True)
    assert len(set(seen)) == 2
    out = at(f"s3://{bucket}/my.job/t.parquet" if "my" in name else f"s3://{bucket}/t.parquet")
    with Job(out).held() as is_alone:
        assert is_alone
        assert not any(at(new).exists() for new, _ in seen), "swept"
    assert path.exists()


@pytest.mark.usefixtures("connected")
def test_nothing_is_swept_in_a_store_where_others_may_be_at_work(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job, local = Job(at(f"s3://{bucket}/t.parquet")), tmp_path / "t"
    local.write_bytes(b"12345")
    half: Any = job.folder / "t.parquet.01234567.new"
    half.upload(local)
    monkeypatch.setitem(sys.modules, "boto3", None)
    with job.held() as is_alone:
        assert not is_alone
        assert half.exists()


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKI7:HUSH@bucket/photos",
        "s3://AKI7:HU/SH@bucket/photos",  # a secret as Amazon gives them, not quoted
        "S3://AKI7:HUSH@bucket/photos?region=x",
        "s3://AKI7:HUSH%2F@bucket",
        "abfs://container:HUSH@account.dfs.core.windows.net/photos",
        "gs://AKI7:HUSH@bucket/photos",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_told(
    uri: str, command: Command, tmp_path: Path, photos: Path
) -> None:
    with pytest.raises(JobError, match="AWS_ACCESS_KEY_ID") as raised:
        at(uri)
    told = [str(raised.value)]
    for arguments in (
        (uri, "--out", tmp_path / "l.parquet"),
        (photos, "--out", uri),
        (photos, "--out", tmp_path / "l.parquet", "--forget", uri, "--log-json"),
        (uri,),
        ("plan", uri, "--out", tmp_path / "l.parquet"),
        ("status", uri),
        ("verify", uri),
    ):
        ran = command(*arguments)
        assert ran.returncode == 2, arguments
        assert "has credentials in it" in ran.stderr.replace("\n", " ")
        told += [ran.stdout, ran.stderr]
    assert not [text for text in told if "HU" in text or "AKI7" in text]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cwd", "photos"]


def test_addresses_that_only_look_like_it_are_taken() -> None:
    for uri in (
        "s3://bucket/a:b@c.jpg",
        "hdfs://namenode:8020/photos",
        "hdfs://user@namenode:8020/photos",
        "gs://anonymous@bucket/photos",
        "abfs://container@account.dfs.core.windows.net/photos",
        "s3://bucket?endpoint_override=127.0.0.1:9000",
    ):
        assert isinstance(at(uri), StorePath), uri


@pytest.mark.parametrize("name", ["bu cket", "bucket"])
def test_what_an_address_asks_for_is_not_told_by_an_error(name: str) -> None:
    place = at(f"s3://{name}/photos?secret_key=SECRET&region=SECRET")
    assert isinstance(place, StorePath)
    with pytest.raises(JobError, match="cannot be used") as raised:
        _ = place.fs
    shown = "".join(traceback.format_exception(raised.value))
    assert "=SECRET" not in shown


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
def test_a_report_of_and_in_a_bucket(
    tmp_path: Path,
    server: int,
    bucket: str,
    environment: dict[str, str],
    process: Command,
    command: Command,
    alone: list[Any],
) -> None:
    photos = make_photos(tmp_path / "photos", 6)
    shard(photos / "shard-0.tar", 30, 4)
    upload(client(server), photos, bucket, "photos")
    source, out = f"s3://{bucket}/photos", f"s3://{bucket}/labels.parquet"
    pages = f"s3://{bucket}/pages/report"
    ran = process(source, "--out", out, *alone, "--report", pages, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert "10 photos shown, 10 thumbnails made" in ran.stderr
    s3 = client(server)

    def keys() -> dict[str, str]:
        found = s3.list_objects_v2(Bucket=bucket, Prefix="pages/report/")["Contents"]
        names = [entry["Key"] for entry in found if not entry["Key"].endswith("/")]
        return {
            name.removeprefix("pages/report/"): s3.head_object(Bucket=bucket, Key=name)["ETag"]
            for name in names
        }

    before = keys()
    assert {"index.html", "labels.html", "report.json"} <= before.keys()
    assert sum(name.startswith("thumbs/") for name in before) == 10
    for name, kind in (("index.html", "text/html; charset=utf-8"), ("thumbs/", "image/jpeg")):
        (key, *_) = [key for key in before if key.startswith(name)]
        head = s3.head_object(Bucket=bucket, Key=f"pages/report/{key}")
        assert head["ContentType"] == kind, "a browser would save it instead of showing it"
    ran = command("report", out, "--out", pages)
    assert "0 thumbnails made" in ran.stdout, ran.stderr
    assert keys() == before
    ran = command("report", out, "--out", f"s3://{bucket}/photos")
    assert ran.returncode == 2, "among the photos"
    ran = command("report", out, "--out", f"s3://{bucket}/pages")
    assert ran.returncode == 5, "a folder of others"
