"""A model's name -> its files on this machine.

    embedded                                       the model in the box
    path/to/folder, weights.pth, model.safetensors a bundle, a timm or transformers folder, a
    checkpoint
    hf-hub:OWNER/NAME[@REVISION]                   the Hugging Face Hub, cached, offline once cached
    torchvision:ViT_B_16_Weights.IMAGENET1K_V1     torchvision's download site, cached

Only finds and fetches; reading the files is origins.py's and weights.py's work.
"""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

from vit.errors import ModelError, no_permission

from .hub import (
    GRAPH_FILE,
    HEAD_FILE,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    PREPROCESSOR_FILES,
    WEIGHT_FILES,
    fetch,
)
from .published import published_models

EMBEDDED = Path(__file__).parent.parent / "embedded"


@dataclass(frozen=True)
class Source:
    """Where a model lies: `weights` always, the config files where its origin writes them, `head`
    where a head of its own is beside the weights, `graph` where a calibrated graph is.

    `name` is what people call it, `address` what finds the same files again from any working
    folder.
    """

    name: str
    address: str
    weights: Path
    config: Path | None = None
    preprocessor: Path | None = None
    torchvision_weights: str | None = None
    head: Path | None = None
    graph: Path | None = None

    @property
    def read_from(self) -> tuple[Path, ...]:
        """All that the model is read from: its folder, or a checkpoint's one file."""
        return (self.weights,) if self.config is None else (self.config.parent,)


def find_source(name: str) -> Source:
    """Locate a model's files, downloading them where its name says so. Raises ModelError."""
    if name == "embedded":
        return _from_folder(EMBEDDED, name, name)
    if name.startswith("hf-hub:"):
        return _from_hub(name)
    if name.startswith("torchvision:"):
        return _from_torchvision(name)
    path = Path(name)
    # By its own name, however the way to it was typed: one model has one name in the table.
    whole = os.path.abspath(path)
    try:
        if path.is_dir():
            return _from_folder(path, os.path.basename(whole), whole)
        if path.is_file():
            return Source(path.name, whole, path)
    except PermissionError as error:  # of a folder above it, or of the folder itself
        raise no_permission(Path(error.filename or path)) from error
    raise ModelError(
        f"no model at {name!r};{_suggestion(name)} name a folder, a checkpoint file, "
        "hf-hub:OWNER/NAME, torchvision:WEIGHTS, or embedded (`label-images models list` shows "
        "examples, and with --all the published models)"
    )


def _suggestion(name: str) -> str:
    """What somebody may have meant by a name that is neither a model nor a file."""
    meant = ""
    if difflib.get_close_matches(name.lower(), ["embedded"], cutoff=0.75):
        meant = "embedded"
    elif re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?", name):
        meant = f"hf-hub:{name}"
    elif re.fullmatch(r"(vit|deit)_\w+_patch\d+_\d+(\.\w+)?", name):
        meant = f"hf-hub:timm/{name}"
    elif re.fullmatch(r"\w+\.\w+", name) and (models := published_models(name)):
        meant = models[0].address
    elif re.fullmatch(r"ViT_[BLH]_\d+_Weights\.\w+", name):
        meant = f"torchvision:{name}"
    return f" did you mean {meant}? Otherwise" if meant else ""


def _from_folder(folder: Path, name: str, address: str) -> Source:
    config, weight_files = folder / "config.json", WEIGHT_FILES
    if not config.is_file() and (folder / OPEN_CLIP_CONFIG).is_file():
        config, weight_files = folder / OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS
    if not config.is_file():
        raise ModelError(
            f"the folder {folder} has no config.json, so it is not a model; it should hold "
            "config.json and model.safetensors, as timm's save_for_hf, transformers' "
            "save_pretrained or `label-images models convert` write them"
        )
    for file in weight_files:
        if (folder / file).is_file():
            preprocessors = (folder / each for each in PREPROCESSOR_FILES)
            preprocessor = next((path for path in preprocessors if path.is_file()), None)
            head, graph = (
                folder / beside if (folder / beside).is_file() else None
                for beside in (HEAD_FILE, GRAPH_FILE)
            )
            return Source(
                name, address, folder / file, config, preprocessor, head=head, graph=graph
            )
    raise ModelError(
        f"the folder {folder} has no {' or '.join(weight_files)}; weights split over several "
        "files must be saved as one"
    )


def _from_hub(name: str) -> Source:
    """Fetch from the Hugging Face Hub, all files from one commit, which the address names."""
    repo, _, revision = name.removeprefix("hf-hub:").partition("@")
    files = fetch(repo, revision or None)
    pinned = f"hf-hub:{repo}@{files.commit}"
    return Source(
        pinned,
        pinned,
        files.weights,
        files.config,
        files.preprocessor,
        head=files.head,
        graph=files.graph,
    )


def _from_torchvision(name: str) -> Source:
    """Fetch one of torchvision's published ViT weights; its own metadata gives the address."""
    import torch
    from torchvision.models import get_weight

    entry = name.removeprefix("torchvision:")
    try:
        weights = get_weight(entry)
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"torchvision has no weights {entry!r}; they look like ViT_B_16_Weights.IMAGENET1K_V1"
        ) from error
    if not entry.startswith("ViT_"):
        raise ModelError(
            f"{entry} is not a Vision Transformer; choose one of torchvision's ViT_* weights"
        )
    file_name = weights.url.rsplit("/", 1)[1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        hash_prefix = file_name.rsplit(".", 1)[0].rsplit("-", 1)[1]  # vit_b_16-c867db91.pth
        try:
            # Written to a temporary file, checked against the hash, then renamed.
            torch.hub.download_url_to_file(weights.url, str(path), hash_prefix, progress=False)
        except (URLError, TimeoutError, ConnectionError) as error:
            raise ModelError(
                f"{name} is not in this machine's cache and cannot be downloaded ({error}); run "
                f"once with a network, or put {file_name} into {path.parent}"
            ) from error
        except RuntimeError as error:
            raise ModelError(
                f"the download of {name} arrived damaged ({error}); run again"
            ) from error
    return Source(name, name, path, torchvision_weights=entry)
