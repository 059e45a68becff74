"""The import rule between the three packages (design, section 2), read off the source."""

import ast
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

ALLOWED = {
    "vit": {"torch", "torchvision", "numpy", "PIL", "safetensors", "huggingface_hub", "pyarrow", "click", "tqdm"},
    "jobs": {"pyarrow", "filelock", "boto3", "botocore"},
    "pipeline": {
        "vit",
        "jobs",
        "torch",
        "numpy",
        "PIL",
        "pyarrow",
        "click",
        "click_default_group",
        "tqdm",
        "pillow_heif",
        "ray",
    },
}


def imports(path: Path) -> set[tuple[str, int]]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {(alias.name.split(".")[0], 0) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(((node.module or "").split(".")[0], node.level))
    return found


@pytest.mark.parametrize("path", sorted(p for package in ALLOWED for p in (ROOT / package).rglob("*.py")), ids=str)
def test_a_module_imports_what_its_package_may(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for name, level in imports(path):
        if level:
            assert level == 1, f"{path}: relative imports stay inside the package"
        else:
            assert name in ALLOWED[package] | set(sys.stdlib_module_names), f"{path} imports {name}"


def test_modules_stay_readable() -> None:
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 260, f"{path} is too long; is it still one thing?"
            assert path.name not in ("utils.py", "common.py", "helpers.py")
