"""Classifier: network, head, preprocessing and class names as one object that has been checked to fit.

`load_classifier` reads a model, `with_head` joins a backbone and a head that was made for it: the
rest of the project gets a model in no other way. Preprocessing or class names that do not belong to
the weights give plausible garbage, so every mismatch that can be seen is refused here, with a
message that says what to do.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from vit.checkpoints.bundle import (
    ModelSpec,
    Quantised,
    graph_digest,
    read_head,
    read_labels,
)
from vit.checkpoints.class_names import names_of_head
from vit.checkpoints.hub import GRAPH_FILE, GRAPH_WEIGHTS_FILE, HEAD_FILE
from vit.checkpoints.layouts import State
from vit.checkpoints.locate import Source, find_source
from vit.checkpoints.weights import sha256_file
from vit.text.towers import text_tower_of
from vit.text.words import Words, head_of_words

from .backbone import PretrainedBackbone, architecture_of, build, check_input, read_model
from .errors import ModelError
from .head import Activation, Head
from .model import Backbone, VisionTransformer
from .preprocess import Preprocess


@dataclass(frozen=True)
class Classifier:
    """A Vision Transformer that knows what its input and its outputs mean.

    `model` is in eval mode, float32, on the CPU, as loaded; whoever runs it elsewhere runs a copy.
    `head` scores its features (head.py). It is the model's own last layer, or was made apart from
    it, and then the model has none. `weights_sha256` is of the model's file. `label_ids` (such as
    WordNet ids) are empty or as many as `labels`. `address` finds the same files again (locate.py),
    whatever the model's name.
    """

    name: str
    address: str
    model: VisionTransformer
    head: Head
    preprocess: Preprocess
    labels: tuple[str, ...]
    label_ids: tuple[str, ...]
    weights_sha256: str
    notes: tuple[str, ...] = ()  # what was taken for granted, to be said to who uses it
    # Of all that a head of words was made of. Made again, elsewhere or by another version of a
    # library, it differs in the last bits, and is the same head all the same.
    made_of_sha256: str | None = None
    prompts: tuple[tuple[str, ...], ...] = ()  # of each label, where it is a word of the user's
    # A quantised model's graph, OpenVINO's .xml, which runs in place of `model`, and what is said of
    # it. `weights_sha256` is then of both.
    graph: Path | None = None
    quantised: Quantised | None = None
    # Folders and files: as long as these stay as they are, so does all of the above but the tensors
    # of a head of words. Empty where more may change it.
    read_from: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        config = self.model.config
        if self.head.n_features != config.n_features:
            raise ModelError(
                f"{self.name} has a head for {self.head.n_features} features and a backbone that "
                f"gives {config.n_features}; a head fits the backbone it was made with"
            )
        if len(self.labels) != self.head.n_classes:
            raise ModelError(
                f"{self.name} predicts {self.head.n_classes} classes but {len(self.labels)} class "
                "names were given; use the class names file it was trained with, one name a line "
                "in class order"
            )
        if self.label_ids and len(self.label_ids) != len(self.labels):
            raise ModelError(
                f"{self.name} has {len(self.labels)} class names but {len(self.label_ids)} class "
                "ids"
            )
        check_input(self.name, config, self.preprocess)

    @property
    def own_head(self) -> Head | None:
        """The head where it was made apart from the model's weights; None where it is inside."""
        return None if self.model.config.n_classes else self.head

    @property
    def head_sha256(self) -> str | None:
        """What a fingerprint says of a head of its own; None where the head is inside."""
        return self.made_of_sha256 or (self.own_head.sha256 if self.own_head else None)

    @property
    def precision(self) -> str | None:
        """The precision that a quantised model has of itself."""
        return self.quantised.precision if self.quantised else None

    @property
    def temperature(self) -> float:
        return self.head.temperature

    @property
    def labels_sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.labels).encode()).hexdigest()

    @property
    def architecture(self) -> dict[str, int | float | bool | str]:
        """The ViTConfig fields that change a prediction."""
        return architecture_of(self.model.config)

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(
            self.model.config,
            self.preprocess,
            self.labels,
            self.label_ids,
            self.temperature,
            self.name,
            self.head.activation,
            None if self.own_head is None else self.head.normalise,
            quantised=self.quantised,
        )

    @property
    def backbone(self) -> Backbone:
        """Image to features, with the weights of `model` themselves."""
        return Backbone(self.model)

    def scores(self, features: Tensor) -> Tensor:
        """Turn features [B, F] of any precision into a float32 score for each class [B, K]."""
        return self.head.scores(features)


def load_classifier(
    name: str = "embedded",
    labels: Path | None = None,
    arch: str | None = None,
    preprocess: str | None = None,
    templates: tuple[str, ...] = (),
    activation: Activation | None = None,
) -> Classifier:
    """Load a model by name or path (locate.py lists the forms) and check that its parts agree.

    `labels` replaces the model's own class names; for a model of images and text, which has none,
    it is a file of words (vit/text), and `templates` and `activation` are for those. `arch` (a timm
    name) and `preprocess` (a preset) are for bare checkpoints, which carry neither; an `arch` of
    another image size resamples the position embedding. Raises ModelError.
    """
    source, spec, state, weights_sha256 = read_model(name, arch, preprocess)
    if spec.is_tower:
        raise ModelError(
            f"{name} is the image tower of a CLIP: its last layer gives an embedding of "
            f"{spec.config.n_features} numbers, and no scores for classes; choose one that was "
            "fine-tuned for classes (`label-images models list --all` has them), or, where it is "
            "one of your own, write its classes into config.json as label_names"
        )
    if spec.normalise is None and not spec.config.n_classes:
        words = Words(labels, templates, activation) if labels else None
        return _of_words(source, spec, state, weights_sha256, name, words)
    if templates or activation:
        option = "--template" if templates else "--activation"
        raise ModelError(
            f"{option} is for labels in your own words, and {name} has classes of its own; leave "
            "it out, or choose a model that reads text (CLIP, SigLIP)"
        )
    if labels:
        spec = replace(spec, labels=read_labels(labels), label_ids=())
    elif not spec.labels:
        if spec.normalise is not None:
            raise ModelError(f"the bundle {name} names no classes; name them with --labels")
        names = names_of_head(spec.config.n_classes, name)
        spec = replace(spec, labels=names.labels, label_ids=names.label_ids)
    model = build(spec.config, state, name)
    try:
        if spec.normalise is None:
            head = Head.of(model, spec.temperature, spec.activation)
        else:
            head = read_head(source.head or source.weights.with_name(HEAD_FILE), spec)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    return Classifier(
        name=spec.name or source.name,
        address=source.address,
        model=model,
        head=head,
        preprocess=spec.preprocess,
        labels=spec.labels,
        label_ids=spec.label_ids,
        weights_sha256=_with_graph(source, spec, weights_sha256),
        notes=spec.notes,
        graph=(source.graph or source.weights.with_name(GRAPH_FILE)) if spec.quantised else None,
        quantised=spec.quantised,
        read_from=source.read_from,
    )


def _with_graph(source: Source, spec: ModelSpec, weights_sha256: str) -> str:
    """The digest of the weights, and of the graph that runs in their place where there is one.

    Raises ModelError where a quantised model lacks it.
    """
    if not spec.quantised:
        return weights_sha256
    graph = source.graph or source.weights.with_name(GRAPH_FILE)
    files = [graph, graph.with_name(GRAPH_WEIGHTS_FILE)]
    for file in files:
        if not file.is_file():
            raise ModelError(
                f"{source.name} is quantised, and its {file.name} is missing; copy the bundle's "
                "folder whole, or make it again"
            )
    digests = [sha256_file(file) for file in files]
    if graph_digest(*digests) != spec.quantised.sha256:
        raise ModelError(
            f"{source.name} is quantised, and its {graph.name} or {graph.with_suffix('.bin').name} is "
            "damaged or of another model; copy the bundle's folder again, or make it again"
        )
    return hashlib.sha256("".join([weights_sha256, *digests]).encode()).hexdigest()


def with_head(
    backbone: PretrainedBackbone,
    head: Head,
    labels: tuple[str, ...],
    label_ids: tuple[str, ...] = (),
    name: str = "",
    notes: tuple[str, ...] = (),
) -> Classifier:
    """Join a backbone and a head that was made for it, without changing either.

    `name` is the backbone's where none is given; `notes` come after its own. Raises ModelError where
    they do not fit.
    """
    assert not backbone.model.config.n_classes  # a backbone has no head
    return Classifier(
        name=name or backbone.name,
        address=backbone.address,
        model=backbone.model,
        head=head,
        preprocess=backbone.preprocess,
        labels=labels,
        label_ids=label_ids,
        weights_sha256=backbone.weights_sha256,
        notes=backbone.notes + notes,
    )


def reads_words(name: str) -> bool:
    """Whether a model has a text tower, so that its --labels are the user's words."""
    return text_tower_of(find_source(name)) is not None


def _of_words(
    source: Source,
    spec: ModelSpec,
    state: State,
    weights_sha256: str,
    name: str,
    words: Words | None,
) -> Classifier:
    """A model without classes, and the user's words as those. Raises ModelError."""
    files = text_tower_of(source)
    if files is None:
        raise ModelError(
            f"{name} has no head: it gives features, and no scores for classes; choose a model "
            "that was trained to tell classes apart, or one that reads text, by its folder or on "
            "the Hub (CLIP, SigLIP), with your own words as --labels"
        )
    if words is None:
        raise ModelError(
            f"{name} has no head: it has no classes of its own, and reads text. Say what to look "
            "for, one word a line: --labels words.txt"
        )
    made = head_of_words(files, words, weights_sha256)
    return Classifier(
        name=spec.name or source.name,
        address=source.address,
        model=build(spec.config, state, name),
        head=made.head,
        preprocess=spec.preprocess,
        labels=made.names,
        label_ids=(),
        weights_sha256=weights_sha256,
        notes=spec.notes + made.notes,
        made_of_sha256=made.sha256,
        prompts=made.prompts,
        read_from=source.read_from if made.is_settled else (),
    )
