"""Nights of one library: what goes wrong there costs no label, and is told by exit code, message
and status.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.job import Job
from pipeline.label import local
from pipeline.load.decode_rules import DECODE_RULES
from pipeline.plan.choice import ModelChoice
from tests.helpers import ROOT, Command, make_photos, peaked_, photo, rows
from tests.test_end_to_end import without_root_rights
from vit.checkpoints.bundle import ModelSpec, write_bundle
from vit.config import ViTConfig
from vit.model import VisionTransformer
from vit.preprocess import Preprocess


@pytest.fixture
def many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rows are many: nobody's labels are replaced without a word."""
    monkeypatch.setattr("pipeline.plan.guards.FEW_ROWS", 3)


def make_model(out: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = ViTConfig(img_size=32, patch_size=8, n_classes=10, embed_dim=48, depth=2, n_heads=3)
    model = VisionTransformer(config)
    peaked_(model)
    write_bundle(ModelSpec(config, Preprocess(32, 36), tuple(f"class {i}" for i in range(10)), (), 1.0, out.name),
                 model.state_dict(), out)  # fmt: skip
    return out


def status(command: Command, out: Path) -> dict[str, Any]:
    ran = command("status", out, "--json")
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def labels(out: Path) -> dict[str, Any]:
    return {f"{row['root']}/{row['path']}": row["top_k"] for row in rows(out)}


# -- what cannot be looked at --------------------------------------------------------------------


def test_an_unmounted_path_and_another_model_in_one_night_cost_no_label(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    other, out = make_photos(tmp_path / "other", 2), tmp_path / "l.parquet"
    assert command(photos, other, "--out", out, "--model", small_model).returncode == 0
    before = out.read_bytes()
    photos.rename(tmp_path / "unmounted")
    photos.mkdir()
    for change in (("--model", make_model(tmp_path / "new", 7)), ("--top-k", 3), ("--restart",)):
        for words in ((), ("plan",)):
            ran = command(*words, photos, other, "--out", out, *change)
            assert ran.returncode == 5, ran.stderr
            assert f"{photos} holds no image any more" in ran.stderr
            assert "10 rows of" in ran.stderr
            assert "--forget FOLDER" in ran.stderr
            assert out.read_bytes() == before
    photos.rmdir()
    (tmp_path / "unmounted").rename(photos)
    assert command(photos, other, "--out", out, "--top-k", 3).returncode == 0
    assert len(rows(out)) == 12


def test_rows_that_failed_are_kept_unseen_too(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    """Tried again each night for a reason that may pass; but not where nothing can be seen of them."""
    (photos / "later.jpg").symlink_to(tmp_path / "nowhere.jpg")
    other, out = make_photos(tmp_path / "other", 2), tmp_path / "l.parquet"
    arguments = (photos, other, "--out", out, "--model", small_model, "--max-errors", "50%")
    assert command(*arguments).returncode == 0
    before = rows(out)
    shutil.rmtree(photos)
    photos.mkdir()
    ran = command(*arguments)
    assert ran.returncode == 7
    assert (
        "nothing changed: 2 found, all carried over, 11 kept unseen (1 of them failed earlier)"
        in ran.stdout
    )
    assert rows(out) == before


@pytest.mark.parametrize("fault", ["empty", "elsewhere"])
def test_a_list_that_names_nothing_keeps_the_rows(
    photos: Path, small_model: Path, command: Command, tmp_path: Path, fault: str
) -> None:
    out, listed = tmp_path / "l.parquet", tmp_path / "list.txt"
    names = sorted(str(path) for path in photos.rglob("*.jpg"))
    listed.write_text("\n".join(names))
    arguments = ("--files-from", listed, "--out", out, "--model", small_model)
    assert command(*arguments).returncode == 0
    before = out.read_bytes()
    listed.write_text(
        "" if fault == "empty" else "\n".join(name.replace("photos", "fotos") for name in names)
    )
    what = (
        "the list of files is empty"
        if fault == "empty"
        else "of the 10 files that the list names none is there"
    )
    ran = command(*arguments)
    assert ran.returncode == 7
    assert f"{what}; the rows the table has of it are kept" in ran.stderr
    assert "10 kept unseen" in ran.stdout
    assert out.read_bytes() == before
    ran = command(*arguments, "--forget", photos / "more")
    assert (ran.returncode, len(rows(out))) == (7, 7)
    ran = command(*arguments, "--forget", "/")
    assert (ran.returncode, rows(out)) == (7, []), "a list that names nothing stays a fault"
    listed.write_text("\n".join(names[:5]))
    assert command(*arguments).returncode == 0
    listed.write_text("\n".join(names[:4]))
    ran = command(*arguments)
    assert (ran.returncode, "1 gone" in ran.stdout) == (0, True), (
        "a list that got shorter drops rows, as it should"
    )


def test_a_list_beside_a_path_is_one_thing_and_the_path_another(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    other, out, listed = (
        make_photos(tmp_path / "other", 2),
        tmp_path / "l.parquet",
        tmp_path / "list.txt",
    )
    listed.write_text(f"{other}/0000.jpg\n{other}/0001.jpg\n")
    arguments = (photos, "--files-from", listed, "--out", out, "--model", small_model)
    assert command(*arguments).returncode == 0
    listed.write_text("")
    (photos / "0000.jpg").unlink()
    ran = command(*arguments)
    assert "9 found, 0 labelled, 9 carried over, 2 kept unseen, 1 gone, 0 failed" in ran.stdout
    assert ran.returncode == 7


def test_the_first_night_without_any_image_is_not_a_success(
    small_model: Path, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    out = tmp_path / "l.parquet"
    for _ in range(2):  # nor is the second
        ran = command(tmp_path / "photos", "--out", out, "--model", small_model)
        assert ran.returncode == 7
        assert "no image was found at all; is everything mounted?" in ran.stderr


@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv takes root's rights away")
def test_a_folder_that_never_had_rows_is_mentioned_and_no_more(
    photos: Path, small_model: Path, process: Command, tmp_path: Path
) -> None:
    """One that root alone may look into: every night the same."""
    (photos / "private").mkdir(mode=0)
    out = tmp_path / "l.parquet"
    for _ in range(2):
        ran = process(photos, "--out", out, "--model", small_model, prefix=without_root_rights())
        assert ran.returncode == 0, ran.stderr
        assert "private: Permission denied; --exclude leaves it out" in ran.stderr


def test_a_folder_is_forgotten_and_no_other(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    gone, kept, out = (
        make_photos(tmp_path / "gone", 3),
        make_photos(tmp_path / "kept", 2),
        tmp_path / "l.parquet",
    )
    arguments = (photos, gone, kept, "--out", out, "--model", small_model)
    assert command(*arguments).returncode == 0
    for folder in (gone, kept):
        shutil.rmtree(folder)
        folder.mkdir()
    assert command(*arguments, "--forget", tmp_path / "gon").returncode == 7, (
        "a name that begins alike is another"
    )
    assert len(rows(out)) == 15
    planned = command("plan", *arguments, "--forget", gone)
    assert "3  gone" in planned.stdout
    ran = command(*arguments, "--forget", gone, "--forget", photos)
    assert (ran.returncode, len(rows(out))) == (7, 12), "what can be seen is not forgotten"
    assert str(kept) in ran.stderr
    assert str(gone) not in ran.stderr


# -- the model of a table ------------------------------------------------------------------------


def test_a_forgotten_model_is_the_table_s(
    photos: Path, small_model: Path, command: Command, tmp_path: Path, many_rows: None
) -> None:
    out = tmp_path / "l.parquet"
    assert command(photos, "--out", out, "--model", small_model, "--top-k", 3).returncode == 0
    before = labels(out)
    photo(50).save(photos / "new.jpg")
    ran = command(photos, "--out", out)
    assert ran.returncode == 0, ran.stderr
    assert "model: small, 10 classes" in ran.stderr
    assert "11 found, 1 labelled, 10 carried over" in ran.stdout
    after = labels(out)
    assert {path: after[path] for path in before} == before
    assert {len(top_k) for top_k in after.values()} == {3}
    assert {row["model"] for row in rows(out)} == {"small"}


def test_a_relative_model_path_is_found_from_any_folder_and_has_one_name(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit", num_classes=3)
    timm.models.save_for_hf(model, tmp_path / "cwd" / "pets", {"label_names": ["a", "b", "c"]})
    out = tmp_path / "l.parquet"
    assert command(photos, "--out", out, "--model", "pets").returncode == 0
    photo(50).save(photos / "new.jpg")
    assert command(photos, "--out", out, "--model", tmp_path / "cwd" / "pets").returncode == 0
    photo(51).save(photos / "newer.jpg")
    (tmp_path / "cwd").rename(tmp_path / "moved")
    ran = command(photos, "--out", out)
    assert ran.returncode == 2
    assert f"no model at '{tmp_path}/cwd/pets'" in ran.stderr
    assert f"{out} was labelled with --model {tmp_path}/cwd/pets, which this command" in ran.stderr
    assert status(command, out)["runs"][-1]["exit_code"] == 2, "the night is in the history"
    (tmp_path / "cwd").rmdir()
    (tmp_path / "moved").rename(tmp_path / "cwd")
    assert command(photos, "--out", out).returncode == 0
    assert {row["model"] for row in rows(out)} == {"pets"}


def test_another_model_needs_a_word_and_is_named(
    photos: Path, small_model: Path, command: Command, tmp_path: Path, many_rows: None
) -> None:
    out, model = tmp_path / "l.parquet", make_model(tmp_path / "mine", 1)
    assert command(photos, "--out", out, "--model", model).returncode == 0
    before = out.read_bytes()
    shutil.rmtree(model)
    make_model(model, 2)  # trained anew, into the same folder
    for words in ((), ("plan",)):
        ran = command(*words, photos, "--out", out)
        assert ran.returncode == 5
        assert "10 labels of" in ran.stderr
        assert "would be replaced, since this changed: the weights (was " in ran.stderr
        assert "--relabel" in ran.stderr
        assert out.read_bytes() == before
    ran = command(photos, "--out", out, "--relabel")
    assert (ran.returncode, "10 labelled" in ran.stdout) == (0, True)
    ran = command(photos, "--out", out, "--model", small_model)
    assert ran.returncode == 0, "named, it is meant"
    assert "labelling all again, since this changed: the model (was mine, is small)" in ran.stderr


def test_remembered_labels_can_be_left_behind(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    out, names = tmp_path / "l.parquet", tmp_path / "names.txt"
    names.write_text("\n".join(f"thing {i}" for i in range(10)))
    assert command(photos, "--out", out, "--model", small_model, "--labels", names).returncode == 0
    assert "nothing changed" in command(photos, "--out", out, "--model", small_model).stdout, (
        "a forgotten --labels is the table's, too"
    )
    link = tmp_path / "link"
    link.symlink_to(small_model)
    assert "nothing changed" in command(photos, "--out", out, "--model", link).stdout
    names.unlink()
    for arguments in ((), ("--model", small_model)):
        ran = command(photos, "--out", out, *arguments)
        assert ran.returncode == 2
        assert f"was labelled with {'' if arguments else '--model '}" in ran.stderr
        assert f"--labels {names}" in ran.stderr
        assert "leave that behind with --relabel" in ran.stderr
    ran = command(photos, "--out", out, "--model", small_model, "--relabel")
    assert ran.returncode == 0, ran.stderr
    assert {row["label"].split()[0] for row in rows(out)} == {"class"}


def test_a_model_that_moved_need_be_named_only_once(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    out, old, new = tmp_path / "l.parquet", tmp_path / "old", tmp_path / "new"
    shutil.copytree(small_model, old)
    assert command(photos, "--out", out, "--model", old).returncode == 0
    before = rows(out)
    old.rename(new)
    assert command(photos, "--out", out).returncode == 2
    ran = command(photos, "--out", out, "--model", new)
    assert (ran.returncode, "0 labelled" in ran.stdout) == (0, True), ran.stderr
    assert f"{out} is written again, to name {new} as its model" in ran.stderr
    assert rows(out) == before
    for model in ((), ("--model", new)):
        ran = command(photos, "--out", out, *model)
        assert (ran.returncode, "nothing changed" in ran.stdout) == (0, True), ran.stderr


@pytest.mark.parametrize(
    ("named", "is_it"),
    [
        ("hf-hub:o/n", True),
        ("hf-hub:o/n@main", True),
        ("hf-hub:o/n@" + "a" * 40, True),
        ("hf-hub:o/n2", False),
        ("embedded", False),
    ],
)
def test_a_model_of_the_hub_is_known_by_its_name(named: str, is_it: bool) -> None:
    assert ModelChoice("hf-hub:o/n@" + "a" * 40).is_named_by(named) == is_it


def test_an_unfinished_job_of_another_model_is_neither_gone_on_with_nor_dropped(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out, "--shard-size", 2, "--batch-size", 2, "--workers", 0)
    assert command(*arguments, "--model", small_model).returncode == 0
    before = out.read_bytes()
    other = (*arguments, "--model", "embedded")
    assert command(*other, "--max-runtime", "0.001s").returncode == 6
    for words in ((), ("plan",)):
        ran = command(*words, *arguments)
        assert ran.returncode == 5
        assert "has an unfinished job of the model tiny-imagenet" in ran.stderr
        assert f"by naming --model {small_model}" in ran.stderr
    assert out.read_bytes() == before
    ran = command(*other, "--max-runtime", "0.001s")
    assert "going on: 2 of 10 images are done already" in ran.stderr
    ran = command(*arguments, "--model", small_model)
    assert "the unfinished job cannot go on" in ran.stderr
    assert out.read_bytes() == before


@pytest.mark.parametrize("when", ["before it goes on", "while it is at work"])
def test_a_disk_that_goes_while_all_is_labelled_again_costs_no_label(
    photos: Path,
    small_model: Path,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    disk, out = make_photos(tmp_path / "disk", 6), tmp_path / "l.parquet"
    arguments = (photos, disk, "--out", out, "--shard-size", 2, "--batch-size", 2, "--workers", 0)
    assert command(*arguments, "--model", small_model).returncode == 0
    before = out.read_bytes()
    new = (*arguments, "--model", make_model(tmp_path / "mine", 3))

    def unmount() -> None:
        disk.rename(tmp_path / "away")
        disk.mkdir()
        (disk / "lost+found").mkdir()

    if when == "before it goes on":
        assert command(*new, "--max-runtime", "0.001s").returncode == 6
        unmount()
        ran = command(*new)
    else:
        real = local.label_shards

        def label_shards(*these: Any) -> Any:
            unmount()
            return real(*these)

        with monkeypatch.context() as patch:
            patch.setattr(local, "label_shards", label_shards)
            ran = command(*new)
    assert ran.returncode == 5, ran.stderr
    assert f"{disk} is not there any more, or empty" in ran.stderr
    assert out.read_bytes() == before
    assert command(*new).returncode == 5, "nor in the next night"
    disk.joinpath("lost+found").rmdir()
    disk.rmdir()
    (tmp_path / "away").rename(disk)
    ran = command(*new)
    assert ran.returncode == 0, ran.stderr
    assert "going on: " in ran.stderr
    assert "16 found, 16 labelled" in ran.stdout


@pytest.mark.parametrize("how", ["--relabel", "--restart"])
@pytest.mark.parametrize("is_back", [False, True])
def test_a_disk_that_was_away_for_some_shards_is_asked_again(
    photos: Path, small_model: Path, command: Command, tmp_path: Path, how: str, is_back: bool
) -> None:
    """The run that met it away ended before the merge; to the next its shards are done."""
    disk, out = make_photos(tmp_path / "disk", 6), tmp_path / "l.parquet"
    options = ("--shard-size", 2, "--batch-size", 2, "--workers", 0)
    arguments = (photos, disk, "--out", out, *options)
    assert command(*arguments, "--model", small_model).returncode == 0
    before = out.read_bytes()
    again = (*arguments, how, "--top-k", 3)
    real = local.label_shards

    class Killed(BaseException):
        pass

    def label_shards(*these: Any) -> Any:
        disk.rename(tmp_path / "away")
        disk.mkdir()
        real(*these)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "label_shards", label_shards)
        with pytest.raises(Killed):
            command(*again)
    if is_back:
        disk.rmdir()
        (tmp_path / "away").rename(disk)
    ran = command(*arguments, *(("--top-k", 3) if how == "--relabel" else again[-3:]))
    if how == "--restart" or not is_back:
        assert (ran.returncode == 0) == is_back, ran.stderr
    if not is_back:
        assert ran.returncode == 5
        assert out.read_bytes() == before
        return
    assert ran.returncode == 0, ran.stderr
    assert len(rows(out)) == 16
    assert {row["status"] for row in rows(out)} == {"ok"}
    assert {len(row["top_k"]) for row in rows(out)} == {3}


def test_images_that_are_really_gone_hold_nothing_up(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out, "--workers", 0, "--max-errors", 2)
    assert command(*arguments, "--model", small_model).returncode == 0
    real = local.label_shards

    def label_shards(*these: Any) -> Any:
        (photos / "0003.jpg").unlink(missing_ok=True)
        return real(*these)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "label_shards", label_shards)
        ran = command(*arguments, "--top-k", 3)
    assert "10 found, 9 labelled, 0 carried over, 1 failed (not_found 1)" in ran.stdout
    assert ran.returncode == 0
    assert "1 gone" in command(*arguments).stdout


def test_where_disks_were_mounted_is_remembered_by_nights_without_work(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    """A table of before, whose record knows of no disk, and nothing that changes."""
    out, disk = tmp_path / "l.parquet", photos / "more"
    arguments = (photos, "--out", out, "--model", small_model)
    assert command(*arguments).returncode == 0
    real = os.stat

    def other_device(path: Any, *more: Any, **named: Any) -> os.stat_result:
        status = real(path, *more, **named)
        is_disk = str(path) == str(disk)
        return os.stat_result((*status[:2], status.st_dev + 1, *status[3:])) if is_disk else status

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.find.walk.os.stat", other_device)
        assert "nothing changed" in command(*arguments).stdout
    assert Job(out).mounts() == [[str(photos), "more"]]
    shutil.rmtree(disk)
    disk.mkdir()
    for _ in range(2):
        ran = command(*arguments)
        assert ran.returncode == 7
        assert f"{disk} was a mount point and is none now" in ran.stderr
        assert len(rows(out)) == 10
    ran = command(*arguments, "--forget", disk)
    assert (ran.returncode, "3 gone" in ran.stdout) == (0, True)


def test_a_run_that_another_one_overtook_leaves(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    """Between the choice of the model and the lock another model's run has ended."""
    out = tmp_path / "l.parquet"
    assert command(photos, "--out", out, "--model", small_model).returncode == 0
    held = Job.held

    def overtaken(self: Job) -> Any:
        patch.undo()
        assert command(photos, "--out", out, "--model", "embedded").returncode == 0
        return held(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "held", overtaken)
        ran = command(photos, "--out", out)
    assert ran.returncode == 4
    assert "another run has just changed" in ran.stderr
    assert {row["model"] for row in rows(out)} == {"tiny-imagenet-200-hybrid-128px-v3"}


def test_a_new_failure_is_named_among_many_old_ones(
    small_model: Path, command: Command, tmp_path: Path
) -> None:
    folder, out = make_photos(tmp_path / "p", 1), tmp_path / "l.parquet"
    for number in range(450):
        (folder / f"old{number:03}.jpg").symlink_to(tmp_path / "nowhere.jpg")
    arguments = (folder, "--out", out, "--model", small_model, "--shard-size", 1000)
    assert command(*arguments).returncode == 3
    (folder / "zzz.jpg").write_text("no photo")
    ran = command(*arguments)
    assert ran.returncode == 3
    named = [line for line in ran.stderr.splitlines() if line.startswith("failed")]
    assert named[0].startswith(f"failed: {folder}/zzz.jpg: not_an_image")


def test_what_a_newer_version_left_is_not_written_to(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "l.parquet"
    assert command(photos, "--out", out, "--model", small_model).returncode == 0
    history = tmp_path / ".l.parquet.job" / "history.json"
    history.write_text(json.dumps(json.loads(history.read_text()) | {"version": 99}))
    newer = history.read_bytes()
    photo(50).save(photos / "new.jpg")
    assert command(photos, "--out", out).returncode == 0
    assert command(tmp_path / "none", "--out", out).returncode == 2
    assert history.read_bytes() == newer


def test_a_new_version_replaces_no_table_by_itself(
    photos: Path,
    small_model: Path,
    command: Command,
    tmp_path: Path,
    many_rows: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out)
    assert command(*arguments, "--model", small_model).returncode == 0
    before = out.read_bytes()
    monkeypatch.setattr("pipeline.label.identity.DECODE_RULES", "next")
    ran = command(*arguments)
    assert ran.returncode == 5
    assert f"decode_rules (was {DECODE_RULES}, is next)" in ran.stderr
    assert out.read_bytes() == before
    ran = command(*arguments, "--model", small_model)
    assert "10 labelled" in ran.stdout, "a model that is named says so for it"


def test_few_rows_need_no_word(
    photos: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "l.parquet"
    assert command(photos, "--out", out).returncode == 0
    monkeypatch.setattr("pipeline.label.identity.DECODE_RULES", "next")
    ran = command(photos, "--out", out)
    assert "10 labelled" in ran.stdout
    assert "labelling all again, since this changed: decode_rules" in ran.stderr


def test_a_table_of_a_version_that_remembered_nothing_is_asked_about(
    photos: Path,
    small_model: Path,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "l.parquet"
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.plan.choice.ModelChoice.to_record", lambda self: None)
        assert command(photos, "--out", out, "--model", small_model).returncode == 0
    before = out.read_bytes()
    ran = command(photos, "--out", out)
    assert ran.returncode == 5
    assert (
        "was labelled with the model small, and this command names none, which stands for embedded"
        in ran.stderr
    )
    assert out.read_bytes() == before
    assert "nothing changed" in command(photos, "--out", out, "--model", small_model).stdout


def test_the_model_of_an_unfinished_job_is_remembered_too(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out, "--shard-size", 2, "--batch-size", 2, "--workers", 0)
    assert command(*arguments, "--model", small_model, "--max-runtime", "0.001s").returncode == 6
    ran = command(*arguments)
    assert "going on: 2 of 10 images are done already" in ran.stderr
    assert {row["model"] for row in rows(out)} == {"small"}


# -- exit codes, history, messages ---------------------------------------------------------------


def test_failures_are_judged_by_what_was_labelled_now(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    make_photos(photos / "plenty", 60)
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out, "--model", small_model)
    assert command(*arguments).returncode == 0
    for number in range(3):
        (photos / f"bad{number}.jpg").write_text("no photo")
    ran = command(*arguments)
    assert ran.returncode == 3, "three of three new photos, though three of 73 in all"
    assert "3 of 3 images labelled now failed" in ran.stderr
    assert "73 found, 0 labelled, 70 carried over, 3 failed (not_an_image 3)" in ran.stdout
    for number in range(9):
        (photos / f"worse{number}.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert command(*arguments).returncode == 3
    ran = command(*arguments)
    assert ran.returncode == 0, (
        "those that are tried again each night are no news: else 3 every night"
    )
    assert (
        "82 found, 0 labelled, 73 carried over (3 of them failed earlier), 9 failed (not_found 9)"
        in ran.stdout
    )
    assert f"failed again: {photos}/worse0.jpg: not_found: " in ran.stderr


def test_found_is_the_sum_of_what_became_of_it(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    (photos / "bad.jpg").write_text("no photo")
    (photos / "later.jpg").symlink_to(tmp_path / "nowhere.jpg")
    out = tmp_path / "l.parquet"
    for night in range(3):
        photo(50 + night).save(photos / f"new{night}.jpg")
        command(photos, "--out", out, "--model", small_model)
        counts = status(command, out)["runs"][-1]["counts"]
        assert (
            counts["found"]
            == counts["labelled"] + counts["carried"] + counts["failed"]
            == 13 + night
        )
        assert counts["failed_earlier"] == (1 if night else 0), "bad.jpg; later.jpg is tried again"


def test_at_most_some_failures_are_named_and_the_query_finds_the_rest(
    small_model: Path, command: Command, tmp_path: Path
) -> None:
    import duckdb

    folder = make_photos(tmp_path / "p", 1)
    for number in range(30):
        (folder / f"bad{number:02}.jpg").write_text("no photo")
    out = tmp_path / "l.parquet"
    ran = command(folder, "--out", out, "--model", small_model)
    named = [line for line in ran.stderr.splitlines() if line.startswith("failed: ")]
    assert len(named) == 20
    (rest,) = [
        line for line in ran.stderr.splitlines() if line.startswith("and 10 more; in DuckDB: ")
    ]
    assert len(duckdb.sql(rest.partition("DuckDB: ")[2]).fetchall()) == 30
    record = Job(out).read_run()
    assert record is not None
    assert [entry["path"] for entry in record["failures"]] == [
        f"bad{number:02}.jpg" for number in range(30)
    ]


def test_quiet_is_silent_where_all_is_well_and_nowhere_else(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out, "--model", small_model, "--quiet", "--max-errors", 1)
    (photos / "bad.jpg").write_text("no photo")
    for _ in range(2):
        ran = command(*arguments)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    for number in range(2):
        (photos / f"worse{number}.jpg").write_text("no photo")
    ran = command(*arguments)
    assert ran.returncode == 3
    assert f"failed: {photos}/worse1.jpg: not_an_image" in ran.stderr
    assert "13 found, 0 labelled" in ran.stdout
    shutil.rmtree(photos)
    photos.mkdir()
    ran = command(*arguments)
    assert ran.returncode == 7
    assert "holds no image any more" in ran.stderr


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_log_json_is_json_throughout(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    (photos / "bad.jpg").write_text("no photo")
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out, "--model", small_model, "--log-json")
    events: Callable[[str], list[str]] = lambda text: [line["event"] for line in json_lines(text)]  # noqa: E731
    (planned,) = json_lines(command("plan", *arguments).stdout)
    assert (planned["event"], planned["counts"]["new"]) == ("plan", 11)
    ran = command(*arguments)
    (result,) = json_lines(ran.stdout)
    assert (result["event"], result["exit_code"], result["table"]) == (
        "result",
        ran.returncode,
        str(out),
    )
    assert result["counts"]["labelled"] == 10
    assert {"model", "plan", "placement", "failed", "errors"} <= set(events(ran.stderr))
    printed = json_lines(command(photos / "0000.jpg", "--model", small_model, "--log-json").stdout)
    assert (printed[0]["event"], len(printed[0]["labels"])) == ("labels", 5)
    for wrong, code in (
        ((tmp_path / "none", "--out", out, "--log-json"), 2),
        ((photos, "--out", out, "--top-k", "0", "--log-json"), 2),
        ((photos, "--out", out, "--modl", "x", "--log-json"), 2),
        ((photos, "--out", tmp_path, "--log-json"), 5),
    ):
        ran = command(*wrong)
        assert ran.returncode == code
        assert json_lines(ran.stderr)[-1]["event"] == "error"
        assert json_lines(ran.stderr)[-1]["exit_code"] == code


def test_a_night_without_work_is_seen_in_the_history_and_so_is_one_that_failed(
    photos: Path,
    small_model: Path,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out, "--model", small_model)
    for _ in range(2):
        assert command(*arguments).returncode == 0
    photos.rename(tmp_path / "away")
    assert command(*arguments).returncode == 2
    (tmp_path / "away").rename(photos)
    make_photos(photos, 8)
    assert (
        command(*arguments, "--shard-size", 2, "--workers", 0, "--max-runtime", "0.001s").returncode
        == 6
    )
    with Job(out).held():
        assert command(*arguments).returncode == 4
    found = status(command, out)
    assert [run["exit_code"] for run in found["runs"]] == [0, 0, 2, 6], (
        "one that was locked out has no say"
    )
    assert found["runs"][1]["changed"] is False
    assert found["runs"][1]["message"].startswith("nothing changed: 10 found")
    assert "does not exist" in found["runs"][2]["message"]
    assert found["unfinished"]["images"] == 8
    text = command("status", out).stdout
    assert f"last run  {found['runs'][-1]['finished_at']}, exit code 6" in text
    assert command("verify", out).returncode == 0
    monkeypatch.setattr("jobs.job.RUNS_KEPT", 3)
    command(*arguments)
    assert [run["exit_code"] for run in status(command, out)["runs"]] == [2, 6, 0]


def test_a_damaged_history_is_named_and_begun_anew(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out, "--model", small_model)
    command(*arguments)
    history = tmp_path / ".l.parquet.job" / "history.json"
    history.write_text(history.read_text().replace('"exit_code": 0', '"exit_code": 1'))
    assert "history.json" in command("verify", out).stdout
    assert status(command, out)["runs"] == []
    assert command(*arguments).returncode == 0
    assert len(status(command, out)["runs"]) == 1
    assert command("verify", out).returncode == 0


def test_plan_says_how_long_it_takes_and_by_what_it_knows(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out, "--model", small_model)
    assert (
        "how long it takes is not known: no run has labelled" in command("plan", *arguments).stdout
    )
    command(*arguments)
    assert "takes" not in command("plan", *arguments).stdout, "there is nothing to do"
    make_photos(photos / "next", 40)
    command(photos / "next", "--out", out, "--model", "embedded")
    run = status(command, out)["runs"][-1]
    planned = command("plan", *arguments, "--log-json")
    (facts,) = json_lines(planned.stdout)
    assert facts["estimate"]["seconds"] == round(50 / run["images_per_s"])
    line = planned.stdout
    assert (
        f"at the {run['images_per_s']:,.1f} images/s of the run of {run['finished_at']} (40 "
        f"images, " in line
    )
    assert "with the model tiny-imagenet" in line


def test_every_field_that_programs_read_is_documented(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    (photos / "bad.jpg").write_text("no photo")
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out, "--model", small_model)
    assert (
        command(*arguments, "--shard-size", 2, "--workers", 0, "--max-runtime", "0.001s").returncode
        == 6
    )
    unfinished = status(command, out)
    ran = command(*arguments, "--log-json")
    finished = status(command, out)
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "programs.md").read_text()))
    for line in [*json_lines(ran.stdout), *json_lines(ran.stderr)]:
        assert line["event"] in documented
    free = {
        "settings",
        "libraries",
        "reasons",
        "errors",
        "rates",
        "choice",
    }  # whose own keys are listed elsewhere

    def names(value: Any) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(names, value))
        if not isinstance(value, dict):
            return set()
        return value.keys() | set().union(
            *(names(below) for name, below in value.items() if name not in free)
        )

    told = names(finished) | names(unfinished) | names(json_lines(ran.stdout))
    assert {"failed_again", "images_per_s", "table_sha256", "shards_done", "exit_code"} <= told
    assert told <= documented, told - documented


def test_words_that_are_nearly_commands_or_options(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    ran = command("staus", tmp_path / "t.parquet")
    assert (ran.returncode, "did you mean status?" in ran.stderr) == (2, True)
    ran = command(photos, "-o", tmp_path / "t.parquet", "--modle", "x")
    assert ran.returncode == 2
    assert "--model" in ran.stderr
    for words in ((), ("plan",)):
        short, long = command(*words, "-h"), command(*words, "--help")
        assert (short.returncode, short.stderr, short.stdout) == (0, "", long.stdout)
    ran = command("verify", tmp_path / "typo.parquet")
    assert ran.returncode == 2
    assert "there is no table at" in ran.stderr
    assert "--restart" not in ran.stderr


def test_an_interruption_is_json_too(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    import os
    import signal

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.run.merge", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        ran: subprocess.CompletedProcess[str] = command(
            photos, "--out", tmp_path / "l.parquet", "--model", small_model, "--log-json"
        )
    assert ran.returncode == 143
    last = json_lines(ran.stderr)[-1]
    assert (last["event"], last["exit_code"]) == ("interrupted", 143)
    assert status(command, tmp_path / "l.parquet")["runs"][-1]["exit_code"] == 143


# -- ten nights ----------------------------------------------------------------------------------


def test_ten_nights(small_model: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                    many_rows: None) -> None:  # fmt: skip
    """One library and what happens to it; after each night rows, exit code and status are what
    docs/nightly.md promises.
    """
    photos, disk, listed, out = (
        tmp_path / "photos",
        tmp_path / "disk",
        tmp_path / "list.txt",
        tmp_path / "l.parquet",
    )
    inbox = make_photos(tmp_path / "inbox", 4)
    make_photos(photos, 12)
    make_photos(disk, 6)
    runs: list[dict[str, Any]] = []

    def night(
        expected_code: int,
        counts: dict[str, int],
        *more: Any,
        paths: tuple[Path, ...] = (photos, disk),
    ) -> subprocess.CompletedProcess[str]:
        """Run, and compare exit code, history, rows and labels with what should be."""
        before = labels(out) if out.exists() else {}
        ran = command(*paths, "--files-from", listed, "--out", out, *more)
        assert ran.returncode == expected_code, ran.stderr
        assert "Traceback" not in ran.stderr
        now = status(command, out)
        runs.append(now["runs"][-1])
        assert now["runs"] == runs, "each night has its line"
        assert runs[-1]["exit_code"] == expected_code
        after = labels(out)
        if expected_code in (0, 3, 7):
            told = runs[-1]["counts"]
            assert told | counts == told
            assert told["found"] == told["labelled"] + told["failed"] + told["carried"]
            assert now["table"]["counts"]["rows"] == len(after) == told["found"] + told["unseen"]
        else:
            assert after == before, "a night that fails changes nothing"
        assert len({row["fingerprint"] for row in rows(out)}) == 1
        assert command("verify", out).returncode == 0
        return ran

    def find(*, fails: bool = False) -> None:
        listed.write_text(
            "" if fails else "".join(f"{path}\n" for path in sorted(inbox.glob("*.jpg")))
        )

    find()
    night(0, {"found": 22, "labelled": 22}, "--model", small_model)
    first = labels(out)

    # 2: permanent failures and new photos, one of them good.
    (photos / "broken.jpg").write_text("no photo")
    (photos / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    photo(60).save(photos / "new.jpg")
    ran = night(3, {"found": 25, "labelled": 1, "failed": 2, "failed_again": 0})
    assert "2 of 3 images labelled now failed" in ran.stderr

    # 3: nothing new; the same failures are no news.
    night(0, {"found": 25, "labelled": 0, "failed": 1, "failed_again": 1, "failed_earlier": 1})

    # 4: the disk is not mounted, and `find` fails with it.
    disk.rename(tmp_path / "unmounted")
    disk.mkdir()
    find(fails=True)
    ran = night(7, {"found": 15, "unseen": 10, "gone": 0})
    assert f"{disk} holds no image any more" in ran.stderr
    assert "the list of files is empty" in ran.stderr
    assert {path: labels(out)[path] for path in first} == first, "no label is lost"

    # 5: an upgrade in such a night replaces nothing, and says what to do.
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.label.identity.DECODE_RULES", "next")
        ran = night(5, {})
        assert "10 rows of" in ran.stderr
        # 6: the disk is back; still nobody has said that all labels may be replaced.
        disk.rmdir()
        (tmp_path / "unmounted").rename(disk)
        find()
        ran = night(5, {})
        assert "would be replaced, since this changed: decode_rules" in ran.stderr
    # 7: the old version again, a new photo and a changed one.
    photo(61).save(disk / "new.jpg")
    photo(62).save(disk / "0000.jpg")
    night(0, {"found": 26, "new": 1, "changed": 1, "labelled": 2})
    after = labels(out)
    assert {path: after[path] for path in first if path != f"{disk}/0000.jpg"} == {
        path: top_k for path, top_k in first.items() if path != f"{disk}/0000.jpg"
    }

    # 8: another model, named: all is labelled anew, and the night says why.
    model = make_model(tmp_path / "mine", 3)
    ran = night(3, {"found": 26, "stale": 26, "labelled": 24, "failed": 2}, "--model", model)
    assert "the model (was small, is mine)" in ran.stderr
    assert {row["model"] for row in rows(out)} == {"mine"}

    # 9: a folder is emptied for good, and a root has another name, under which its rows go on.
    shutil.rmtree(disk)
    disk.mkdir()
    pictures = photos.rename(tmp_path / "pictures")
    night(7, {"found": 19, "moved": 14, "labelled": 0, "failed": 1, "gone": 0, "unseen": 7},
          "--max-errors", 2, paths=(pictures, disk))  # fmt: skip

    # 10: the emptied folder is forgotten, by name; the model is still the table's.
    night(0, {"found": 19, "gone": 7, "unseen": 0}, "--forget", disk, paths=(pictures, disk))
    assert {row["model"] for row in rows(out)} == {"mine"}
    assert {row["root"] for row in rows(out)} == {str(pictures), "/"}, "a listed file's root is /"
    assert status(command, out)["table"]["model"] == "mine"
