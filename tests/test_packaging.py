"""The wheel holds the three packages and their data, nothing else, and works outside the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git tracks, so that no build folder of ours plays a part."""
    work = tmp_path_factory.mktemp("build")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            target = work / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            work,
            work / "source",
        ],
        check=True,
    )
    return next(work.glob("*.whl"))


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
    assert ours == expected | data
    assert any(name.endswith("LICENSE") for name in names)
    assert "vit/checkpoints/data/WORDNET-LICENSE.txt" in ours  # WordNet asks for it in every copy


@pytest.mark.slow
def test_the_installed_command_is_ours_and_runs_outside_the_checkout(
    wheel: Path, tmp_path: Path
) -> None:
    site, cwd = tmp_path / "site", tmp_path / "cwd"
    cwd.mkdir()
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel],
        check=True,
    )
    script = f"import sys; sys.path.insert(0, {str(site)!r})\n"
    where = (
        script + "import vit, jobs, pipeline; print(vit.__file__, jobs.__file__, pipeline.__file__)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", where], cwd=cwd, capture_output=True, text=True, check=True
    )
    assert all(path.startswith(str(site)) for path in ran.stdout.split())
    # Only what setup.cfg's install_requires names, and what those bring along.
    run = script + (
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('timm', 'transformers', 'pandas', 'polars', 'duckdb', 'pytest', "
        "'hypothesis'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from pipeline.cli.commands import main; main(sys.argv[1:])"
    )
    photos, out = ROOT / "examples" / "photos", cwd / "labels.parquet"
    ran = subprocess.run(
        [sys.executable, "-c", run, photos, "--out", out],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "7 found, 7 labelled" in ran.stdout
