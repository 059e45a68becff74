"""State gone bad: recovered where it can be proven right, refused otherwise, never silently wrong."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.job import Job
from pipeline.table.labels import LABELS
from tests.helpers import Command, make_photos, photo, rows

Damage = Callable[[bytes], bytes]


class _Stopped(Exception):
    pass


def _stop(*_: object) -> None:
    raise _Stopped


def made_once(folder: Path, make: Callable[[], None]) -> None:
    """Let a folder be what `make` makes of it, also for those who come after it was changed.

    In the same place and with the same times, so that nothing in it looks moved or changed.
    """
    saved = folder.with_name(f"{folder.name}-saved")
    if not saved.exists():
        folder.mkdir()
        make()
        shutil.copytree(folder, saved, symlinks=True)
    shutil.rmtree(folder)
    shutil.copytree(saved, folder, symlinks=True)


@pytest.fixture
def unfinished(
    small_model: Path, command: Command, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, ...]:
    """A command whose job has all its shards but no table of them; the table is of the night
    before.
    """
    folder = tmp_path_factory.getbasetemp() / "unfinished"
    photos, out = folder / "photos", folder / "l.parquet"
    options = ("--model", small_model, "--workers", 0, "--shard-size", 3)

    def make() -> None:
        make_photos(make_photos(photos, 7) / "more", 3)
        assert command(photos, "--out", out, *options).returncode == 0
        for seed in range(20, 28):
            photo(seed).save(photos / f"{seed}.jpg")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.run.merge", _stop)
            with pytest.raises(_Stopped):
                command(photos, "--out", out, *options)
        whole = folder / "undamaged"
        whole.mkdir()
        shutil.copy(out, whole)
        shutil.copytree(folder / ".l.parquet.job", whole / ".l.parquet.job")
        assert command(photos, "--out", whole / "l.parquet", *options).returncode == 0

    made_once(folder, make)
    return photos, "--out", out, *options


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


FILES = ["manifest.json", "plan.arrow", "kept.arrow", "receipts/00001.json", "parts/00001.part"]
DAMAGES: dict[str, Damage] = {
    "cut": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "a bit flipped": flip,
    "of another tool": lambda data: b'{"version": 1, "hello": []}',
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damaged_state_is_found_and_made_anew(
    unfinished: tuple[Any, ...], command: Command, name: str, damage: str
) -> None:
    out = unfinished[2]
    path = Job(out).folder / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    verified = command("verify", out)
    assert verified.returncode == 5
    named = {
        "plan.arrow": "the plan",
        "kept.arrow": "the plan",
        "parts/00001.part": "receipts/00001.json",
    }
    assert named.get(name, name) in verified.stdout
    ran = command(*unfinished)
    assert ran.returncode == 0, ran.stderr
    assert rows(out) == rows(out.parent / "undamaged" / "l.parquet")
    assert command("verify", out).returncode == 0
    if "0000" in name:
        assert "going on: 5 of 8 images are done already" in ran.stderr, (
            "the other shards are proven"
        )
    else:
        assert "the unfinished job cannot go on: its" in ran.stderr


def test_parts_that_changed_places_prove_nothing(
    unfinished: tuple[Any, ...], command: Command
) -> None:
    job = Job(unfinished[2])
    for place in (job.part_path, job.receipt_path):
        first, second = place(0), place(1)
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
    assert "going on: 2 of 8 images" in command(*unfinished).stderr
    assert command("verify", unfinished[2]).returncode == 0


def test_a_job_moved_to_another_machine_goes_on_there(
    unfinished: tuple[Any, ...], command: Command, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("l.parquet", ".l.parquet.job"):
        shutil.move(unfinished[2].with_name(name), elsewhere / name)
    ran = command(*unfinished[:2], elsewhere / "l.parquet", *unfinished[3:])
    assert "going on: 8 of 8 images are done already" in ran.stderr
    assert len(rows(elsewhere / "l.parquet")) == 18


def test_the_unfinished_job_of_a_newer_version_is_refused(
    unfinished: tuple[Any, ...], command: Command
) -> None:
    manifest = Job(unfinished[2]).folder / "manifest.json"
    record = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(record | {"version": 99}))
    for arguments in (
        unfinished,
        ("status", unfinished[2]),
        ("verify", unfinished[2]),
        ("plan", *unfinished),
    ):
        ran = command(*arguments)
        assert ran.returncode == 5
        assert (
            "an unfinished job of a newer label-images; go on with that one, or begin anew with "
            "--restart" in ran.stderr
        )
    assert len(list((manifest.parent / "parts").iterdir())) == 3, "what it did is still there"
    assert command(*unfinished, "--restart").returncode == 0


def test_repair_drops_what_the_job_folder_no_longer_proves(
    unfinished: tuple[Any, ...], command: Command
) -> None:
    part = Job(unfinished[2]).folder / "parts" / "00001.part"
    part.write_bytes(flip(part.read_bytes()))
    ran = command("verify", unfinished[2], "--repair")
    assert ran.returncode == 0, ran.stdout
    assert "dropped: receipts/00001.json does not prove its part" in ran.stdout
    assert not part.exists()
    assert "nothing to repair" in command("verify", unfinished[2], "--repair").stdout
    assert "going on: 5 of 8" in command(*unfinished).stderr


@pytest.fixture
def grouped(
    small_model: Path,
    command: Command,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Any, ...]:
    """A table of ten rows in row groups of four."""
    monkeypatch.setitem(vars(LABELS), "row_group_rows", 4)
    folder = tmp_path_factory.getbasetemp() / "grouped"
    photos = folder / "photos"
    arguments = (photos, "--out", folder / "l.parquet", "--model", small_model, "--workers", 0)

    def make() -> None:
        make_photos(make_photos(photos, 7) / "more", 3)
        assert command(*arguments).returncode == 0

    made_once(folder, make)
    return arguments


def damage_group(path: Path, group: int) -> None:
    """Flip a bit in the pages of a row group's first column."""
    column = pq.read_metadata(path).row_group(group).column(0)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start + column.total_compressed_size - 3] ^= 1
    path.write_bytes(data)


def test_a_damaged_table_is_refused_and_repaired(
    grouped: tuple[Any, ...], command: Command
) -> None:
    out, before = grouped[2], rows(grouped[2])
    damage_group(out, 1)
    verified = command("verify", out)
    assert verified.returncode == 5
    assert "row group 1: it is damaged" in verified.stdout
    assert "not, to the byte, the one that was written" in verified.stdout
    ran = command(*grouped)
    assert ran.returncode == 5
    assert f"{out} is damaged" in ran.stderr
    assert "verify" in ran.stderr
    repaired = command("verify", out, "--repair")
    assert repaired.returncode == 0, repaired.stdout
    assert "kept 6 of 10 rows; run label-images again to label the rest" in repaired.stdout
    assert rows(out) == before[:4] + before[8:]
    again = command(*grouped)
    assert "10 found, 4 labelled, 6 carried over" in again.stdout
    assert rows(out) == before


def test_repair_takes_the_rows_of_an_unfinished_job_too(
    grouped: tuple[Any, ...], command: Command
) -> None:
    make_photos(grouped[0], 9)  # two more, and all the others are younger
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.run.merge", _stop)
        with pytest.raises(_Stopped):
            command(*grouped)
    damage_group(grouped[2], 0)
    repaired = command("verify", grouped[2], "--repair")
    assert "kept 6 of 10 rows, and 9 of an unfinished job" in repaired.stdout, repaired.stdout
    assert repaired.returncode == 0
    assert "no image decoded" in command(*grouped).stdout
    assert len(rows(grouped[2])) == 12


def test_a_damage_that_shows_only_at_the_merge_keeps_the_table(
    grouped: tuple[Any, ...], command: Command
) -> None:
    photos, _, out = grouped[:3]
    data = bytearray(out.read_bytes())
    column = (
        pq.read_metadata(out).row_group(1).column(pq.read_metadata(out).num_columns - 1)
    )  # none a plan reads
    data[column.data_page_offset + column.total_compressed_size - 2] ^= 1
    out.write_bytes(data)
    photo(50).save(photos / "new.jpg")
    ran = command(*grouped)
    assert ran.returncode == 5
    assert "is damaged" in ran.stderr
    assert out.read_bytes() == data
    assert command("verify", out, "--repair").returncode == 0
    assert command(*grouped).returncode == 0
    assert len(rows(out)) == 11


def test_any_changed_byte_of_a_table_is_found(grouped: tuple[Any, ...], command: Command) -> None:
    out = grouped[2]
    data = out.read_bytes()
    generator = random.Random(5)
    for place in generator.sample(range(len(data)), 60):
        out.write_bytes(
            data[:place] + bytes([data[place] ^ (1 << generator.randrange(8))]) + data[place + 1 :]
        )
        assert command("verify", out).returncode == 5, place
    out.write_bytes(data)
    assert command("verify", out).returncode == 0


@pytest.mark.parametrize(
    "name", ["finished_at", "seconds", "rates", "plan_id", "table_sha256", "sha256"]
)
def test_a_damaged_run_json_is_named_and_dropped(
    grouped: tuple[Any, ...], command: Command, name: str
) -> None:
    out = grouped[2]
    record = out.with_name(f".{out.name}.job") / "run.json"
    assert "rates     images/s: " in command("status", out).stdout
    changed = record.read_text().replace(f'"{name}":', f'"{name[:-1]}?":')
    assert changed != record.read_text()
    record.write_text(changed)
    status = command("status", out)
    assert (status.returncode, "rates  " in status.stdout) == (0, False)
    verified = command("verify", out)
    assert (verified.returncode, "run.json" in verified.stdout + verified.stderr) == (5, True)
    assert "nothing changed" in command(*grouped).stdout, "the table is sound"
    assert command("verify", out).returncode == 5, (
        "a run that wrote nothing says nothing of the file"
    )
    assert "dropped: run.json" in command("verify", out, "--repair").stdout
    assert not record.exists()
    assert command("verify", out).returncode == 0


NAMES_IN_A_RECORD = [
    "version", "plan_id", "created_at", "run_id", "tool_version", "roots", "counts", "model", "fingerprint",
    "fingerprint_fields", "precision", "device", "rows", "ok", "errors", "weights_sha256", "top_k", "temperature",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES_IN_A_RECORD)
def test_a_record_that_lost_a_name_is_refused(
    grouped: tuple[Any, ...], command: Command, name: str
) -> None:
    out = grouped[2]
    data = out.read_bytes()
    changed = data.replace(f'"{name}":'.encode(), f'"{name[:-1]}?":'.encode())
    assert changed != data
    out.write_bytes(changed)
    for arguments in (("verify", out), ("verify", out, "--repair"), ("status", out), grouped):
        ran = command(*arguments)
        assert ran.returncode == 5
        assert "is damaged" in ran.stderr
        assert "--overwrite" in ran.stderr
    assert out.read_bytes() == changed, "nothing is written over"


def test_a_table_that_is_beyond_repair_is_refused(
    grouped: tuple[Any, ...], command: Command, tmp_path: Path
) -> None:
    out = grouped[2]
    data = out.read_bytes()
    for content in (
        data[: len(data) // 2],
        b"",
        b"PAR1" + bytes(100) + b"PAR1",
        data[:-9] + b"\xff" + data[-8:],
    ):
        out.write_bytes(content)
        for arguments in (("verify", out, "--repair"), grouped):
            ran = command(*arguments)
            assert ran.returncode == 5
            assert "--overwrite" in ran.stderr
        assert out.read_bytes() == content, "nothing is written over"
    ran = command("verify", tmp_path / "none.parquet", "--repair")
    assert (ran.returncode, "there is no table at" in ran.stderr) == (2, True)


def test_rows_that_lie_are_dropped_by_a_repair(grouped: tuple[Any, ...], command: Command) -> None:
    """A table whose bytes are whole and whose content was changed, with its metadata kept."""
    out = grouped[2]
    metadata = pq.read_metadata(out).metadata
    table = pq.read_table(out)
    place = table.schema.get_field_index("fingerprint")
    column = pa.array(["f" * 64, *table["fingerprint"].to_pylist()[1:]])
    with pq.ParquetWriter(out, table.schema) as writer:
        writer.write_table(
            table.set_column(place, table.schema.field(place), column), row_group_size=4
        )
        writer.add_key_value_metadata(
            {key: metadata[key] for key in (b"label_images", b"label_images_classes")}
        )
    assert "labels of two models are mixed" in command("verify", out).stdout
    assert "kept 6 of 10 rows" in command("verify", out, "--repair").stdout
    assert "4 labelled, 6 carried over" in command(*grouped).stdout
