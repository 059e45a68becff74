"""The library, as a program uses it: nothing else of ours is imported here, but what makes photos."""

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.compute as pc
import pytest

from pipeline import Outcome, Settings, Table, label_images
from pipeline.errors import TableError, UsageError
from tests.helpers import ROOT, make_photos


class Events(logging.Handler):
    """What a program that wants to know adds to the logger."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.event)  # type: ignore[attr-defined]


@pytest.fixture
def events() -> Iterator[list[str]]:
    logger, handler = logging.getLogger("label_images"), Events()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.heard
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def test_photos_become_a_table(
    photos: Path,
    small_model: Path,
    tmp_path: Path,
    events: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    (photos / "bad.jpg").write_text("no photo")
    settings = Settings(
        paths=(str(photos),), out=str(tmp_path / "labels.parquet"), model=str(small_model)
    )
    outcome = label_images(settings)
    assert isinstance(outcome, Outcome)
    assert (outcome.labelled, outcome.failures.errors) == (10, {"not_an_image": 1})
    assert outcome.exit_code(settings.max_errors) == 3
    assert {"model", "plan", "placement"} <= set(events)
    assert capfd.readouterr() == ("", "")

    table = Table(tmp_path / "labels.parquet")
    assert (table.record.model, table.record.counts["ok"]) == ("small", 10)
    assert [entry["label"] for entry in table.classes] == [f"class {i}" for i in range(10)]
    assert table.scan().num_rows == 11
    some = table.scan(["path", "label"], pc.field("status") == "ok")
    assert (some.column_names, some.num_rows) == (["path", "label"], 10)
    assert len(table.scan(["path"]).to_pandas()) == 11
    rows = table.dataset()  # noqa: F841 - DuckDB finds it by its name
    assert duckdb.sql("SELECT count(label) FROM rows").fetchall() == [(10,)]


def test_twice_in_one_process_and_from_a_thread(
    photos: Path, small_model: Path, tmp_path: Path
) -> None:
    outcomes = []
    settings = Settings(
        paths=(photos,), out=f"{tmp_path}/labels/", model=str(small_model), workers=2
    )
    for _ in range(2):
        thread = threading.Thread(target=lambda: outcomes.append(label_images(settings)))
        thread.start()
        thread.join(60)
        make_photos(photos / "later", 2)
    outcomes.append(label_images(settings))
    assert [outcome.labelled for outcome in outcomes] == [10, 2, 2], "the last two are written anew"
    assert Table(tmp_path / "labels").scan().num_rows == 12


def test_what_is_wrong_is_an_exception_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="does not exist; name folders or files of photos"):
        label_images(Settings(paths=(tmp_path / "none",), out=tmp_path / "t.parquet"))
    with pytest.raises(Exception, match="name the table"):
        label_images(Settings(paths=(tmp_path,)))
    with pytest.raises(Exception, match="there is no table at"):
        _ = Table(tmp_path / "none.parquet").record


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import sys, pipeline; print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, cwd=ROOT, check=True)
    assert ran.stdout.split() == [b"False", b"False"]


def test_what_the_command_refuses_the_library_refuses_before_anything_is_done(
    photos: Path, small_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "l.parquet"
    good = Settings(paths=(photos,), out=out, model=str(small_model), workers=0)
    wrong: list[dict[str, Any]] = [
        {"paths": str(photos)}, {"precision": "int8"}, {"top_k": 0}, {"max_errors": "lots"},
        {"workers": -1}, {"batch_size": True}, {"runtime": "OpenVino"}, {"engine": "Ray"},
    ]  # fmt: skip
    for values in wrong:
        with pytest.raises(UsageError):
            label_images(replace(good, **values))
    assert not out.exists()
    with pytest.raises(TableError, match="there is no table"):
        Table(out).scan()
    outcome = label_images(replace(good, max_errors="5%"))  # type: ignore[arg-type]
    assert outcome.labelled == 10
