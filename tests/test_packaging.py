"""The wheel holds the three packages and their data, nothing else, and works outside the checkout."""

import configparser
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipeline import Table
from tests.helpers import ROOT

VERSION = "9.8.7"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git tracks, so that no build folder of ours plays a part; with
    another version in setup.cfg, which is then everybody's.
    """
    work = tmp_path_factory.mktemp("build")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            target = work / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    metadata = work / "source" / "setup.cfg"
    text, n = re.subn(r"(?m)^version = .*$", f"version = {VERSION}", metadata.read_text())
    assert n == 1
    metadata.write_text(text)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",  # setuptools is here; test_container.py's build fetches it
            "--wheel-dir",
            work,
            work / "source",
        ],
        check=True,
    )
    return next(work.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed where nothing else is."""
    folder = tmp_path_factory.mktemp("installed") / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, wheel],
        check=True,
    )
    return folder


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {name for name in names if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in ours} == {"vit", "jobs", "pipeline"}
    expected = {
        str(path.relative_to(ROOT))
        for package in ("vit", "jobs", "pipeline")
        for path in (ROOT / package).rglob("*.py")
    }
    data = {
        f"vit/embedded/{name}"
        for name in ("config.json", "model.safetensors", "training.json", "README.md")
    }
    data |= {
        str(path.relative_to(ROOT)) for path in (ROOT / "vit" / "checkpoints" / "data").iterdir()
    }
    data |= {
        str(path.relative_to(ROOT))
        for folder in ("templates", "assets")
        for path in (ROOT / "pipeline" / "report" / folder).iterdir()
    }
    typed = {f"{package}/py.typed" for package in ("vit", "jobs", "pipeline")}
    assert ours == expected | data | typed
    assert any(name.endswith("LICENSE") for name in names)
    assert "vit/checkpoints/data/WORDNET-LICENSE.txt" in ours  # WordNet asks for it in every copy


@pytest.mark.slow
def test_the_installed_command_is_ours_and_runs_outside_the_checkout(
    site: Path, tmp_path: Path
) -> None:
    cwd = tmp_path / "cwd"
    cwd.mkdir()

    def python(code: str, *words: object) -> subprocess.CompletedProcess[str]:
        code = f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, words)],
            cwd=cwd, capture_output=True, text=True, check=False,
        )  # fmt: skip

    ran = python(
        "import vit, jobs, pipeline; print(vit.__file__, jobs.__file__, pipeline.__file__)"
    )
    assert ran.stdout.split()
    assert all(path.startswith(str(site)) for path in ran.stdout.split())
    # Only what setup.cfg's install_requires names, and what those bring along.
    command = (
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('timm', 'transformers', 'pandas', 'polars', 'duckdb', 'pytest', "
        "'hypothesis'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from pipeline.cli.commands import main; main(sys.argv[1:])"
    )
    photos, out = ROOT / "examples" / "photos", cwd / "labels.parquet"
    ran = python(command, photos, "--out", out)
    assert ran.returncode == 0, ran.stderr
    assert "15 found, 15 labelled" in ran.stdout

    # setup.cfg says the version, and nobody else does.
    assert python(command, "--version").stdout.endswith(f", version {VERSION}\n")
    assert Table(out).record.tool_version == VERSION
    assert f"label-images {VERSION}" in python(command, "status", out).stdout


@pytest.mark.slow
def test_the_wheel_has_the_version_of_setup_cfg(wheel: Path) -> None:
    assert wheel.name.startswith(f"label_images-{VERSION}-")
    with zipfile.ZipFile(wheel) as files:
        metadata = files.read(f"label_images-{VERSION}.dist-info/METADATA").decode()
    assert f"\nVersion: {VERSION}\n" in metadata


def test_no_file_of_the_packages_states_the_version() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    version = setup["metadata"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version)
    for package in ("vit", "jobs", "pipeline"):
        for path in (ROOT / package).rglob("*.py"):
            assert f'"{version}"' not in path.read_text(), path


@pytest.mark.slow
def test_a_type_checker_reads_the_types(site: Path, tmp_path: Path) -> None:
    """Without py.typed it would take all for Any. What it sees of the library:
    types_of_the_library.py, which takes mypy too long here.
    """
    (tmp_path / "program.py").write_text(
        "from jobs.archives import is_archive\n"
        "from vit.errors import no_permission\n"
        "is_archive(1), no_permission(2)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", "--cache-dir=cache", "program.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    for name in ("is_archive", "no_permission"):
        assert f'Argument 1 to "{name}" has incompatible type "int"' in ran.stdout, ran.stdout
