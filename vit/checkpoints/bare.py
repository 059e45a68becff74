"""A checkpoint that comes alone -> a ModelSpec, from its shapes, its origin's habits and its name.

What leaves no trace in shapes comes from the published sizes (weights.infer_config), or is asked
for.
"""

import re
from dataclasses import replace

from vit.config import ViTConfig, variant
from vit.errors import ModelError
from vit.preprocess import PRESETS, preset

from .bundle import ModelSpec
from .from_dinov2 import dinov2_spec
from .from_open_clip import clip_spec
from .layouts import State
from .weights import infer_config, origin_of

# Which preset an origin's photos are prepared by; of timm's and torchvision's there are two.
_USUAL = {"timm": "vit", "torchvision": "torchvision"}
# The sizes of torchvision's SWAG weights that were fine-tuned as a whole: image, patch.
_SWAG_SIZES = {(384, 16), (512, 16), (518, 14)}


# Names whose photos are prepared in one way, whoever trained them.
_PLAIN = re.compile(r"(vit|deit)_[a-z]+(_distilled)?_patch\d+_\d+(\..*)?")
# Of timm's tags those whose photos were prepared in another way than their architecture's others.
_OTHERWISE = re.compile(r"\.(bamboo|dino|mae)\b")
_CLIP_NAMES = (
    "say --arch vit_base_patch32_clip_quickgelu_224 for OpenAI's weights (or another size), --arch "
    "vit_base_patch32_clip_224 for most others, or name a folder with the open_clip_config.json "
    "beside it"
)


def guess_spec(
    checkpoint: State, state: State, file_name: str, arch: str | None, preprocess: str | None
) -> ModelSpec:
    """Describe a checkpoint from its own tensors, `state` (those under our names) and what its user
    says.

    Its position embedding is resampled where `arch` has another image size. Raises ModelError.
    """
    origin = origin_of(checkpoint)
    if origin in ("dinov2", "open_clip"):
        spec = _tower(checkpoint, state, arch) if origin == "open_clip" else dinov2_spec(state)
        if origin == "dinov2" and arch:
            raise ModelError("a DINOv2 checkpoint shows what it is; leave out --arch")
        if preprocess:
            own = preset(preprocess, spec.config.img_size, spec.config.in_chans)
            spec = replace(spec, preprocess=own)
        return spec
    if origin == "transformers":
        _refuse_new_family(state)
    config = _config(state, arch)
    if config.n_classes == 1:
        raise ModelError(
            "the checkpoint has a single output, which as a class would be 100% sure of every "
            "photo; a classifier has two or more"
        )
    is_said = preprocess or not arch or origin != "timm"
    if not is_said and (not _PLAIN.fullmatch(arch or "") or _OTHERWISE.search(arch or "")):
        raise ModelError(
            f"a bare checkpoint does not say how photos were prepared for {arch}, and its name "
            f"does not either; say it with --preprocess ({', '.join(PRESETS)}), or load the "
            "folder that has its config.json"
        )
    notes: tuple[str, ...] = ()
    if not preprocess:
        preprocess = _USUAL.get(origin, "squash")
        if origin == "timm" and (config.distilled or (arch or "").startswith("deit_")):
            preprocess = "deit"
        if origin == "torchvision" and "swag" in file_name.lower():
            preprocess = "swag"
        elif origin == "torchvision" and (config.img_size, config.patch_size) in _SWAG_SIZES:
            notes = (
                f"{file_name} is taken for torchvision's usual preprocessing; where it is one of "
                "its SWAG weights, say --preprocess swag",
            )
    return ModelSpec(
        config,
        preset(preprocess, config.img_size, config.in_chans),
        pos_resampling="antialiased",
        notes=notes,
    )


def _config(state: State, arch: str | None) -> ViTConfig:
    if not arch:
        return infer_config(state)
    n_classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    return replace(
        variant(arch, n_classes=n_classes),
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        in_chans=state["patch_embed.proj.weight"].shape[1],
    )


def _refuse_new_family(state: State) -> None:
    """Refuse what transformers' first ViT and DeiT have not: their configs say what tensors don't."""
    is_plain = "cls_token" in state and "patch_embed.proj.bias" in state
    if not is_plain or {"reg_token", "blocks.0.ls1.gamma"} & state.keys():
        raise ModelError(
            "the checkpoint is of one of transformers' newer families (DeiT without a teacher, "
            "CLIP, SigLIP, DINOv2), and how it computes stands in its config.json; name the folder "
            "that holds both"
        )


def _tower(checkpoint: State, state: State, arch: str | None) -> ModelSpec:
    """An image tower of OpenAI's CLIP, or one that was trained with open_clip."""
    if "norm_pre.weight" not in state or "proj.weight" not in state:
        raise ModelError(
            "the checkpoint is an image tower of open_clip's, and what it is stands in its "
            "open_clip_config.json; name the folder that holds both"
        )
    # Numbers that OpenAI's own files hold beside the tensors; nobody else writes them.
    if "input_resolution" in checkpoint and "context_length" in checkpoint:
        if arch:
            raise ModelError("OpenAI's checkpoint shows what it is; leave out --arch")
        return clip_spec(state)
    if arch:
        config = variant(arch, n_classes=0)
        if not config.norm_pre:
            raise ModelError(
                f"{arch} is no image tower of CLIP, and the checkpoint is one; {_CLIP_NAMES}"
            )
        config = replace(config, proj_dim=state["proj.weight"].shape[0])
        own = clip_spec(state)
        preprocess = replace(own.preprocess, crop_size=config.img_size, resize_size=config.img_size)
        return ModelSpec(config, preprocess, pos_resampling="antialiased")
    raise ModelError(
        "the checkpoint is an image tower of CLIP, and its tensors do not show which activation it "
        f"was trained with: {_CLIP_NAMES}"
    )
