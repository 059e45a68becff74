"""The container's recipe, as far as a machine without a container runtime can tell."""

import configparser
import fnmatch
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from pipeline.cli.commands import main
from tests.helpers import ROOT

RECIPE = (ROOT / "examples" / "Containerfile").read_text()
CRON = (ROOT / "examples" / "container.cron").read_text()
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")

IMAGE_MB, PYTHON_SLIM_MB, TORCH_CPU_MB = (
    2000,
    160,
    750,
)  # torch 2.13's wheel for CPUs, with its .pyc


def _instructions() -> list[tuple[str, str]]:
    lines = [line for line in RECIPE.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]


INSTRUCTIONS = _instructions()
ARGS = dict(what.split("=", 1) for name, what in INSTRUCTIONS if name == "ARG")


def _with_args(text: str) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda match: ARGS[match[1]], text)


def _copied() -> list[str]:
    """What is copied from the checkout."""
    words = [what.split() for name, what in INSTRUCTIONS if name == "COPY"]
    return [source for *sources, _ in words for source in sources if sources[0][:2] != "--"]


def _pip_install() -> list[list[str]]:
    runs = (shlex.split(_with_args(what)) for name, what in INSTRUCTIONS if name == "RUN")
    return [words[2:] for words in runs if words[:2] == ["pip", "install"]]


def _tracked(*paths: str) -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", *paths], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(listed.stdout.splitlines())


def test_it_is_made_of_known_instructions() -> None:
    known = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in INSTRUCTIONS} <= known
    assert next(what for name, what in INSTRUCTIONS if name == "FROM").endswith(" AS build")
    assert all(
        json.loads(what) for name, what in INSTRUCTIONS if name in ("ENTRYPOINT", "CMD")
    )  # a shell between would not hand on signals
    version = re.search(r":(\d+\.\d+)-slim$", ARGS["PYTHON"])
    assert version
    assert version[1] in SpecifierSet(SETUP["options"]["python_requires"])


def test_nobody_runs_it_as_root() -> None:
    names = [name for name, _ in INSTRUCTIONS]
    user = [what for name, what in INSTRUCTIONS if name == "USER"][-1]
    # As a number: who checks that a container is not root's cannot look a name up.
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert "RUN" not in names[names.index("USER") :]
    [made] = [shlex.split(what) for name, what in INSTRUCTIONS if what.startswith("mkdir")]
    assert made == ["mkdir", "--mode=1777", "/cache"]
    [env] = [what for name, what in INSTRUCTIONS if name == "ENV"]
    values = dict(pair.split("=") for pair in env.split())
    assert values.keys() >= {"HOME", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME"}
    assert {Path(value).parts[:2] for value in values.values()} == {("/", "cache")}


def test_what_it_copies_is_there_and_is_given_to_the_build() -> None:
    rules = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]  # fmt: skip
    assert rules[0] == "*"
    given = {rule[1:] for rule in rules if rule.startswith("!")}
    assert set(_copied()) == given
    for path in given:
        assert _tracked(path), path
        assert not any(fnmatch.fnmatch(path, rule) for rule in rules[1:] if rule[0] != "!")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first stage makes, of what is copied and nothing else."""
    work = tmp_path_factory.mktemp("stage")
    for name in _tracked(*_copied()):
        target = work / "src" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    [run] = [what for name, what in INSTRUCTIONS if what.startswith("pip wheel")]
    words = [str(work / "wheels") if word == "/wheels" else word for word in run.split()[1:]]
    subprocess.run([sys.executable, "-m", "pip", *words, "--quiet"], cwd=work / "src", check=True)
    [made] = (work / "wheels").glob("*.whl")
    return made


@pytest.mark.slow
def test_the_wheel_of_what_is_copied_is_whole(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        names = {name for name in files.namelist() if ".dist-info/" not in name}
    assert names == _tracked("vit", "jobs", "pipeline")


@pytest.mark.slow
def test_pip_gets_all_that_the_package_asks_for(wheel: Path) -> None:
    of_torch, of_ours = _pip_install()
    # For CPUs, and just what setup.cfg asks for: another one would be installed over it, with CUDA.
    assert of_torch[of_torch.index("--index-url") + 1].endswith("/whl/cpu")
    asked = set(SETUP["options"]["install_requires"].split())
    torch = {word for word in of_torch if word.startswith("torch")}
    assert torch == {word for word in asked if word.startswith("torch")}
    assert (
        "2.14.1+cpu" in Requirement(next(word for word in asked if word[:6] == "torch>")).specifier
    )
    # The wheel brings its own list. It can be had together: without an index pip has only what is
    # installed here, which is all of it, whatever this machine's settings say of versions.
    extras = re.fullmatch(r"\$\(echo /wheels/\*\.whl\)\[(.*)\]", of_ours[-1])
    assert extras
    assert set(extras[1].split(",")) <= set(SETUP["options.extras_require"])
    with zipfile.ZipFile(wheel) as files:
        [metadata] = [name for name in files.namelist() if name.endswith("/METADATA")]
        declared = re.findall(r"(?m)^Requires-Dist: ([\w.-]+)", files.read(metadata).decode())
    assert set(declared) >= {Requirement(word).name for word in asked}
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-index",
         f"{wheel}[{extras[1]}]"],
        check=True,
        env=os.environ | {"PIP_CONFIG_FILE": os.devnull, "PIP_CONSTRAINT": ""},
    )  # fmt: skip


def _installed_mb(name: str, extras: set[str], seen: set[str]) -> float:
    """The size of a distribution and all it asks for, but for torch and what is CUDA's."""
    key = canonicalize_name(name)
    if key in seen or re.match(r"(torch$|nvidia-|cuda-|triton)", key):
        return 0
    seen.add(key)
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return 0  # of another system or Python
    files = (Path(str(file.locate())) for file in found.files or [])
    size = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
    for line in found.requires or []:
        wanted = Requirement(line)
        marks = [{"extra": extra} for extra in ("", *extras)]
        if not wanted.marker or any(wanted.marker.evaluate(mark) for mark in marks):
            size += _installed_mb(wanted.name, wanted.extras, seen)
    return size


def test_it_is_below_2_gb() -> None:
    seen: set[str] = set()
    ours = _installed_mb("label-images", set(ARGS["EXTRAS"].split(",")), seen)
    assert {"openvino", "pyarrow", "pillow-heif", "boto3"} <= seen
    assert PYTHON_SLIM_MB + TORCH_CPU_MB + ours < IMAGE_MB


def _docker_run() -> list[list[str]]:
    """The words of each `docker run`, in the recipe's head and in the crontab."""
    lines = [line for line in (RECIPE + CRON).splitlines() if "docker run" in line]
    return [shlex.split(line[line.index("docker run") :], comments=False)[2:] for line in lines]


@pytest.mark.parametrize("words", _docker_run())
def test_its_commands_can_be_typed(words: list[str]) -> None:
    tag = re.search(r"docker build .*-t (\S+) \.", RECIPE)
    assert tag
    ours = words[words.index(tag[1], words.index("-v")) + 1 :]
    mounts = [words[at + 1].split(":") for at, word in enumerate(words) if word == "-v"]
    places = {inside: how for _, inside, *how in mounts}
    context = click.Context(main, info_name="label-images", **main.context_settings)
    name, command, rest = main.resolve_command(context, ours)  # type: ignore[attr-defined]
    given = command.make_context(name, rest, parent=context).params
    for path in given["paths"]:
        assert places[str(path)] == ["ro"]
        assert [outside for outside, inside, *_ in mounts if inside == str(path)] == [str(path)]
    assert places[str(given["out"].place.parent)] == []
    assert places["/cache"] == []


def test_the_crontab_is_one_line_of_cron() -> None:
    [line] = [line for line in CRON.splitlines() if line and not line.startswith("#")]
    assert re.match(r"[\d*]+ [\d*]+ \* \* \*  docker run ", line)
    assert "%" not in line  # cron makes line ends of them
