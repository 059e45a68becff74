"""The arguments that timm's VisionTransformer and Eva are made with, as ViTConfig's fields.

Every argument is obeyed, known to change nothing, or refused by its name. What is left out means
timm's own default, which often hangs on another argument: averaging moves the last norm behind it.
"""

import math
from collections.abc import Collection
from typing import Any

from .architectures import Arguments, Kind
from .checkpoints.values import one_side
from .errors import ModelError

Fields = dict[str, Any]

# The same in both classes: timm's name, ours, and what timm takes where nothing is said.
_SHARED: list[tuple[str, str, Any]] = [
    ("img_size", "img_size", 224), ("patch_size", "patch_size", 16), ("in_chans", "in_chans", 3),
    ("num_classes", "n_classes", 1000), ("embed_dim", "embed_dim", 768), ("depth", "depth", 12),
    ("num_heads", "n_heads", 12), ("mlp_ratio", "mlp_ratio", 4.0), ("qkv_bias", "qkv_bias", True),
    ("qk_norm", "qk_norm", False), ("class_token", "class_token", True),
    ("norm_eps", "norm_eps", 1e-6),
]  # fmt: skip
# Of training, of how weights start, and of how images of other sizes are taken: all of ours have
# one size.
_INERT = {
    "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
    "drop_path_rate", "weight_init", "fix_init", "head_init_scale",
    "dynamic_img_size", "strict_img_size",
    "dynamic_img_pad",  # where nothing is left to pad (fields_of)
    "rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords",
    "qkv_fused",  # three matrices are made one (layouts.py)
    "use_naflex", "attn_layer", "attn_type", "proj_bias", "embed_norm_layer", "num_kv_heads",
    "gated_attn", "attn_only_layer_scale",  # these nine only as _ONLY has them
}  # fmt: skip
# What may be said, where it says what the network does anyway.
_ONLY: dict[str, Collection[Any]] = {
    "use_naflex": (False,), "attn_layer": ("", "attn"), "attn_type": ("eva", "rope"),
    "proj_bias": (True,), "gated_attn": (False,), "attn_only_layer_scale": (False,),
    "embed_norm_layer": (), "num_kv_heads": (),
}  # fmt: skip
_ACTIVATIONS = {
    "gelu": "gelu", "gelu_tanh": "gelu_tanh", "gelutanh": "gelu_tanh", "quick_gelu": "quick_gelu",
    "quickgelu": "quick_gelu",
}  # fmt: skip
# Of the table of names alone: timm's own entries give classes there, which a file cannot say.
TABLE_ONLY = ("norm_eps", "distilled", "mlp_layer", "block_fn")


class _Said:
    """Arguments, each of which is to be taken once; what nobody took is refused."""

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = {name: value for name, value in arguments.items() if value is not None}
        self.taken: set[str] = set()

    def take(self, name: str, default: Any = None) -> Any:
        self.taken.add(name)
        return self.arguments.get(name, default)

    def one_of(self, name: str, choices: dict[Any, Any], default: Any) -> Any:
        value = self.take(name, default)
        if not isinstance(value, str | bool) or value not in choices:
            raise refused(name, value)
        return choices[value]

    def refuse_rest(self) -> None:
        for name, value in self.arguments.items():
            if name in _ONLY and value not in _ONLY[name]:
                raise refused(name, value)
            if name not in self.taken and name not in _INERT:
                raise refused(name, value)


def refused(name: str, value: Any) -> ModelError:
    return ModelError(
        f"the timm model was made with {name}={value!r}, which is not part of the Vision "
        "Transformers this tool builds; label with a model that has it not"
    )


def fields_of(kind: Kind, arguments: Arguments) -> Fields:
    """ViTConfig's fields for one of timm's classes made with these arguments.

    Raises ModelError for what the network here would compute otherwise.
    """
    said = _Said(arguments)
    fields = {ours: said.take(theirs, default) for theirs, ours, default in _SHARED}
    for name in ("img_size", "patch_size"):
        fields[name] = one_side(fields[name])
    if arguments.get("dynamic_img_pad") and fields["img_size"] % fields["patch_size"]:
        raise refused("dynamic_img_pad", arguments["dynamic_img_pad"])
    if said.take("norm_layer", "layernorm") not in ("layernorm", "LayerNorm", "layer_norm"):
        raise refused("norm_layer", arguments["norm_layer"])
    if "norm_layer" in said.arguments:
        fields["norm_eps"] = 1e-6  # that of timm's LayerNorm, whatever the name's own is
    fields |= _vit(said, fields) if kind == "vit" else _eva(said, fields)
    said.refuse_rest()
    return fields


def _positions(learned: bool, without_prefix: bool) -> str:
    return "none" if not learned else "patches" if without_prefix else "all"


def _vit(said: _Said, shared: Fields) -> Fields:
    pool = said.one_of("global_pool", {"token": "token", "avg": "avg", "map": "map"}, "token")
    include_prefix = said.take("pool_include_prefix", False) and pool != "token"
    norm_after = said.take("fc_norm", pool == "avg")
    post_norm = said.take("block_fn") == "ResPostBlock"  # has no layer scale of its own
    fields: Fields = {
        "pool": f"{pool}_all" if include_prefix else pool,
        "final_norm": "pooled" if norm_after else "tokens",
        "distilled": said.take("distilled", False),
        "reg_tokens": said.take("reg_tokens", 0),
        "pos_embed": _positions(
            said.one_of("pos_embed", {"learn": True, "none": False, "": False}, "learn"),
            said.take("no_embed_class", False),
        ),
        "norm_pre": said.take("pre_norm", False),
        "layer_scale": bool(said.take("init_values")) and not post_norm,
        "attn_norm": said.take("scale_attn_norm", False),
        "mlp_norm": said.take("scale_mlp_norm", False),
        "post_norm": post_norm,
    }
    if not said.take("final_norm", True):
        fields["final_norm"] = "none"
    activation = said.take("act_layer", "gelu")
    if said.take("mlp_layer") == "swiglu_packed":
        if activation != "silu":
            raise refused("act_layer", activation)
        hidden_dim = int(shared["embed_dim"] * shared["mlp_ratio"]) // 2
        return fields | _swiglu(hidden_dim, shared["embed_dim"])
    if activation not in _ACTIVATIONS:
        raise refused("act_layer", activation)
    return fields | {"mlp": _ACTIVATIONS[activation]}


def _eva(said: _Said, shared: Fields) -> Fields:
    pool = said.one_of("global_pool", {"token": "token", "avg": "avg", "map": "map_all"}, "avg")
    norm_after = said.take("use_fc_norm", pool == "avg")
    norm_before = said.take("use_post_transformer_norm", not norm_after)
    if norm_before and norm_after:
        raise refused("use_post_transformer_norm", True)
    post_norm = said.take("use_post_norm", False)
    fields: Fields = {
        "pool": pool,
        "final_norm": "pooled" if norm_after else "tokens" if norm_before else "none",
        "reg_tokens": said.take("num_reg_tokens", 0),
        "pos_embed": _positions(
            said.take("use_abs_pos_emb", True), said.take("no_embed_class", False)
        ),
        "norm_pre": said.take("use_pre_transformer_norm", False),
        "layer_scale": said.take("init_values") is not None and not post_norm,
        "post_norm": post_norm,
        "attn_norm": said.take("scale_attn_inner", False),
        "mlp_norm": said.take("scale_mlp", False),
        **_rotary(said),
    }
    for name, plain in (("attn_pool_num_heads", "n_heads"), ("attn_pool_mlp_ratio", "mlp_ratio")):
        value = said.take(name)
        if pool == "map_all" and value not in (None, shared[plain]):
            raise refused(name, value)
    align_to = said.take("swiglu_align_to", 0)
    if not said.take("swiglu_mlp", False):
        return fields
    hidden_dim = int(shared["embed_dim"] * shared["mlp_ratio"])
    if align_to:  # rounded up to a multiple of it
        hidden_dim += -hidden_dim % align_to
    return fields | _swiglu(hidden_dim, shared["embed_dim"])


def _swiglu(hidden_dim: int, embed_dim: int) -> Fields:
    return {"mlp": "swiglu", "mlp_ratio": mlp_ratio_of(hidden_dim, embed_dim)}


def _rotary(said: _Said) -> Fields:
    kind, order = said.take("rope_type", "cat"), said.take("rope_grid_indexing", "ij")
    in_halves, offset = said.take("rope_rotate_half", False), said.take("rope_grid_offset", 0.0)
    temperature, grid = said.take("rope_temperature", 10_000.0), said.take("ref_feat_shape")
    sections = said.take("rope_mrope_section")
    if not said.take("use_rot_pos_emb", False):
        return {}
    ways = {
        ("cat", "ij", False): "eva02", ("cat", "xy", False): "axial",
        ("mixed", "xy", False): "mixed", ("dinov3", "ij", True): "dinov3",
    }  # fmt: skip
    rope = ways.get((kind, order, in_halves))
    for name, value, known in (
        ("rope_type", kind, rope),
        ("rope_grid_offset", offset, not offset),
        ("rope_mrope_section", sections, sections is None),
    ):
        if not known:
            raise refused(name, value)
    scaled = grid is not None and kind == "cat"  # the other kinds do not look at it
    return {
        "rope": rope,
        "rope_temperature": 10_000.0 if rope == "mixed" else float(temperature),
        "rope_grid": one_side(grid) if scaled else 0,
    }


def mlp_ratio_of(hidden_dim: int, embed_dim: int) -> float:
    """The mlp_ratio that gives exactly `hidden_dim`, where a file says that and no ratio.

    Their quotient may lose one when it is multiplied and rounded down again.
    """
    ratio = hidden_dim / embed_dim
    return ratio if int(embed_dim * ratio) == hidden_dim else math.nextafter(ratio, math.inf)
