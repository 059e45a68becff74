"""What is said goes through stdlib logging: the library prints nothing, a command prints once."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.console import Console, Progress, shown
from tests.helpers import ROOT, Command

LOGGERS = ("label_images", "label_images.results", "label_images.plan")


def run_script(script: str) -> tuple[str, str]:
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return ran.stdout, ran.stderr


def state() -> list[object]:
    loggers = [logging.getLogger(name) for name in LOGGERS]
    return [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]


SAY = "from pipeline.console import Console; Console().warn('linked', '100% of a, b')"


def test_where_nobody_configures_logging_nothing_is_printed() -> None:
    assert run_script(SAY) == ("", "")


def test_a_callers_own_configuration_decides() -> None:
    configure = "import logging; logging.basicConfig(format='%(levelname)s %(name)s %(message)s');"
    assert run_script(configure + SAY) == ("", "WARNING label_images.linked 100% of a, b\n")
    silence = "logging.getLogger('label_images.linked').setLevel('ERROR');"
    assert run_script(configure + silence + SAY) == ("", "")


def test_a_command_leaves_no_handler_behind_and_says_nothing_twice(
    photos: Path, small_model: Path, command: Command, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    before, arguments = state(), (photos, "--out", tmp_path / "t.parquet", "--model", small_model)
    for number in range(2):
        ran = command(*arguments)
        assert ran.returncode == 0
        assert ran.stderr.count("10 found") == 1
        assert ran.stdout.count("\n") == 1
        assert state() == before, f"after call {number}"
    assert command(*arguments, "--top-k", 10**6).returncode == 0
    assert command(tmp_path / "none", *arguments[1:]).returncode == 2
    assert command(tmp_path / "none", *arguments[1:], "--modl", "--log-json").returncode == 2
    assert state() == before
    # pytest's handlers stand at the root, as those of a program may that calls the command.
    assert [record.name for record in caplog.records if "label_images" in record.name] == []


@pytest.mark.parametrize(("method", "lines"), [("fork", 1), ("forkserver", 0)])
def test_a_worker_says_nothing_twice(method: str, lines: int) -> None:
    script = (
        "import multiprocessing\n"
        "from pipeline.console import Console, shown\n"
        "if __name__ == '__main__':\n"
        "    with shown():\n"
        f"        child = multiprocessing.get_context({method!r}).Process(\n"
        "            target=Console().warn, args=('linked', 'a worker'))\n"
        "        child.start(); child.join()\n"
    )
    assert run_script(script)[1].count("a worker") == lines


def test_messages_are_text_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    with shown() as console:
        console.info("plan", "3 found: 100%", {"counts": {}})
        console.warn("linked", "a\nb\x1b")
        console.result("labels", "photo\n  cat\x1b")
        console.error("no", 2)
    assert capfd.readouterr() == (
        "photo\n  cat\\x1b\n",
        "3 found: 100%\na\\nb\\x1b\nlabel-images: no\n",
    )


def test_messages_are_json_for_programs(capfd: pytest.CaptureFixture[str]) -> None:
    with shown(log_json=True) as console:
        console.info("plan", "3 found", {"counts": {"found": 3}})
        console.error("no", 2)
        console.result("result", "3 found", {"exit_code": 0})
    out, err = capfd.readouterr()
    plan, error = map(json.loads, err.splitlines())
    result = json.loads(out)
    assert list(plan) == ["time", "event", "message", "counts"]
    assert (plan["event"], plan["counts"]) == ("plan", {"found": 3})
    assert plan["time"].endswith("+00:00")
    assert list(error) == ["time", "event", "message", "exit_code"]
    assert (result["event"], result["message"], result["exit_code"]) == ("result", "3 found", 0)


def test_quiet_spares_nobody_warnings_errors_and_results(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with shown(quiet=True) as console:
        console.info("plan", "3 found")
        console.warn("linked", "a link")
        console.result("result", "3 labelled")
        console.error("no", 2)
    assert capfd.readouterr() == ("3 labelled\n", "a link\nlabel-images: no\n")


def test_a_traceback_is_shown_to_who_asks_for_it_or_is_our_fault(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for settings, is_our_fault, expected in (
        ({}, False, False),
        ({"debug": True}, False, True),
        ({"log_json": True}, True, True),
    ):
        with shown(**settings) as console:
            try:
                raise ValueError("wrong")
            except ValueError:
                console.error("no", 1, is_our_fault)
        said = capfd.readouterr().err
        assert ("Traceback" in said) is expected
        if "log_json" in settings:
            assert json.loads(said)["traceback"].endswith("ValueError: wrong\n")


def test_a_bar_is_for_a_command_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    for settings, shows_bar in (
        ({}, True),
        ({"quiet": True}, False),
        ({"log_json": True}, False),
    ):
        with shown(**settings) as console, Progress(console, 3, 0) as progress:
            progress.advance(3, 0)
            assert console.shows_bar is shows_bar
        assert ("3/3" in capfd.readouterr().err) is shows_bar
    with Progress(Console(), 3, 0) as progress:
        progress.advance(3, 0)
    assert capfd.readouterr() == ("", "")
