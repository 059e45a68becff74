"""PATHs that lie in one another: a file has one row, and nothing that is found goes without."""

import io
import os
import shutil
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.plan import LISTING
from pipeline.find.found import Scan
from pipeline.find.grown import KnownArchives
from pipeline.find.overlap import lies_in, one_row_each
from pipeline.find.scan import scan
from pipeline.find.selection import Selection
from pipeline.find.source import locate
from tests.helpers import Command, make_photos, photo, rows
from tests.test_pipeline_scan import touch


def keys(found: Scan) -> list[tuple[str, str]]:
    """Root and path of the rows, the root by its last name."""
    return sorted((Path(row["root"]).name, row["path"]) for row in found.listing.to_pylist())


def test_a_folder_in_another_gives_no_second_rows(tmp_path: Path) -> None:
    a = touch(tmp_path / "a", "x.jpg", "sub/y.jpg", "sub/deep/z.jpg")
    whole = [("a", "sub/deep/z.jpg"), ("a", "sub/y.jpg"), ("a", "x.jpg")]
    for given_paths in (
        [a, a / "sub"],
        [a / "sub", a],
        [a / "sub" / "deep", a, a / "sub"],
        [a, a / "sub" / "y.jpg"],
    ):
        found = scan(given_paths)
        assert keys(found) == whole, given_paths
        assert found.n_repeated == sum(len(scan([path]).listing) for path in given_paths) - 3
    assert scan([a]).n_repeated == 0


def test_a_folder_under_two_names_has_the_rows_of_the_one_that_is_no_link(tmp_path: Path) -> None:
    a = touch(tmp_path / "a", "x.jpg", "sub/y.jpg")
    (tmp_path / "b").symlink_to(a)
    (tmp_path / "c").symlink_to(a / "sub")
    (tmp_path / "d").symlink_to("b")
    b, c, d = (tmp_path / name for name in "bcd")
    for given_paths in ([a, b], [b, a], [c, b, a], [a, c], [d, c, a]):
        assert keys(scan(given_paths)) == [("a", "sub/y.jpg"), ("a", "x.jpg")], given_paths
    assert keys(scan([d, b])) == [("d", "sub/y.jpg"), ("d", "x.jpg")], "two links: the first given"
    assert keys(scan([c, b])) == [("b", "sub/y.jpg"), ("b", "x.jpg")], "the outermost"
    assert keys(scan([a, b / "sub"])) == [("a", "sub/y.jpg"), ("a", "x.jpg")]


def test_what_only_the_inner_path_takes_keeps_its_row(tmp_path: Path) -> None:
    a = touch(tmp_path / "a", "x.jpg", "thumbs/y.jpg", ".hidden/z.jpg", "raw.dat")
    found = scan([a, a / "thumbs", a / ".hidden", a / "raw.dat"], Selection(exclude=("thumbs",)))
    assert keys(found) == [
        (".hidden", "z.jpg"),
        ("a", "raw.dat"),
        ("a", "x.jpg"),
        ("thumbs", "y.jpg"),
    ]
    assert found.n_repeated == 0


def test_a_link_in_a_folder_that_is_a_path_too(tmp_path: Path) -> None:
    a, other = tmp_path / "a", touch(tmp_path / "other", "o.jpg")
    touch(a, "x.jpg")
    (a / "link").symlink_to(other)
    assert keys(scan([a, a / "link"])) == [("a", "link/o.jpg"), ("a", "x.jpg")]


def test_files_of_a_list_below_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = touch(tmp_path / "a", "x.jpg", "sub/y.jpg", "raw.dat")
    (tmp_path / "b").symlink_to(a)
    monkeypatch.chdir(tmp_path)
    listed = f"a/x.jpg\n{a}/sub/y.jpg\n{a}/raw.dat\na/raw.dat\n".encode()
    for path in (a, tmp_path / "b"):
        found = keys(scan([path], listed=listed))
        assert found == sorted(
            [(path.name, "sub/y.jpg"), (path.name, "x.jpg"), (tmp_path.name, "a/raw.dat")]
        )
    monkeypatch.chdir(a / "sub")
    assert keys(scan([a], listed=b"y.jpg\n")) == [("a", "sub/y.jpg"), ("a", "x.jpg")]


def test_archives_and_names_that_are_not_utf8(tmp_path: Path) -> None:
    a = tmp_path / "a"
    sub = a / os.fsdecode(b"s\xe9b")
    touch(sub, "back\\slash.jpg", "like\\xe9.jpg", os.fsdecode(b"\xff.jpg"))
    with tarfile.open(sub / "t.tar", "w") as archive:
        for name in ("m.jpg", "n.jpg"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    found = scan([sub, a])
    assert {Path(row["root"]).name for row in found.listing.to_pylist()} == {"a"}
    assert len(found.listing) == found.n_repeated == 5
    # Archives that are known are not looked into again, under whichever root they were.
    time = (sub / "t.tar").stat().st_mtime_ns // 1000
    outer, inner = ((str(a), "s\\xe9b/t.tar"), (f"{a}/s\\xe9b", "t.tar"))
    for known in ({outer: time}, {outer: time, inner: time}):
        found = scan([sub, a], known_archives=KnownArchives(known))
        assert (len(found.listing), found.unchanged) == (3, [outer])
    found = scan([sub, a], known_archives=KnownArchives({inner: time}))
    assert (len(found.listing), found.unchanged) == (5, [])


def test_an_archive_that_only_the_outer_path_knows_is_not_opened_for_the_inner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = touch(tmp_path / "a", "sub/x.jpg")
    with tarfile.open(a / "sub" / "t.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("m.jpg"), io.BytesIO())
    changed_at = (a / "sub" / "t.tar").stat().st_mtime_ns // 1000
    monkeypatch.setattr("pipeline.find.packed.members", lambda file: pytest.fail("opened"))
    known = {(str(a), "sub/t.tar"): changed_at}
    for given_paths in ([a, a / "sub"], [a / "sub", a], [a, a / "sub" / "t.tar"]):
        assert scan(given_paths, known_archives=KnownArchives(known)).unchanged == list(known)


def test_thousands_of_archives_below_two_paths_take_no_time() -> None:
    n = 3000
    found = pa.Table.from_pylist(
        [
            {"root": root, "path": f"{folder}{k}.tar/m.jpg", "container": f"/a/s/{k}.tar"}
            for root, folder in (("/a", "s/"), ("/a/s", ""))
            for k in range(n)
        ],
        LISTING,
    )
    start = time.monotonic()
    kept, _ = one_row_each(found, [("/a", "other.tar")], ["/a", "/a/s"])
    assert pc.unique(kept["root"]).to_pylist() == ["/a"]
    assert len(kept) == n
    assert time.monotonic() - start < 2, "it was a look through all rows for each archive"


def test_places_in_a_store_are_compared_as_text() -> None:
    names = [
        ("s3://b/p", "q/x.jpg"),
        ("s3://b/p", "y.jpg"),
        ("s3://b/p/q", "x.jpg"),
        ("s3://b/pq", "x.jpg"),
    ]
    found = pa.Table.from_pylist([{"root": root, "path": path} for root, path in names], LISTING)
    given_roots = ["s3://b/p/q", "s3://b/pq", "s3://b/p"]
    kept, _ = one_row_each(found, [], given_roots)
    assert [(row["root"], row["path"]) for row in kept.to_pylist()] == [
        names[0],
        names[1],
        names[3],
    ]
    assert lies_in(given_roots) == {"s3://b/p/q": [("s3://b/p", "q")]}


def test_links_inside_a_tree_to_what_is_listed_anyway_are_named(tmp_path: Path) -> None:
    a, b, store = (touch(tmp_path / name, "x.jpg", "sub/y.jpg") for name in ("a", "b", "store"))
    (a / "again").symlink_to("sub")
    (a / "to-b").symlink_to(b / "sub")
    (a / "up").symlink_to(a)  # a loop, not followed
    (a / "one").symlink_to(store)
    (a / "two").symlink_to(store / "sub")
    found = scan([a, b])
    assert len(found.listing) == 9
    assert [line.split(" is a link to ")[0] for line in found.linked] == [
        f"{a}/{name}" for name in ("again", "to-b", "two")
    ]
    assert (
        f"{a}/again is a link to {a}/sub, which is looked into under another name"
        in found.linked[0]
    )
    assert scan([b]).linked == []
    # A link is no news where what it leads to is not listed otherwise, or holds no image.
    hidden = touch(tmp_path / "c", ".data/x.jpg", "thumbs/y.jpg", "empty/notes.txt")
    for name, target in (("data", ".data"), ("small", "thumbs"), ("nothing", "empty")):
        (hidden / name).symlink_to(target)
    assert scan([hidden], Selection(exclude=("thumbs",))).linked == []
    for number in range(30):
        (b / f"l{number:02}").symlink_to("sub")
    lines = scan([b]).linked
    assert len(lines) == 11
    assert lines[-1].startswith("20 more links")


NAMES = st.sampled_from(["p", "q", "r\\s", os.fsdecode(b"\xe9"), ".h"])


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[str], list[str], list[tuple[str, str]], list[str]]:
    folders = draw(
        st.lists(
            st.lists(NAMES, min_size=1, max_size=3).map("/".join),
            min_size=1,
            max_size=6,
            unique=True,
        )
    )
    files = [
        f"{folder}/{name}"
        for folder in folders
        for name in draw(st.sets(st.sampled_from(["1.jpg", "2.jpg"])))
    ]
    links = [(f"{draw(st.sampled_from(folders))}/to{number}", draw(st.sampled_from(folders)))
             for number in range(draw(st.integers(0, 2)))]  # fmt: skip
    places = [*folders, *(link for link, _ in links), *files]
    return folders, files, links, draw(st.lists(st.sampled_from(places), min_size=1, max_size=4))


@settings(max_examples=300, deadline=None)
@given(trees(), st.booleans())
def test_no_file_twice_and_none_lost(
    tmp_path_factory: pytest.TempPathFactory,
    tree: tuple[list[str], list[str], list[tuple[str, str]], list[str]],
    is_excluded: bool,
) -> None:
    folders, files, links, chosen = tree
    top = tmp_path_factory.mktemp("tree")
    try:
        for folder in folders:
            (top / folder).mkdir(parents=True, exist_ok=True)
        touch(top, *files)
        for link, target in links:
            (top / link).symlink_to(top / target)
        selection = Selection(exclude=("q",) if is_excluded else ())
        given_paths = [top / name for name in chosen]
        together = list(places(scan(given_paths, selection)))
        alone = {place for path in given_paths for _, place, _ in places(scan([path], selection))}
        assert {place for _, place, _ in together} == alone, "each image that is found has a row"
        by_name = Counter((place, through_link) for _, place, through_link in set(together))
        assert all(count == 1 for (_, through_link), count in by_name.items() if not through_link)
    finally:
        shutil.rmtree(top)


def places(found: Scan) -> Iterator[tuple[tuple[str, str], bytes, bool]]:
    """Of each row its root and path, its real path, and whether that leads through a link below its
    root.
    """
    for row in found.listing.to_pylist():
        root, name = os.path.realpath(locate(row["root"])), locate(row["root"], row["path"])  # type: ignore[type-var]
        below = os.path.relpath(name, locate(row["root"]))
        place = os.path.realpath(name)
        yield (row["root"], row["path"]), place, os.path.join(root, below) != place


def test_a_run_says_so_and_the_next_night_nothing_changes(
    small_model: Path, command: Command, tmp_path: Path
) -> None:
    a = make_photos(tmp_path / "a", 2)
    make_photos(a / "sub", 3)
    (a / "again").symlink_to("sub")
    out = tmp_path / "l.parquet"
    arguments = (a, a / "sub", "--out", out, "--model", small_model)
    line = "3 images lie below several PATHs; each has one row, under the outermost\n"
    for words in (("plan",), (), ("plan",)):
        ran = command(*words, *arguments)
        assert line in ran.stdout + ran.stderr
        assert f"{a}/again is a link to {a}/sub" in ran.stdout + ran.stderr
        assert "as if nothing were mounted" not in ran.stdout + ran.stderr
    assert len(rows(out)) == 8
    assert {row["root"] for row in rows(out)} == {str(a)}
    printed = command(a, a, a / "sub", "--exclude", "again", "--model", small_model).stdout
    assert printed.count("0000.jpg\n") == 2


def test_an_inner_path_that_is_empty_all_at_once_keeps_its_rows(
    small_model: Path, command: Command, tmp_path: Path
) -> None:
    a, out = make_photos(tmp_path / "a", 2), tmp_path / "l.parquet"
    make_photos(a / "sub", 3)
    arguments = (a, a / "sub", "--out", out, "--model", small_model)
    assert command(*arguments).returncode == 0
    for path in (a / "sub").iterdir():
        path.unlink()
    ran = command(*arguments)
    assert f"{a}/sub holds no image any more, as if nothing were mounted there" in ran.stderr
    assert len(rows(out)) == 5
    photo(9).save(a / "sub" / "new.jpg")
    ran = command(*arguments)
    assert "mounted" not in ran.stderr
    assert len(rows(out)) == 3


def test_a_path_of_archives_that_did_not_change_is_not_empty(
    small_model: Path, command: Command, tmp_path: Path
) -> None:
    a, out = make_photos(tmp_path / "a", 1), tmp_path / "l.parquet"
    make_photos(tmp_path / "members", 2)
    (a / "sub").mkdir()
    with tarfile.open(a / "sub" / "t.tar", "w") as archive:
        for path in sorted((tmp_path / "members").iterdir()):
            archive.add(path, path.name)
    for arguments in ((a, a / "sub"), (a / "sub",), (a / "sub", a)):
        for night in range(2):
            ran = command(*arguments, "--out", out, "--model", small_model)
            assert ran.returncode == 0
            assert "mounted" not in ran.stderr, (arguments, night)
            assert len(rows(out)) == (3 if a in arguments else 2)
