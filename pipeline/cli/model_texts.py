"""The `models` commands: what can be loaded, what a model is made of, checkpoint -> bundle."""

import os
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.path_names import printable
from pipeline.plan.default_model import DEFAULT_MODEL
from vit.backbone import load_backbone
from vit.checkpoints.bundle import write_bundle
from vit.checkpoints.published import published_models
from vit.classifier import Classifier, load_classifier, reads_words
from vit.config import PATCH_SIZES, SIZES, ViTConfig, variant
from vit.errors import ModelError
from vit.head import Activation
from vit.preprocess import PRESETS
from vit.summary import Layer, summarise

from .model_table import facts_lines

_ACTIVATION_TEXTS = {
    "softmax": "softmax: one class is right, the probabilities of all add up to 1",
    "sigmoid": "sigmoid: each class by itself, any number of them may be right",
}


@dataclass(frozen=True)
class Asked:
    """A model as a command asks for it; the fields are load_classifier's."""

    name: str
    labels: Path | None = None
    arch: str | None = None
    preprocess: str | None = None
    templates: tuple[str, ...] = ()
    activation: Activation | None = None

    def load(self) -> Classifier:
        return load_classifier(
            self.name, self.labels, self.arch, self.preprocess, self.templates, self.activation
        )


def list_lines() -> Iterator[str]:
    """Say which forms --model takes and which architectures have names."""
    embedded = load_classifier()
    yield "--model takes:"
    yield "  auto, the default                            the table's, or else the default model:"
    yield f"                                               {DEFAULT_MODEL.partition('@')[0]}"
    yield f"  embedded                                     in the package: {embedded.name}"
    yield (
        "  path/to/folder                               a bundle, or as timm's save_for_hf and "
        "transformers'"
    )
    yield "                                               save_pretrained write it"
    yield (
        "  weights.safetensors, .pth, .pt, .bin, .npz   a checkpoint of timm, DeiT, transformers, "
        "torchvision, Google"
    )
    yield (
        "  hf-hub:OWNER/NAME[@REVISION]                 such as "
        "hf-hub:timm/vit_base_patch16_384.augreg_in21k_ft_in1k"
    )
    yield (
        "  torchvision:WEIGHTS                          such as "
        "torchvision:ViT_B_16_Weights.IMAGENET1K_V1"
    )
    yield ""
    yield "--arch takes timm's names: all of `label-images models list --all`, and of plain ones"
    yield "vit_SIZE_patchP_PIXELS or deit_SIZE[_distilled]_patchP_PIXELS, with"
    yield (
        f"  P one of {', '.join(map(str, PATCH_SIZES))}, PIXELS any multiple of it, and SIZE one of"
    )
    yield "  size   embed_dim  depth  heads  parameters at patch 16, 224 pixels, 1000 classes"
    for size, (embed_dim, depth, n_heads) in SIZES.items():
        count = summarise(variant(f"vit_{size}_patch16_224"))[0].n_parameters
        yield f"  {size:<6} {embed_dim:9}  {depth:5}  {n_heads:5}  {count:,}"
    yield ""
    yield f"--preprocess takes {', '.join(PRESETS)}"
    yield ""
    yield "`label-images models list --all` has the published models with cost, size and accuracy."


def show_lines(asked: Asked) -> Iterator[str]:
    """Show a model, or an architecture or a published model by its name, layer by layer.

    A model that reads words is shown without any, too: it has no classes then.
    """
    name = asked.name
    is_only_a_name = ":" not in name and not os.path.exists(name)
    published = published_models(name) if is_only_a_name else []
    yield from facts_lines(published)
    if published and published[0].unsupported:
        yield published[0].unsupported
        return
    if published:
        yield f"to load it     --model {published[0].address}"
    # A whole name, with its tag, says how many classes the head has as well.
    n_classes = published[0].n_classes if [model.name for model in published] == [name] else 1000
    config = _architecture(name, n_classes) if is_only_a_name else None
    if config is None and not asked.labels and reads_words(name):
        backbone = load_backbone(name, asked.arch)
        config = backbone.model.config
        yield f"model          {backbone.name}"
        yield f"weights        sha256 {backbone.weights_sha256}"
        yield from _indented("preprocessing", backbone.preprocess.describe())
        yield from (f"note           {note}" for note in backbone.notes)
        yield "classes        none of its own: it reads text, and --labels words.txt says which"
    if config is None:
        classifier = asked.load()
        config = classifier.model.config
        yield f"model          {classifier.name}"
        yield f"weights        sha256 {classifier.weights_sha256}"
        yield from _indented("preprocessing", classifier.preprocess.describe())
        yield from (f"note           {note}" for note in classifier.notes)
        yield f"classes        {len(classifier.labels)}: {', '.join(classifier.labels[:4])} ..."
        yield f"temperature    {classifier.temperature:g}"
        if classifier.quantised:
            yield f"quantised      {classifier.quantised.precision}, for CPUs, by OpenVINO"
        yield f"activation     {_ACTIVATION_TEXTS[classifier.head.activation]}"
        if head := classifier.own_head:
            of = "features of length 1" if head.normalise else "features as they are"
            yield (
                f"head           of its own: {of} [{head.n_features}] -> [{head.n_classes}], "
                f"sha256 {head.sha256}"
            )
    fields = (f"{name}={value}" for name, value in config.record.items())
    yield from _indented("architecture", ", ".join(fields))
    yield ""
    yield from _layer_lines(summarise(config))


def _indented(name: str, text: str) -> Iterator[str]:
    """What is to be said of `name`, in as many lines as it takes."""
    lines = textwrap.wrap(text, 85, break_long_words=False, break_on_hyphens=False)
    for number, line in enumerate(lines):
        yield f"{'' if number else name:<15}{line}"


def _layer_lines(layers: list[Layer]) -> Iterator[str]:
    """A line for each layer; of a block that is like an earlier one, one line for the whole."""
    yield f"{'layer':<28} {'kind':<18} {'output shape':<20} {'parameters':>12}"
    seen = set[tuple[Layer, ...]]()
    for name, parts in groupby(layers, key=_block_of):
        shown = list(parts)
        if name:
            alike = tuple(replace(part, name=part.name.removeprefix(name)) for part in shown)
            shown = shown[:1] if alike in seen else shown
            seen.add(alike)
        for layer in shown:
            yield (
                f"{layer.name:<28} {layer.kind:<18} {layer.output_shape!s:<20} "
                f"{layer.n_parameters:12,}"
            )
    yield ""
    yield f"{layers[0].n_parameters:,} parameters"


def _block_of(layer: Layer) -> str:
    """The block that a layer is or is in, such as `blocks.3`; nothing where it is in none."""
    block = re.match(r"blocks\.\d+", layer.name)
    return block[0] if block else ""


def class_lines(asked: Asked) -> Iterator[str]:
    """List a model's classes: class_id, id (such as a WordNet id) where it has one, label."""
    classifier = asked.load()
    ids = classifier.label_ids or ("",) * len(classifier.labels)
    for class_id, (id_, label) in enumerate(zip(ids, classifier.labels, strict=True)):
        yield "\t".join(printable(text) for text in (str(class_id), id_, label) if text)


def convert(asked: Asked, out: Path) -> str:
    """Write a model as a bundle and say what it holds. Never replaces what is at `out`."""
    if out.exists():
        raise UsageError(f"{out} exists already; choose another --out, or remove it")
    classifier = asked.load()
    if classifier.quantised:
        raise UsageError(
            f"{asked.name} is quantised, and stays the bundle that it is; copy its folder, or convert "
            "the model that it was made of"
        )
    # Called as the bundle is, not as the file it was made of: that is what its tables will say.
    spec = replace(classifier.spec, name=out.stem if out.suffix == ".safetensors" else out.name)
    write_bundle(spec, classifier.model.state_dict(), out, classifier.own_head)
    return (
        f"{out}: {len(classifier.labels)} classes, {classifier.model.config.img_size} pixels, "
        f"preprocessing: {classifier.preprocess.describe()}"
    )


def _architecture(name: str, n_classes: int) -> ViTConfig | None:
    try:
        return variant(name, n_classes)
    except ModelError:
        return None
