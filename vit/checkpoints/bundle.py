"""ModelSpec, a model but for its tensors, and the bundle, our own format for the two together.

A bundle is a folder with `config.json` and `model.safetensors`, or one `.safetensors` file whose
metadata holds the same JSON under `label_images`. A head that was made apart from its backbone
(from words, from examples) lies in a file of its own, `head.safetensors`, and only in a folder: so
the backbone's file is the same to the byte whatever head stands beside it. A quantised model has its
calibrated graph beside the weights that it was made of. Other origins' config
files are origins.py's work; whether all fits together is classifier.py's.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vit.config import ViTConfig
from vit.errors import ModelError, no_permission
from vit.head import Activation, Head
from vit.preprocess import Preprocess

from .hub import HEAD_FILE

# 2 says the head's activation. A softmax is written as 1, which says none: every reader of either
# reads it rightly, and one that knows no sigmoid refuses a 2. 3 has a head of its own. 4 is quantised,
# with either kind of head.
BUNDLE_VERSION = 4


@dataclass(frozen=True)
class Quantised:
    """What a calibrated graph is known by.

    `off` is how far its features lie from the float network's on made-up images
    (pipeline/label/graph.py), as a share of their length, where it was made: a machine on which they
    lie farther computes something else. `sha256` is of the graph's two files: damage to them shows in
    nothing else.
    """

    precision: str  # int8
    off: float
    sha256: str


def graph_digest(graph_sha256: str, weights_sha256: str) -> str:
    """Of a calibrated graph's two files, by the sha256 of each."""
    return hashlib.sha256((graph_sha256 + weights_sha256).encode()).hexdigest()


@dataclass(frozen=True)
class ModelSpec:
    """A model but for its tensors. `labels` is empty where the origin names no classes.

    `normalise` is a Head's, where the model's head is of its own and not among the backbone's
    tensors; `config` then has no classes. It is None where the head is inside.

    `pos_resampling` and `notes` are about reading it, and not part of a bundle.
    """

    config: ViTConfig
    preprocess: Preprocess
    labels: tuple[str, ...] = ()
    label_ids: tuple[str, ...] = ()  # beside the labels, such as WordNet ids; empty or as many
    temperature: float = 1.0
    name: str = ""
    activation: Activation = "softmax"
    normalise: bool | None = None
    # How its origin fits the position embedding to the images' size, where it does so by itself.
    pos_resampling: str = ""
    notes: tuple[str, ...] = ()  # what is to be said when it is loaded
    is_tower: bool = False  # of a CLIP, in timm's format: features to be compared, and no scores
    quantised: Quantised | None = None


def write_bundle(
    spec: ModelSpec, state: dict[str, Tensor], out: Path, head: Head | None = None
) -> None:
    """Write a bundle: one file where `out` ends in .safetensors, else a folder.

    `head` is a head of its own (Classifier.own_head), for a spec with `normalise`. Raises
    ModelError where that should go into one file.
    """
    assert (head is None) == (spec.normalise is None)
    if head and out.suffix == ".safetensors":
        raise ModelError(
            f"{out} would be one file, and a head of its own needs a second; choose a folder"
        )
    labels = [{"label": label} for label in spec.labels]
    if spec.label_ids:
        labels = [{**entry, "id": id_} for entry, id_ in zip(labels, spec.label_ids, strict=True)]
    is_softmax = spec.activation == "softmax"
    inside: dict[str, Any] = {} if is_softmax else {"activation": spec.activation}
    apart = {"activation": spec.activation, "normalise": spec.normalise}
    quantised = {"quantised": asdict(spec.quantised)} if spec.quantised else {}
    config = {
        "label_images_bundle": 4 if quantised else 3 if head else 1 if is_softmax else 2,
        "name": spec.name,
        "architecture": spec.config.record,
        "preprocess": asdict(spec.preprocess),
        "temperature": spec.temperature,
        **(apart if head else inside),
        **quantised,
        "classes": labels,
    }
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    if out.suffix == ".safetensors":
        out.parent.mkdir(parents=True, exist_ok=True)
        _save(state, out, {"label_images": json.dumps(config), "format": "pt"})
    else:
        out.mkdir(parents=True, exist_ok=True)
        _save(state, out / "model.safetensors", {"format": "pt"})
        if head:
            tensors = {"weight": head.weight.contiguous(), "bias": head.bias.contiguous()}
            _save(tensors, out / HEAD_FILE, {"format": "pt"})
        (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _save(state: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a .safetensors file that whoever the umask allows may read: safetensors allows its
    owner alone.
    """
    save_file(state, path, metadata=metadata)
    umask = os.umask(0o077)  # the only way to ask is to set it
    os.umask(umask)
    with contextlib.suppress(PermissionError):  # some shares have no modes that could be set
        path.chmod(0o666 & ~umask)


def bundle_spec(config: dict[str, Any]) -> ModelSpec:
    """Read a bundle's JSON. Raises ModelError, or KeyError and the like where it is incomplete."""
    version = config["label_images_bundle"]
    if version not in range(1, BUNDLE_VERSION + 1):
        raise ModelError(
            f"the bundle has format {version}, this version reads 1 to "
            f"{BUNDLE_VERSION}; use the label-images it was made with, or a newer one"
        )
    classes = config["classes"]
    if not all(isinstance(text, str) for entry in classes for text in entry.values()):
        raise ModelError("the bundle's classes are not all of text")
    ids = tuple(entry["id"] for entry in classes if "id" in entry)
    network = ViTConfig(**config["architecture"])
    has_own_head = version == 3 or (version == 4 and "normalise" in config)
    normalise = config["normalise"] if has_own_head else None
    if has_own_head and (network.n_classes or not isinstance(normalise, bool)):
        raise ModelError(
            f"the bundle has a head of its own, with normalise {normalise!r} (true or false) and "
            f"an architecture of {network.n_classes} classes (0); make it again"
        )
    if version < 3 and "normalise" in config:
        raise ModelError(
            f"the bundle has format {version} and says normalise, which only one of format 3 may; "
            "make it again"
        )
    quantised = Quantised(**config["quantised"]) if version == 4 else None
    if quantised and (quantised.precision != "int8" or not 0 <= quantised.off < 1):
        raise ModelError(
            f"the bundle is quantised to {quantised.precision!r}, {quantised.off} off, and this version "
            "knows int8, less than 1 off; make it again"
        )
    if version < 4 and "quantised" in config:
        raise ModelError(
            f"the bundle has format {version} and says quantised, which only one of format 4 may; "
            "make it again"
        )
    return ModelSpec(
        config=network,
        preprocess=Preprocess(**config["preprocess"]),
        labels=tuple(entry["label"] for entry in classes),
        label_ids=ids,
        temperature=float(config["temperature"]),
        name=str(config["name"]),
        activation=config["activation"] if has_own_head else config.get("activation", "softmax"),
        normalise=normalise,
        quantised=quantised,
    )


def read_head(path: Path, spec: ModelSpec) -> Head:
    """Read the head of its own of a bundle with `spec`. Raises ModelError."""
    try:
        path.open("rb").close()  # safetensors takes one that may not be read for one that is absent
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise ModelError(
            f"{path.parent} is a bundle whose head is a file of its own, and it has no {path.name}; "
            "copy the bundle's folder whole, or make it again"
        ) from error
    except PermissionError as error:
        raise no_permission(path) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{path} is damaged: {error}; fetch or write it again") from error
    if tensors.keys() != {"weight", "bias"}:
        raise ModelError(
            f"{path} should hold weight and bias, and holds {', '.join(sorted(tensors))}; make the "
            "bundle again"
        )
    return Head(
        tensors["weight"],
        tensors["bias"],
        normalise=bool(spec.normalise),
        activation=spec.activation,
        temperature=spec.temperature,
    )


def imagenet_labels() -> tuple[str, ...]:
    """The 1000 ImageNet class names, from torchvision's public weights metadata."""
    from torchvision.models import ViT_B_16_Weights

    return tuple(ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"])


def read_labels(path: Path) -> tuple[str, ...]:
    """Read class names: a text file with one a line, or a JSON list, or a JSON object of "0", "1"
    ...
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except PermissionError as error:
        raise no_permission(path) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"the class names in {path} cannot be read: {error}") from error
    if path.suffix == ".json":
        try:
            names = json.loads(text)
            if isinstance(names, dict):
                names = [names[str(class_id)] for class_id in range(len(names))]
        except (ValueError, KeyError) as error:
            raise ModelError(
                f"{path} is not a JSON list of names, nor an object with keys 0 to N-1 ({error})"
            ) from error
    else:
        names = text.rstrip().splitlines()
    for line, name in enumerate(names, 1):
        if not isinstance(name, str) or not name.strip():
            raise ModelError(
                f"{path}: class {line} of {len(names)} has no name; every class needs one"
            )
    return tuple(name.strip() for name in names)
