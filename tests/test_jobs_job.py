"""The job folder: freezing a plan, proving shards, refusing what does not prove them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.errors import JobError
from jobs.job import Job
from jobs.manifest import MANIFEST_VERSION, Manifest
from jobs.plan import make_plan
from jobs.receipts import RECEIPT_VERSION, count_failures, read_receipt
from jobs.records import write_record
from tests.test_jobs_plan import FINGERPRINT, listing

PLAN = make_plan(listing(*((f"{i:03}", 1, 1) for i in range(300))), None, FINGERPRINT.digest, [])


def manifest(plan_id: str = "one") -> Manifest:
    return Manifest(
        plan_id, "0.1", "now", {"roots": ["/r"]}, None, 300, 128, PLAN.counts, "m", FINGERPRINT, {}
    )


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = Job(tmp_path / "labels.parquet")
    with job.held():
        job.freeze(manifest(), PLAN)
    return job


def commit(job: Job, shard: int, content: bytes = b"rows") -> None:
    def write_part(path: Path) -> dict[str, int]:
        path.write_bytes(content)
        return {"corrupt": 2}

    job.commit(manifest(), shard, "run", {"labels": write_part})


def test_the_folder_is_as_documented_and_no_glob_sees_parts(job: Job) -> None:
    commit(job, 1)
    names = sorted(
        str(path.relative_to(job.folder)) for path in job.folder.rglob("*") if path.is_file()
    )
    assert names == [
        "kept.arrow",
        "lock",
        "manifest.json",
        "parts/00001.part",
        "plan.arrow",
        "receipts/00001.json",
    ]
    assert job.folder.name == ".labels.parquet.job"
    assert not list(job.folder.parent.rglob("*.parquet"))


def test_a_frozen_plan_comes_back(job: Job) -> None:
    frozen = job.manifest
    assert frozen is not None
    assert frozen == replace(manifest(), digests=frozen.digests)
    assert job.proves_plan(frozen)
    assert job.pending().equals(PLAN.pending)
    assert job.kept().equals(PLAN.kept)
    assert job.has_plan


def test_a_shard_is_done_when_its_receipt_proves_its_part(job: Job) -> None:
    assert job.receipts(manifest()) == {}
    commit(job, 0)
    commit(job, 2)
    assert {shard: receipt.rows for shard, receipt in job.receipts(manifest()).items()} == {
        0: 128,
        2: 44,
    }
    assert count_failures(job.receipts(manifest()).values()) == {"corrupt": 4}
    assert job.receipts(manifest("other")) == {}, "receipts of another plan prove nothing"


@pytest.mark.parametrize(
    "damage",
    [
        "part gone",
        "part cut",
        "part edited",
        "receipt gone",
        "receipt cut",
        "receipt edited",
        "newer receipt",
        "odd",
    ],
)
def test_what_does_not_prove_a_shard_is_as_good_as_none(job: Job, damage: str) -> None:
    commit(job, 0)
    part, receipt = job.part_path(0), job.receipt_path(0)
    if damage == "part gone":
        part.unlink()
    elif damage == "part cut":
        part.write_bytes(b"row")
    elif damage == "part edited":
        part.write_bytes(b"rowz")
    elif damage == "receipt gone":
        receipt.unlink()
    elif damage == "receipt cut":
        receipt.write_bytes(receipt.read_bytes()[:40])
    elif damage == "receipt edited":
        receipt.write_text(receipt.read_text().replace('"corrupt": 2', '"corrupt": 0'))
    else:
        values = json.loads(receipt.read_text())
        del values["version"], values["sha256"]
        if damage == "newer receipt":
            write_record(receipt, 9, values)
        else:
            write_record(receipt, RECEIPT_VERSION, {**values, "odd": 1})
    if damage.endswith("receipt") or "part" not in damage:
        assert read_receipt(receipt) is None
    assert job.receipts(manifest()) == {}


def test_a_failed_part_leaves_no_receipt(job: Job) -> None:
    def fail(path: Path) -> dict[str, int]:
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        job.commit(manifest(), 0, "run", {"labels": fail})
    assert not list((job.folder / "parts").iterdir())
    assert not list((job.folder / "receipts").iterdir())


def test_who_holds_the_job_sweeps_what_killed_runs_left(job: Job) -> None:
    commit(job, 0)
    table_temporary = job.out.with_name(f"{job.out.name}.0a1b2c3d.tmp")
    left = [
        job.folder / "manifest.json.01234567.tmp",
        job.folder / "parts" / "00001.part.01234567.tmp",
        job.folder / "receipts" / "00001.json.01234567.tmp",
        job.folder / "parts" / "00001.part.tmp",  # of a version with one name for all writers
        table_temporary,
    ]
    for path in left:
        path.write_bytes(b"half")
    with job.held():
        assert not [path for path in left if path.exists()]
        assert list(job.receipts(manifest())) == [0]


def test_a_task_of_a_dead_driver_and_the_next_run_leave_a_whole_part(job: Job) -> None:
    """It wakes up after the next run has swept, and committed the shard it was at work on."""

    def write_slowly(path: Path) -> dict[str, int]:
        path.write_bytes(b"half of the old ta")
        with job.held():
            commit(job, 0)
        return {}

    with pytest.raises(FileNotFoundError):
        job.commit(manifest(), 0, "old", {"labels": write_slowly})
    receipt = job.proven(manifest(), 0)
    assert receipt is not None
    assert receipt.run_id == "run"
    assert [path.name for path in (job.folder / "parts").iterdir()] == ["00000.part"]


@pytest.mark.parametrize("what", ["job folder", "job folder for a file", "parts", "disk"])
def test_a_job_that_vanishes_is_told(job: Job, what: str, tmp_path: Path) -> None:
    def vanish() -> None:
        with job.held():
            commit(job, 0)
            if what == "disk":
                disk = tmp_path.rename(tmp_path.with_name("taken away"))
                assert disk.is_dir()
            else:
                shutil.rmtree(job.folder / "parts" if what == "parts" else job.folder)
            if what == "job folder for a file":
                Path(job.folder).write_bytes(b"")
            commit(job, 1)

    with pytest.raises(JobError, match="is not there any more") as raised:
        vanish()
    named = tmp_path if what == "disk" else job.folder
    assert str(raised.value).startswith(f"{named} is not there")
    assert "run the same command again" in str(raised.value)


def test_a_file_that_we_miss_in_a_job_that_is_there_is_our_fault(job: Job, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), job.held():
        (tmp_path / "typo").read_bytes()
    with pytest.raises(FileNotFoundError), job.held():
        (job.folder / "parts" / "typo").read_bytes()

    def fail() -> None:
        with job.held():
            shutil.rmtree(job.folder)
            raise OSError("odd")

    with pytest.raises(OSError, match="odd"):
        fail()


def test_a_job_folder_that_was_made_anew_is_another_run_s(job: Job) -> None:
    with job.held():
        commit(job, 0)
        shutil.rmtree(job.folder)
        with Job(job.out).held():
            pass
        with pytest.raises(JobError, match="is not there any more"):
            job.check_held()


def test_a_new_plan_drops_what_the_old_one_left(job: Job) -> None:
    commit(job, 0)
    job.freeze(manifest("two"), PLAN)
    assert job.receipts(manifest("two")) == {}
    assert not job.part_path(0).exists()
    job.finish("two")
    assert sorted(path.name for path in job.folder.iterdir()) == ["lock", "manifest.json"]
    job.finish("another, whose table is up to date")
    assert job.manifest is None


def test_a_job_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".t.parquet.job").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(JobError, match="is a link"), Job(tmp_path / "t.parquet").held():
        pass
    (tmp_path / ".t.parquet.job").unlink()
    (tmp_path / ".t.parquet.job").mkdir()
    for name in ("lock", "parts", "receipts"):
        (tmp_path / "elsewhere" / name).mkdir()
        link = tmp_path / ".t.parquet.job" / name
        link.symlink_to(tmp_path / "elsewhere" / name)
        with pytest.raises(JobError, match=f"{name} is a link"), Job(tmp_path / "t.parquet").held():
            pass
        link.unlink()
    with (
        pytest.raises(JobError, match="choose an --out in a folder that exists"),
        Job(tmp_path / "no" / "t").held(),
    ):
        pass


def test_a_damaged_plan_says_what_to_do(job: Job) -> None:
    (job.folder / "plan.arrow").write_bytes(b"ARROW1 and no more")
    with pytest.raises(JobError, match="--restart"):
        job.pending()


def test_a_plan_that_was_edited_proves_nothing(job: Job) -> None:
    frozen = job.manifest
    assert frozen is not None
    path = job.folder / "plan.arrow"
    path.write_bytes(path.read_bytes().replace(b"299", b"298"))
    assert job.pending().num_rows == 300, "it still reads"
    assert not job.proves_plan(frozen)


def test_the_unfinished_job_of_a_newer_version_is_left_to_it(job: Job) -> None:
    write_record(job.manifest_path, MANIFEST_VERSION + 1, {"what": "a later version needs"})
    with pytest.raises(JobError, match="a newer label-images; go on with that one"):
        _ = job.manifest
    job.freeze(manifest("restart"), PLAN)
    assert job.manifest is not None
