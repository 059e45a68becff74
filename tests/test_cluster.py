"""The Ray placement: the same table as without it, whoever dies meanwhile. Real Ray, real kills."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.errors import JobLocked
from jobs.job import Job
from jobs.receipts import Receipt, write_receipt
from pipeline.console import Console, Progress
from pipeline.errors import Interrupted
from pipeline.label.deferred import DeferredMachine
from pipeline.label.ray_driver import Cluster, Share, _Counter, _next_task, _share
from pipeline.run import run
from pipeline.settings import Settings
from pipeline.table.table import Table, read_record
from tests.helpers import ROOT, Command, make_photos, rows
from vit.backbone import load_backbone
from vit.checkpoints.bundle import write_bundle
from vit.classifier import with_head
from vit.head import Head

pytest.importorskip("ray")

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "RAY_AUTH_MODE": "disabled",
    "RAY_DEDUP_LOGS": "0",
    "RAY_worker_niceness": "0",  # else other tests, side by side with these, starve Ray's processes
}


def ray_command(*arguments: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments), "--engine", "ray"]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # The cache is the test's own (conftest.py), as where this process runs the command itself.
        env=ENVIRONMENT | {"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]},
        start_new_session=True,
    )


def finished(running: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, error = running.communicate(timeout=120)
    return running.returncode, out, error


def wait_for_receipts(out: Path, n: int, running: "subprocess.Popen[str]") -> None:
    receipts = Job(out).folder / "receipts"
    deadline = time.monotonic() + 90
    while not receipts.is_dir() or len(list(receipts.glob("*.json"))) < n:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    photos = make_photos(tmp_path_factory.mktemp("many") / "photos", 240)
    (photos / "broken.jpg").write_bytes(b"no photo")
    return photos


@pytest.fixture(scope="module")
def options(small_model: Path) -> list[Any]:
    return [
        "--model",
        small_model,
        "--batch-size",
        1,
        "--shard-size",
        8,
        "--workers",
        1,
        "--audit",
        0,
    ]


@pytest.fixture(scope="module")
def expected(
    many: Path, options: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    whole = tmp_path_factory.mktemp("whole") / "l.parquet"
    command = [sys.executable, "-m", "pipeline.cli", many, "--out", whole, *options]
    subprocess.run(
        [str(word) for word in command], env=ENVIRONMENT, check=True, capture_output=True
    )
    return rows(whole)


@pytest.mark.soak
def test_photos_that_moved_take_their_labels_along(
    options: list[Any], process: Command, tmp_path: Path, two_nodes: Any
) -> None:
    photos, out = make_photos(tmp_path / "photos", 40), tmp_path / "l.parquet"
    arguments = [photos, "--out", out, *options, "--embeddings", tmp_path / "embeddings"]
    assert process(*arguments).returncode == 0
    before = {row["content_hash"]: row["top_k"] for row in rows(out)}
    (photos / "sub").mkdir()
    for number in range(30):
        (photos / f"{number:04}.jpg").rename(photos / "sub" / f"{number:04}.jpg")
    shutil.copy(photos / "0035.jpg", photos / "copy.jpg")
    code, said, errors = finished(ray_command(*arguments, "--ray-address", two_nodes.address))
    assert code == 0, errors
    assert said.startswith("41 found, 0 labelled, 31 reused, 10 carried over, 30 gone, 0 failed")
    assert all(row["top_k"] == before[row["content_hash"]] for row in rows(out))
    for place in (out, tmp_path / "embeddings"):
        assert process("verify", place).returncode == 0


@pytest.mark.slow
def test_without_an_address_a_cluster_of_its_own_labels_as_this_machine_does(
    photos: Path, options: list[Any], process: Command, tmp_path: Path
) -> None:
    (photos / "broken.jpg").write_bytes(b"no photo")
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    options = [*options, "--max-errors", 1]
    assert process(photos, "--out", here, *options).returncode == 0
    code, said, errors = finished(ray_command(photos, "--out", there, *options))
    assert code == 0, errors
    assert said.startswith("11 found, 10 labelled, 0 carried over, 1 failed (not_an_image 1)")
    assert "Ray: 1 tasks at a time" in errors
    assert rows(there) == rows(here)
    assert process("verify", there).returncode == 0


def make_own_head(model: Path, labels: tuple[str, ...], out: Path) -> None:
    """A model whose head is in a file of its own."""
    head = Head(torch.randn(len(labels), 48), torch.randn(len(labels)), True, temperature=0.5)
    own = with_head(load_backbone(str(model)), head, labels, name="own")
    write_bundle(own.spec, own.model.state_dict(), out, own.own_head)


@pytest.mark.soak
def test_a_model_whose_head_is_of_its_own_labels_there_as_here(
    small_model: Path, process: Command, tmp_path: Path, two_nodes: Any
) -> None:
    """The nodes load both files, and the audit too, which runs on one of them. For another head rows
    are made anew from the embeddings, without a photo.
    """
    for number, labels in enumerate((("a", "b", "c"), ("d", "e", "f"))):
        make_own_head(small_model, labels, tmp_path / f"own-{number}")
    photos = make_photos(tmp_path / "photos", 40)
    (photos / "broken.jpg").write_bytes(b"no photo")
    tables = {name: tmp_path / f"{name}.parquet" for name in ("here", "there")}
    beside = {name: tmp_path / f"{name}-embeddings" for name in tables}

    def both_label(model: Path) -> str:
        """Label here and there; return what was said there of a table that is the same."""
        options = ("--model", model, "--batch-size", 1, "--shard-size", 8, "--workers", 1)
        here, there = (
            (photos, "--out", tables[name], "--embeddings", beside[name], *options)
            for name in tables
        )
        ran = process(*here)
        assert ran.returncode == 0, ran.stderr
        code, said, errors = finished(ray_command(*there, "--ray-address", two_nodes.address))
        assert code == 0, errors
        assert rows(tables["there"]) == rows(tables["here"])
        products = [Table(beside[name]).scan().to_pylist() for name in ("here", "there")]
        assert products[0] == products[1]
        for place in (tables["there"], beside["there"]):
            assert process("verify", place).returncode == 0
        return said + errors

    said = both_label(tmp_path / "own-0")
    assert "audit: " in said
    assert said.startswith("41 found, 40 labelled")
    assert "relabelled from embeddings: 40" in both_label(tmp_path / "own-1")
    assert {row["label"] for row in rows(tables["there"])} <= {"d", "e", "f", None}


@pytest.mark.soak
def test_words_are_there_as_here(process: Command, tmp_path: Path, two_nodes: Any) -> None:
    """A head of words is one of one's own, as above, that each node makes."""
    from tests.text_models import model_folder  # transformers takes seconds to import

    clip = model_folder(tmp_path / "clip", "clip")
    words = tmp_path / "words.txt"
    words.write_text("cat\nred bus\ninvoice: a photo of an invoice | a scanned bill\n")
    photos = make_photos(tmp_path / "photos", 40)
    options: list[Any] = ["--model", clip, "--labels", words, "--template", "a {}"]
    options += ["--batch-size", 1, "--shard-size", 8, "--workers", 1]
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    assert process(photos, "--out", here, *options).returncode == 0
    arguments = (photos, "--out", there, *options, "--ray-address", two_nodes.address)
    code, _, errors = finished(ray_command(*arguments))
    assert code == 0, errors
    assert "model: clip, 3 classes" in errors
    assert rows(there) == rows(here)


def task_processes() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_label"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def kill_tasks(running: "subprocess.Popen[str]", generator: random.Random | None) -> None:
    """Kill the processes of all tasks, or one that a generator chooses; there must be some."""
    deadline = time.monotonic() + 20
    while not (found := task_processes()):  # between two tasks, perhaps
        assert running.poll() is None, "no task was killed before all were done"
        assert time.monotonic() < deadline, "tasks are not called ray::_label any more"
        time.sleep(0.01)
    for pid in [generator.choice(found)] if generator else found:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_and_a_killed_driver_cost_nothing(
    many: Path,
    options: list[Any],
    expected: list[dict[str, Any]],
    process: Command,
    tmp_path: Path,
    two_nodes: Any,
) -> None:
    """The table is the local one's, and so are the embeddings beside it."""
    options = [*options, "--ray-address", two_nodes.address]
    out, embeddings = tmp_path / "l.parquet", tmp_path / "embeddings"
    arguments = [many, "--out", out, *options, "--embeddings", embeddings]
    running = ray_command(*arguments)
    wait_for_receipts(out, 3, running)
    kill_tasks(running, None)
    code, said, errors = finished(running)
    assert code == 0, errors
    last = said.splitlines()[-1]  # Ray's own words about the killed worker come before it
    assert last.startswith("241 found, 240 labelled, 0 carried over, 1 failed (not_an_image 1)")
    assert "Ray: 2 tasks at a time, each with 1 CPUs" in errors
    assert rows(out) == expected
    for place in (out, embeddings):
        assert process("verify", place).returncode == 0
    assert Table(embeddings).record.counts["rows"] == 240
    code, said, _ = finished(ray_command(*arguments))
    assert "no image decoded" in said

    out = tmp_path / "m.parquet"
    running = ray_command(many, "--out", out, *options)
    wait_for_receipts(out, 3, running)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    code, _, errors = finished(ray_command(many, "--out", out, *options))
    assert code == 0, errors
    assert "going on: " in errors
    assert rows(out) == expected


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of a head without CPUs and two nodes of one each, all on this machine; one for all
    tests.
    """
    from ray.cluster_utils import Cluster

    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_worker_niceness", "0")
        # The nodes have a cache of their own, as another machine does.
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("nodes")))
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        cluster.nodes = []
        signal.signal(signal.SIGTERM, before)
        for _ in range(2):
            add_a_node(cluster)
        yield cluster
        cluster.shutdown()
        signal.signal(signal.SIGTERM, before)


def add_a_node(cluster: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    cluster.nodes.append(cluster.add_node(num_cpus=1))
    signal.signal(signal.SIGTERM, before)  # Ray puts its own there


def lose_a_node(cluster: Any, generator: random.Random) -> None:
    killed = generator.choice(cluster.nodes)
    cluster.remove_node(killed, allow_graceful=False)
    cluster.nodes = [node for node in cluster.nodes if node is not killed]


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


def test_a_cluster_is_cut_into_equal_shares() -> None:
    assert _share([node(CPU=2)]) == Share(2, 0, 1)
    assert _share([node(CPU=8), node(CPU=16), node(CPU=4, alive=False), node(memory=1)]) == Share(
        8, 0, 3
    )
    assert _share([node(CPU=64, GPU=8), node(CPU=16, GPU=1), node(CPU=96)]) == Share(8, 1, 9)
    assert _share([node(CPU=2, GPU=4)]) == Share(1, 1, 4)
    assert _share([]) == Share(1, 0, 1), "an autoscaler that has started nothing yet"


@pytest.mark.parametrize(
    ("gpus", "n", "expected"), [(0, 1000, 32), (1, 1000, 256), (0, 10**6, 1024), (8, 10**6, 1024)]
)
def test_a_shard_is_no_smaller_than_a_batch(gpus: int, n: int, expected: int) -> None:
    cluster = Cluster.__new__(Cluster)  # not connected
    cluster.ray = SimpleNamespace(nodes=lambda: [node(CPU=16, GPU=gpus), node(CPU=4)])
    assert cluster.shard_size(n) == expected


def test_tasks_get_smaller_towards_the_end() -> None:
    waiting = deque(range(1000))
    tasks = []
    while waiting:
        tasks.append(_next_task(waiting, 4))
    assert [shard for task in tasks for shard in task] == list(range(1000))
    sizes = list(map(len, tasks))
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-8:]) == (32, [1] * 8)


def test_progress_counts_shards_of_tasks_at_work(tmp_path: Path) -> None:
    job = Job(tmp_path / "l.parquet")
    (job.folder / "receipts").mkdir(parents=True)
    receipts = [Receipt("plan", shard, 5, {"corrupt": 1}, "sha", "run") for shard in range(3)]
    for receipt in receipts[:2]:
        write_receipt(job.receipt_path(receipt.shard), receipt)
    write_receipt(job.receipt_path(2), replace(receipts[2], plan_id="another"))
    run: Any = SimpleNamespace(job=job, manifest=SimpleNamespace(plan_id="plan"))
    with Progress(Console(), 15, 0) as progress:
        counter = _Counter(run, progress)
        counter.look_at([[0, 1]])
        assert progress.done == 0, "it looks only now and then"
        for _ in range(2):
            counter.looked = -1e9
            counter.look_at([[0, 1], [2]])
        assert (progress.done, progress.failed) == (10, 2)
        counter.count(receipts[:2])
        counter.count(receipts)
        assert (progress.done, progress.failed) == (15, 3)


@pytest.mark.slow
def test_a_driver_needs_no_torch(
    small_model: Path, photos: Path, command: Command, tmp_path: Path, two_nodes: Any
) -> None:
    """It takes seconds to import, and a small head node may do without. Relative paths are meant from
    where the run was started, also by the nodes, which load both files of the model, and for the
    audit, too.
    """
    (photos / "broken.jpg").write_bytes(b"no photo")
    make_own_head(small_model, ("a", "b", "c"), tmp_path / "own")
    here = tmp_path / "here.parquet"
    options = ("--model", tmp_path / "own", "--precision", "fp32", "--batch-size", 1)
    assert command(photos, "--out", here, *options, "--max-errors", 1).returncode == 0
    script = (
        "import sys, importlib.metadata as installed; sys.modules['torch'] = None; versions = "
        "installed.version;installed.version = lambda name: versions(name) if 'torch' not in name "
        "else 1 / 0;from pipeline.cli.commands import main; main(sys.argv[1:])"
    )
    arguments = [
        photos.name,
        "--out",
        "l.parquet",
        "--model",
        "own",
        "--batch-size",
        1,
        "--engine",
        "ray",
        "--audit",
        5,
        "--max-errors",
        1,
    ]
    arguments += ["--device", "cpu", "--precision", "fp32", "--ray-address", two_nodes.address]
    words = [sys.executable, "-c", script, *map(str, arguments)]
    ran = subprocess.run(
        words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "model: own, 3 classes, 32 x 32 pixels" in ran.stderr
    assert "audit: 5 rows labelled again" in ran.stderr
    assert ran.stdout.startswith("11 found, 10 labelled, 0 carried over, 1 failed (not_an_image 1)")
    assert rows(tmp_path / "l.parquet") == rows(here)
    record = read_record(tmp_path / "l.parquet")
    assert record
    assert (record.model, record.precision, record.device) == ("own", "fp32", "cpu")
    assert record.made_by[0].libraries["torch"] == version("torch")


def test_what_ray_cannot_do_is_told(
    photos: Path,
    small_model: Path,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = (photos, "--out", tmp_path / "l.parquet", "--model", small_model, "--engine", "ray")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        ran = command(*arguments)
    assert (ran.returncode, "pip install 'label-images[ray]'" in ran.stderr) == (2, True)


@pytest.mark.parametrize("ending", ["done", "interrupted"])
def test_tasks_are_ended_before_another_run_may_hold_the_job(
    photos: Path,
    small_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
) -> None:
    settings = Settings(
        paths=(photos,), out=tmp_path / "l.parquet", model=str(small_model), workers=0
    )
    cluster, seen = Cluster.__new__(Cluster), list[str]()  # not connected

    def shutdown() -> None:
        with pytest.raises(JobLocked), Job(settings.table).held():
            pass
        seen.append("ended while the job was held")

    cluster.ray = SimpleNamespace(shutdown=shutdown)
    monkeypatch.setattr(DeferredMachine, "close", lambda _: cluster.close())
    if ending == "done":
        run(settings, Console())
    else:
        monkeypatch.setattr(DeferredMachine, "label", interrupt)
        with pytest.raises(Interrupted):
            run(settings, Console())
    assert seen == ["ended while the job was held"]


def interrupt(*_: object) -> None:
    raise Interrupted(signal.SIGTERM)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")
def test_thirty_kills(
    many: Path, options: list[Any], expected: list[dict[str, Any]], tmp_path: Path, two_nodes: Any
) -> None:
    """Of workers, nodes and drivers, in turn."""
    generator = random.Random(30)
    for number in range(30):
        victim = ("worker", "node", "driver")[number % 3]
        out = tmp_path / f"{number}.parquet"
        arguments = (many, "--out", out, *options, "--ray-address", two_nodes.address)
        running = ray_command(*arguments)
        wait_for_receipts(out, generator.randint(0, 20), running)
        time.sleep(generator.uniform(0, 0.3))
        if victim == "worker":
            kill_tasks(running, generator)
        elif victim == "node":
            lose_a_node(two_nodes, generator)
        else:
            os.killpg(running.pid, signal.SIGKILL)
            running.communicate()
            running = ray_command(*arguments)
        code, _, errors = finished(running)
        assert code == 0, (number, victim, errors)
        assert rows(out) == expected, (number, victim)
        if victim == "node":
            add_a_node(two_nodes)
        sys.stdout.write(f"kill {number + 1} of 30 ({victim}): the table is the same\n")
