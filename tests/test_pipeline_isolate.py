"""Poison: files whose decoder crashes, hangs, eats the memory or ends its process, for real.

A test-only Pillow plugin stands in for a decoder with a fault: what it does is written in the file.
It is registered here, in the process that forks the workers, so that they have it too.
"""

import ctypes
import faulthandler
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFile

from pipeline.console import Console
from pipeline.failures import Failure
from pipeline.load import decode
from pipeline.load import isolation as isolate
from pipeline.load.batch import Batch, Clock
from pipeline.load.image_dataset import BatchDataset
from pipeline.load.isolation import load_isolated
from pipeline.load.loader import ShardBatchSampler, load_batches
from pipeline.load.sample import Sample
from pipeline.run import run
from pipeline.settings import ErrorBudget, Settings
from tests.helpers import ROOT, make_photos, rows
from tests.test_pipeline_loader import dataset

MAGIC = b"POISON "


class PoisonImage(ImageFile.ImageFile):
    """Does what the file says when it is loaded."""

    format = "POISON"

    def _open(self) -> None:
        assert self.fp is not None
        self.does = self.fp.read()[len(MAGIC) :].decode()
        self._mode, self._size = "RGB", (64, 48)

    def load(self) -> None:  # type: ignore[override]
        faulthandler.disable()  # pytest's; its traceback would only be noise
        if self.does == "segfault":
            ctypes.string_at(0)
        elif self.does == "abort":
            os.abort()
        elif self.does == "exit":
            os._exit(0)
        elif self.does == "sys.exit":
            sys.exit(3)
        elif self.does == "kill":  # as the kernel does when memory runs out
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.does == "hang":
            while True:
                time.sleep(1)
        elif self.does == "memory":
            self.eaten = [bytearray(256 << 20) for _ in range(1000)]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "FORMATS", [*decode.FORMATS, "POISON"])
    Image.init()
    monkeypatch.setitem(
        Image.OPEN, "POISON", (PoisonImage, lambda prefix: prefix.startswith(MAGIC))
    )
    monkeypatch.setattr(Image, "ID", [*Image.ID, "POISON"])
    monkeypatch.setattr(isolate, "MEMORY_BYTES", 1 << 30)


@pytest.fixture(autouse=True, scope="module")
def _little_patience() -> Iterator[None]:
    """How long torch waits for workers that do not end by themselves: else five seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 1.0)
        yield


@pytest.fixture(autouse=True)
def _no_child_is_left_behind() -> Iterator[None]:
    yield
    gc.collect()  # a test's exception may hold a loader
    assert not multiprocessing.active_children()


EXPECTED = {
    "segfault": ("decoder_crash", "ended by SIGSEGV"),
    "abort": ("decoder_crash", "ended by SIGABRT"),
    "exit": ("decoder_crash", "ended with exit code 0"),
    "sys.exit": ("decoder_crash", "ended with exit code 3"),
    "kill": ("out_of_memory", "the system ended the decoder"),
    "hang": ("timeout", "longer than --image-timeout 5 s"),
    "memory": ("out_of_memory", "needed more memory than there was"),
}


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(
    "does", [pytest.param(does, marks=[pytest.mark.slow] * (does == "hang")) for does in EXPECTED]
)
def test_a_poisonous_file_costs_itself_its_label_and_no_other(
    tmp_path: Path, small_model: Path, said: list[str], does: str
) -> None:
    folder = make_photos(tmp_path / "photos", 24)
    (folder / "0017.jpg").write_bytes(MAGIC + does.encode())
    settings = Settings(
        paths=(folder,), out=tmp_path / "l.parquet", model=str(small_model), workers=2, batch_size=4,
        image_timeout=5 if does == "hang" else 600, max_errors=ErrorBudget(0, False),
    )  # fmt: skip
    started = time.monotonic()
    outcome = run(settings, Console())
    assert time.monotonic() - started < 120, "a death is noticed, not waited for"
    code, detail = EXPECTED[does]
    assert outcome.errors == {code: 1}
    table = rows(tmp_path / "l.parquet")
    assert len(table) == 24
    poisonous = table[17]
    assert (poisonous["path"], poisonous["error_code"]) == ("0017.jpg", code)
    assert detail in poisonous["error_detail"]
    assert all(row["status"] == "ok" for row in table if row is not poisonous)
    lost = "a decoding process was lost" in "\n".join(said)
    assert lost == (does != "memory")  # a MemoryError is the decoder's own answer


@pytest.mark.usefixtures("poison")
def test_several_poisonous_files_in_one_batch(tmp_path: Path, small_model: Path) -> None:
    folder = make_photos(tmp_path / "photos", 12)
    for place, does in enumerate(("segfault", "exit", "kill")):
        (folder / f"000{place}.jpg").write_bytes(MAGIC + does.encode())
    out = tmp_path / "l.parquet"
    run(
        Settings(paths=(folder,), out=out, model=str(small_model), workers=1, batch_size=8),
        Console(),
    )
    codes = pq.read_table(out)["error_code"].to_pylist()
    assert codes == ["decoder_crash", "decoder_crash", "out_of_memory", *[None] * 9]


@pytest.mark.slow
def test_a_fault_of_ours_in_a_worker_is_no_file_s(tmp_path: Path) -> None:
    class Faulty(BatchDataset):
        def make_batch(self, indices: list[int], begin: Callable[[], None]) -> Batch:
            raise OSError("a fault of ours")

    data = dataset(make_photos(tmp_path, 5))
    data.__class__ = Faulty
    batches = load_batches(data, ShardBatchSampler(5, 8, [0], 2), 1, Console(), 60)
    with pytest.raises(OSError, match="a fault of ours"):
        list(batches)


def test_labels_are_the_same_whether_isolated_or_not(tmp_path: Path) -> None:
    data = dataset(make_photos(tmp_path, 5))
    together = data[[0, 1, 2, 3, 4]]

    def load(index: int) -> Sample | Failure:
        return data.load(index, Clock())

    alone = load_isolated(load, [0, 1, 2, 3, 4], 60)
    assert len(alone) == 5
    for place, sample in enumerate(alone):
        assert isinstance(sample, Sample)
        assert (sample.index, sample.facts) == (place, together.facts[place])
        assert (sample.pixels == together.images[place]).all()


def test_a_slow_image_is_given_up_and_the_next_ones_loaded() -> None:
    def load(index: int) -> Sample | Failure:
        time.sleep(60 if index == 1 else 0)
        return Failure(index, "corrupt", "")

    results = load_isolated(load, [0, 1, 2], 0.5)
    assert [result.code for result in results if isinstance(result, Failure)] == [
        "corrupt",
        "timeout",
        "corrupt",
    ]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_images_are_loaded_before_they_are_asked_for_and_no_longer_than_they_are_wanted(
    tmp_path: Path,
) -> None:
    def load(index: int) -> Failure:
        (tmp_path / f"{os.getpid()} {index}").touch()
        time.sleep(60 if index == 2 else 0)
        return Failure(index, "corrupt", "")

    with isolate.isolated(load, [0, 1, 2], 60) as results:
        wait_for(lambda: len(list(tmp_path.glob("* 2"))) == 1)
        child = int(next(tmp_path.glob("* 2")).name.split()[0])
        assert child != os.getpid()
        assert [result.index for _, result in zip(range(2), results, strict=False)] == [0, 1]
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_no_process_is_started_for_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "worker_context", None)
    assert load_isolated(lambda index: Failure(index, "corrupt", ""), [], 60) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc says whether a process is there")
def test_a_child_ends_with_the_process_it_decodes_for(tmp_path: Path) -> None:
    """Also one that waits for somebody to read what it has sent."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time, numpy, torch\n"
        "from pathlib import Path\n"
        "from pipeline.load.isolation import isolated\n"
        "from pipeline.failures import ImageFacts\n"
        "from pipeline.load.sample import Sample\n"
        "def load(index):\n"
        "    Path(sys.argv[1], str(os.getpid())).touch()\n"
        "    return Sample(index, torch.zeros(3, 1000, 1000, dtype=torch.uint8), ImageFacts())\n"
        "with isolated(load, [0, 1], 60):\n"
        "    time.sleep(60)\n"
    )
    (tmp_path / "pids").mkdir()
    words = [sys.executable, str(script), str(tmp_path / "pids")]
    process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_for(lambda: bool(list((tmp_path / "pids").iterdir())))
    (child,) = (tmp_path / "pids").iterdir()

    def is_alive() -> bool:
        try:
            return Path("/proc", child.name, "stat").read_text().split()[2] not in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return False

    assert is_alive()
    process.kill()
    process.wait()
    wait_for(lambda: not is_alive())


def test_without_shared_memory_a_poisoned_file_costs_no_other_its_label(
    tmp_path: Path, poison: None, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """Then there are no workers; but nothing is decoded in the main process, either."""
    monkeypatch.setattr(
        "pipeline.load.loader._no_room_for_locks", lambda context, workers: "Read-only file system"
    )
    folder = make_photos(tmp_path, 10)
    (folder / "0003.jpg").write_bytes(MAGIC + b"segfault")
    data = dataset(folder, 10)
    batches = list(load_batches(data, ShardBatchSampler(10, 10, [0], 4), 2, Console(), 30))
    assert [batch.indices for batch in batches] == [[0, 1, 2], [4, 5, 6, 7], [8, 9]]
    assert [failure.code for batch in batches for failure in batch.failures] == ["decoder_crash"]
    assert all(batch.decode_s > 0 for batch in batches)
    assert "/dev/shm cannot be used (Read-only file system)" in "\n".join(said)
