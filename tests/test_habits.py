"""What contributors are told holds: the hooks, the changelog, the documents' names and commands."""

import configparser
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import ROOT

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
RELEASING = (ROOT / "docs" / "releasing.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
DESIGN = ROOT / "docs" / "design"
DECISIONS = sorted((DESIGN / "decisions").glob("*.md"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def _hooks() -> list[dict[str, Any]]:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    return [hook for repo in config["repos"] for hook in repo["hooks"]]


def _lint() -> list[list[str]]:
    """The commands of `make lint`."""
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert recipe
    return [shlex.split(line.replace("$(BIN)", ".venv/bin")) for line in recipe[1].splitlines()]


def test_the_hooks_run_what_make_lint_runs() -> None:
    """The same tools of the same place, so in the same versions: setup.cfg's."""
    only_here = {"--force-exclude", "--check", "."}  # a hook names files, and may mend them
    hooks = [[w for w in shlex.split(hook["entry"]) if w not in only_here] for hook in _hooks()]
    lint = [[word for word in words if word not in only_here] for words in _lint()]
    assert sorted(hooks) == sorted(lint)
    installed = {
        re.split(r"[><=]", line)[0] for line in SETUP["options.extras_require"]["lint"].split()
    }
    packages = {"lint-imports": "import-linter"}  # those not called as their command
    tools = {packages.get(tool, tool) for tool in (Path(command).name for command, *_ in hooks)}
    assert tools <= installed
    assert "pre-commit" in installed
    assert {hook["language"] for hook in _hooks()} == {"system"}


@pytest.mark.slow
def test_a_commit_of_unformatted_code_is_stopped(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)

    for name in (".pre-commit-config.yaml", ".ruff.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "code.py").write_text("a = [1,2]\nprint(a)\n")
    run("git", "init", "--quiet")
    run("git", "add", "code.py", ".pre-commit-config.yaml", ".ruff.toml")
    hooks = (sys.executable, "-m", "pre_commit")
    assert run(*hooks, "validate-config").returncode == 0
    ran = run(*hooks, "run", "ruff-check")
    assert ran.returncode == 1
    assert "T201" in ran.stdout
    ran = run(*hooks, "run", "ruff-format")
    assert ran.returncode == 1, ran.stdout
    assert (tmp_path / "code.py").read_text() == "a = [1, 2]\nprint(a)\n"
    run("git", "add", "code.py")
    assert run(*hooks, "run", "ruff-format").returncode == 0


def test_the_changelog_is_kept() -> None:
    heads = re.findall(r"^## (.*)$", CHANGELOG, re.M)
    assert heads[0] == "[Unreleased]"
    versions = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d", head) for head in heads[1:]]
    assert all(versions), heads
    numbers = [tuple(map(int, match[1].split("."))) for match in versions if match]
    assert numbers == sorted(numbers, reverse=True)
    # The one that setup.cfg has is the last released, or the one to come.
    assert not numbers or tuple(map(int, SETUP["metadata"]["version"].split("."))) >= numbers[0]
    sections = set(re.findall(r"^### (.*)$", CHANGELOG, re.M))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    entries = re.findall(r"^- (.*(?:\n  .*)*)", CHANGELOG, re.M)
    assert len(entries) == len(set(entries))


def test_the_release_s_lines_make_a_version(tmp_path: Path) -> None:
    [script] = [code for code in re.findall(r"```sh\n(.*?)```", RELEASING, re.S) if "sed" in code]
    for name in ("setup.cfg", "CHANGELOG.md"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    edits = [line for line in script.splitlines() if line.startswith(("version=", "sed "))]
    subprocess.run(["sh", "-ec", "\n".join(edits)], cwd=tmp_path, check=True)
    assert "\nversion = 0.2.0\n" in (tmp_path / "setup.cfg").read_text()
    heads = re.findall(r"^## (.*)$", (tmp_path / "CHANGELOG.md").read_text(), re.M)
    assert heads[0] == "[Unreleased]"
    assert re.fullmatch(r"\[0\.2\.0\] - \d{4}-\d\d-\d\d", heads[1])


def _makes() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("text", [CONTRIBUTING, RELEASING], ids=["contributing", "releasing"])
def test_what_they_name_is_there(text: str) -> None:
    for words in re.findall(r"`make ([a-z ]+)`|^make ([a-z ]+?) *(?:#|$)", text, re.M):
        assert set(" ".join(words).split()) <= _makes(), words
    for path in re.findall(r"`((?:[\w.-]+/)+[\w.-]*\.\w+)`", text):
        assert (ROOT / path).is_file(), path
    for name in re.findall(
        r"\b([A-Z]+(?:_[A-Z]+)+|SCHEMA|FAMILIES|LABELS\.added|ViTConfig)\b", text
    ):
        assert any(name.split(".")[0] in path.read_text() for path in _sources()), name


def _sources() -> list[Path]:
    return [
        path for package in ("vit", "jobs", "pipeline") for path in (ROOT / package).rglob("*.py")
    ]


@pytest.mark.parametrize(
    "path",
    [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "releasing.md", *DECISIONS,
     *(DESIGN / f"{name}.md" for name in ("index", "tour", "glossary"))],
    ids=lambda path: path.stem,
)  # fmt: skip
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if not link.startswith("http"):
            assert (path.parent / link).is_file(), link


def test_the_tour_names_files_that_are_there() -> None:
    tour = (DESIGN / "tour.md").read_text()
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.\w+)`", tour)
    named = [path for path in named if path != "a/b.jpg" and not path.startswith("/")]
    assert len(set(named)) > 50
    for path in named:
        assert (ROOT / path).is_file(), path
    rooms = {path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py")}
    assert rooms == {Path(path).parts[1] for path in named if path.startswith("pipeline/")} & rooms


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_says_when_what_was_rejected_and_where(path: Path) -> None:
    text = path.read_text()
    if path.stem == "index":
        for other in DECISIONS:
            assert other == path or f"({other.name})" in text, other.name
        return
    assert re.match(r"# \S.*\n\n\*?(\d{1,2} [A-Z][a-z]+ 20\d\d|20\d\d-\d\d-\d\d)\b", text)
    assert re.search(r"\brejected\b", text, re.I)
    assert len(text.split()) < 900  # of a screen or two
    named = re.findall(r"`((?:vit|jobs|pipeline|tests|benchmarks|docs)/[\w./-]*|[A-Z]+\.md)`", text)
    assert named, "it says where in the code"
    for name in named:
        assert (ROOT / name).exists(), name


def test_issue_templates_are_forms() -> None:
    forms = [path for path in TEMPLATES if path.stem != "config"]
    assert {path.stem for path in forms} == {"bug", "model", "idea"}
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert form.keys() >= {"name", "description", "body"}
        fields = [entry for entry in form["body"] if entry["type"] != "markdown"]
        assert {entry["type"] for entry in fields} <= {
            "input",
            "textarea",
            "dropdown",
            "checkboxes",
        }
        assert all(entry["attributes"]["label"] for entry in fields)
        assert any(entry.get("validations", {}).get("required") for entry in fields)
        ids = [entry["id"] for entry in fields]
        assert len(ids) == len(set(ids))
