"""Names that are not UTF-8, in every place that takes a name, in a real process and in every
locale.
"""

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forking import Servers
from tests.helpers import ROOT, make_photos, photo, rows

ODD = os.fsdecode(b"t\xe9")

UTF8 = {"LC_ALL": "C.UTF-8"}
# The last is ASCII in earnest: otherwise Python takes a C locale for UTF-8, which soak has.
in_each_locale = pytest.mark.parametrize(
    "locale",
    [
        pytest.param(UTF8, id="utf-8"),
        pytest.param({"LC_ALL": "C"}, id="C", marks=pytest.mark.soak),
        pytest.param({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, id="ascii"),
    ],
)

Run = Callable[..., tuple[int, str]]


def alone(arguments: tuple[str | Path, ...]) -> tuple[str, ...]:
    """No workers for so few photos, where a run would have them."""
    return ("--workers", "0") if "--out" in arguments and arguments[0] != "plan" else ()


@pytest.fixture
def run(servers: Servers) -> Run:
    """Run the command in a folder and a locale; return the exit code, and all that was said."""

    def run(
        where: Path, locale: dict[str, str], *arguments: str | Path, before: str = ""
    ) -> tuple[int, str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **locale}
        words = [os.fsencode(word) for word in (*arguments, *alone(arguments))]
        ran = servers(environment).run(words, where, environment, before)
        said = (ran.stdout + ran.stderr).decode("utf-8", "backslashreplace")
        assert "Traceback" not in said, said
        return ran.returncode, said

    return run


@pytest.mark.slow
@in_each_locale
def test_a_table_s_name_that_is_not_utf8_is_refused(
    tmp_path: Path, small_model: Path, locale: dict[str, str], run: Run
) -> None:
    make_photos(tmp_path / "p", 2)
    (tmp_path / ODD).mkdir()
    for out in (f"{ODD}.parquet", f"{ODD}/l.parquet", f"{ODD}s/"):
        for words in ((), ("plan",)):
            code, said = run(tmp_path, locale, *words, "p", "--out", out, "--model", small_model)
            assert code == 2
            assert "'--out': the name t\\xe9" in said
            assert "is not UTF-8" in said
    for word in ("status", "verify"):
        code, said = run(tmp_path, locale, word, f"{ODD}.parquet")
        assert code == 2
        assert "the name t\\xe9.parquet is not UTF-8" in said
    assert sorted(os.listdir(tmp_path)) == ["p", ODD]


@pytest.mark.slow
@in_each_locale
def test_all_else_may_have_such_a_name(
    tmp_path: Path, small_model: Path, locale: dict[str, str], run: Run
) -> None:
    make_photos(tmp_path / ODD, 2)
    photo(3).save(tmp_path / ODD / f"{ODD}ü.jpg")
    (tmp_path / f"{ODD}.txt").write_bytes(os.fsencode(f"{ODD}/0000.jpg\n{ODD}.tar\n"))
    (tmp_path / f"{ODD}.labels").write_text(
        "\n".join(f"çlass {number}" for number in range(10)), encoding="utf-8"
    )
    with tarfile.open(tmp_path / f"{ODD}.tar", "w") as archive:
        data = (tmp_path / ODD / "0000.jpg").read_bytes()
        info = tarfile.TarInfo("m.jpg")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    out = tmp_path / "l.parquet"
    arguments = (
        ODD,
        f"{ODD}.tar",
        "--files-from",
        f"{ODD}.txt",
        "--out",
        "l.parquet",
        "--exclude",
        f"{ODD}x",
    )
    code, said = run(tmp_path, locale, *arguments, "--model", small_model, "--max-errors", "1")
    assert code == 0, said
    assert "5 found, 3 labelled, 1 reused" in said, "an archive of a list is a file like any other"
    assert {row["root"].removeprefix(str(tmp_path)) for row in rows(out)} == {"", "/t\\xe9"}
    for word in ("verify", "status"):
        assert run(tmp_path, locale, word, "l.parquet")[0] == 0
    code, said = run(tmp_path, locale, "plan", *arguments, "--model", small_model)
    assert (code, "5  carried" in said) == (0, True), said
    assert run(tmp_path, locale, ODD, "--model", small_model, "--labels", f"{ODD}.labels")[0] == 0
    for missing in (
        (f"{ODD}-", "--out", "n.parquet"),
        ("--files-from", f"{ODD}-", "--out", "n.parquet"),
    ):
        code, said = run(tmp_path, locale, *missing, "--model", small_model)
        assert (code, "t\\xe9-" in said or "t\\udce9-" in said) == (2, True), said
    # The working folder may be called so, too.
    shutil.copytree(tmp_path / ODD, tmp_path / ODD / "p")
    assert run(tmp_path / ODD, locale, "p", "--out", "l.parquet", "--model", small_model)[0] == 0
    assert run(tmp_path / ODD, locale, "verify", "l.parquet")[0] == 0


@pytest.mark.slow
def test_what_a_terminal_cannot_show_does_not_end_a_run(
    tmp_path: Path, small_model: Path, run: Run
) -> None:
    make_photos(tmp_path / "写真", 1)
    # As PYTHONIOENCODING sets them.
    latin = (
        "import sys\nfor stream in (sys.stdout, sys.stderr):\n"
        "    stream.reconfigure(encoding='latin-1', errors='strict')"
    )
    words = ("写真", "--out", "表.parquet", "--model", small_model)
    code, said = run(tmp_path, UTF8, *words, before=latin)
    assert (code, "-> \\u8868.parquet" in said) == (0, True), said
    assert (tmp_path / "表.parquet").exists()
