"""Identities that are kept: a night without work knows its model and imports no torch, and no entry
that is old, damaged or wrong ever decides a label.
"""

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.manifest import Fingerprint, ModelIdentity
from jobs.storage.arrow import read_parquet
from pipeline.garbage import no_collection
from pipeline.label import deferred, identity, local
from pipeline.label.deferred import DeferredMachine
from pipeline.label.identity import KeptIdentity
from pipeline.settings import Settings
from tests.helpers import ROOT, Command, photo, rows
from tests.text_models import model_folder
from vit.checkpoints.locate import Source
from vit.errors import ModelError
from vit.user_cache import user_cache

HEAVY = ("torch", "torchvision", "transformers", "openvino", "safetensors", "pandas")


@pytest.fixture
def model(small_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_model, tmp_path / "model")


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files may be remembered though they were written just now, as no test waits."""
    monkeypatch.setattr(identity, "_SETTLED_S", -3600.0)


@pytest.fixture
def labelled(settled: None, command: Command, photos: Path, tmp_path: Path, model: Path) -> Path:
    """A table of the photos, whose model is remembered."""
    table = tmp_path / "labels.parquet"
    ran = command(photos, "--out", table, "--model", model, "--workers", 0)
    assert ran.returncode == 0, ran.stderr
    assert len(entries()) == 1
    return table


def entries() -> list[Path]:
    return sorted(user_cache("identities").glob("*"))


def made_up(name: str = "small") -> ModelIdentity:
    fingerprint = Fingerprint("w", {"depth": 2}, {"mean": [0.5]}, 1.0, "l", 5, "3")
    return ModelIdentity(
        name, "/models/small", ("cat", "dog"), ("n1", "n2"), 32, fingerprint, ("a",)
    )


def keep(settings: Settings, place: Path, what: ModelIdentity | None = None) -> KeptIdentity:
    kept = KeptIdentity.of(settings)
    assert kept is not None
    kept.write(what or made_up(), [place])
    return kept


def recalled(settings: Settings) -> ModelIdentity | None:
    kept = KeptIdentity.of(settings)
    return kept.read() if kept else None


def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(settings: Settings) -> Any:
        raise ModelError("it was loaded")

    monkeypatch.setattr(local, "Machine", refuse)


def as_explained(error: ModelError) -> ModelError:
    return error


def test_a_night_without_work_imports_no_torch(labelled: Path, photos: Path) -> None:
    """The whole command; also `plan`. Nor what pyarrow would import, which is there all the same."""
    script = (
        "import sys\nfrom pipeline.cli.commands import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n"
        f"    print(sorted({{*{HEAVY}}} & set(sys.modules)), 'pyarrow' in sys.modules)\n"
        "    import pyarrow as pa\n    print(type(pa.table({'a': [1]}).to_pandas()).__name__)\n"
        "    print(pa.array(__import__('pandas').Series([1.5, None])).null_count)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words in ([], ["plan"]):
        ran = subprocess.run(
            [sys.executable, "-c", script, *words, photos, "--out", labelled],
            capture_output=True, text=True, check=True, env=environment,
        )  # fmt: skip
        assert "nothing changed: 10 found" in ran.stdout or "10  carried" in ran.stdout
        assert ran.stdout.splitlines()[-3:] == ["[] True", "DataFrame", "1"]


def test_what_is_kept_is_read_again(settled: None, model: Path) -> None:
    settings = Settings(model=str(model))
    keep(settings, model)
    assert recalled(settings) == made_up()
    assert recalled(replace(settings, model=f"{model}/../model")) == made_up()


def rewrite(path: Path) -> None:
    """Other bytes of the same size, in the same file, with the time of change that it had."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xaa")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )


def put_in_place(path: Path) -> None:
    """Another file of the same size and time of change under the same name."""
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"\xaa" * before.st_size)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "config edited": lambda model: (model / "config.json").write_text("{}"),
    "weights written over": lambda model: rewrite(model / "model.safetensors"),
    "weights put in place": lambda model: put_in_place(model / "model.safetensors"),
    "touched": lambda model: os.utime(model / "model.safetensors"),
    "a head came": lambda model: (model / "head.safetensors").write_bytes(b"head"),
    "weights went": lambda model: (model / "model.safetensors").unlink(),
    "all went": shutil.rmtree,
    "another folder": lambda model: (model.rename(f"{model}-1"), shutil.copytree(f"{model}-1", model)),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_the_files_is_seen(
    settled: None, model: Path, change: Callable[[Path], Any]
) -> None:
    settings = Settings(model=str(model))
    keep(settings, model)
    change(model)
    assert recalled(settings) is None


@pytest.mark.parametrize("part", range(4))
def test_each_part_of_a_stamp_counts(
    settled: None, model: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    """Also where a file system keeps but one of them."""
    settings, stamp = Settings(model=str(model)), identity._stamp
    keep(settings, model)
    assert recalled(settings)

    def other(status: os.stat_result) -> identity.Stamp:
        parts = list(stamp(status))
        parts[part] += 1
        return parts[0], parts[1], parts[2], parts[3]

    monkeypatch.setattr(identity, "_stamp", other)  # the code's were taken already
    assert recalled(settings) is None


def test_a_link_that_leads_elsewhere_is_seen(settled: None, model: Path, tmp_path: Path) -> None:
    """As a snapshot of the Hub's cache is made of links, and `current` may be one."""
    link, other = tmp_path / "current", shutil.copytree(model, tmp_path / "other")
    link.symlink_to(model)
    settings = Settings(model=str(link))
    keep(settings, link)
    assert recalled(settings)
    link.unlink()
    link.symlink_to(other)
    assert recalled(settings) is None
    keep(settings, link)
    (other / "model.safetensors").rename(tmp_path / "blob")
    (other / "model.safetensors").symlink_to(tmp_path / "blob")
    keep(settings, link)
    assert recalled(settings)
    rewrite(tmp_path / "blob")
    assert recalled(settings) is None


def test_a_checkpoint_is_its_file_alone(settled: None, model: Path) -> None:
    file = model / "model.safetensors"
    settings = Settings(model=str(file), arch="vit_tiny_patch16_224")
    keep(settings, file)
    (model / "beside.txt").touch()
    assert recalled(settings)
    rewrite(file)
    assert recalled(settings) is None


def test_a_file_that_was_changed_just_now_is_not_vouched_for(model: Path) -> None:
    """It may change once more, and look as it does now."""
    settings = Settings(model=str(model))
    rewrite(model / "model.safetensors")
    keep(settings, model)
    assert not entries()


def test_what_was_kept_goes_where_the_files_cannot_be_vouched_for(
    settled: None, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(model=str(model))
    keep(settings, model)
    monkeypatch.setattr(identity, "_SETTLED_S", 2.0)
    keep(settings, model, made_up("other"))
    assert not entries()


def test_stamps_of_whole_seconds_vouch_for_nothing(
    settled: None, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image of a disk may hold another model with the same ones."""
    monkeypatch.setattr(identity, "_stamp", lambda status: (1, 10**9, 3, 10**9))
    keep(Settings(model=str(model)), model)
    assert not entries()


OTHERWISE: dict[str, Any] = {
    "arch": "vit_tiny_patch16_224",
    "preprocess": "imagenet",
    "templates": ("a {}",),
    "activation": "sigmoid",
    "top_k": 3,
    "model": "embedded",
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_another_question_has_another_answer(settled: None, model: Path, name: str) -> None:
    settings = Settings(model=str(model))
    keep(settings, model)
    assert recalled(replace(settings, **{name: OTHERWISE[name]})) is None


def test_class_names_are_asked_for_by_what_they_say(
    settled: None, model: Path, tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    settings = Settings(model=str(model), labels=names)
    keep(settings, model)
    assert recalled(settings)
    before = names.stat()
    names.write_text("cat\ncow\n")
    os.utime(names, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert recalled(settings) is None
    names.write_text("cat\ndog\n")
    assert recalled(settings)
    assert recalled(replace(settings, labels=names.rename(tmp_path / "names.json"))) is None
    assert recalled(settings) is None  # and what is not there is the model's to complain of


def test_other_rules_of_decoding_or_other_code_are_seen(
    settled: None, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(model=str(model))
    keep(settings, model)
    with monkeypatch.context() as patch:
        patch.setattr(identity, "DECODE_RULES", "next")
        assert recalled(settings) is None
    with monkeypatch.context() as patch:
        patch.setattr(identity, "_code", lambda: "other")
        assert recalled(settings) is None
    assert recalled(settings)


def test_the_code_is_its_files_and_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def note(places: Any) -> dict[str, identity.Stamp]:
        seen.extend(places)
        return {}

    monkeypatch.setattr(identity, "stamps", note)
    identity._code.cache_clear()
    one = identity._code()
    assert {ROOT / "vit/checkpoints", ROOT / "jobs", ROOT / "pipeline/label"} <= set(seen)
    monkeypatch.setattr(identity, "version", lambda name: "99" if name == "torchvision" else "1")
    identity._code.cache_clear()
    assert identity._code() != one
    identity._code.cache_clear()


@pytest.mark.parametrize("cache", ["a-file/cache", "/proc/nothing/can/be/made/here"])
def test_a_cache_that_cannot_be_written_keeps_nothing_and_stops_nothing(
    settled: None, command: Command, photos: Path, tmp_path: Path, model: Path,
    monkeypatch: pytest.MonkeyPatch, cache: str,
) -> None:  # fmt: skip
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
    for expected in ("10 labelled", "nothing changed"):
        ran = command(photos, "--out", tmp_path / "t.parquet", "--model", model, "--workers", 0)
        assert ran.returncode == 0, ran.stderr
        assert expected in ran.stdout


def test_without_a_home_nothing_is_kept(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")  # below whatever folder this is
    assert KeptIdentity.of(Settings(model=str(model))) is None


def test_the_entry_of_another_user_that_may_not_be_read_is_none(
    settled: None, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(model=str(model))
    keep(settings, model)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert recalled(settings) is None


@given(data=st.data())
def test_a_damaged_entry_is_none(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    place = tmp_path_factory.mktemp("kept")
    kept = KeptIdentity(place / "entry.json", {"model": "m"}, 1e12)
    kept.write(made_up(), [Path(__file__)])
    whole = bytearray(kept.path.read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    match data.draw(st.sampled_from(["cut", "changed"])):
        case "cut":
            whole = whole[:at]
        case "changed":
            whole[at] = data.draw(st.integers(0, 255))
    kept.path.write_bytes(whole)
    assert kept.read() in (None, made_up())


def test_an_entry_of_another_version_is_none(
    settled: None, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(model=str(model))
    monkeypatch.setattr(identity, "_VERSION", 0)
    keep(settings, model)
    monkeypatch.undo()
    assert recalled(settings) is None


TEXTS = st.lists(st.text(max_size=9), max_size=3).map(tuple)
VALUES = st.dictionaries(
    st.text(max_size=5), st.booleans() | st.integers() | st.text(max_size=5) | st.floats(-9, 9)
)


@given(
    st.builds(
        ModelIdentity,
        name=st.text(),
        address=st.text(),
        labels=TEXTS,
        label_ids=TEXTS,
        image_size=st.integers(),
        notes=TEXTS,
        fingerprint=st.builds(
            Fingerprint,
            weights_sha256=st.text(),
            architecture=VALUES,
            preprocess=VALUES,
            temperature=st.floats(0.1, 9),
            labels_sha256=st.text(),
            top_k=st.integers(),
            decode_rules=st.text(),
            activation=st.sampled_from(["softmax", "sigmoid"]),
            head_sha256=st.none() | st.text(),
        ),
    )
)
def test_identities_go_through_json(one: ModelIdentity) -> None:
    assert ModelIdentity.from_record(json.loads(json.dumps(one.to_record()))) == one


@pytest.mark.parametrize("record", [None, {}, [], {"fingerprint": {}}, {"labels": 1}])
def test_what_is_no_identity_is_none(record: Any) -> None:
    assert ModelIdentity.from_record(record) is None


def forge(fingerprint: dict[str, Any]) -> None:
    """Let the one entry there is say another fingerprint, and prove itself all the same."""
    (entry,) = entries()
    values = identity.read_record(entry, identity._VERSION)
    assert values is not None
    values["identity"]["fingerprint"] |= fingerprint
    identity.write_record(entry, identity._VERSION, values)


def fingerprints(table: Path) -> set[str]:
    return set(pq.read_table(table)["fingerprint"].to_pylist())


def test_a_wrong_entry_labels_nothing(
    labelled: Path, command: Command, photos: Path, model: Path
) -> None:
    """The model is asked before anything is frozen, and the entry put right."""
    before, (entry,) = fingerprints(labelled), entries()
    kept = entry.read_bytes()
    forge({"weights_sha256": "of another"})
    photo(77).save(photos / "new.jpg")
    ran = command(photos, "--out", labelled, "--relabel", "--workers", 0)
    assert ran.returncode == 0, ran.stderr
    assert "the model is not the one it was taken for" in ran.stderr
    assert "11 found, 1 labelled, 10 carried over" in ran.stdout
    assert fingerprints(labelled) == before
    assert json.loads(entry.read_bytes())["identity"] == json.loads(kept)["identity"]
    assert "nothing changed" in command(photos, "--out", labelled).stdout


def test_nothing_is_refused_because_of_a_wrong_entry(
    labelled: Path, command: Command, photos: Path
) -> None:
    before = rows(labelled)
    forge({"weights_sha256": "of another"})
    ran = command(photos, "--out", labelled, "--workers", 0)
    assert ran.returncode == 0, ran.stderr
    assert "nothing changed" in ran.stdout
    assert rows(labelled) == before


def test_an_unfinished_job_is_not_dropped_because_of_a_wrong_entry(
    settled: None, command: Command, photos: Path, tmp_path: Path, model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    table = tmp_path / "t.parquet"
    words = (photos, "--out", table, "--model", model, "--workers", 0, "--shard-size", 4)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.run.audit", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command(*words)
    forge({"temperature": 2.0})
    ran = command(*words)
    assert ran.returncode == 0, ran.stderr
    assert "going on: 10 of 10 images are done already" in ran.stderr


def test_a_model_that_changed_between_two_nights_is_no_surprise(
    labelled: Path, command: Command, photos: Path, model: Path
) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"temperature": 2.0}))
    ran = command(photos, "--out", labelled, "--workers", 0)
    assert ran.returncode == 0, ran.stderr
    assert "temperature (was 1.0, is 2.0)" in ran.stderr
    assert "10 labelled" in ran.stdout
    assert "taken for" not in ran.stderr


def test_a_model_that_is_damaged_is_found_to_be_when_there_is_work(
    labelled: Path, command: Command, photos: Path, model: Path
) -> None:
    (model / "config.json").write_text("{")
    assert command(photos, "--out", labelled).returncode == 2


def test_a_plan_keeps_nothing_and_reads_what_is_kept(
    labelled: Path, command: Command, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        no_loading(patch)
        assert "10  carried" in command("plan", photos, "--out", labelled).stdout
    entries()[0].unlink()
    assert "10  carried" in command("plan", photos, "--out", labelled).stdout
    assert not entries()


def test_no_process_is_started_early_without_work(
    labelled: Path, command: Command, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Settings] = []
    monkeypatch.setattr(deferred, "start_early", started.append)
    command(photos, "--out", labelled, "--workers", 0)
    assert not started
    photo(77).save(photos / "new.jpg")
    command(photos, "--out", labelled, "--workers", 0)
    assert len(started) == 1


def test_a_branch_of_the_hub_is_asked_for_each_time(
    settled: None, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may move: what is kept is kept of a commit."""
    asked: list[str] = []
    at = ["a" * 40]

    def find(name: str) -> Source:
        asked.append(name)
        address = f"hf-hub:acme/vit@{at[0]}"
        return Source(address, address, model / "model.safetensors", model / "config.json")

    monkeypatch.setattr(deferred, "find_source", find)
    no_loading(monkeypatch)
    branch, commit = Settings(model="hf-hub:acme/vit"), f"hf-hub:acme/vit@{at[0]}"
    keep(Settings(model=commit), model)
    machine = DeferredMachine(branch, as_explained)
    assert machine.identity == made_up()
    assert machine.settings.model == commit
    at[0] = "b" * 40
    with pytest.raises(ModelError, match="it was loaded"):
        DeferredMachine(branch, as_explained)
    assert asked == ["hf-hub:acme/vit"] * 2
    # A commit needs nobody to be asked.
    assert DeferredMachine(Settings(model=commit), as_explained).identity == made_up()
    assert len(asked) == 2


def test_torchvision_is_not_imported_to_find_a_file_that_is_known(
    settled: None, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(model="torchvision:ViT_B_32_Weights.IMAGENET1K_V1")
    keep(settings, model / "model.safetensors")
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    assert DeferredMachine(settings, as_explained).identity == made_up()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_words_are_remembered_where_all_they_were_made_of_is_beside(
    settled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    """Not where the tokenizer is a branch of the Hub's, nor where the head could not be kept."""
    clip, words = model_folder(tmp_path / "clip", "clip"), tmp_path / "words.txt"
    words.write_text("cat\ndog\n")
    settings = Settings(model=str(clip), labels=words)
    if elsewhere:
        monkeypatch.setattr("vit.text.words.keep_head", lambda head, digest: "there")
    made = DeferredMachine(settings, as_explained).identity
    assert recalled(settings) == (None if elsewhere else made)
    (clip / "tokenizer_config.json").write_text("{}")
    assert recalled(settings) is None


@pytest.fixture
def unfrozen() -> Iterator[None]:
    """The objects of before the tests are frozen. Here they are not, and nothing collects by itself.

    A full collection, due by chance, would make the few old, too.
    """
    was_frozen, thresholds = gc.get_freeze_count(), gc.get_threshold()
    gc.set_threshold(0)
    gc.unfreeze()
    yield
    (gc.freeze if was_frozen else gc.unfreeze)()
    gc.set_threshold(*thresholds)


@pytest.mark.usefixtures("unfrozen")
def test_what_is_made_while_nobody_looks_for_garbage_counts_as_old() -> None:
    """Else the next collections would look through all of it after all."""
    with no_collection():
        few = [[number] for number in range(1_000)]
    old = {id(each) for each in gc.get_objects(generation=2)}
    assert not any(id(each) in old for each in few), "they may be garbage soon"
    with no_collection():
        many = [[number] for number in range(200_000)]
    old = {id(each) for each in gc.get_objects(generation=2)}
    assert all(id(each) in old for each in many)
    gc.freeze()
    with no_collection():
        many += [[number] for number in range(200_000)]
    assert gc.get_freeze_count() > 0, "what somebody froze stays so"


def test_importing_torch_looks_for_no_garbage_and_goes_on_as_before() -> None:
    for was_enabled in (True, False):
        (gc.enable if was_enabled else gc.disable)()
        try:
            with suppress(ImportError), no_collection():
                assert not gc.isenabled()
                raise ImportError
            assert gc.isenabled() == was_enabled
        finally:
            gc.enable()


@pytest.mark.parametrize(
    ("does", "code", "is_at_once", "complaint"),
    [
        ("sys.exit(6)", 6, True, ""),
        ("sys.exit()", 0, True, ""),
        ("sys.exit('why')", 1, False, "why"),
        ("1 / 0", 1, False, "ZeroDivisionError"),
    ],
)
def test_the_command_s_process_ends_once_all_have_cleaned_up_and_takes_nothing_apart(
    does: str, code: int, is_at_once: bool, complaint: str
) -> None:
    script = f"""
import atexit, sys
from pipeline.cli import __main__ as entry

class Kept:
    def __del__(self):
        print("taken apart", flush=True)

kept = Kept()

def main():
    atexit.register(print, "cleaned up")
    print("x" * 100_000)
    {does}

entry.main = main
entry.start()
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == code
    lines = ran.stdout.splitlines()
    assert lines == ["x" * 100_000, "cleaned up", *["taken apart"] * (not is_at_once)]
    assert complaint in ran.stderr


@pytest.mark.parametrize(
    ("redirection", "code"),
    [(">/dev/full", 120), (">&-", 0), ("2>&-", 0), (">/dev/null", 0)],
)
def test_what_cannot_be_written_at_the_end_is_python_s_to_say(redirection: str, code: int) -> None:
    script = (
        "from pipeline.cli import __main__ as entry; "
        "entry.main = lambda: [print('few'), exit(0)]; entry.start()"
    )
    ran = subprocess.run(
        f'exec "{sys.executable}" -c "{script}" {redirection}',
        shell=True,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stderr=subprocess.PIPE,
        check=False,
    )
    assert ran.returncode == code, ran.stderr


def test_columns_come_in_the_order_asked_for_and_are_missed(tmp_path: Path) -> None:
    path = tmp_path / "part"
    table = pa.table({"a": [1, 2], "b": ["x", "y"]})
    pq.write_table(table, path)
    assert read_parquet(path).equals(table)
    assert read_parquet(path, ["b", "a"]).equals(table.select(["b", "a"]))
    with pytest.raises(pa.ArrowInvalid, match="no column c"):
        read_parquet(path, ["a", "c"])
