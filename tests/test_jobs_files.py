"""Atomic files and the kernel lock."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.errors import JobLocked
from jobs.storage.atomic import (
    atomic_output,
    leftovers,
    make_folder,
    read_json,
    remove,
    remove_files,
    write_bytes,
    write_json,
)
from jobs.storage.lock import hold_lock
from tests.helpers import ROOT


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_bytes(path, b"old")

    def fail() -> None:
        with atomic_output(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside it"
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_two_writers_of_one_path_do_not_meet(tmp_path: Path) -> None:
    """A task of a killed Ray driver goes on for some seconds, while the next run is at work."""
    path = tmp_path / "00001.part"
    with atomic_output(path) as old:
        old.write_bytes(b"the old one's, half wri")
        with atomic_output(path) as new:
            new.write_bytes(b"the new one's")
        assert path.read_bytes() == b"the new one's"
        old.write_bytes(b"the old one's, whole")
    assert path.read_bytes() == b"the old one's, whole"
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_writers_left_is_found_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "l[1].parquet"
    with atomic_output(path) as left:
        left.write_bytes(b"whole")
    left.write_bytes(b"half")  # as a SIGKILL leaves it
    (tmp_path / "l[1].parquet.tmp").write_bytes(b"of a version with one name for all writers")
    for name in ("l[1].parquet.backup.tmp", "l1.parquet.01234567.tmp", "l[1].parquet.0123.tmp"):
        (tmp_path / name).write_bytes(b"the user's")
    assert {found.name for found in leftovers(path)} == {left.name, "l[1].parquet.tmp"}


def test_content_is_on_disk_before_the_name_and_the_name_before_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (calls.append(os.readlink(f"/proc/self/fd/{fd}")), real_fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), real_replace(a, b)))
    write_bytes(tmp_path / "a", b"x")
    assert re.fullmatch(f"{tmp_path}/a\\.[0-9a-f]{{8}}\\.tmp", calls[0])
    assert calls[1:] == ["rename", str(tmp_path)]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_state_that_cannot_be_read_does_not_exist(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    assert read_json(path) is None
    path.write_bytes(content)
    assert read_json(path) is None
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}


def test_removing_never_follows_a_link_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (tmp_path / "parts").symlink_to(outside)
    remove_files(tmp_path / "parts")
    assert (outside / "precious").exists()
    remove(tmp_path / "not there")
    make_folder(outside)
    remove_files(outside)
    assert not outside.exists()


def test_the_second_holder_is_told_who_the_first_is(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from jobs.storage.lock import hold_lock\n"
        "with hold_lock(pathlib.Path(sys.argv[1])): pass"
    )
    with hold_lock(tmp_path):
        ran = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False,
                             env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
        assert f"process {os.getpid()} on {os.uname().nodename}" in ran.stderr
    with hold_lock(tmp_path):
        pass


def test_a_dead_holder_blocks_nobody(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib; from jobs.storage.lock import hold_lock\n"
        "with hold_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(JobLocked, match=f"process {holder.pid}"), hold_lock(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with hold_lock(tmp_path):
            pass
