"""Classifier: network, head, preprocessing and class names as one object that has been checked to fit.

`load_classifier` is the only way the rest of the project gets a model. Preprocessing or class
names that do not belong to the weights give plausible garbage, so every mismatch that can be seen
is refused here, with a message that says what to do.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vit.checkpoints.bundle import ModelSpec, imagenet_labels, read_labels
from vit.checkpoints.locate import find_source
from vit.checkpoints.origins import read_spec
from vit.checkpoints.weights import (
    State,
    convert_state,
    infer_config,
    origin_of,
    read_checkpoint,
    resample_pos_embed,
    sha256_file,
)

from .config import ViTConfig, variant
from .errors import ModelError
from .head import Head
from .model import Backbone, VisionTransformer
from .preprocess import MODES, Preprocess, preset

# What a ViTConfig field of these changes is training, or how the same numbers are computed.
_NOT_IN_RESULTS = ("pos_drop", "proj_drop", "attn_drop", "drop_path", "qkv", "patch_embed")


@dataclass(frozen=True)
class Classifier:
    """A Vision Transformer that knows what its input and its outputs mean.

    `model` is in eval mode, float32, on the CPU, as loaded; whoever runs it elsewhere runs a copy.
    `head` scores its features (head.py). `label_ids` (such as WordNet ids) are empty or as many as
    `labels`. `address` finds the same files again (locate.py), whatever the model's name.
    """

    name: str
    address: str
    model: VisionTransformer
    head: Head
    preprocess: Preprocess
    labels: tuple[str, ...]
    label_ids: tuple[str, ...]
    weights_sha256: str

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
        if self.preprocess.in_chans != config.in_chans:
            raise ModelError(
                f"{self.name} takes images of {config.in_chans} channels but its preprocessing "
                f"has a mean for {self.preprocess.in_chans}; give one mean and std a channel in "
                "its config"
            )
        if config.in_chans not in MODES:
            raise ModelError(
                f"{self.name} takes images of {config.in_chans} channels; photos have 1, 3 or 4 "
                "(grey, RGB, RGBA)"
            )
        if self.preprocess.crop_size != config.img_size:
            raise ModelError(
                f"{self.name} has a position embedding for images of {config.img_size} pixels but "
                f"its preprocessing makes them {self.preprocess.crop_size}; make both the same, "
                "or resample with `label-images models convert --arch NAME` (such as "
                "vit_base_patch16_384)"
            )

    @property
    def temperature(self) -> float:
        return self.head.temperature

    @property
    def labels_sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.labels).encode()).hexdigest()

    @property
    def architecture(self) -> dict[str, int | float | bool | str]:
        """The ViTConfig fields that change a prediction."""
        return {
            name: value
            for name, value in self.model.config.record.items()
            if name not in _NOT_IN_RESULTS
        }

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
) -> Classifier:
    """Load a model by name or path (locate.py lists the forms) and check that its parts agree.

    `labels` replaces the model's own class names. `arch` (a timm name) and `preprocess` (a preset)
    are for bare checkpoints, which carry neither; an `arch` of another image size resamples the
    position embedding. Raises ModelError.
    """
    source = find_source(name)
    spec = read_spec(source)
    state = convert_state(checkpoint := read_checkpoint(source.weights))
    if spec is None:
        spec = _guess_spec(state, origin_of(checkpoint), arch, preprocess)
        state["pos_embed"] = resample_pos_embed(
            state["pos_embed"], spec.config.grid_size, spec.config.n_prefix_tokens
        )
    elif arch or preprocess:
        raise ModelError(
            f"{name} brings its own architecture and preprocessing; leave out --arch and "
            "--preprocess"
        )
    if not spec.config.n_classes:
        raise ModelError(
            f"{name} has no head: it gives features, and no scores for classes; choose a model "
            "that was trained to tell classes apart"
        )
    if labels:
        spec = replace(spec, labels=read_labels(labels), label_ids=())
    elif not spec.labels and spec.config.n_classes == 1000:
        spec = replace(spec, labels=imagenet_labels())
    elif not spec.labels:
        raise ModelError(
            f"{name} has {spec.config.n_classes} classes and no names for them; give a file with "
            "one name a line: --labels classes.txt"
        )
    model = _build(spec.config, state, name)
    try:
        head = Head.of(model, spec.temperature, spec.activation)
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
        weights_sha256=sha256_file(source.weights),
    )


def _guess_spec(state: State, origin: str, arch: str | None, preprocess: str | None) -> ModelSpec:
    """Describe a bare checkpoint from its shapes, its origin's habits and what the user says."""
    if arch and "head.weight" in state:
        config = variant(arch, n_classes=state["head.weight"].shape[0])
        config = replace(config, qkv_bias="blocks.0.attn.qkv.bias" in state)
        config = replace(config, in_chans=state["patch_embed.proj.weight"].shape[1])
    else:
        config = infer_config(state)
    if config.n_classes == 1:
        raise ModelError(
            "the checkpoint has a single output, which as a class would be 100% sure of every "
            "photo; a classifier has two or more"
        )
    if not preprocess:
        usual = {"timm": "deit" if config.distilled else "vit", "torchvision": "torchvision"}
        preprocess = usual.get(origin, "squash")
    return ModelSpec(config, preset(preprocess, config.img_size, config.in_chans))


def _build(config: ViTConfig, state: State, name: str) -> VisionTransformer:
    n_blocks = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    if n_blocks != config.depth:  # said before a network of a million blocks is built
        raise ModelError(
            f"the config of {name} says {config.depth:,} blocks and its weights have {n_blocks}; "
            "its config, or the name after --arch, must be the one the weights were trained as"
        )
    with torch.device("meta"):  # no time spent on initial weights that are replaced at once
        model = VisionTransformer(replace(config, qkv="fused", patch_embed="conv"))
    expected = model.state_dict()
    problems = [f"no {key}" for key in expected if key not in state]
    problems += [f"an unknown {key}" for key in state if key not in expected]
    problems += [
        f"{key} of shape {list(state[key].shape)} instead of {list(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if problems:
        shown = "; ".join(problems[:3]) + (
            f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        )
        advice = (
            "the name after --arch, or the model's config, must be the one the weights were "
            "trained as"
        )
        if any("pos_embed" in problem for problem in problems):
            advice += (
                " (its image size must fit the position embedding: `label-images models convert "
                "--arch` resamples)"
            )
        raise ModelError(f"the weights of {name} do not fit its architecture: {shown}; {advice}")
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)
