"""Fixtures: photos, models and processes, all made in code."""

import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from pipeline import console
from pipeline.cli.commands import main
from tests.forking import Running, Server, Servers, at_the_start
from tests.helpers import ROOT, Command, make_photos, peaked_
from tests.hub_server import Hub, HubServer
from vit.checkpoints.bundle import ModelSpec, write_bundle
from vit.config import ViTConfig
from vit.model import VisionTransformer
from vit.preprocess import Preprocess

# Side by side (`make test`) each has one core to itself. The processes that tests start use as many
# threads as the tests do: only then is training the same to the bit.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())


# No test asks the real Hub, and none takes the default model from the cache of whoever runs it: a run
# that names no model labels with the one in the package, and says so. Set before the Hub's client is
# imported; tests/test_vit_sources.py has a Hub of its own.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent/hugging-face"}
for _name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT"):
    os.environ.pop(_name, None)

# What `--precision auto` chooses depends on the CPU. With this the whole suite runs as on the other
# kind.
FORCED_PRECISION = os.environ.get("LABEL_IMAGES_TEST_PRECISION")


def _with(arguments: Sequence[Any], **options: Any) -> list[str]:
    """The arguments, and the options that a run gets where it names none of the kind."""
    words = [str(argument) for argument in arguments]
    others = ("plan", "status", "verify", "thresholds", "diff", "report", "models")
    if len(words) > 1 and words[0] not in others and "--help" not in words:
        for name, value in options.items():
            if value is not None and f"--{name}" not in words:
                words += [f"--{name}", str(value)]
    return words


# The files that take longest, the longest first: begun last, one of them would have a core to itself
# at the end while the other idles.
LONGEST = (
    "test_cluster",
    "test_cloud_stores",
    "test_store",
    "test_benchmarks",
    "test_crash",
    "test_nights",
    "test_pipeline_predict",
    "test_pipeline_isolate",
    "test_default_model",
    "test_vit_sources",
    "test_vit_timm",
    "test_graph",
    "test_odd_names",
    "test_report_browser",
    "test_report",
    "test_moves",
    "test_machine_runs_out",
    "test_quantise",
    "test_vit_towers",
    "test_cli",
    "test_audit",
    "test_end_to_end",
    "test_embeddings",
    "test_vit_weights",
    "test_doc_blocks",
    "test_bad_state",
    "test_vit_train",
    "test_pipeline_loader",
    "test_vit_model",
    "test_unseen",
    "test_vit_origins",
    "test_relabel",
    "test_packaging",
    "test_pipeline_jpeg",
    "test_dataset",
    "test_vit_text",
    "test_bad_pixels",
    "test_container",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


def pytest_collectstart() -> None:
    """Nothing looks for garbage while tests are collected: what they import makes millions of objects
    that stay, and a third of the time went into looking through them.
    """
    gc.disable()


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection looks through it again, neither here nor in the
    many processes that are forked, which would thereby copy it.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(params=["fp32", "bf16"])
def precision(request: pytest.FixtureRequest) -> str:
    """For tests of labels: in each precision, which works on every CPU, if slowly."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_signal_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.fixture(autouse=True)
def _same_logging() -> Iterator[None]:
    """Whatever a test, or a library that it imports, does to logging: the next one hears all."""
    yield
    logging.disable(logging.NOTSET)
    logging.getLogger().setLevel(logging.WARNING)
    ours = [name for name in logging.root.manager.loggerDict if name.startswith("label_images")]
    for logger in map(logging.getLogger, ours):
        logger.setLevel(logging.NOTSET)
        logger.propagate, logger.disabled = True, False


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What this process says to its user, as texts; whatever libraries did to logging."""
    texts: list[str] = []
    say = console._say

    def heard(logger: Any, level: int, event: str, message: str, facts: Any) -> None:
        texts.append(message)
        say(logger, level, event, message, facts)

    monkeypatch.setattr(console, "_say", heard)
    return texts


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test cuts the power, so nothing in this process waits for the disk; `process` still does."""
    monkeypatch.setattr(os, "fsync", os.fstat)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or leaves a head in the cache of whoever runs it, or of another test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of ten small photos, some in a folder of their own."""
    folder = make_photos(tmp_path / "photos", 7)
    make_photos(folder / "more", 3)
    return folder


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a very small Vision Transformer with random weights: 32 pixels, 10 classes."""
    torch.manual_seed(0)
    config = ViTConfig(img_size=32, patch_size=8, n_classes=10, embed_dim=48, depth=2, n_heads=3)
    model = VisionTransformer(config)
    peaked_(model)
    spec = ModelSpec(
        config, Preprocess(32, 36), tuple(f"class {i}" for i in range(10)), (), 1.0, "small"
    )
    out = tmp_path_factory.mktemp("models") / "small"
    write_bundle(spec, model.state_dict(), out)
    return out


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command in this process, in an empty working folder: quick, since torch is imported
    already, and without workers, since to fork so large a process takes longer than most runs.
    """

    def run(*arguments: Any, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
        where = tmp_path / "cwd"
        where.mkdir(exist_ok=True)
        with monkeypatch.context() as patch:
            patch.chdir(where)
            workers = 0 if "--out" in arguments else None
            words = _with(arguments, precision=FORCED_PRECISION, workers=workers)
            result = CliRunner().invoke(main, words, input=stdin)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return subprocess.CompletedProcess(
            arguments, result.exit_code, result.stdout, result.stderr
        )

    return run


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Who forks processes of the command, by what such a process's interpreter was started with."""
    started: dict[Any, Server] = {}

    def server(environment: Mapping[str, str]) -> Server:
        key = at_the_start(environment)
        if key not in started:
            started[key] = Server(environment)
        return started[key]

    yield server
    for each in started.values():
        each.close()


@pytest.fixture(scope="session")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two classes, as timm saves it for the Hub."""
    import timm
    from timm.models import save_for_hf

    files = tmp_path_factory.mktemp("timm") / "repository"
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2)
    labels = {"label_names": ["cat", "dog"]}
    save_for_hf(model, str(files), model_config=labels, safe_serialization=True)
    return files


@pytest.fixture
def hub(tmp_path: Path, servers: Servers, timm_folder: Path) -> Iterator[Hub]:
    """A Hub with that model, and a machine whose cache is empty."""
    with HubServer(shutil.copytree(timm_folder, tmp_path / "repository")) as server:
        yield Hub(server, tmp_path / "cache", servers)


@pytest.fixture
def small_hub(tmp_path: Path, servers: Servers, small_model: Path) -> Iterator[Hub]:
    """The same with a model of 32 pixels, which loads in no time."""
    with HubServer(shutil.copytree(small_model, tmp_path / "repository")) as server:
        yield Hub(server, tmp_path / "cache", servers)


@pytest.fixture
def starting(tmp_path: Path, servers: Servers) -> Callable[..., Running]:
    """Start the command in a process of its own, to be killed; in a `with`, and one at a time."""

    def start(*arguments: Any, env: dict[str, str] | None = None, before: str = "") -> Running:
        where = tmp_path / "cwd"
        where.mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
        environment |= env or {}
        words = _with(arguments, precision=FORCED_PRECISION)
        return servers(environment).start(words, where, environment, before)

    return start


@pytest.fixture
def process(tmp_path: Path, servers: Servers) -> Command:
    """Run the command in a process of its own, as a user does; `prefix` goes before the
    interpreter, `before` is Python that runs before the command.
    """

    def run(
        *arguments: Any,
        env: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        before: str = "",
    ) -> subprocess.CompletedProcess[str]:
        where = tmp_path / "cwd"
        where.mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
        environment |= env or {}
        words = _with(arguments, precision=FORCED_PRECISION)
        if not prefix:
            ran = servers(environment).run(words, where, environment, before)
            said = (text.decode(errors="backslashreplace") for text in (ran.stdout, ran.stderr))
            return subprocess.CompletedProcess(words, ran.returncode, *said)
        assert not before
        return subprocess.run(
            [*prefix, sys.executable, "-m", "pipeline.cli", *words],
            capture_output=True,
            text=True,
            errors="backslashreplace",
            cwd=where,
            env=environment,
            timeout=120,
            check=False,
        )

    return run
