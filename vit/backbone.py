"""PretrainedBackbone: the part of a model that turns photos into features, and how any model is read.

    read_model      name -> what the model says of itself, and its tensors, as ours
    build           the two -> a network, where they fit
    load_backbone   both, without the head

A head of another making (head.py) needs no more than this. classifier.py reads models with theirs.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from vit.checkpoints.bare import guess_spec
from vit.checkpoints.bundle import ModelSpec
from vit.checkpoints.layouts import State
from vit.checkpoints.locate import Source, find_source
from vit.checkpoints.origins import read_spec
from vit.checkpoints.weights import (
    RESAMPLINGS,
    convert_state,
    read_checkpoint,
    resample_pos_embed,
    sha256_file,
)

from .config import ViTConfig
from .errors import ModelError
from .model import Backbone, VisionTransformer, without_head
from .preprocess import MODES, Preprocess

# What a ViTConfig field of these changes is training, or how the same numbers are computed.
_NOT_IN_RESULTS = ("pos_drop", "proj_drop", "attn_drop", "drop_path", "qkv", "patch_embed")


@dataclass(frozen=True)
class PretrainedBackbone:
    """A network that knows what its input means. `model` has no head, and is as in Classifier."""

    name: str
    address: str
    model: VisionTransformer
    preprocess: Preprocess
    weights_sha256: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_input(self.name, self.model.config, self.preprocess)

    @property
    def architecture(self) -> dict[str, int | float | bool | str]:
        """The ViTConfig fields that change a feature."""
        return architecture_of(self.model.config)

    @property
    def backbone(self) -> Backbone:
        """Image to features, with the weights of `model` themselves."""
        return Backbone(self.model)


def load_backbone(
    name: str = "embedded", arch: str | None = None, preprocess: str | None = None
) -> PretrainedBackbone:
    """Load a model by name or path as load_classifier does, without its head, if it has one.

    Raises ModelError.
    """
    source, spec, state, weights_sha256 = read_model(name, arch, preprocess)
    if spec.quantised:
        raise ModelError(
            f"{name} is quantised to {spec.quantised.precision}, for labelling as it is; take the "
            "model that it was made of"
        )
    config = replace(spec.config, n_classes=0)
    return PretrainedBackbone(
        name=spec.name or source.name,
        address=source.address,
        model=build(config, without_head(state), name),
        preprocess=spec.preprocess,
        weights_sha256=weights_sha256,
        notes=spec.notes,
    )


def read_model(
    name: str, arch: str | None = None, preprocess: str | None = None
) -> tuple[Source, ModelSpec, State, str]:
    """Find a model's files, read what they say, its tensors under our names, and the SHA-256 of
    their file.

    The position embedding has the size of the images. Raises ModelError.
    """
    source = find_source(name)
    spec = read_spec(source)
    with ThreadPoolExecutor(1) as pool:  # hashing takes as long as reading, on another core
        digest = pool.submit(sha256_file, source.weights)
        checkpoint = read_checkpoint(source.weights)
    state = convert_state(checkpoint, spec.config if spec else None)
    if spec is None:
        spec = guess_spec(checkpoint, state, source.weights.name, arch, preprocess)
    elif arch or preprocess:
        raise ModelError(
            f"{name} brings its own architecture and preprocessing; leave out --arch and "
            "--preprocess"
        )
    has_registers = "reg_token" in state, spec.config.reg_tokens > 0
    # Where the two differ, so do the positions; `build` says what is wrong.
    if spec.pos_resampling and "pos_embed" in state and len(set(has_registers)) == 1:
        state["pos_embed"] = resample_pos_embed(
            state["pos_embed"],
            spec.config.grid_size,
            spec.config.n_pos_prefix,
            *RESAMPLINGS[spec.pos_resampling],
        )
    return source, spec, state, digest.result()


def check_input(name: str, config: ViTConfig, preprocess: Preprocess) -> None:
    """Check that the network takes what the preprocessing makes. Raises ModelError."""
    if preprocess.in_chans != config.in_chans:
        raise ModelError(
            f"{name} takes images of {config.in_chans} channels but its preprocessing "
            f"has a mean for {preprocess.in_chans}; give one mean and std a channel in "
            "its config"
        )
    if config.in_chans not in MODES:
        raise ModelError(
            f"{name} takes images of {config.in_chans} channels; photos have 1, 3 or 4 "
            "(grey, RGB, RGBA)"
        )
    if preprocess.crop_size != config.img_size:
        raise ModelError(
            f"{name} has a position embedding for images of {config.img_size} pixels but "
            f"its preprocessing makes them {preprocess.crop_size}; make both the same, "
            "or resample with `label-images models convert --arch NAME` (such as "
            "vit_base_patch16_384)"
        )


def architecture_of(config: ViTConfig) -> dict[str, int | float | bool | str]:
    """The fields of a ViTConfig that change a feature or a prediction."""
    return {name: value for name, value in config.record.items() if name not in _NOT_IN_RESULTS}


def build(config: ViTConfig, state: State, name: str) -> VisionTransformer:
    """Make the network and give it the tensors, in eval mode. Raises ModelError where any differs."""
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
