"""The tensors of transformers' Vision Transformers -> ours.

Read are the names on disk, which are those of transformers 4, and the names that transformers 5 has
in memory; with the prefix of a whole model (`vit.`, `vision_model.`) or without.
"""

import math
import re

import torch

from vit.errors import ModelError

from .layouts import State, fold_class_position
from .tensor_names import rename

# How a model calls the part that is a Vision Transformer.
_PREFIX = re.compile(r"(vit|deit|dinov2|dinov2_with_registers|vision_model)\.")
# A text tower and what compares the two; what only training with masked patches or a head of
# another kind (over the first token, with tanh) uses; and numbers that count the tokens.
_LEFT_OUT = re.compile(
    r"(text_model|text_projection)\..*|logit_scale|logit_bias|pooler\.dense\.\w+"
    r"|embeddings\.(mask_token|position_ids)"
)
_LAYER = r"(?:encoder\.)?layers?\.(\d+)\."
_NAMES = [
    (r"embeddings\.(?:cls_token|class_embedding)", "cls_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embedding(?:s|\.weight)", "pos_embed"),
    (
        r"embeddings\.patch_embedding(?:s\.projection)?\.(weight|bias)",
        r"patch_embed.proj.\1",
    ),
    (
        _LAYER + r"attention\.(?:attention\.([qkv])(?:uery|ey|alue)|([qkv])_proj)\.(\w+)",
        r"blocks.\1.attn.\2\3.\4",
    ),
    (_LAYER + r"self_attn\.([qkv])_proj\.(\w+)", r"blocks.\1.attn.\2.\3"),
    (
        _LAYER + r"(?:attention\.(?:output\.dense|o_proj)|self_attn\.out_proj)\.(\w+)",
        r"blocks.\1.attn.proj.\2",
    ),
    (_LAYER + r"(?:intermediate\.dense|mlp\.(?:fc1|weights_in))\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (_LAYER + r"mlp\.gate_proj\.(\w+)", r"blocks.\1.mlp.fc1_g.\2"),
    (_LAYER + r"mlp\.up_proj\.(\w+)", r"blocks.\1.mlp.fc1_x.\2"),
    (
        _LAYER + r"(?:output\.dense|mlp\.(?:fc2|weights_out|down_proj))\.(\w+)",
        r"blocks.\1.mlp.fc2.\2",
    ),
    (_LAYER + r"(?:layernorm_before|(?:layer_)?norm1)\.(\w+)", r"blocks.\1.norm1.\2"),
    (_LAYER + r"(?:layernorm_after|(?:layer_)?norm2)\.(\w+)", r"blocks.\1.norm2.\2"),
    (_LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"pre_layrnorm\.(\w+)", r"norm_pre.\1"),
    (r"(?:post_)?layernorm\.(\w+)", r"norm.\1"),
    (r"head\.probe", "attn_pool.latent"),
    (r"head\.attention\.in_proj_(\w+)", r"attn_pool.qkv.\1"),
    (r"head\.attention\.out_proj\.(\w+)", r"attn_pool.proj.\1"),
    (r"head\.layernorm\.(\w+)", r"attn_pool.norm.\1"),
    (r"head\.mlp\.(fc[12]\.\w+)", r"attn_pool.mlp.\1"),
    (r"visual_projection\.weight", "proj.weight"),
    (r"(?:cls_)?classifier\.(\w+)", r"head.\1"),
    (r"distillation_classifier\.(\w+)", r"head_dist.\1"),
]


def is_transformers(state: State) -> bool:
    return any(
        re.fullmatch(r"(\w+\.)?embeddings\.patch_embedding(s\.projection)?\.weight", name)
        for name in state
    )


def from_transformers(state: State) -> State:
    """Rename and reshape; the projections of queries, keys and values stay apart.

    Raises ModelError for a tensor that no model of these families has.
    """
    stripped = {_PREFIX.sub("", name, count=1) if _PREFIX.match(name) else name: tensor
                for name, tensor in state.items()}  # fmt: skip
    state = rename(
        {name: tensor for name, tensor in stripped.items() if not _LEFT_OUT.fullmatch(name)},
        _NAMES,
    )
    if "head.weight" in state:
        # The heads of CLIP and SigLIP read the mean of the patches: CLIP's from before the last
        # norm. What gives the whole photo's features is saved with them, and not used.
        unused = "norm." if "norm_pre.weight" in state else "attn_pool."
        state = {name: tensor for name, tensor in state.items() if not name.startswith(unused)}
    for kind in ("weight", "bias"):
        if (qkv := state.pop(f"attn_pool.qkv.{kind}", None)) is not None:
            query, *key_value = qkv.chunk(3)
            state[f"attn_pool.q.{kind}"] = query
            state[f"attn_pool.kv.{kind}"] = torch.cat(key_value)
    state = _with_shapes(state)
    if "dist_token" in state and "head_dist.weight" not in state:
        state["reg_token"] = state.pop("dist_token")  # nothing reads it: no more than a register
    return state


def _with_shapes(state: State) -> State:
    """Give the parts before the blocks our shapes."""
    if "cls_token" in state:
        state["cls_token"] = state["cls_token"].reshape(1, 1, -1)  # [D] -> [1, 1, D]
    if "pos_embed" in state:
        width = state["pos_embed"].shape[-1]
        state["pos_embed"] = state["pos_embed"].reshape(1, -1, width)  # [N, D] -> [1, N, D]
    weight = state["patch_embed.proj.weight"]
    if weight.ndim == 2:  # SigLIP 2 takes patches that are cut out already, [P, P, C]
        patch_size = math.isqrt(weight.shape[1] // 3)
        if 3 * patch_size**2 != weight.shape[1]:
            raise ModelError(
                f"the checkpoint's patches have {weight.shape[1]} values, which are no square of "
                "RGB pixels"
            )
        weight = weight.reshape(-1, patch_size, patch_size, 3).permute(0, 3, 1, 2)  # [D, 3, P, P]
        state["patch_embed.proj.weight"] = weight
    if "reg_token" in state:
        state = fold_class_position(state)
        if not state["reg_token"].shape[1]:
            del state["reg_token"]
    return state
