"""Roots that moved, and rows that may give their labels: what is told without reading a file."""

import multiprocessing
import os
import pickle
import signal
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.donors import count_likely, make_donors, may_give
from jobs.keys import is_in_order
from jobs.moved import find_moved, move_rows, order_after
from jobs.plan import KNOWN, LISTING, make_plan
from pipeline.load.reuse import Claims, Reuse, as_digits, hash_of

Image = tuple[str, str, int | None, int | None]  # root, path, size, time


def listing(*images: Image) -> pa.Table:
    rows = [(root, path, None, size, time, None, None) for root, path, size, time in sorted(images)]
    columns = zip(*rows, strict=True) if rows else [[] for _ in LISTING]
    return pa.table(
        [pa.array(values, field.type) for values, field in zip(columns, LISTING, strict=True)],
        schema=LISTING,
    )


def known(*images: Image, encoded: bool = True) -> pa.Table:
    rows = listing(*images).select(KNOWN.names[:5])
    for name, value in (("status", "ok"), ("error_code", None), ("fingerprint", "f")):
        rows = rows.append_column(name, pa.array([value] * len(rows), pa.string()))
    if encoded:  # as a table's file gives it
        rows = rows.set_column(0, "root", rows["root"].dictionary_encode())
    return rows


def folder(root: str, n: int = 10, first: int = 0) -> list[Image]:
    return [(root, f"{place:03}", 100 + place, place) for place in range(first, first + n)]


@pytest.mark.parametrize("encoded", [False, True])
def test_a_root_with_the_same_files_in_the_same_state_has_moved(encoded: bool) -> None:
    before = known(*folder("/a"), *folder("/b", first=50), *folder("/c", 5), encoded=encoded)
    after = listing(*folder("/z"), *folder("/b", first=50), *folder("/c", 5))
    moved = find_moved(after, before, ["/z", "/b", "/c"])
    assert moved == {"/a": "/z"}
    order = order_after(before, moved)
    assert order is not None
    rows = move_rows(before.take(order), moved)
    assert is_in_order(rows)
    assert rows["root"].to_pylist() == ["/b"] * 10 + ["/c"] * 5 + ["/z"] * 10
    plan = make_plan(after, rows, "f", [])
    assert (plan.counts["carried"], plan.counts["gone"], len(plan.pending)) == (25, 0, 0)
    assert order_after(before, {"/a": "/aa"}) is None


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        (folder("/a"), folder("/z"), ["/a", "/z"]),  # still named: it is not mounted
        (folder("/a"), [*folder("/a", 1), *folder("/z")], ["/z"]),  # still there
        ([*folder("/a"), *folder("/z", 1)], folder("/z"), ["/z"]),  # not new
        (folder("/a", 30), folder("/z", 14), ["/z"]),  # the most of it is not there
        ([("/a", "x", 1, 1), ("/a", "y", 2, 2)], [("/z", "x", 1, 1), ("/z", "y", 2, 2)], ["/z"]),
        ([("/a", f"{n}", 9, 1) for n in range(9)], [("/z", f"{n}", 9, 1) for n in range(9)], ["/z"]),
        ([("/a", f"{n}", n, None) for n in range(9)], [("/z", f"{n}", n, None) for n in range(9)], []),
        ([("/a", f"{n}", None, n) for n in range(9)], [("/z", f"{n}", None, n) for n in range(9)], []),
        (folder("/a"), [("/z", path, size + 1, time) for _, path, size, time in folder("/z")], []),
        (folder("/a"), [("/z", path, size, time + 1) for _, path, size, time in folder("/z")], []),
        ([], folder("/z"), ["/z"]),
        (folder("/a"), [], []),
    ],
)  # fmt: skip
def test_what_only_looks_like_it_has_not(before: Any, after: Any, named: list[str]) -> None:
    assert find_moved(listing(*after), known(*before), named) == {}


def test_each_root_moves_once_and_to_the_one_that_fits_best() -> None:
    before = known(*folder("/a", 20), *folder("/b", 15))
    assert find_moved(listing(*folder("/y", 15), *folder("/z", 20)), before, []) == {
        "/a": "/z",
        "/b": "/y",
    }
    assert find_moved(listing(*folder("/z", 20)), before, []) == {"/a": "/z"}
    many = [image for n in range(40) for image in folder(f"/r{n:02}", first=n * 20)]
    renamed = [(f"/s{root[2:]}", *rest) for root, *rest in many]
    assert find_moved(listing(*renamed), known(*many), []) == {  # type: ignore[arg-type]
        f"/r{n:02}": f"/s{n:02}" for n in range(40)
    }


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(4)), st.sets(st.integers(0, 3)))
def test_rows_stay_with_their_images_whatever_the_order(names: list[int], of: set[int]) -> None:
    roots = [f"/{number}" for number in range(4)]
    before = known(*(image for n, root in enumerate(roots) for image in folder(root, 4, 10 * n)))
    moved = {roots[n]: f"/{'az'[n % 2]}{names[n]}" for n in of}
    order = order_after(before, moved)
    rows = move_rows(before if order is None else before.take(order), moved)
    assert is_in_order(rows)
    back = {new: old for old, new in moved.items()}
    kept = ["root", "path", "size_bytes"]
    for row in rows.select(kept).to_pylist():
        assert row["size_bytes"] - 100 == int(row["path"])
        assert int(row["path"]) // 10 == int(back.get(row["root"], row["root"])[1:])


def test_donors_are_labelled_rows_of_the_size_of_a_new_image() -> None:
    before = known(
        ("/a", "b/x", 1, 1), ("/a", "b/y", 2, 2), ("/a", "z", None, 3), ("/a", "zz", 9, 4)
    )
    new = listing(
        ("/a", "c/x", 1, 9), ("/a", "c/y", 2, 2), ("/a", "n", None, 3), ("/a", "zz", 9, 5)
    )
    pending = make_plan(new, before, "f", []).pending
    rows = may_give(pending, before, "f")
    assert rows.to_pylist() == [0, 1, 2], "zz has changed, and is no new image"
    assert may_give(pending, before, "g").to_pylist() == []
    assert count_likely(pending, before, rows) == 3, "by name, by time, and in a table of images"
    hashes = pa.array([as_digits(hash_of(b"x")), None, "no hash"])
    lacks = {"embeddings": pa.array([None, 1, 2], pa.int64())}
    assert make_donors(rows, hashes, {})["labels"].to_pylist() == [0]
    assert len(make_donors(rows, hashes, lacks)) == 0


def test_likely_copies_are_counted_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.donors._CHUNK_ROWS", 2)
    before = known(*folder("/a", 9))
    new = listing(("/b", "x/000", 100, 99), ("/b", "y", 108, 8), ("/b", "z", 104, 99))
    pending = make_plan(new, before, "f", []).pending
    assert count_likely(pending, before, pa.array([8, 4, 0], pa.int64())) == 2
    assert count_likely(pending, before, pa.array([8, 4, 6, 2, 1, 5, 7], pa.int64())) == 1
    assert count_likely(pending, before, pa.array([], pa.int64())) == 0


def test_hashes_of_donors_are_no_objects_of_their_own_and_may_come_in_pieces() -> None:
    n = 50_000
    hashes = pa.array([as_digits(hash_of(str(number).encode())) for number in range(n)])
    expected = make_donors(pa.array(range(n), pa.int64()), hashes, {})
    pieces = pa.chunked_array([hashes.slice(0, 7), hashes.slice(7, 1), hashes.slice(8)])
    tracemalloc.start()
    donors = make_donors(pa.array(np.arange(n)), pieces, {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert donors.equals(expected)
    number = int(hashes[donors["labels"][5].as_py()].as_py(), 16)
    assert (donors["high"][5].as_py() << 64) + donors["low"][5].as_py() == number
    assert peak < 100 * n, f"{peak / n:.0f} bytes for each"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=3)), st.lists(st.binary(max_size=3)))
def test_a_donor_is_found_by_its_bytes_alone(
    tmp_path_factory: pytest.TempPathFactory, of_table: list[bytes], looked_for: list[bytes]
) -> None:
    numbers = pa.array(range(len(of_table)), pa.int64())
    hashes = pa.array([as_digits(hash_of(data)) for data in of_table], pa.string())
    path = tmp_path_factory.mktemp("donors") / "donors.arrow"
    donors = make_donors(numbers, hashes, {})
    with pa.ipc.new_file(str(path), donors.schema) as writer:
        writer.write_table(donors)
    reuse = Reuse(path, None)
    for index, data in enumerate(looked_for):
        copy = reuse.find(index, hash_of(data))
        assert (copy is not None) == (data in of_table)
        if copy and copy.donor is not None:
            assert of_table[donors["labels"][copy.donor].as_py()] == data


def _claim_all(claims: Claims, names: list[bytes], first: int, results: Any) -> None:
    results.put([claims.first(hash_of(name), first + n) for n, name in enumerate(names)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_of_processes_that_claim_the_same_bytes_one_is_first(method: str) -> None:
    context = multiprocessing.get_context(method)
    names = [str(number).encode() for number in range(500)]
    results = context.Queue()
    with Claims(2_000) as claims:
        workers = [
            context.Process(target=_claim_all, args=(claims, names, first, results))
            for first in (0, 500, 1000, 1500)
        ]
        for worker in workers:
            worker.start()
        told = [results.get(timeout=60) for _ in workers]
        for worker in workers:
            worker.join()
    assert told[0] == told[1] == told[2] == told[3]
    assert [first % 500 for first in told[0]] == list(range(500))


def test_a_worker_that_dies_at_the_lock_holds_nobody_up(tmp_path: Path) -> None:
    import fcntl

    context = multiprocessing.get_context("fork")
    with Claims(10) as claims:

        def die() -> None:
            file, _ = claims._open()
            fcntl.lockf(file, fcntl.LOCK_EX)
            os.kill(os.getpid(), signal.SIGKILL)

        worker = context.Process(target=die)
        worker.start()
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
        assert claims.first(7, 3) == 3
        assert claims.first(7, 4) == 3
        claims.n_places = 1  # full, and of other bytes
        assert [claims.first(number, number) for number in (21, 21, 22)] == [21, 21, 22]


def test_a_worker_that_comes_late_claims_nothing_in_a_file_with_the_same_number(
    tmp_path: Path,
) -> None:
    """The run was ended, and has opened another file since."""
    other = tmp_path / "other"
    other.write_bytes(bytes(10_000))
    with Claims(10) as claims:
        late = pickle.loads(pickle.dumps(claims))
    with other.open("r+b") as file:
        assert f"/{file.fileno()}" == claims.path[claims.path.rindex("/") :]
        assert late.first(7, 3) == 3
        assert late.first(7, 4) == 4, "what it claimed it would know"
    assert other.read_bytes() == bytes(10_000)
    with other.open("rb") as file:
        before = os.listdir("/proc/self/fd")
        assert late.first(7, 3) == 3
        assert len(os.listdir("/proc/self/fd")) == len(before)


def test_no_file_is_left_open() -> None:
    before = os.listdir("/proc/self/fd")
    with Claims(10) as claims:
        claims.first(1, 1)
    assert len(os.listdir("/proc/self/fd")) == len(before)
