"""The command line: help, messages, exit codes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.cli.commands import main
from pipeline.cli.options import PREPROCESS
from pipeline.settings import parse_duration
from tests.helpers import ROOT, Command, make_photos, photo
from vit.checkpoints.published import Published
from vit.head import ACTIVATIONS
from vit.preprocess import PRESETS


def test_help_answers_at_once_since_it_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'pyarrow', 'numpy', 'PIL'}"
    script = f"import sys, pipeline.cli.commands; print(*sorted({heavy} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                         env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert ran.stdout.strip() == ""


def test_every_command_has_help_with_an_example(command: Command) -> None:
    for words in (
        [],
        ["run"],
        ["plan"],
        ["status"],
        ["verify"],
        ["diff"],
        ["models", "list"],
        ["models", "show"],
        ["models", "fetch"],
        ["models", "convert"],
    ):
        ran = command(*words, "--help")
        assert ran.returncode == 0
        assert "label-images " in ran.stdout
        if words:
            assert words == ["run"] or f"label-images {' '.join(words)}" in ran.stdout
    assert "--max-errors" in command("--help").stdout
    assert command("--version").stdout.strip().endswith("0.1.0")


def test_the_presets_are_offered_without_importing_them() -> None:
    assert tuple(PREPROCESS.choices) == PRESETS
    (activation,) = (each for each in main.commands["run"].params if each.name == "activation")  # type: ignore[attr-defined]
    assert tuple(activation.type.choices) == ACTIVATIONS


def test_every_option_and_exit_code_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    commands = [
        main.commands[name] for name in ("run", "status", "verify", "thresholds", "diff", "report")
    ]  # type: ignore[attr-defined]
    for subcommand in (*commands, *main.commands["models"].commands.values()):  # type: ignore[attr-defined]
        for parameter in subcommand.params:
            if isinstance(parameter, click.Option):
                assert any(f"`{name}" in page or f" {name}" in page for name in parameter.opts), (
                    parameter.opts
                )
    for name in (*main.commands, "models list", "models show", "models fetch", "models convert"):
        assert f"## label-images {name}\n" in page or name == "run", name
    nightly = (ROOT / "docs" / "nightly.md").read_text()
    for codes in ("0", "1", "2", "3", "4", "5", "6", "7", "130, 143"):
        assert re.search(rf"^\| {codes} \| \S", nightly, re.M), codes


def usage_error(ran: subprocess.CompletedProcess[str], message: str) -> None:
    assert ran.returncode == 2, ran.stderr
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


def test_wrong_usage_is_2_and_says_what_to_do(
    command: Command, photos: Path, tmp_path: Path, small_model: Path
) -> None:
    out = tmp_path / "t.parquet"
    usage_error(command("--out", out), "name at least one folder or file")
    usage_error(command(tmp_path / "nothing", "--out", out), "does not exist")
    usage_error(
        command(photos, "--out", tmp_path / "no" / "folder" / "t.parquet"), "there is no folder"
    )
    usage_error(command(photos, "--out", out, "--top-k", 0), "--top-k")
    ran = command(photos, "--bogus")
    usage_error(ran, "Usage: main [OPTIONS] PATH...\nTry 'main --help' for help.")  # of a test
    usage_error(command("plan", photos, "--bogus"), "Usage: main plan [OPTIONS] PATH...")
    usage_error(
        command(photos, "--out", out, "--batch-size", "many"), "neither auto nor a whole number"
    )
    usage_error(command(photos, "--out", out, "--workers", -1), "neither auto nor a whole number")
    usage_error(
        command(photos, "--out", out, "--precision", "fp8"), "is not one of auto, fp32, bf16, fp16"
    )
    usage_error(command(photos, "--out", out, "--max-errors", "lots"), "neither a count")
    usage_error(command(photos, "--out", out, "--settle", "soon"), "'soon' is not a duration")
    usage_error(command(photos, "--out", out, "--max-runtime", ""), "is not a duration")
    usage_error(command(photos, "--out", out, "--device", "toaster"), "is not a device")
    usage_error(command(photos, "--out", out, "--model", "no/model"), "no model at 'no/model'")
    usage_error(command(photos, "--out", out, "--labels", "no.txt"), "cannot be read")
    usage_error(
        command(photos, "--out", out, "--files-from", "no.txt"),
        "the list of files no.txt cannot be read",
    )
    usage_error(command(photos, "--out", out, "--arch", "vit_tiny_patch16_224"), "leave out --arch")
    usage_error(command("plan", photos), "name it with --out")
    usage_error(command("status", out), "no table at")
    usage_error(command("models", "show", "no/model"), "no model at")
    assert not out.exists()


def test_nothing_is_left_beside_an_out_that_was_refused(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "t.parquet"
    pq.write_table(pa.table({"precious": [1]}), out)
    before = out.read_bytes()
    for more in ((), ("--restart",)):
        ran = command(photos, "--out", out, *more)
        assert ran.returncode == 5
        assert "was not written by label-images" in ran.stderr
        assert "--overwrite" in ran.stderr
    assert out.read_bytes() == before
    assert not (tmp_path / ".t.parquet.job").exists()
    assert command("verify", out).returncode == 5
    assert command("status", out).returncode == 5


def test_overwrite_replaces_what_is_not_ours_and_never_a_folder(
    command: Command, photos: Path, tmp_path: Path, small_model: Path
) -> None:
    out = tmp_path / "t.parquet"
    out.write_text("not a table")
    assert command(photos, "--out", out, "--model", small_model, "--overwrite").returncode == 0
    assert pq.read_metadata(out).num_rows == 10
    ran = command(photos, "--out", out, "--model", small_model, "--overwrite")
    assert "no image decoded" in ran.stdout, "our own table is brought up to date, not thrown away"
    folder = tmp_path / "folder"
    folder.mkdir()
    ran = command(photos, "--out", folder, "--model", small_model, "--overwrite")
    assert ran.returncode == 5
    assert f"is a folder; name a file in it, such as {folder}/labels.parquet" in ran.stderr
    assert folder.is_dir()


def test_more_failures_than_allowed_is_3_and_the_table_is_written(
    command: Command, photos: Path, tmp_path: Path, small_model: Path
) -> None:
    (photos / "bad.jpg").write_text("no photo")
    for budget, code in (("5%", 3), ("0", 3), ("1", 0), ("10%", 0)):
        out = tmp_path / f"{budget}.parquet"
        ran = command(photos, "--out", out, "--model", small_model, "--max-errors", budget)
        assert ran.returncode == code, budget
        assert pq.read_metadata(out).num_rows == 11
        assert ("1 of 11 images labelled now failed, more than --max-errors" in ran.stderr) == (
            code == 3
        )
        assert f"failed: {photos}/bad.jpg: not_an_image: no image format recognised" in ran.stderr
        again = command(photos, "--out", out, "--model", small_model, "--max-errors", budget)
        assert again.returncode == 0, "a failure of an earlier night is no news"
        assert "11 found, all carried over (1 of them failed earlier)" in again.stdout


def test_without_out_the_labels_are_printed(
    command: Command, photos: Path, small_model: Path
) -> None:
    (photos / "bad.jpg").write_text("no photo")
    ran = command(photos / "0000.jpg", "--model", small_model, "--top-k", 3, "--quiet")
    lines = ran.stdout.splitlines()
    assert lines[0] == "0000.jpg"
    assert len(lines) == 4
    assert all(re.fullmatch(r" +\d+\.\d\d%  class \d", line) for line in lines[1:])
    assert ran.stderr == ""
    ran = command(photos, "--model", small_model)
    assert "bad.jpg\n  not_an_image: no image format recognised\n" in ran.stdout
    assert ran.returncode == 3
    usage_error(command(photos, "--include", "*.xyz"), "no images found")


def test_the_write_ups_command(command: Command, tmp_path: Path) -> None:
    """One photo, a bare checkpoint and a classes file: the ten best classes."""
    timm = pytest.importorskip("timm")
    torch.save(
        timm.create_model("vit_tiny_patch16_384", num_classes=12).state_dict(), tmp_path / "vit.pth"
    )
    (tmp_path / "classes.txt").write_text("\n".join(f"thing {i}" for i in range(12)))
    photo(1, 500, 400).save(tmp_path / "cat.jpg")
    for preprocess in ("squash", "vit"):
        ran = command(tmp_path / "cat.jpg", "--model", tmp_path / "vit.pth", "--labels", tmp_path / "classes.txt",
                      "--top-k", 10, "--preprocess", preprocess)  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        assert len(re.findall(r"%  thing \d+", ran.stdout)) == 10


def test_plan_says_what_would_be_done_and_writes_nothing(
    command: Command, photos: Path, tmp_path: Path, small_model: Path
) -> None:
    out = tmp_path / "t.parquet"
    arguments = (photos, "--out", out, "--model", small_model)
    ran = command("plan", *arguments)
    assert re.search(
        r"^ +10  new +to label: not in the table \(with --restart: all\)$", ran.stdout, re.M
    )
    assert not list(tmp_path.glob("*t.parquet*"))
    command(*arguments)
    (photos / "0000.jpg").unlink()
    os.utime(photos / "0001.jpg", (1, 1))
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    ran = command("plan", *arguments)
    assert re.search(
        r"^ +1  changed .*\n +0  stale .*\n +0  retry .*\n +0  incomplete .*\n"
        r" +0  relabelled .*\n +8  carried .*\n +1  gone ",
        ran.stdout,
        re.M,
    )
    assert (
        "stale because of top_k (was 5, is 2)" in command("plan", *arguments, "--top-k", 2).stdout
    )
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_status_and_verify_of_a_finished_table(
    command: Command, photos: Path, tmp_path: Path, small_model: Path
) -> None:
    (photos / "bad.jpg").write_text("no photo")
    out = tmp_path / "t.parquet"
    command(photos, "--out", out, "--model", small_model, "--max-errors", "10%")
    text = command("status", out).stdout
    assert "11 rows, 10 labelled, 1 failed (not_an_image 1)" in text
    assert "job       nothing pending" in text
    assert f"photos    {photos}" in text
    assert "all checks passed" in command("verify", out).stdout


def test_verify_and_status_of_what_is_no_table_say_what_to_pass(
    command: Command, photos: Path, tmp_path: Path, small_model: Path
) -> None:
    for looks in ("verify", "status"):
        usage_error(
            command(looks, photos), f"{photos} is a folder, and no table of label-images; pass"
        )
        usage_error(command(looks, photos), f"label-images {looks} TABLE, the one that a run named")
        usage_error(command(looks, tmp_path / "typo"), "is its name right?")
    out, many = photos / "t.parquet", photos / "labels"
    for table in (out, f"{many}/"):
        assert command(photos, "--out", table, "--model", small_model).returncode == 0
    for looks in ("verify", "status"):
        ran = command(looks, photos)
        usage_error(ran, f"label-images {looks} {out}")
        usage_error(ran, f"label-images {looks} {many}")
        job = photos / ".t.parquet.job"
        usage_error(command(looks, job), f"{job} is no table")
        usage_error(command(looks, job), f"pass the table itself: label-images {looks} {out}")
        assert command(looks, many).returncode == 0
        (job / "parts").mkdir(exist_ok=True)
        usage_error(command(looks, job / "parts"), f"label-images {looks} {out}")


def test_the_folder_one_is_in_is_a_place_as_any_other(
    command: Command, photos: Path, tmp_path: Path, small_model: Path
) -> None:
    """The command's working folder here is cwd."""
    ran = command(photos, "--out", ".", "--model", small_model)
    assert ran.returncode == 5
    assert f"{tmp_path}/cwd is a folder; name a file in it" in ran.stderr
    assert command(photos, "--out", "./", "--model", small_model).returncode == 0
    assert "10 rows" in command("verify", ".").stdout
    assert "10 rows" in command("status", tmp_path / "photos" / ".." / "cwd").stdout
    usage_error(command(photos, "--out", "/", "--model", small_model), "/ is no name for a table")


def test_a_list_of_files(command: Command, photos: Path, tmp_path: Path, small_model: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{photos}/0001.jpg\n{photos}/more/0002.jpg\n{photos}/gone.jpg\n")
    out = tmp_path / "t.parquet"
    ran = command("--files-from", listed, "--out", out, "--model", small_model, "--max-errors", 1)
    assert ran.returncode == 0, ran.stderr
    assert "3 found, 2 labelled, 0 carried over, 1 failed (not_found 1)" in ran.stdout
    assert pq.read_table(out)["root"].to_pylist() == ["/"] * 3


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5s", 1.5),
        ("30m", 1800),
        ("5h30m", 19_800),
        ("2d", 172_800),
        ("1d1h1m1s", 90_061),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_models_list_show_and_convert(command: Command, tmp_path: Path, photos: Path) -> None:
    timm = pytest.importorskip("timm")
    listed = command("models", "list").stdout
    assert "tiny-imagenet-200" in listed
    assert "86,567,656" in listed
    shown = command("models", "show", "vit_base_patch16_384").stdout
    assert re.search(r"^patch_embed +PatchEmbed +\(1, 576, 768\) +590,592$", shown, re.M)
    assert re.search(r"^blocks\.0\.attn\.qkv +Linear +\(1, 577, 2304\) +1,771,776$", shown, re.M)
    # The other blocks are like it, and one line each.
    assert len(re.findall(r"^blocks\.\d+ +Block +\(1, 577, 768\) +7,087,872$", shown, re.M)) == 12
    assert "blocks.11." not in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert shown.endswith("86,859,496 parameters\n")
    shown = command("models", "show", "embedded").stdout
    assert "classes        200: goldfish, European fire salamander" in shown
    assert "preprocessing  shorter side to 128 pixels, bicubic, mean 0.5 0.5 0.5" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert "0\tn01443537\tgoldfish\n" in command("models", "show", "embedded", "--classes").stdout

    torch.save(
        timm.create_model("vit_tiny_patch16_224", num_classes=2).state_dict(), tmp_path / "vit.pth"
    )
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    arguments = (
        "models",
        "convert",
        tmp_path / "vit.pth",
        "--arch",
        "vit_tiny_patch16_384",
        "--labels",
        tmp_path / "classes.txt",
    )
    for out in (tmp_path / "bundle", tmp_path / "bundle.safetensors"):
        ran = command(*arguments, "--out", out, "--preprocess", "squash")
        assert ran.returncode == 0, ran.stderr
        assert "2 classes, 384 pixels" in ran.stdout
        ran = command(photos / "0000.jpg", "--model", out)
        assert re.search(r"%  (cat|dog)\n", ran.stdout)
        usage_error(command(*arguments, "--out", out), "exists already")


def _column(text: str, number: int) -> list[float]:
    """A column of the first section of `models list --all`."""
    section = text.split("\n\n")[0].splitlines()[1:]
    cells = [line[2:].split()[number] for line in section]
    return [float(cell.replace(",", "").replace("-", "0")) for cell in cells]


def test_models_list_all_is_sorted_and_marks_the_best_for_their_cost(command: Command) -> None:
    assert "models list --all" in command("models", "list").stdout
    listed = command("models", "list", "--all").stdout
    assert _column(listed, 0) == sorted(_column(listed, 0))
    size = _column(command("models", "list", "--all", "--sort", "size").stdout, 2)
    assert size == sorted(size)
    accuracy = _column(command("models", "list", "--all", "--sort", "accuracy").stdout, 1)
    assert accuracy == sorted(accuracy, reverse=True)
    line = r"^  17\.6    81\.8     346     224    1,000  vit_base_patch16_224\.orig_in21k_ft_in1k$"
    assert re.search(line, listed.replace("\n  ", "\n"), re.M)
    marked = [line for line in listed.splitlines() if line.startswith("* ")]
    shown = [float(line[2:].split()[1]) for line in marked]
    assert shown == sorted(shown)
    assert len(shown) > 5
    usage_error(command("models", "list", "--sort", "size"), "--sort is for --all")


def test_models_list_all_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom pipeline.cli.commands import main\n"
        "main(['models', 'list', '--all'], standalone_mode=False)\n"
        "print(sorted({'torch', 'pyarrow', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                         env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert ran.stdout.splitlines()[-1] == "[]"


def test_models_show_tells_what_is_published_of_a_name_without_downloading(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = command("models", "show", "vit_base_patch16_224.augreg_in21k").stdout
    assert "to load it     --model hf-hub:timm/vit_base_patch16_224.augreg_in21k\n" in shown
    assert shown.endswith("102,595,923 parameters\n")  # with its head of 21,843
    shown = command("models", "show", "vit_tiny_patch16_224").stdout
    assert "vit_tiny_patch16_224.augreg_in21k_ft_in1k\n" in shown
    assert shown.endswith("5,717,416 parameters\n")
    # What lies here by a published name is looked into, as everywhere.
    (tmp_path / "cwd" / "vit_tiny_patch16_224").mkdir()
    usage_error(command("models", "show", "vit_tiny_patch16_224"), "has no config.json")
    monkeypatch.setattr(Published, "unsupported", "it has rotary positions")
    shown = command("models", "show", "vit_small_patch16_224").stdout
    assert shown.endswith("it has rotary positions\n")
    assert "to load it" not in shown


def test_output_cut_off_by_a_reader_is_no_traceback(photos: Path, small_model: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", photos, "--model", small_model], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert b"Traceback" not in running.stderr.read()


def test_a_folder_that_cannot_be_written_to(
    command: Command, photos: Path, small_model: Path
) -> None:
    make_photos(photos, 1)
    ran = command(photos, "--out", "/proc/t.parquet", "--model", small_model)
    assert ran.returncode == 5, ran.stderr
    assert "cannot write beside /proc/t.parquet" in ran.stderr


@pytest.mark.parametrize(
    "fault", [FileNotFoundError(2, "No such file", "x"), ImportError("no module named typo")]
)
def test_our_own_faults_are_not_dressed_up_as_the_machine_s(
    command: Command,
    photos: Path,
    tmp_path: Path,
    small_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
) -> None:
    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr("pipeline.run.merge", fail)
    arguments = (photos, "--out", tmp_path / "t.parquet", "--model", small_model)
    with pytest.raises(type(fault)):  # which Python shows with its traceback, and exit code 1
        command(*arguments)
    ran = command(*arguments, "--log-json")
    assert ran.returncode == 1
    said = json.loads(ran.stderr.splitlines()[-1])
    assert said["message"].startswith(f"a fault of label-images: {type(fault).__name__}")
    assert "in fail" in said["traceback"]
    history = json.loads(command("status", tmp_path / "t.parquet", "--json").stdout)["runs"]
    assert [run["exit_code"] for run in history] == [1, 1]


def test_debug_shows_where_an_error_comes_from(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    arguments = (photos, "--out", tmp_path / "t.parquet", "--model", "no/model")
    assert "Traceback" not in command(*arguments).stderr
    ran = command(*arguments, "--debug")
    assert ran.returncode == 2
    assert "Traceback (most recent call last)" in ran.stderr
    assert ran.stderr.splitlines()[-1].startswith("label-images: no model at 'no/model'")
    said = json.loads(command(*arguments, "--debug", "--log-json").stderr.splitlines()[-1])
    assert "find_source" in said["traceback"]
