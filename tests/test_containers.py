"""Archives and tables of images: each image a row, read where it lies, nothing unpacked."""

import io
import os
import tarfile
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import archives
from jobs.plan import KNOWN, carried_archives, make_plan
from jobs.storage.object_store import StorePath
from pipeline.cli.param_types import expanded
from pipeline.failures import Failure
from pipeline.find.scan import scan
from pipeline.find.selection import IMAGE, TABLE, TAR, Selection
from pipeline.find.source import Source
from pipeline.find.tar_archives import Damaged, members
from pipeline.load.image_dataset import BatchDataset
from tests.helpers import Command, make_photos, photo, rows
from vit.preprocess import Preprocess


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    photo(seed).save(file, "JPEG")
    return file.getvalue()


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    """A WebDataset shard: photos, and what belongs to each, one after another."""
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def shard(path: Path, first: int, n: int) -> Path:
    files = {}
    for seed in range(first, first + n):
        files |= {f"{seed:04}.jpg": jpeg(seed), f"{seed:04}.cls": b"1"}
    return make_tar(path, files)


def labels_by_name(table: Path) -> dict[str, Any]:
    return {
        row["path"].rsplit("/", 1)[-1]: (row["label"], row["probability"]) for row in rows(table)
    }


@pytest.fixture
def options(small_model: Path) -> list[Any]:
    return ["--model", small_model, "--device", "cpu", "--workers", "2", "--shard-size", "4"]


@pytest.mark.parametrize(
    "name", ["a.tar", "A.TAR", "ü.tAr", "x.tar.tar", "tar", "a.tar.gz", "a.tarx", "a.xtar", "a.jpg"]
)
def test_what_an_archive_is_all_say_alike(name: str, tmp_path: Path) -> None:
    """Whoever finds it in a folder, is given it, plans for what is in it."""
    is_one = archives.is_archive(name)
    assert is_one == name.lower().endswith(".tar")
    assert (Selection().kind(name) == TAR) == is_one
    shard(tmp_path / name, 0, 1)
    given = {} if name.endswith(".gz") else scan([tmp_path / name]).listing.to_pydict()
    inside = f"{name}/0000.jpg"
    if given:  # a compressed one is refused by name
        assert given["path"] == [inside if is_one else name]
    row = [("/r", inside, None, 1, 5, "ok", None, "mine")]
    known = pa.Table.from_pylist(
        [dict(zip(KNOWN.names, values, strict=True)) for values in row], schema=KNOWN
    )
    settled = carried_archives(known, "mine", [])
    assert list(settled) == ([("/r", name)] if is_one else [])


def test_members_of_archives_are_labelled_as_files_are(
    tmp_path: Path, command: Command, options: list[Any]
) -> None:
    photos = make_photos(tmp_path / "photos", 12)
    archives = tmp_path / "archives"
    archives.mkdir()
    shard(archives / "photos-000.tar", 0, 7)
    shard(archives / "photos-001.tar", 7, 5)
    (archives / "empty.tar").write_bytes(b"\0" * 10240)
    assert command(photos, "--out", tmp_path / "files.parquet", *options).returncode == 0
    ran = command(archives, "--out", tmp_path / "tar.parquet", *options, "--audit", "8")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("12 found, 12 labelled")
    assert labels_by_name(tmp_path / "tar.parquet") == labels_by_name(tmp_path / "files.parquet")
    assert [row["path"] for row in rows(tmp_path / "tar.parquet")][6:8] == [
        "photos-000.tar/0006.jpg",
        "photos-001.tar/0007.jpg",
    ]
    assert sorted(path.name for path in archives.iterdir()) == [
        "empty.tar",
        "photos-000.tar",
        "photos-001.tar",
    ]
    assert command("verify", tmp_path / "tar.parquet").returncode == 0

    named = command(
        archives / "photos-{000..001}.tar", "--out", tmp_path / "named.parquet", *options
    )
    assert named.stdout.startswith("12 found, 12 labelled")
    assert rows(tmp_path / "named.parquet") == rows(tmp_path / "tar.parquet")


def test_only_a_changed_archive_is_looked_into_again(
    tmp_path: Path, command: Command, options: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = shard(tmp_path / "a.tar", 0, 5), shard(tmp_path / "b.tar", 5, 5)
    out = tmp_path / "l.parquet"
    assert command(first, second, "--out", out, *options).returncode == 0
    os.utime(second, (1, 1))
    looked_into = []

    def spy(file: Any) -> Any:
        looked_into.append(file.name)
        return members(file)

    monkeypatch.setattr("pipeline.find.packed.members", spy)
    ran = command(first, second, "--out", out, *options)
    assert ran.stdout.startswith("10 found, 5 labelled, 5 carried over")
    assert looked_into == [os.fsencode(second)]
    # Other names are wanted: then nothing is known of what lies in it.
    ran = command(first, second, "--out", out, *options, "--exclude", "*1.jpg")
    assert ran.stdout.startswith("9 found, 0 labelled, 9 carried over, 1 gone")
    assert len(looked_into) == 3


def test_a_damaged_archive_is_a_row_beside_its_sound_members(
    tmp_path: Path, command: Command, options: list[Any]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    whole = shard(photos / "cut.tar", 0, 6).read_bytes()
    (photos / "cut.tar").write_bytes(whole[: len(whole) // 2])
    (photos / "packed.tar").write_bytes(b"\x1f\x8b no tar")
    out = tmp_path / "l.parquet"
    ran = command(photos, "--out", out, *options, "--max-errors", "5")
    assert ran.returncode == 0, ran.stderr
    found = {row["path"]: row["error_code"] for row in rows(out)}
    assert found["cut.tar"] == found["packed.tar"] == "corrupt"
    assert found["cut.tar/0000.jpg"] is None
    assert 3 <= len(found) < 8
    assert "no image decoded" in command(photos, "--out", out, *options, "--max-errors", "5").stdout
    with pytest.raises(Damaged):
        list(members(io.BytesIO(b"no tar" * 1000)))


def test_names_in_an_archive_reach_nothing_outside(
    tmp_path: Path, command: Command, options: list[Any]
) -> None:
    photos = make_photos(tmp_path / "photos", 1)
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(photos / "x.tar", "w") as archive:
        archive.addfile(link)
        for name, seed in (
            ("../0000.jpg", 5),
            ("/etc/x.jpg", 6),
            ("./a.jpg", 7),
            ("twice.jpg", 8),
            ("twice.jpg", 9),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(jpeg(seed))
            archive.addfile(member, io.BytesIO(jpeg(seed)))
    found = scan([photos]).listing.to_pylist()
    assert len(found) == 6, "the link is none"
    out = tmp_path / "l.parquet"
    assert command(photos, "--out", out, *options).returncode == 0
    assert [row["path"] for row in rows(out)] == [
        "0000.jpg", "x.tar/../0000.jpg", "x.tar//etc/x.jpg", "x.tar/a.jpg", "x.tar/twice.jpg"
    ]  # fmt: skip
    alone = tmp_path / "alone.parquet"
    assert command(shard(tmp_path / "nine.tar", 9, 1), "--out", alone, *options).returncode == 0
    assert rows(out)[4]["probability"] == pytest.approx(rows(alone)[0]["probability"], abs=1e-5), (
        "the last of one name, as tar has it"
    )
    assert sorted(path.name for path in tmp_path.iterdir() if "jpg" in path.name) == []


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Twelve images in three row groups, their keys in no order."""
    images: list[bytes | None] = [jpeg(seed) for seed in range(12)]
    images[3], images[4] = None, b"no image"
    names = [f"{seed * 7 % 12:04}.jpg" for seed in range(12)]
    path = tmp_path / "images.parquet"
    pq.write_table(
        pa.table({"name": names, "image": images, "n": range(12)}), path, row_group_size=5
    )
    return path


def test_rows_of_a_table_are_labelled(
    table: Path, tmp_path: Path, command: Command, options: list[Any]
) -> None:
    out, by_number = tmp_path / "l.parquet", tmp_path / "n.parquet"
    budget = ["--max-errors", "2"]
    ran = command(
        table, "--out", out, *options, "--image-column", "image", "--key-column", "name", *budget
    )
    assert ran.returncode == 0, ran.stderr
    found = rows(out)
    assert [row["path"] for row in found] == [f"{number:04}.jpg" for number in range(12)]
    assert {row["root"] for row in found} == {str(table)}
    assert {row["path"]: row["error_code"] for row in found if row["error_code"]} == {
        "0009.jpg": "empty_file",
        "0004.jpg": "not_an_image",
    }
    assert (
        command(table, "--out", by_number, *options, "--image-column", "image", *budget).returncode
        == 0
    )
    numbered = rows(by_number)
    assert [row["path"] for row in numbered] == [f"{row:09}" for row in range(12)]
    by_key = {row["path"]: row["probability"] for row in found}
    assert [row["probability"] for row in numbered] == [
        by_key[f"{seed * 7 % 12:04}.jpg"] for seed in range(12)
    ]
    photos = make_photos(tmp_path / "photos", 12)
    assert command(photos, "--out", tmp_path / "files.parquet", *options).returncode == 0
    files = [row["probability"] for row in rows(tmp_path / "files.parquet")]
    assert [row["probability"] or files[seed] for seed, row in enumerate(numbered)] == files
    again = command(
        table, "--out", out, *options, "--image-column", "image", "--key-column", "name", *budget
    )
    assert "no image decoded" in again.stdout


def test_rows_of_a_table_in_a_store_are_read_one_after_another(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come out of one stream: of several threads each would get another's rows."""
    selection = Selection(image_column="image")
    pending = make_plan(scan([table], selection).listing, None, "f", []).pending
    dataset = BatchDataset(pending, 12, Preprocess(16, 16), 10**8, "image")
    dataset.sources.stores = [StorePath("s3://bucket/images.parquet")]
    by: list[tuple[int, int]] = []

    def read(index: int, source: Source) -> Failure:
        by.append((index, threading.get_ident()))
        return Failure(index, "empty_file", "")

    monkeypatch.setattr("pipeline.load.image_dataset.read_image", read)
    assert len(dataset[list(range(12))].failures) == 12
    assert by == [(index, threading.get_ident()) for index in range(12)]


def test_tables_in_a_folder_and_structs_of_datasets(
    tmp_path: Path, command: Command, options: list[Any]
) -> None:
    folder = make_photos(tmp_path / "photos", 2)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": jpeg(seed), "path": f"{seed}"} for seed in (2, 3)], kind)
    pq.write_table(pa.table({"image": images}), folder / "train.parquet")
    pq.write_table(pa.table({"other": [1]}), folder / "other.parquet")
    out = tmp_path / "l.parquet"
    assert command(folder, "--out", out, *options).stdout.startswith("2 found")
    ran = command(folder, "--out", out, *options, "--image-column", "image")
    assert ran.stdout.startswith("4 found, 2 labelled, 2 carried over"), ran.stderr
    assert [row["path"] for row in rows(out)] == [
        "0000.jpg", "0001.jpg", "train.parquet/000000000", "train.parquet/000000001"
    ]  # fmt: skip


def test_a_table_that_does_not_fit_is_told(
    table: Path, tmp_path: Path, command: Command, options: list[Any]
) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(table.read_bytes()[:-30])
    packed = tmp_path / "photos.tar.gz"
    packed.write_bytes(b"packed")
    twice = tmp_path / "twice.parquet"
    pq.write_table(pa.table({"name": ["a", "b", "a"], "image": [jpeg(0)] * 3}), twice)
    for arguments, advice in (
        ([table], "name its column of images with --image-column"),
        ([table, "--image-column", "picture"], "its columns are name, image, n"),
        ([table, "--image-column", "n"], "holds int64, not the bytes of images"),
        ([table, "--image-column", "image", "--key-column", "id"], "has no column 'id'"),
        (
            [twice, "--image-column", "image", "--key-column", "name"],
            "row 2 of 'name' is 'a' again",
        ),
        ([packed], "is a compressed archive"),
        ([broken, "--image-column", "image"], "no Parquet table, or a damaged one"),
    ):
        ran = command(*arguments, "--out", tmp_path / "l.parquet", *options)
        assert (ran.returncode, advice in ran.stderr) == (2, True), ran.stderr


def test_ranges_in_names_are_webdataset_s(tmp_path: Path) -> None:
    assert expanded("s3://b/p-{008..011}.tar") == [
        f"s3://b/p-{n}.tar" for n in ("008", "009", "010", "011")
    ]
    assert expanded("{0..1}/{a}") == ["0/{a}", "1/{a}"]
    (tmp_path / "{0..1}").mkdir()
    assert expanded(str(tmp_path / "{0..1}")) == [str(tmp_path / "{0..1}")], (
        "there is one of that name"
    )


def test_archives_and_tables_have_names_of_their_own() -> None:
    selection = Selection(image_column="image")
    assert [selection.kind(name) for name in ("a.tar", "b/A.TAR", ".a.tar", "a.tar.gz")] == [
        TAR,
        TAR,
        None,
        None,
    ]
    assert [selection.kind(name) for name in ("a.parquet", "b/.a.parquet")] == [TABLE, None]
    assert Selection().kind("a.parquet") is None
    assert Selection(exclude=("*.tar",)).kind("b/a.tar") is None
    assert [Selection().kind(name) for name in ("a.JPG", "b/.a.jpg", ".jpg", "jpg", "b.jpg/c")] == [
        IMAGE
    ] + [None] * 4
    assert Selection(include=("*.raw",)).kind("b/.a.raw") == IMAGE
