"""Models by name: the Hub through its real client against a server on this machine, and
torchvision's cache.
"""

import re
import shutil
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from pipeline.cli.model_fetch import fetch
from pipeline.console import Console
from pipeline.errors import UsageError
from tests.helpers import photo
from tests.hub_server import IMPATIENT, UNREACHABLE, Hub
from tests.text_models import model_folder
from vit.backbone import load_backbone
from vit.checkpoints.bundle import write_bundle
from vit.checkpoints.locate import find_source
from vit.checkpoints.published import Published
from vit.classifier import load_classifier, with_head
from vit.errors import ModelError
from vit.head import Head


@pytest.mark.slow  # the client tries for a while before it takes the cache
def test_hub_first_download_then_cached_then_offline(hub: Hub) -> None:
    assert hub.load("hf-hub:acme/vit") == ("ok", f"hf-hub:acme/vit@{hub.server.commits['main']}")
    assert any(
        request.startswith("GET") and "model.safetensors" in request
        for request in hub.server.requests
    )
    # All files come from the commit the first one came from, though the branch may move.
    assert [
        request
        for request in hub.server.requests
        if "safetensors" in request and "/main/" in request
    ] == []
    hub.server.requests.clear()
    assert hub.load("hf-hub:acme/vit")[0] == "ok"
    assert not [request for request in hub.server.requests if request.startswith("GET")], (
        "nothing is downloaded twice"
    )
    assert hub.load("hf-hub:acme/vit", UNREACHABLE) == (
        "ok",
        f"hf-hub:acme/vit@{hub.server.commits['main']}",
    )


@pytest.mark.slow
def test_fetch_downloads_once_proves_that_it_loads_and_works_offline(
    hub: Hub, tmp_path: Path
) -> None:
    fetch = ("models", "fetch", "hf-hub:acme/vit")
    ran = hub.run(*fetch)
    assert ran.returncode == 0, ran.stderr
    size_mb = sum(
        (hub.server.files / name).stat().st_size for name in ("config.json", "model.safetensors")
    )
    snapshot = f"models--acme--vit/snapshots/{hub.server.commits['main']}"
    assert ran.stdout.splitlines() == [
        "hf-hub:acme/vit",
        f"  lies in  {hub.home}/hub/{snapshot}",
        f"  size     {size_mb / 1e6:,.1f} MB: model.safetensors, config.json",
        "  loads    2 classes (cat, dog), 224 pixels",
        "  offline  HF_HUB_OFFLINE=1 label-images PATH... --out TABLE --model hf-hub:acme/vit",
    ]
    hub.server.requests.clear()
    assert hub.run(*fetch).stdout == ran.stdout
    assert not [request for request in hub.server.requests if request.startswith("GET")]
    photo(1).save(tmp_path / "photo.jpg")
    # An interpreter of its own, as a user has it.
    label = ("-m", "pipeline.cli", str(tmp_path / "photo.jpg"), "--model", "hf-hub:acme/vit")
    ran = hub.python(*label, url=UNREACHABLE, HF_HUB_OFFLINE="1")
    assert re.search(r"%  (cat|dog)\n", ran.stdout), ran.stderr


@pytest.mark.slow
def test_hub_fetches_a_bundle_s_head_of_its_own(hub: Hub, small_model: Path) -> None:
    shutil.rmtree(hub.server.files)
    head = Head(torch.randn(2, 48), torch.randn(2))
    own = with_head(load_backbone(str(small_model)), head, ("cat", "dog"), name="own")
    write_bundle(own.spec, own.model.state_dict(), hub.server.files, own.own_head)
    assert hub.load("hf-hub:acme/vit") == ("ok", "own")
    assert hub.load("hf-hub:acme/vit", UNREACHABLE) == ("ok", "own")
    ran = hub.run("models", "fetch", "hf-hub:acme/vit")
    assert "model.safetensors, head.safetensors, config.json" in ran.stdout, ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("family", ["clip", "open_clip_siglip"])
def test_words_of_a_hub_model_need_no_network_the_next_night(
    hub: Hub, tmp_path: Path, family: str
) -> None:
    """Nor the text tower's libraries. open_clip's config names its tokenizer by a Hub name."""
    shutil.rmtree(hub.server.files)
    model_folder(hub.server.files, family)
    if family != "clip":
        config = hub.server.files / "open_clip_config.json"
        config.write_text(config.read_text().replace("acme/siglip", "acme/vit"))
    words = tmp_path / "words.txt"
    words.write_text("cat\nred bus\n")
    fetch = ("models", "fetch", "hf-hub:acme/vit", "--labels", str(words), "--template", "a {}")
    ran = hub.run(*fetch)
    assert ran.returncode == 0, ran.stderr
    assert "loads    2 classes (cat, red bus), 32 pixels" in ran.stdout
    offline = ran.stdout.splitlines()[-1]
    assert offline.endswith(f"--model hf-hub:acme/vit --labels {words} --template 'a {{}}'")
    assert any("tokenizer.json" in request for request in hub.server.requests)
    photo(1).save(tmp_path / "photo.jpg")
    without = (
        "import sys\nfor name in ('transformers', 'open_clip', 'tokenizers'):\n"
        "    assert name not in sys.modules\n    sys.modules[name] = None"
    )
    label = (str(tmp_path / "photo.jpg"), "--model", "hf-hub:acme/vit", *fetch[3:])
    for more in ({"HF_HUB_OFFLINE": "1"}, {}):
        ran = hub.run(*label, before=without, url=UNREACHABLE, **more)
        assert re.search(r"%  (cat|red bus)\n", ran.stdout), ran.stderr


def test_fetch_names_what_fails_and_goes_on_with_the_others(hub: Hub) -> None:
    hub.server.cuts_off = "model.safetensors"
    bad = "hf-hub:acme/other"
    ran = hub.run("models", "fetch", bad, "hf-hub:acme/vit", "embedded", before=IMPATIENT)
    assert ran.returncode == 2
    assert ran.stdout.splitlines()[0] == "embedded"
    assert "hf-hub:acme/other: the Hub has no model" in ran.stderr
    assert "hf-hub:acme/vit: downloading hf-hub:acme/vit failed" in ran.stderr
    assert "2 of 3 models cannot be used" in ran.stderr


def test_fetch_of_a_published_model_that_will_not_load_downloads_nothing(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    def download(name: str) -> None:
        raise AssertionError(f"{name} was looked for")

    monkeypatch.setattr("pipeline.cli.model_fetch.find_source", download)
    monkeypatch.setattr(Published, "unsupported", "it has no such part")
    with pytest.raises(UsageError, match="1 of 1 models"):
        list(fetch(("hf-hub:timm/vit_tiny_patch16_384.augreg_in21k_ft_in1k@v1",), None, Console()))
    assert "augreg_in21k_ft_in1k@v1: it has no such part" in "\n".join(said)


@pytest.mark.slow
def test_hub_pinned_revision(hub: Hub) -> None:
    assert hub.load("hf-hub:acme/vit@v1") == ("ok", f"hf-hub:acme/vit@{hub.server.commits['v1']}")
    kind, text = hub.load("hf-hub:acme/vit@v9")
    assert (kind, "no revision 'v9'" in text) == ("error", True), text


@pytest.mark.slow
def test_hub_broken_download_is_never_used_and_heals(hub: Hub) -> None:
    hub.server.cuts_off = "model.safetensors"
    kind, text = hub.load("hf-hub:acme/vit", before=IMPATIENT)
    assert kind == "error"
    assert "run again" in text, text
    hub.server.cuts_off, hub.server.is_down = None, False
    assert hub.load("hf-hub:acme/vit")[0] == "ok"


@pytest.mark.slow
def test_hub_without_network_and_names_that_are_wrong(hub: Hub) -> None:
    kind, text = hub.load("hf-hub:acme/vit", UNREACHABLE)
    assert kind == "error"
    assert "cannot be reached" in text, text
    kind, text = hub.load("hf-hub:acme/other")
    assert (kind, "no model 'acme/other'" in text) == ("error", True), text
    kind, text = hub.load("hf-hub:not a name")
    assert (kind, "write hf-hub:OWNER/NAME" in text) == ("error", True), text


@pytest.mark.slow
def test_hub_repository_without_a_model(hub: Hub) -> None:
    (hub.server.files / "model.safetensors").unlink()
    kind, text = hub.load("hf-hub:acme/vit")
    assert (kind, "no model.safetensors" in text) == ("error", True), text
    (hub.server.files / "config.json").unlink()
    kind, text = hub.load("hf-hub:acme/vit@v1")
    assert (kind, "no config.json" in text) == ("error", True), text


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_torchvision_weights_from_its_cache(torch_home: Path) -> None:
    from torchvision.models import vit_b_32

    theirs = vit_b_32().eval()
    (torch_home / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(theirs.state_dict(), torch_home / "hub" / "checkpoints" / "vit_b_32-d86f8d99.pth")
    ours = load_classifier("torchvision:ViT_B_32_Weights.IMAGENET1K_V1")
    assert ours.name == "torchvision:ViT_B_32_Weights.IMAGENET1K_V1"
    assert (ours.preprocess.resize_size, ours.preprocess.crop_size) == (256, 224)
    assert (ours.preprocess.interpolation, ours.preprocess.mean) == (
        "bilinear",
        (0.485, 0.456, 0.406),
    )
    assert (ours.labels[281], ours.label_ids[281]) == ("tabby", "n02123045")
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert float((ours.model(images) - theirs(images)).abs().max()) < 1e-5


def test_torchvision_without_network(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    with pytest.raises(
        ModelError, match=r"cannot be downloaded .* put vit_b_16-c867db91\.pth into"
    ):
        find_source("torchvision:ViT_B_16_Weights.IMAGENET1K_V1")


@pytest.mark.parametrize("name", ["torchvision:ViT_Z_Weights.V1", "torchvision:nonsense"])
def test_torchvision_names_that_are_wrong(name: str) -> None:
    with pytest.raises(ModelError, match="they look like ViT_B_16_Weights"):
        find_source(name)
    with pytest.raises(ModelError, match="not a Vision Transformer"):
        find_source("torchvision:ResNet50_Weights.IMAGENET1K_V1")


def test_a_name_that_is_nothing_says_what_names_there_are() -> None:
    with pytest.raises(ModelError, match="hf-hub:OWNER/NAME"):
        find_source("no/such/model")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("embeded", "embedded"),
        ("Embedded", "embedded"),
        ("timm/vit_base_patch16_224.augreg_in21k", "hf-hub:timm/vit_base_patch16_224.augreg_in21k"),
        ("google/vit-base-patch16-224", "hf-hub:google/vit-base-patch16-224"),
        ("vit_base_patch16_224.augreg_in21k", "hf-hub:timm/vit_base_patch16_224.augreg_in21k"),
        ("flexivit_base.300ep_in1k", "hf-hub:timm/flexivit_base.300ep_in1k"),
        ("ViT_B_16_Weights.IMAGENET1K_V1", "torchvision:ViT_B_16_Weights.IMAGENET1K_V1"),
    ],
)
def test_a_name_that_is_nearly_one_is_asked_about(name: str, meant: str) -> None:
    with pytest.raises(
        ModelError, match=f"did you mean {re.escape(meant)}[?] Otherwise name a folder"
    ):
        find_source(name)


@pytest.mark.parametrize(
    "name", ["no/such/model", "./models/mine", "/models/mine", "bed", "mine.pth"]
)
def test_a_name_that_is_like_none_is_not_asked_about(name: str) -> None:
    with pytest.raises(ModelError, match=r"no model at .*; name a folder"):
        find_source(name)
