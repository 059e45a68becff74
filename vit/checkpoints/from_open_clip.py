"""What open_clip_config.json says of an image tower, as a ModelSpec; and the tower's tensors.

OpenAI's CLIP has the same names for its tensors, and no config. A tower is a backbone: its features
are the image's embedding, before it is scaled to length 1. The text tower is left out.
"""

from typing import Any, Literal

import torch

from vit.architectures import architecture
from vit.config import ViTConfig, mlp_ratio_of
from vit.errors import ModelError
from vit.preprocess import CLIP_MEAN, CLIP_STD, INTERPOLATIONS, Preprocess
from vit.timm_arguments import fields_of

from .bundle import ModelSpec
from .layouts import State
from .tensor_names import rename
from .values import one_side, per_channel, refuse_unknown

_MODEL = {"embed_dim", "vision_cfg", "quick_gelu"}
_MODEL_INERT = {
    "text_cfg", "multimodal_cfg", "custom_text", "init_logit_scale", "init_logit_bias",
    "nonscalar_logit_scale", "output_dict", "cast_dtype",
}  # fmt: skip
_VISION_INERT = {
    "patch_dropout", "output_tokens", "pos_embed_type", "attn_pooler_queries", "attn_pooler_heads",
    "timm_model_pretrained", "timm_drop", "timm_drop_path",
}  # fmt: skip
# Nothing where they are off; no published tower of the plain kind has them.
_VISION_OFF = {
    "attentional_pool", "block_type", "qk_norm", "scaled_cosine_attn", "scale_heads",
    "scale_attn_inner", "scale_attn", "scale_fc",
}  # fmt: skip
_VISION = {
    "layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "ls_init_value",
    "no_ln_pre", "final_ln_after_pool", "pool_type", "act_kwargs", "norm_kwargs",
    "timm_model_name", "timm_pool", "timm_proj", "timm_proj_bias",
}  # fmt: skip
_POOLS: dict[str, Literal["token", "avg"]] = {"tok": "token", "avg": "avg"}
_RESIZE_MODES = {"shortest": "crop", "squash": "squash"}


def open_clip_spec(config: dict[str, Any], name: str) -> ModelSpec:
    """Read open_clip_config.json. Raises ModelError, or KeyError and the like where it is damaged."""
    model, vision = config["model_cfg"], config["model_cfg"]["vision_cfg"]
    what = f"the open_clip_config.json of {name}"
    refuse_unknown(f"the model_cfg in {what}", model, _MODEL | _MODEL_INERT)
    vision = {key: value for key, value in vision.items() if value or key not in _VISION_OFF}
    refuse_unknown(f"the vision_cfg in {what}", vision, _VISION | _VISION_INERT)
    if vision.get("timm_model_name"):
        vit = _timm_tower(vision, model["embed_dim"], what)
    else:
        vit = _tower(vision, model["embed_dim"], bool(model.get("quick_gelu")), what)
    return ModelSpec(vit, _preprocess(config.get("preprocess_cfg") or {}, vit.img_size, what))


def _tower(vision: dict[str, Any], embed_dim: int, quick_gelu: bool, what: str) -> ViTConfig:
    """open_clip's own Vision Transformer. Missing keys mean what its CLIPVisionCfg takes for them."""
    if not isinstance(layers := vision.get("layers", 12), int):
        raise ModelError(f"{what} says layers={layers!r}: its image tower is a ResNet")
    pool = vision.get("pool_type") or "tok"
    if pool not in _POOLS:
        raise ModelError(f"{what} says pool_type={pool!r}; {' and '.join(_POOLS)} are supported")
    act, norm = vision.get("act_kwargs") or {}, vision.get("norm_kwargs") or {}
    if act not in ({}, {"approximate": "tanh"}) or (act and quick_gelu):
        raise ModelError(f"{what} says act_kwargs={act!r}, which this tool does not know")
    if norm.keys() - {"eps"}:
        raise ModelError(f"{what} says norm_kwargs={norm!r}; of these only eps is known")
    width = vision.get("width", 768)
    return ViTConfig(
        img_size=one_side(vision.get("image_size", 224)),
        patch_size=one_side(vision.get("patch_size", 16)),
        n_classes=0,
        embed_dim=width,
        depth=layers,
        n_heads=width // vision.get("head_width", 64),
        mlp_ratio=vision.get("mlp_ratio", 4.0),
        mlp="quick_gelu" if quick_gelu else "gelu_tanh" if act else "gelu",
        norm_eps=norm.get("eps", 1e-5),
        norm_pre=not vision.get("no_ln_pre"),
        layer_scale=vision.get("ls_init_value") is not None,
        pool=_POOLS[pool],
        final_norm="pooled" if vision.get("final_ln_after_pool") else "tokens",
        proj_dim=embed_dim,
    )


def _timm_tower(vision: dict[str, Any], embed_dim: int, what: str) -> ViTConfig:
    """A tower of timm's. Its projection is open_clip's own ("linear"), or else the layer that timm
    has for a head, which has a bias; "none" is to have neither.
    """
    name, proj = vision["timm_model_name"], vision.get("timm_proj", "linear")
    pool = vision.get("timm_pool", "avg")
    if proj not in ("linear", "none", "", None):
        raise ModelError(
            f"{what} says timm_proj={proj!r}: its projection has a layer more, and linear and none "
            "are supported"
        )
    if pool not in ("", "token", "avg", "map"):
        raise ModelError(f"{what} says timm_pool={pool!r}; token, avg and map are supported")
    known = architecture(name)
    arguments = known.arguments | {"num_classes": 0}
    if proj != "linear" and pool:  # timm makes the network with it, which may move a norm
        arguments |= {"global_pool": pool}
    fields = fields_of(known.kind, arguments)
    if proj == "linear":  # timm makes the network as it is, and then takes another pool
        fields |= {"pool": pool or fields["pool"], "proj_dim": embed_dim}
        fields |= {"proj_bias": bool(vision.get("timm_proj_bias"))}
    elif proj != "none":
        fields |= {"proj_dim": embed_dim, "proj_bias": True}
    if one_side(vision.get("image_size", 224)) != fields["img_size"]:
        raise ModelError(
            f"{what} says image_size={vision.get('image_size', 224)}, and a {name} takes "
            f"{fields['img_size']} pixels"
        )
    return ViTConfig(**fields)


def _preprocess(said: dict[str, Any], img_size: int, what: str) -> Preprocess:
    # `size` is the tower's, whatever stands here.
    known = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}
    refuse_unknown(f"the preprocess_cfg in {what}", said, known)
    resize_mode = said.get("resize_mode") or "shortest"
    if resize_mode not in _RESIZE_MODES:
        raise ModelError(
            f"{what} says resize_mode={resize_mode!r}, which gives photos a border; "
            f"{' and '.join(_RESIZE_MODES)} are supported"
        )
    interpolation = said.get("interpolation") or "bicubic"
    if interpolation not in INTERPOLATIONS:
        raise ModelError(f"{what} says interpolation={interpolation!r}, which is not supported")
    return Preprocess(
        img_size,
        img_size,
        _RESIZE_MODES[resize_mode],
        interpolation,
        per_channel(said.get("mean") or CLIP_MEAN, 3),
        per_channel(said.get("std") or CLIP_STD, 3),
    )


_BLOCK = r"transformer\.resblocks\.(\d+)\."
_NAMES = [
    (r"class_embedding", "cls_token"),
    (r"positional_embedding", "pos_embed"),
    (r"conv1\.weight", "patch_embed.proj.weight"),
    (r"ln_pre\.(\w+)", r"norm_pre.\1"),
    (_BLOCK + r"ln_([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    (_BLOCK + r"attn\.in_proj_(\w+)", r"blocks.\1.attn.qkv.\2"),
    (_BLOCK + r"attn\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (_BLOCK + r"mlp\.c_fc\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (_BLOCK + r"mlp\.c_proj\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (_BLOCK + r"ls_([12])\.gamma", r"blocks.\1.ls\2.gamma"),
    (r"ln_post\.(\w+)", r"norm.\1"),
    (r"proj", "proj.weight"),
]


def is_open_clip(state: State) -> bool:
    return "visual.class_embedding" in state or "visual.trunk.patch_embed.proj.weight" in state


def from_open_clip(state: State, config: ViTConfig | None) -> State:
    """Rename and reshape the image tower. Raises ModelError for a tensor that it has not."""
    tower = {
        name.removeprefix("visual."): tensor
        for name, tensor in state.items()
        if name.startswith("visual.")
    }
    if "trunk.patch_embed.proj.weight" in tower:  # timm's, with its names
        return {
            name.removeprefix("trunk.").replace("head.proj.", "proj."): tensor
            for name, tensor in tower.items()
        }
    state = rename(tower, _NAMES)
    state["cls_token"] = state["cls_token"].reshape(1, 1, -1)  # [D] -> [1, 1, D]
    state["pos_embed"] = state["pos_embed"][None]  # [N, D] -> [1, N, D]
    if "proj.weight" in state:
        state["proj.weight"] = state["proj.weight"].T  # [D, F] -> [F, D]
    if "norm_pre.weight" not in state:  # only networks with that norm have no bias there, in ours
        state["patch_embed.proj.bias"] = torch.zeros(state["cls_token"].shape[-1])
    if config and config.final_norm == "pooled":
        state = {
            f"fc_{name}" if name.startswith("norm.") else name: tensor
            for name, tensor in state.items()
        }
    return state


def clip_spec(state: State) -> ModelSpec:
    """Describe a tower of OpenAI's from its converted tensors: all have heads of 64 channels."""
    width, in_chans, patch_size, _ = state["patch_embed.proj.weight"].shape
    grid_size = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    vit = ViTConfig(
        img_size=grid_size * patch_size,
        patch_size=patch_size,
        in_chans=in_chans,
        n_classes=0,
        embed_dim=width,
        depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        n_heads=max(1, width // 64),
        mlp_ratio=mlp_ratio_of(state["blocks.0.mlp.fc1.weight"].shape[0], width),
        mlp="quick_gelu",
        norm_eps=1e-5,
        norm_pre=True,
        proj_dim=state["proj.weight"].shape[0],
    )
    return ModelSpec(vit, _preprocess({}, vit.img_size, "it"))
