"""The whole way in real processes: from photos to table, and from night to night."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.helpers import ROOT, Command, make_photos, peaked_, photo, rows


def decoded_nothing(output: str) -> bool:
    return "no image decoded" in output


def test_a_folder_becomes_a_table(
    photos: Path, small_model: Path, process: Command, tmp_path: Path, precision: str
) -> None:
    out = tmp_path / "labels.parquet"
    ran = process(photos, "--out", out, "--model", small_model, "--precision", precision)
    assert ran.returncode == 0, ran.stderr
    last = ran.stdout.splitlines()[-1]
    assert last.startswith("10 found, 10 labelled, 0 carried over, 0 failed, ")
    assert last.endswith(f"images/s -> {out}")
    assert "running on cpu" in ran.stderr
    assert "the slowest: " in ran.stderr
    assert [row["path"] for row in rows(out)] == [f"{i:04}.jpg" for i in range(7)] + [
        f"more/{i:04}.jpg" for i in range(3)
    ]
    job = tmp_path / ".labels.parquet.job"
    assert sorted(path.name for path in job.iterdir()) == [
        "history.json",
        "lock",
        "manifest.json",
        "run.json",
    ]
    record = json.loads((job / "run.json").read_text())
    assert record["counts"] | {"found": 10, "labelled": 10, "failed": 0} == record["counts"]
    assert set(record["rates"]) == {"read", "decode", "model", "write"}
    assert record["slowest"] in record["rates"]
    assert record["placement"]["reasons"]["device"]
    assert record["placement"]["precision"] == precision


def test_a_second_run_decodes_nothing_and_each_change_does_the_right_thing(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "labels.parquet"
    arguments = (photos, "--out", out, "--model", small_model)

    def again(*more: str) -> tuple[str, str]:
        ran = command(*arguments, *more)
        assert ran.returncode == 0, ran.stderr
        assert command("verify", out).returncode == 0
        return ran.stdout.splitlines()[-1], ran.stderr

    again()
    first = {row["path"]: row for row in rows(out, without=())}
    before = out.stat().st_mtime_ns
    last, _ = again()
    assert decoded_nothing(last)
    assert out.stat().st_mtime_ns == before

    os.utime(photos / "0000.jpg", (1, 1))  # touched
    photo(100).save(photos / "0001.jpg")  # replaced
    photo(101).save(photos / "0002b.jpg")  # added
    (photos / "0003.jpg").unlink()  # deleted
    last, log = again()
    assert last.startswith("10 found, 3 labelled, 7 carried over, 1 gone, 0 failed")
    assert "1 new, 2 changed, 7 carried, 1 gone" in log
    now = {row["path"]: row for row in rows(out, without=())}
    assert sorted(first.keys() - now.keys()) == ["0003.jpg"]
    assert sorted(now.keys() - first.keys()) == ["0002b.jpg"]
    relabelled = {
        path for path in now.keys() & first.keys() if now[path]["run_id"] != first[path]["run_id"]
    }
    assert relabelled == {"0000.jpg", "0001.jpg"}
    assert now["0000.jpg"]["top_k"] == first["0000.jpg"]["top_k"]
    assert now["0001.jpg"]["top_k"] != first["0001.jpg"]["top_k"]
    assert all(now[path] == first[path] for path in now.keys() & first.keys() - relabelled)

    # The table does not tell how it came about: a fresh one has the same rows in the same order.
    fresh = tmp_path / "fresh.parquet"
    assert command(photos, "--out", fresh, "--model", small_model).returncode == 0
    assert rows(fresh) == rows(out)


def test_failed_images_are_tried_again_where_it_may_help(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "labels.parquet"
    (photos / "dangling.jpg").symlink_to(tmp_path / "later.jpg")
    (photos / "text.jpg").write_text("no photo")
    arguments = (photos, "--out", out, "--model", small_model, "--max-errors", 2)
    assert "2 failed (not_an_image 1, not_found 1)" in command(*arguments).stdout
    ran = command(*arguments)
    assert (
        "12 found, 0 labelled, 11 carried over (1 of them failed earlier), 1 failed (not_found 1)"
        in ran.stdout
    )
    photo(7).save(tmp_path / "later.jpg")
    assert (
        "12 found, 1 labelled, 11 carried over (1 of them failed earlier), 0 failed"
        in command(*arguments).stdout
    )
    photo(8).save(photos / "text.jpg")
    assert "12 found, 1 labelled, 11 carried over, 0 failed" in command(*arguments).stdout


def test_another_model_or_setting_relabels_all_and_says_why(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    out, other = tmp_path / "labels.parquet", tmp_path / "other"
    shutil.copytree(small_model, other)
    assert command(photos, "--out", out, "--model", small_model).returncode == 0
    ran = command(photos, "--out", out, "--model", other)
    assert decoded_nothing(ran.stdout), "the same model under another name is the same model"
    config = json.loads((other / "config.json").read_text())
    config["temperature"] = 2.0
    (other / "config.json").write_text(json.dumps(config))
    for arguments, reason in (
        (("--model", small_model, "--top-k", 3), "top_k (was 5, is 3)"),
        (("--model", other, "--top-k", 3), "temperature (was 1.0, is 2.0)"),
        (("--model", "embedded", "--top-k", 3), "the weights (was "),
    ):
        ran = command(photos, "--out", out, *arguments)
        assert "10 labelled, 0 carried over" in ran.stdout
        assert "labelling all again, since this changed: " in ran.stderr
        assert reason in ran.stderr
        assert len({row["fingerprint"] for row in rows(out)}) == 1
    ran = command(
        photos, "--out", out, "--top-k", 3, "--batch-size", 2, "--workers", 0, "--precision", "bf16"
    )
    assert decoded_nothing(ran.stdout), "batch size, workers and precision make no label stale"
    assert "10 labelled" in command(photos, "--out", out, "--top-k", 3, "--restart").stdout


def test_a_folder_of_rubbish(
    small_model: Path, command: Command, process: Command, tmp_path: Path
) -> None:
    folder = make_photos(tmp_path / "rubbish", 1)
    (folder / "x.jpg").write_text("this is a text file")
    (folder / "empty.png").touch()
    noise = Image.effect_noise((200, 200), 90).convert("RGB")
    noise.save(folder / "truncated.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "truncated.jpg").read_bytes()[:5000])
    photo(1).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(folder / "deep.png")
    exif = Image.Exif()
    exif[274] = 6
    photo(2).save(folder / "phone.jpg", exif=exif)
    photo(3).save(folder / os.fsdecode(b"caf\xe9.jpg"), format="JPEG")
    (folder / "loop").symlink_to(folder)
    photo(4).save(folder / "unreadable.jpg")
    (folder / "unreadable.jpg").chmod(0)
    os.mkfifo(folder / "pipe.jpg")
    out = tmp_path / "labels.parquet"
    ran = process(folder, "--out", out, "--model", small_model, prefix=without_root_rights())
    assert ran.returncode == 3, ran.stderr
    assert "Traceback" not in ran.stderr
    assert "5 of 10 images labelled now failed, more than --max-errors 5%" in ran.stderr
    found = {row["path"]: row for row in rows(out)}
    codes = {path: row["error_code"] for path, row in found.items()}
    assert codes == {
        "0000.jpg": None, "caf\\xe9.jpg": None, "cmyk.jpg": None, "deep.png": None, "phone.jpg": None,
        "empty.png": "empty_file", "pipe.jpg": "not_a_file", "truncated.jpg": "truncated",
        "unreadable.jpg": "permission_denied", "x.jpg": "not_an_image",
    }  # fmt: skip
    assert found["caf\\xe9.jpg"]["path_bytes"] == b"caf\xe9.jpg"
    assert found["cmyk.jpg"]["decode_notes"] == ["cmyk_converted"]
    assert found["deep.png"]["decode_notes"] == ["depth16_scaled"]
    assert (found["phone.jpg"]["decode_notes"], found["phone.jpg"]["exif_orientation"]) == (
        ["exif_rotated"],
        6,
    )
    assert command("verify", out).returncode == 0


def without_root_rights() -> list[str]:
    """A prefix that takes from root the right to read what its mode forbids; nothing for other
    users.
    """
    if os.geteuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("run as root, and setpriv is not here to give up its rights")
    drop = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"]


def dying_after(renamed: str) -> str:
    """What lets a process end at once when a file of that name has appeared."""
    return (
        "import os\nreal = os.replace\n"
        f"def replace(a, b):\n    real(a, b)\n    str(b).endswith({renamed!r}) and os._exit(9)\n"
        "os.replace = replace\n"
    )


def test_a_job_goes_on_with_the_plan_it_has_and_the_next_run_sees_what_came(
    photos: Path, small_model: Path, command: Command, process: Command, tmp_path: Path
) -> None:
    out = tmp_path / "labels.parquet"
    arguments = (photos, "--out", out, "--model", small_model, "--shard-size", 4, "--workers", 0)
    ran = process(*arguments, before=dying_after("receipts/00000.json"))
    assert ran.returncode == 9, ran.stderr
    assert not out.exists()
    status = command("status", out).stdout
    assert "unfinished: 4 of 10 images done, 6 pending (1 of 3 shards)" in status
    assert "4 of 10 images are done already" in command("plan", *arguments).stdout
    photo(50).save(photos / "new.jpg")
    ran = command(*arguments)
    assert "going on: 4 of 10 images are done already" in ran.stderr
    assert "10 found, 10 labelled" in ran.stdout
    assert len({row["run_id"] for row in rows(out, without=())}) == 2
    assert "11 found, 1 labelled, 10 carried over" in command(*arguments).stdout


@pytest.mark.parametrize(
    "change",
    [
        "paths",
        pytest.param("model", marks=pytest.mark.slow),
        pytest.param("table", marks=pytest.mark.slow),
    ],
)
def test_an_unfinished_job_that_cannot_go_on_says_why(
    photos: Path, small_model: Path, command: Command, process: Command, tmp_path: Path, change: str
) -> None:
    out = tmp_path / "labels.parquet"
    arguments = [photos, "--out", out, "--model", small_model, "--shard-size", 4, "--workers", 0]
    assert command(*arguments).returncode == 0
    for path in photos.rglob("*.jpg"):
        os.utime(path, (5, 5))
    assert process(*arguments, before=dying_after("receipts/00001.json")).returncode == 9
    expected = {
        "paths": "PATHs, --include",
        "model": "top_k (was 5, is 2)",
        "table": "the table was replaced or removed",
    }
    if change == "paths":
        arguments[0] = photos / "more"
    elif change == "model":
        arguments += ["--top-k", 2]
    else:
        out.unlink()
    ran = command(*arguments)
    assert ran.returncode == 0, ran.stderr
    assert f"the unfinished job cannot go on: {expected[change]}" in ran.stderr
    assert command("verify", out).returncode == 0
    assert len(rows(out)) == (3 if change == "paths" else 10)


@pytest.mark.slow
def test_a_killed_restart_is_gone_on_with(
    photos: Path, small_model: Path, command: Command, process: Command, tmp_path: Path
) -> None:
    out = tmp_path / "labels.parquet"
    arguments = [photos, "--out", out, "--model", small_model, "--shard-size", 4, "--workers", 0]
    assert command(*arguments).returncode == 0
    first_runs = {row["run_id"] for row in rows(out, without=())}
    assert (
        process(*arguments, "--restart", before=dying_after("receipts/00000.json")).returncode == 9
    )
    ran = command(*arguments)
    assert "going on: 4 of 10 images are done already" in ran.stderr
    assert not first_runs & {row["run_id"] for row in rows(out, without=())}


@pytest.mark.slow
def test_rows_below_a_folder_that_cannot_be_read_are_kept(
    photos: Path, small_model: Path, command: Command, process: Command, tmp_path: Path
) -> None:
    out = tmp_path / "labels.parquet"
    assert command(photos, "--out", out, "--model", small_model).returncode == 0
    (photos / "more").chmod(0)
    ran = process(photos, "--out", out, "--model", small_model, prefix=without_root_rights())
    (photos / "more").chmod(0o755)
    assert (
        f"cannot look into {photos}/more: Permission denied; the rows the table has of it are kept"
        in ran.stderr
    )
    assert ran.returncode == 7
    assert decoded_nothing(ran.stdout)
    assert len(rows(out)) == 10


def test_the_embedded_model_labels_the_example_photos(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "labels.parquet"
    ran = command(ROOT / "examples" / "photos", "--out", out)
    assert ran.returncode == 0, ran.stderr
    table = pq.read_table(out).to_pylist()
    assert len(table) == 15
    notes = {row["path"]: row["decode_notes"] for row in table}
    assert "exif_rotated" in notes["chelsea.jpg"]
    assert {row["format"] for row in table} == {"JPEG", "PNG", "WEBP", "AVIF", "TIFF"}
    assert {row["model"] for row in table} == {"tiny-imagenet-200-hybrid-128px-v3"}


def test_results_do_not_depend_on_batches_workers_or_shards(
    photos: Path, small_model: Path, command: Command, tmp_path: Path, precision: str
) -> None:
    tables = []
    for number, options in enumerate(
        [(), ("--batch-size", 3, "--workers", 2), ("--workers", 0, "--shard-size", 4)]
    ):
        out = tmp_path / f"{number}.parquet"
        arguments = (
            photos,
            "--out",
            out,
            "--model",
            small_model,
            "--precision",
            precision,
            *options,
        )
        assert command(*arguments).returncode == 0
        tables.append(rows(out))
    for other in tables[1:]:
        for a, b in zip(tables[0], other, strict=True):
            if precision == "fp32":
                assert a["class_id"] == b["class_id"]
            # With 8 bits a sum's order shows: kernels choose theirs by the size of a batch.
            assert a["probability"] == pytest.approx(
                b["probability"], abs={"fp32": 1e-5, "bf16": 0.03}[precision]
            )


def test_a_table_agrees_with_timm(command: Command, tmp_path: Path, precision: str) -> None:
    """timm's own model and transforms, in fp32, photo by photo."""
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, depth=3).eval()
    peaked_(model, 0.2)
    timm.models.save_for_hf(
        model, tmp_path / "vit", {"label_names": [f"class {i}" for i in range(10)]}
    )
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(8):
        photo(seed, 260, 240).save(folder / f"{seed}.png")
    out = tmp_path / "labels.parquet"
    ran = command(
        folder, "--out", out, "--model", tmp_path / "vit", "--precision", precision, "--top-k", 10
    )
    assert ran.returncode == 0, ran.stderr
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        inputs = torch.stack([transform(Image.open(folder / f"{seed}.png")) for seed in range(8)])
        expected = model(inputs).softmax(dim=-1)  # [8, 10]
    assert len(set(expected.argmax(dim=-1).tolist())) > 1, "else the same answer to all would pass"
    for row, theirs in zip(rows(out), expected, strict=True):
        ours = {best["class_id"]: best["probability"] for best in row["top_k"]}
        off = max(
            abs(ours[class_id] - float(probability)) for class_id, probability in enumerate(theirs)
        )
        assert off < {"fp32": 0.01, "bf16": 0.08}[precision], row["path"]


def test_a_model_that_gives_no_numbers_leaves_rows_that_say_so(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    broken, out = tmp_path / "broken", tmp_path / "labels.parquet"
    shutil.copytree(small_model, broken)
    state = load_file(broken / "model.safetensors")
    save_file(
        state | {"head.bias": state["head.bias"] * float("nan")}, broken / "model.safetensors"
    )
    ran = command(photos, "--out", out, "--model", broken)
    assert ran.returncode == 3
    assert "10 failed (not_finite 10)" in ran.stdout
    assert all(row["label"] is None and row["width"] == 48 for row in rows(out))
    assert "10 retry" in command(photos, "--out", out, "--model", broken).stderr


def test_a_run_says_so_on_lines_now_and_then(
    photos: Path,
    small_model: Path,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.console.LINE_EVERY_S", 0.0)
    out = tmp_path / "t.parquet"
    ran = command(photos, "--out", out, "--model", small_model, "--batch-size", 4, "--log-json")
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    progress = [line for line in lines if line["event"] == "progress"]
    assert [line["done"] for line in progress] in (
        [4, 8],
        [4, 6],
        [2, 6],
    )  # batches come as they get finished
    assert progress[0]["message"].startswith(f"{progress[0]['done']} of 10 images, ")
    assert {"model", "plan", "placement", "stages"} <= {line["event"] for line in lines}
    assert all(
        line["time"] <= time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 1))
        for line in lines
    )


def test_max_runtime_ends_the_run_in_time_and_the_next_goes_on(
    command: Command, photos: Path, tmp_path: Path, small_model: Path
) -> None:
    out = tmp_path / "labels.parquet"
    arguments = (
        photos,
        "--out",
        out,
        "--model",
        small_model,
        "--shard-size",
        2,
        "--batch-size",
        2,
        "--workers",
        0,
    )
    for done in (2, 4, 6, 8):
        ran = command(*arguments, "--max-runtime", "0.001s")
        assert ran.returncode == 6
        assert f"{done} of 10 images were labelled; finished shards are kept" in ran.stderr
        assert not out.exists()
    assert command(*arguments, "--max-runtime", "1h").returncode == 0
    whole = tmp_path / "whole.parquet"
    # In the same batches: in others float32 rounds a score's last bit otherwise.
    assert command(photos, "--out", whole, *arguments[3:]).returncode == 0
    assert rows(out) == rows(whole)


def test_settle_leaves_files_that_may_still_be_written_to(
    command: Command, photos: Path, tmp_path: Path, small_model: Path
) -> None:
    out = tmp_path / "labels.parquet"
    arguments = (photos, "--out", out, "--model", small_model, "--settle", "1m")
    old, new, changed = photos / "0000.jpg", photos / "0001.jpg", photos / "0002.jpg"
    for path in photos.rglob("*.jpg"):
        os.utime(path, (1e9, 1e9))
    os.utime(new)
    assert command(*arguments).returncode == 0
    first = {row["path"]: row for row in rows(out)}
    assert len(first) == 9
    assert new.name not in first

    changed.write_bytes(old.read_bytes())  # changed just now: its row stays as it is
    ahead = time.time() + 30
    os.utime(photos / "0003.jpg", (ahead, ahead))  # by a clock that is ahead
    planned = command("plan", *arguments)
    assert "left for the next run, changed too lately (--settle): 3" in planned.stdout
    ran = command(*arguments)
    assert "nothing changed: 9 found" in ran.stdout
    assert "changed too lately (--settle): 3" in ran.stderr

    for path in (new, changed):
        os.utime(path, (1e9, 1e9 + 5))
    assert "2 labelled, 8 carried over" in command(*arguments).stdout
    second = {row["path"]: row for row in rows(out)}
    assert len(second) == 10
    probabilities = [second[path.name]["probability"] for path in (changed, old)]
    assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-6), "in another batch"


def test_settle_does_not_count_what_is_labelled_as_it_is(
    command: Command, photos: Path, tmp_path: Path, small_model: Path
) -> None:
    arguments = (photos, "--out", tmp_path / "labels.parquet", "--model", small_model)
    assert command(*arguments).returncode == 0
    assert "--settle" not in command("plan", *arguments, "--settle", "1h").stdout
    (photos / "0000.jpg").touch()
    planned = command("plan", *arguments, "--settle", "1h").stdout
    assert "left for the next run, changed too lately (--settle): 1" in planned


def test_max_runtime_says_when_nothing_was_finished(
    command: Command, photos: Path, tmp_path: Path, small_model: Path
) -> None:
    out = tmp_path / "labels.parquet"
    arguments = (photos, "--out", out, "--model", small_model, "--batch-size", 2, "--workers", 0)
    ran = command(*arguments, "--max-runtime", "0.001s")
    assert ran.returncode == 6
    assert "0 of 10 images were labelled" in ran.stderr
    assert "no shard was finished: allow more time, or begin anew with a smaller" in ran.stderr
    assert "0 of 10 images done" in command("status", out).stdout
    assert command(*arguments, "--max-runtime", "0").returncode == 2
