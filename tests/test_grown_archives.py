"""Archives that grow from night to night: only what was appended is labelled, and never too little."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.find.grown import Image, State, row_times
from pipeline.find.tar_archives import members
from tests.helpers import Command, rows
from tests.test_containers import jpeg

NIGHT_S = 100_000

Files = list[tuple[str, bytes]]


def photos(first: int, n: int) -> Files:
    return [(f"{seed:04}.jpg", jpeg(seed)) for seed in range(first, first + n)]


def write(path: Path, files: Files, night: int, changed: dict[str, int] | None = None) -> None:
    """An archive of a night, whose members are of the night before unless they are `changed`."""
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), (changed or {}).get(name, 1)
            archive.addfile(member, io.BytesIO(data))
    os.utime(path, (night * NIGHT_S, night * NIGHT_S))


def append(path: Path, files: Files, night: int) -> None:
    with tarfile.open(path, "a") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), (night - 1) * NIGHT_S
            archive.addfile(member, io.BytesIO(data))
    os.utime(path, (night * NIGHT_S, night * NIGHT_S))


Night = Callable[..., str]


@pytest.fixture
def night(tmp_path: Path, command: Command, small_model: Path) -> Night:
    """A run over the folder `p`; returns what it said at its end."""
    (tmp_path / "p").mkdir()

    def run(*options: Any, out: str = "l.parquet") -> str:
        named = (
            "--out",
            tmp_path / out,
            "--model",
            small_model,
            "--workers",
            0,
            "--audit",
            0,
            "--shard-size",
            4,
        )
        ran = command(tmp_path / "p", *named, *options)
        assert ran.returncode == 0, ran.stderr
        return str(ran.stdout)

    return run


def same_as_fresh(tmp_path: Path, night: Night) -> bool:
    """Whether the table is as one that was made just now, but for when its rows came."""
    night(out="fresh.parquet")
    without = ("run_id", "labelled_at", "mtime")
    return rows(tmp_path / "l.parquet", without) == rows(tmp_path / "fresh.parquet", without)


def test_only_what_was_appended_is_labelled(
    tmp_path: Path, night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p" / "x.tar"
    write(path, [*photos(0, 5), ("a.txt", b"x")], 1)
    assert night().startswith("5 found, 5 labelled")
    append(path, [("b.txt", b"x"), *photos(5, 3)], 2)
    assert night().startswith("8 found, 3 labelled, 5 carried over")
    append(path, photos(8, 20), 3)
    assert night().startswith("28 found, 20 labelled, 8 carried over")
    assert same_as_fresh(tmp_path, night)
    times = [int(row["mtime"].timestamp()) // NIGHT_S for row in rows(tmp_path / "l.parquet")]
    assert times == [1] * 5 + [2] * 3 + [3] * 20

    looked_into = []
    monkeypatch.setattr(
        "pipeline.find.packed.members", lambda file: looked_into.append(1) or members(file)
    )
    assert night().startswith("nothing changed: 28 found")
    assert not looked_into
    # Looked into for another reason its earlier images are still those that they were.
    assert night("--exclude", "0000.jpg").startswith(
        "27 found, 0 labelled, 27 carried over, 1 gone"
    )
    assert looked_into
    assert night("--top-k", 3).startswith("28 found, 28 labelled")
    append(path, photos(28, 1), 4)
    assert night().startswith("29 found, 1 labelled, 28 carried over")


def test_a_member_of_a_known_name_is_labelled_again(tmp_path: Path, night: Night) -> None:
    """As tar -u appends what has changed: of one name the last counts."""
    path = tmp_path / "p" / "x.tar"
    write(path, photos(0, 4), 1)
    night()
    append(path, [("0001.jpg", jpeg(77)), ("0009.jpg", jpeg(9))], 2)
    assert night().startswith("5 found, 2 labelled, 3 carried over")
    append(path, [("0002.jpg", jpeg(78)), ("0010.jpg", jpeg(10))], 3)
    assert night().startswith("6 found, 2 labelled, 4 carried over")
    assert same_as_fresh(tmp_path, night)


def same_size(data: bytes, seed: int) -> bytes:
    """Another photo of the same number of bytes."""
    other = jpeg(seed)
    while len(other) > len(data):
        seed += 1000
        other = jpeg(seed)
    return other + bytes(len(data) - len(other))


@pytest.mark.parametrize(
    "change", ["other bytes", "later", "removed", "other order", "in front", "size", "renamed"]
)
def test_an_archive_whose_earlier_part_changed_is_labelled_anew(
    change: str, tmp_path: Path, night: Night
) -> None:
    path, files = tmp_path / "p" / "x.tar", [(n, d + bytes(500)) for n, d in photos(0, 6)]
    write(path, files, 1)
    night()
    later, changed = [*files, *photos(6, 2)], {}
    if change == "other bytes":  # of the same size and time, all of them
        later[:6] = [(name, same_size(data, 90 + n)) for n, (name, data) in enumerate(files)]
    elif change == "later":
        later[3] = ("0003.jpg", same_size(files[3][1], 93))
        changed = {"0003.jpg": NIGHT_S + 1}
    elif change == "removed":
        del later[2]
    elif change == "other order":
        later[0], later[7] = later[7], later[0]
    elif change == "in front":
        later[:0] = [("0100.jpg", jpeg(100))]
    elif change == "size":
        later[3] = ("0003.jpg", jpeg(93))
    elif change == "renamed":
        later[3] = ("0033.jpg", later[3][1])
    write(path, later, 2, changed)
    n = len(later)
    did = "7 labelled, 1 reused" if change == "renamed" else f"{n} labelled"
    assert night().startswith(f"{n} found, {did}, 0 carried over")
    assert same_as_fresh(tmp_path, night)


def test_an_archive_that_only_has_another_time_is_labelled_anew(
    tmp_path: Path, night: Night
) -> None:
    """As a file is: nothing says that it is the same."""
    path = tmp_path / "p" / "x.tar"
    write(path, photos(0, 4), 1)
    night()
    write(path, photos(0, 4), 2)
    assert night().startswith("4 found, 4 labelled")


def test_one_that_shrank_and_one_from_a_backup(tmp_path: Path, night: Night) -> None:
    path = tmp_path / "p" / "x.tar"
    write(path, photos(0, 4), 1)
    night()
    first = path.read_bytes()
    append(path, photos(4, 2), 2)
    night()
    path.write_bytes(first)
    os.utime(path, (NIGHT_S, NIGHT_S))
    assert night().startswith("4 found, 0 labelled, 4 carried over, 2 gone")
    write(path, photos(0, 3), 3)
    assert night().startswith("3 found, 3 labelled, 0 carried over, 1 gone")


def test_one_that_was_still_being_written(
    tmp_path: Path, command: Command, small_model: Path, night: Night
) -> None:
    """Without an end mark it has a row of its own, that says so; then it is finished."""
    path = tmp_path / "p" / "x.tar"
    write(path, photos(0, 3), 1)
    with path.open("rb") as file:
        last = list(members(file))[-1]
    whole = path.read_bytes()
    path.write_bytes(whole[: (last.offset + last.size + 511) // 512 * 512])
    os.utime(path, (NIGHT_S, NIGHT_S))
    arguments = (
        tmp_path / "p",
        "--out",
        tmp_path / "l.parquet",
        "--model",
        small_model,
        "--workers",
        0,
    )
    assert command(*arguments).stdout.startswith("4 found, 3 labelled, 0 carried over, 1 failed")
    assert command(*arguments).stdout.startswith("nothing changed: 4 found")
    path.write_bytes(whole)
    append(path, photos(3, 2), 2)
    assert night().startswith("5 found, 2 labelled, 3 carried over, 1 gone")
    assert night().startswith("nothing changed: 5 found")
    assert same_as_fresh(tmp_path, night)


def test_without_a_hash_nothing_is_taken_for_the_same(
    tmp_path: Path, night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p" / "x.tar"
    write(path, photos(0, 3), 1)
    night()
    append(path, photos(3, 1), 2)
    monkeypatch.setattr("pipeline.plan.compare.read_hashes", lambda *asked: {})
    assert night().startswith("4 found, 4 labelled")


def test_rows_of_a_grown_archive_are_audited_and_keep_their_embeddings(
    tmp_path: Path, night: Night
) -> None:
    path, kept = tmp_path / "p" / "x.tar", ("--embeddings", tmp_path / "e")
    write(path, photos(0, 4), 1)
    night()
    append(path, photos(4, 2), 2)
    assert night().startswith("6 found, 2 labelled, 4 carried over")
    # Rows without embeddings are labelled again, at the times that they have.
    said = night(*kept, "--audit", 6, "--log-json")
    assert '"labelled": 6' in said
    append(path, photos(6, 2), 3)
    assert night(*kept).startswith("8 found, 2 labelled, 6 carried over")


def test_a_table_of_many_files_knows_the_hashes_too(
    tmp_path: Path, command: Command, small_model: Path
) -> None:
    path = tmp_path / "p" / "x.tar"
    path.parent.mkdir()
    write(path, photos(0, 3), 1)
    arguments = (
        tmp_path / "p",
        "--out",
        f"{tmp_path}/t/",
        "--model",
        small_model,
        "--workers",
        0,
        "--audit",
        0,
    )
    command(*arguments)
    append(path, photos(3, 1), 2)
    assert command(*arguments).stdout.startswith("4 found, 1 labelled, 3 carried over")


def test_names_that_are_not_utf8_and_a_name_with_dots(tmp_path: Path, night: Night) -> None:
    path = tmp_path / "p" / "x.tar"
    odd = [
        ("./a/1.jpg", jpeg(1)),
        (os.fsdecode(b"caf\xe9.jpg"), jpeg(2)),
        ("back\\xe9.jpg", jpeg(3)),
    ]
    write(path, odd, 1)
    night()
    append(path, photos(4, 1), 2)
    assert night().startswith("4 found, 1 labelled, 3 carried over")


EARLIER = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 3)), max_size=6)


@settings(max_examples=600, deadline=None)
@given(EARLIER, EARLIER, st.booleans(), st.integers(0, 40), st.integers(1, 3))
def test_what_is_kept_was_in_front_and_is_the_same(
    before: list[tuple[str, int]],
    after: list[tuple[str, int]],
    grew: bool,
    flipped: int,
    now: int,
) -> None:
    """Against a plain reading of the rule, over archives of few names and sizes."""
    last = dict(before)
    known = {path: State(size, 1) for path, size in last.items()}
    listed = [*before, *after] if grew else after
    images, data = [], b""
    for path, size in listed:
        images.append(Image(path, len(data), size, 0.5e-6))
        data += path.encode() * size
    hashes = {path: xxhash.xxh3_128_hexdigest(path.encode() * size) for path, size in last.items()}
    damaged = data[:flipped] + b"\0" + data[flipped + 1 :] if flipped < len(data) else data
    times = row_times(images, known, now, io.BytesIO(damaged), lambda paths: hashes)
    is_same = [size == last.get(path) for path, size in listed]
    front = next((n for n in range(len(images) + 1) if dict(listed[:n]) == last), 0)
    if not before:
        expected = [now] * len(images)
    elif now == 1:
        expected = [1] * len(images)
    else:
        kept = front if front < len(images) else 0
        expected = [1 if n < kept and is_same[n] else now for n in range(len(images))]
    if damaged != data and now != 1:
        (hit,) = [n for n, image in enumerate(images) if 0 <= flipped - image.offset < image.size]
        front = expected.count(1) and max(n for n, time in enumerate(expected) if time == 1) + 1
        if hit < front and listed[hit][0] not in dict(listed[hit + 1 : front]):
            expected = [now] * len(images)  # all of so few are compared
    assert times == expected


def test_nothing_is_kept_of_an_archive_without_a_time() -> None:
    images = [Image("a", 0, 1, 0.0)]
    assert row_times(images, {"a": State(1, None)}, 5, io.BytesIO(b"a"), lambda paths: {}) == [5]
    assert row_times(images, {"a": State(1, 5)}, None, io.BytesIO(b"a"), lambda paths: {}) == [None]
    assert row_times(images, {"a": State(1, 5)}, 5, io.BytesIO(b"a"), lambda paths: {}) == [5]
