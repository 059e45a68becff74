"""OpenVINO's graph of a backbone: the same labels, made once, and never used where it is wrong."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.console import Console
from pipeline.errors import UsageError
from pipeline.label import graph as graphs
from pipeline.label import kept_graphs, local, machine_facts, runtime
from pipeline.label.graph import Graph, NoGraph, make_graph
from pipeline.label.kept_graphs import KeptGraph
from pipeline.label.local import predict_batches
from pipeline.label.placement import Placement, choose_placement
from pipeline.label.predict import Predictor
from pipeline.label.predict_graph import GraphPredictor, predictor_of
from pipeline.label.runtime import Work, backbone_graph, gmacs
from pipeline.library import Table
from pipeline.load.batch import Batch
from pipeline.settings import Settings
from tests.helpers import ROOT, Command, make_photos, peaked_, rows
from vit.classifier import Classifier, load_classifier
from vit.config import ViTConfig
from vit.head import Head
from vit.model import VisionTransformer
from vit.preprocess import Preprocess, normalise

pytest.importorskip("openvino")

CONSOLE = Console()
MUCH = Work(10**9)


@pytest.fixture(autouse=True)
def _one_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """One size of batch is tried: the three take time."""
    monkeypatch.setattr(graphs, "_BATCH_SIZES", (4,))


@dataclass(frozen=True)
class First:
    """What came of the first run of the small model on this machine."""

    cache: Path
    placement: Placement
    graph: Graph
    exported: Any


@pytest.fixture(scope="module")
def first(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> First:
    """A graph really made, once for all tests that only need one: exporting takes seconds."""
    cache, exported = tmp_path_factory.mktemp("graphs"), []
    really_export = graphs.export

    def export(*arguments: Any) -> Any:
        exported.append(really_export(*arguments))
        return exported[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setattr(graphs, "_BATCH_SIZES", (4,))
        patch.setattr(graphs, "export", export)
        placement, graph = backbone_graph(
            load_classifier(str(small_model)), placed(), MUCH, CONSOLE
        )
    assert graph
    kinds = [operation.get_type_name() for operation in exported[0].get_ops()]
    assert "ScaledDotProductAttention" not in kinds  # in steps
    return First(cache, placement, graph, exported[0])


@pytest.fixture
def shared_cache(first: First, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache in which that graph is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(first.cache))


@pytest.fixture
def classifier(small_model: Path) -> Classifier:
    return load_classifier(str(small_model))


@pytest.fixture(scope="module")
def made(first: First) -> Graph:
    """That graph, for tests in which nobody makes one."""
    return first.graph


def placed(**settings: Any) -> Placement:
    return choose_placement(Settings(**{"device": "cpu", "precision": "fp32", **settings}), 100)


def batch(n: int) -> Batch:
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)
    return Batch(0, list(range(n)), images, [], [], 0.0, 0.0)


# What published networks have beside the first Vision Transformer's parts, each exported as it is.
NETWORKS: dict[str, dict[str, Any]] = {
    "distilled": {"distilled": True},
    "CLIP": {"norm_pre": True, "mlp": "quick_gelu", "proj_dim": 24},
    "SigLIP": {"class_token": False, "pool": "map", "mlp": "gelu_tanh", "final_norm": "tokens"},
    "DINOv2": {"reg_tokens": 4, "pool": "token_avg", "layer_scale": True, "pos_embed": "patches"},
    "EVA-02": {"rope": "eva02", "mlp": "swiglu", "pool": "avg", "mlp_norm": True},
    "DINOv3": {"rope": "dinov3", "pos_embed": "none", "reg_tokens": 4, "layer_scale": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_gives_torch_s_features(name: str) -> None:
    torch.manual_seed(0)
    # One block: the next would be exported as it was, in as many seconds again.
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "n_heads": 3}
    model = VisionTransformer(ViTConfig(**{**small, "n_classes": 10, **NETWORKS[name]}))
    peaked_(model)
    model = model.eval().requires_grad_(False)
    names = tuple(str(number) for number in range(10))
    made = Classifier(name, "", model, Head.of(model), Preprocess(32, 32), names, (), "0" * 64)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    assert torch.allclose(
        make_graph(made, "fp32", 4)(images),
        made.backbone(normalise(images, made.preprocess)),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.usefixtures("shared_cache")
def test_an_image_s_features_depend_on_none_of_its_neighbours(classifier: Classifier) -> None:
    _, graph = backbone_graph(classifier, placed(), MUCH, CONSOLE)
    assert graph
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    features = graph(images)
    others = images.clone()
    others[[0, 1, 3]] = 255 - others[[0, 1, 3]]
    assert torch.equal(graph(others)[2], features[2])
    assert not torch.equal(graph(others)[1], features[1])


@pytest.mark.usefixtures("shared_cache")
def test_predictions_are_torch_s_also_of_a_short_batch(classifier: Classifier) -> None:
    placement, graph = backbone_graph(classifier, placed(), MUCH, CONSOLE)
    assert graph
    assert (placement.runtime, placement.batch_size) == ("openvino", 4)
    torchs = Predictor(classifier, placed(runtime="torch", batch_size=4), 10, CONSOLE)
    ours = GraphPredictor(graph, classifier.head, 10, keeps_features=True)
    for n in (0, 1, 4):
        images = batch(n)
        right, found = torchs(images), ours(images)
        assert (found.class_ids == right.class_ids).all()
        assert abs(found.probabilities - right.probabilities).max(initial=0) < 1e-4
        assert found.features is not None
        assert len(found.features) == n


@pytest.mark.usefixtures("shared_cache")
def test_batches_under_way_at_once_stay_in_order_with_their_own_predictions(
    classifier: Classifier,
) -> None:
    _, graph = backbone_graph(classifier, placed(), MUCH, CONSOLE)
    assert graph
    predict = GraphPredictor(graph, classifier.head, 3)
    predict.batches_ahead = 3
    batches = [batch(n) for n in (4, 0, 3, 4, 1, 4)]
    results = list(predict_batches(predict, iter(batches)))
    assert [given for given, _ in results] == batches
    for given, predictions in results:
        assert (predictions.probabilities == predict(given).probabilities).all()


def test_torch_keeps_to_one_thread_beside_a_graph(
    classifier: Classifier, made: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its others would wait without sleeping, on the cores that OpenVINO computes on."""
    seen, really_scores = [], Head.scores

    def scores(head: Head, features: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return really_scores(head, features)

    monkeypatch.setattr(Head, "scores", scores)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        GraphPredictor(made, classifier.head, 3)(batch(3))
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("shared_cache")
def test_a_graph_is_made_once_and_kept(
    classifier: Classifier, first: First, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first.placement.reasons["runtime"] == "its graph was made for this and later runs"
    monkeypatch.setattr(kept_graphs, "make_graph", None)  # it may not be made again
    # However little there is to do, as long as it fills a batch.
    second, again = backbone_graph(classifier, placed(), Work(16), CONSOLE)
    assert again
    assert again is not first.graph
    assert second.reasons["runtime"] == "its graph is kept"
    assert second.batch_size == first.placement.batch_size
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(first.graph(images), again(images))


@pytest.mark.parametrize(
    ("took", "best"),
    [
        ({4: 0.4, 8: 0.79, 16: 1.57}, 4),  # as fast: the last batch of a run is filled up less
        ({4: 0.4, 8: 0.7, 16: 1.2}, 16),
        ({8: 0.020, 16: 0.039, 32: 0.078}, 32),  # each costs the main process a millisecond or two
        ({8: 0.040, 16: 0.079, 32: 0.2}, 16),  # none takes long enough but the slow one
        ({4: 2.5}, 4),
    ],
)
def test_the_smallest_batch_that_is_as_fast_is_used(took: dict[int, float], best: int) -> None:
    assert graphs.best_batch_size(took) == best


@pytest.fixture
def kept(classifier: Classifier, first: First, monkeypatch: pytest.MonkeyPatch) -> KeptGraph:
    """A graph of that model in a cache that a test may damage; exporting it again takes no time."""
    monkeypatch.setattr(graphs, "export", lambda *_: first.exported)
    kept = KeptGraph.of(classifier, "fp32", None)
    kept.make(classifier)
    return kept


def test_a_damaged_graph_is_as_if_it_were_not_there(
    classifier: Classifier, kept: KeptGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, record = (kept.folder / (kept.digest + part) for part in (".blob", ".json"))
    whole = {file: file.read_bytes() for file in (data, record)}
    damages = [
        (data, whole[data][:-1]),
        (data, whole[data][:-100] + bytes(100)),
        (data, b""),
        (record, b"{"),
        (record, b'{"batch_size": 4}'),
        (record, b"[]"),
    ]
    for file, damaged in damages:
        file.write_bytes(damaged)
        assert kept.load() is None, (file.name, damaged[:20])
        file.write_bytes(whole[file])
        assert kept.load()
    data.write_bytes(b"")
    placement, graph = backbone_graph(classifier, placed(), MUCH, CONSOLE)
    # Workers are at batches of that size by the time it is opened, so it is made again of no other.
    monkeypatch.setattr(graphs, "_BATCH_SIZES", (8,))
    assert graph
    assert graph(torch.zeros(4, 3, 32, 32, dtype=torch.uint8)).shape == (4, 48)
    assert placement.batch_size == graph.batch_size == 4
    assert kept.kept_batch_size() == 4
    assert kept.load()
    assert kept.load(8) is None


def open_kept(classifier: Classifier, work: Work, **settings: Any) -> Placement:
    """Open a graph that is kept; return the placement with which labelling goes on."""
    placement, graph = backbone_graph(classifier, placed(**settings), work, CONSOLE)
    assert graph
    return predictor_of(classifier, placement, graph, 3, CONSOLE)[0]


def test_where_a_kept_graph_cannot_be_opened_torch_runs(
    classifier: Classifier, kept: KeptGraph, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    data = kept.folder / f"{kept.digest}.blob"
    whole = data.read_bytes()
    assert open_kept(classifier, MUCH).runtime == "openvino"
    # A library that does not load today may load tomorrow.
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "openvino", None)
        placement = open_kept(classifier, MUCH)
        assert placement.runtime == "torch"
        assert "OpenVINO does not load" in placement.reasons["runtime"]
        with pytest.raises(UsageError, match="--runtime openvino: OpenVINO does not load"):
            open_kept(classifier, MUCH, runtime="openvino")
    assert open_kept(classifier, MUCH).runtime == "openvino"
    # Nor is a damaged one made again for a few images, or where there is no memory for it.
    data.write_bytes(b"damaged")
    assert "too few images" in open_kept(classifier, Work(16)).reasons["runtime"]

    def no_memory(*_: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(graphs, "export", no_memory)
        assert "not enough memory" in open_kept(classifier, MUCH).reasons["runtime"]
    data.write_bytes(whole)
    assert open_kept(classifier, Work(16)).runtime == "openvino"
    assert len([text for text in said if "kept graph cannot be used, so torch" in text]) == 3


def test_a_run_whose_kept_graph_is_lost_labels_with_torch(
    command: Command, kept: KeptGraph, small_model: Path, tmp_path: Path
) -> None:
    photos, out = make_photos(tmp_path / "photos", 17), tmp_path / "l.parquet"
    (kept.folder / f"{kept.digest}.blob").write_bytes(b"")
    ran = command(photos, "--out", out, "--model", small_model, "--precision", "fp32")
    assert ran.returncode == 0, ran.stderr
    assert "its graph is kept" in ran.stderr
    assert "graph cannot be used, so torch runs the model: too few images" in ran.stderr
    assert "17 labelled" in ran.stdout
    record = Table(out).record
    assert record
    assert "openvino" not in record.made_by[-1].libraries


def test_a_graph_of_another_openvino_is_not_loaded(
    kept: KeptGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it was installed anew under a process that goes on with the old one."""
    assert kept.load()
    import openvino

    monkeypatch.setattr(openvino, "get_version", lambda: "another")
    assert kept.load() is None


def test_another_machine_has_graphs_of_its_own(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest() -> str:
        return KeptGraph.of(classifier, "fp32", None).digest

    cpuinfo = tmp_path / "cpuinfo"
    text = "processor : 0\nmodel name : A\ncpu MHz : 2000\nflags : fpu avx2 avx512_vnni\n\n"
    cpuinfo.write_text(text)
    monkeypatch.setattr(machine_facts, "CPUINFO", cpuinfo)
    one = digest()
    for other in ("model name : B", "model name : A\nCPU part : 0xd40"):
        cpuinfo.write_text(text.replace("model name : A", other))
        assert digest() != one
    cpuinfo.write_text(text.replace("avx512_vnni", "avx512_bf16"))
    assert digest() != one
    # What changes by the minute or with the kernel is another matter.
    cpuinfo.write_text(text.replace("2000", "3000").replace("fpu", "fpu ibrs") * 2)
    assert digest() == one
    monkeypatch.setenv("ONEDNN_VERBOSE", "1")
    assert digest() == one
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert digest() != one
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(machine_facts, "version", lambda _: "2099.1")
    assert digest() != one
    monkeypatch.undo()
    # Where the kernel does not say, OpenVINO does.
    facts = []
    for place in (tmp_path / "missing", tmp_path / "empty"):
        (tmp_path / "empty").touch()
        monkeypatch.setattr(machine_facts, "CPUINFO", place)
        facts.append(machine_facts.machine_facts()["cpu"])
    assert facts[0] == facts[1]
    assert "FP32" in facts[0]


@pytest.mark.slow
def test_where_a_graph_is_kept_is_known_without_openvino(small_model: Path) -> None:
    code = (
        "import sys; from vit.classifier import load_classifier\n"
        "from pipeline.label.kept_graphs import KeptGraph\n"
        "kept = KeptGraph.of(load_classifier(sys.argv[1]), 'fp32', None)\n"
        "assert kept.kept_batch_size() is None\n"
        "print('openvino' in sys.modules)"
    )
    words = [sys.executable, "-c", code, small_model]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == f"{not machine_facts.CPUINFO.exists()}\n"


@pytest.mark.usefixtures("shared_cache")
def test_workers_decode_before_a_kept_graph_is_opened(
    command: Command, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, steps = make_photos(tmp_path / "photos", 5), []
    really_load, really_open = local.load_batches, kept_graphs.load_graph

    def load_batches(*arguments: Any, **options: Any) -> Any:
        batches = really_load(*arguments, **options)
        steps.append("workers")
        return batches

    def load_graph(*arguments: Any) -> Graph:
        steps.append("graph")
        return really_open(*arguments)

    monkeypatch.setattr(local, "load_batches", load_batches)
    monkeypatch.setattr(kept_graphs, "load_graph", load_graph)
    common = [photos, "--model", small_model, "--runtime", "openvino", "--precision", "fp32"]
    assert command(*common, "--out", tmp_path / "l.parquet", "--workers", 2).returncode == 0
    assert steps == ["workers", "graph"]


def test_another_model_precision_or_size_of_batch_has_a_graph_of_its_own(
    classifier: Classifier,
) -> None:
    embedded = load_classifier("embedded")
    kept = [
        KeptGraph.of(classifier, "fp32", None),
        KeptGraph.of(classifier, "bf16", None),
        KeptGraph.of(classifier, "fp32", 8),
        KeptGraph.of(embedded, "fp32", None),
    ]
    with torch.no_grad():  # as where the file was replaced after it was read
        classifier.model.norm.bias.add_(1)
    kept.append(KeptGraph.of(classifier, "fp32", None))
    other_mean = replace(classifier, preprocess=replace(classifier.preprocess, mean=(0.4,) * 3))
    kept.append(KeptGraph.of(other_mean, "fp32", None))
    assert len({each.digest for each in kept}) == 6


def test_a_graph_that_computes_something_else_is_refused(
    classifier: Classifier, first: First, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaked_(classifier.model, 0.7)  # other weights than those that were exported
    monkeypatch.setattr(graphs, "export", lambda *_: first.exported)
    placement, graph = backbone_graph(classifier, placed(), MUCH, CONSOLE)
    assert graph is None
    assert placement.runtime == "torch"
    assert "of their length off" in placement.reasons["runtime"]
    with pytest.raises(UsageError, match=r"--runtime openvino: OpenVINO's features .* use torch"):
        backbone_graph(classifier, placed(runtime="openvino"), MUCH, CONSOLE)
    # And no later run tries again in vain.
    monkeypatch.setattr(kept_graphs, "make_graph", None)
    placement, graph = backbone_graph(classifier, placed(), MUCH, CONSOLE)
    assert graph is None
    assert "of their length off" in placement.reasons["runtime"]


def test_features_that_are_no_numbers_are_refused(
    classifier: Classifier, first: First, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "export", lambda *_: first.exported)
    features = torch.full((4, 48), torch.nan)
    monkeypatch.setattr(Graph, "__call__", lambda *_: features)
    with pytest.raises(NoGraph, match="nan of their length off"):
        make_graph(classifier, "bf16", 4)


class ConverterError(Exception):
    """As OpenVINO's own, which are no RuntimeErrors."""


def test_whatever_a_converter_raises_torch_runs_and_it_is_tried_again_in_a_week(
    classifier: Classifier, made: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def refuse(*_: Any) -> Any:
        raise ConverterError("no such operation\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(graphs, "export", refuse)
        placement, graph = backbone_graph(classifier, placed(), MUCH, CONSOLE)
    assert graph is None
    assert placement.reasons["runtime"] == "OpenVINO does not take this model (no such operation)"
    monkeypatch.setattr(kept_graphs, "make_graph", lambda *_: made)
    assert backbone_graph(classifier, placed(), MUCH, CONSOLE)[1] is None
    now = time.time()
    monkeypatch.setattr(kept_graphs.time, "time", lambda: now + 8 * 86_400)
    assert backbone_graph(classifier, placed(), MUCH, CONSOLE)[1]


def test_a_want_of_memory_is_not_remembered(
    classifier: Classifier, made: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def refuse(*_: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 4 bytes")

    with monkeypatch.context() as patch:
        patch.setattr(graphs, "export", refuse)
        placement, graph = backbone_graph(classifier, placed(), MUCH, CONSOLE)
    assert graph is None
    assert "not enough memory" in placement.reasons["runtime"]
    monkeypatch.setattr(kept_graphs, "make_graph", lambda *_: made)
    assert backbone_graph(classifier, placed(), MUCH, CONSOLE)[1]


def test_without_openvino_torch_runs(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    placement, graph = backbone_graph(classifier, placed(), MUCH, CONSOLE)
    assert graph is None
    assert placement.runtime == "torch"
    assert "OpenVINO does not load" in placement.reasons["runtime"]
    assert "openvino" not in placement.libraries


def test_where_openvino_is_not_installed_torch_runs(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(machine_facts, "version", version)
    placement, graph = backbone_graph(classifier, placed(), MUCH, CONSOLE)
    assert (placement.runtime, graph) == ("torch", None)
    assert placement.reasons["runtime"] == "OpenVINO is not installed"


def test_few_images_do_not_repay_a_graph_and_nights_do(
    classifier: Classifier, made: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = round(runtime._MAKING_S / runtime.saved_s(classifier))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kept_graphs, "make_graph", lambda *_: made)
    for work, chosen in (
        (Work(n // 2), "torch"),
        (Work(n // 20, comes_again=True), "openvino"),
        (Work(15), "torch"),  # kept by now, and no batch of it is filled
        (Work(16), "openvino"),
    ):
        placement, _ = backbone_graph(classifier, placed(), work, CONSOLE)
        assert placement.runtime == chosen, work


def sized(**fields: Any) -> Classifier:
    """A model of that shape, without weights."""
    config = ViTConfig(img_size=224, n_classes=0, **fields)
    with torch.device("meta"):
        model = VisionTransformer(config)
    head = Head(torch.zeros(1, config.n_features), torch.zeros(1))
    return Classifier("sized", "", model, head, Preprocess(224, 224), ("a",), (), "0" * 64)


def test_work_is_counted_in_the_field_s_unit() -> None:
    assert gmacs(sized()) == pytest.approx(17.6, rel=0.02)  # timm's figure of vit_base_patch16_224


def test_what_a_graph_saves_goes_by_multiply_adds_cores_and_a_stem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    plain = runtime.saved_s(sized())
    assert plain == pytest.approx(0.0088, rel=0.02)
    small = {"depth": 4, "embed_dim": 192, "n_heads": 3, "patch_size": 32}
    stem = sized(stem="efficientnet_lite2", **small)
    assert runtime.saved_s(stem) == pytest.approx(0.004 + gmacs(stem) * 0.0005)
    assert runtime.saved_s(sized(**small)) < 0.001
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert runtime.saved_s(sized()) == pytest.approx(plain / 8)


@pytest.mark.parametrize(
    "settings", [{"precision": "fp16"}, {"compile": True}, {"precision": "bf16", "compile": True}]
)
def test_what_openvino_cannot_do_is_refused_where_it_is_asked_for(settings: Any) -> None:
    assert placed(**settings).runtime == "torch"
    with pytest.raises(UsageError, match="--runtime openvino is for the CPU in fp32 or bf16"):
        placed(runtime="openvino", **settings)


def test_a_cache_that_cannot_be_written_costs_a_warning(
    classifier: Classifier,
    made: Graph,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
) -> None:
    monkeypatch.setattr(kept_graphs, "make_graph", lambda *_: made)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    _, graph = backbone_graph(classifier, placed(), MUCH, CONSOLE)
    assert graph
    assert "is not kept" in "\n".join(said)
    assert "$XDG_CACHE_HOME" in "\n".join(said)


def test_graphs_that_nobody_uses_are_swept(
    classifier: Classifier, made: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kept_graphs, "make_graph", lambda *_: made)
    old = KeptGraph.of(classifier, "fp32", 8)
    old.make(classifier)
    for path in old.folder.iterdir():
        os.utime(path, (0, 0))
    used = KeptGraph.of(classifier, "fp32", 16)
    used.make(classifier)
    for path in used.folder.iterdir():
        os.utime(path, (0, 0))
    assert used.load()
    KeptGraph.of(classifier, "fp32", 4).make(classifier)
    assert used.load()
    assert old.load() is None
    assert not [path for path in old.folder.iterdir() if path.name.startswith(old.digest)]


@pytest.mark.usefixtures("shared_cache")
def test_the_command_labels_the_same_with_either(
    command: Command, small_model: Path, tmp_path: Path
) -> None:
    photos = make_photos(tmp_path / "photos", 9)
    common = [photos, "--model", small_model, "--precision", "fp32"]
    torchs, ours = tmp_path / "torch.parquet", tmp_path / "ours.parquet"
    assert (
        command(*common, "--out", torchs, "--runtime", "torch", "--batch-size", 4).returncode == 0
    )
    ran = command(*common, "--out", ours, "--runtime", "openvino", "--embeddings", tmp_path / "e")
    assert ran.returncode == 0
    assert "OpenVINO (asked for)" in ran.stderr
    for right, found in zip(rows(torchs), rows(ours), strict=True):
        for best, same in zip(right["top_k"], found["top_k"], strict=True):
            assert best["class_id"] == same["class_id"]
            assert abs(best["probability"] - same["probability"]) < 1e-4
    record = Table(ours).record
    assert record is not None
    assert "openvino" in record.made_by[-1].libraries
    # Labelled again from the embeddings, rows are those of decoding, to the bit.
    k2 = [*common, "--top-k", 2, "--runtime", "openvino"]
    again = command(*k2, "--out", ours, "--embeddings", tmp_path / "e", "--relabel")
    assert "9 relabelled" in again.stdout + again.stderr
    fresh = tmp_path / "fresh.parquet"
    assert command(*k2, "--out", fresh).returncode == 0
    assert rows(ours) == rows(fresh)


def test_nothing_is_reported_to_openvino_s_makers() -> None:
    code = (
        "from pipeline.label.graph import openvino; openvino().Core()\n"
        "import sys, openvino.tools.ovc; assert sys.modules['openvino_telemetry'] is None"
    )
    # An interpreter of its own: the server that forks processes has imported OpenVINO already.
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
