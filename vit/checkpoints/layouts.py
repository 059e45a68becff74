"""One layer, several layouts: what timm and others store differently, as the network has it.

Queries, keys and values are one matrix (`attn.qkv`), a SwiGLU's gate and value two (`fc1_g` and
`fc1_x`). Names are ours already, but for those of timm's EVA.
"""

import re

import torch
from torch import Tensor

from vit.errors import ModelError

State = dict[str, Tensor]

# timm's EVA has names of its own for layers that its other Vision Transformers have too.
_EVA = [
    (r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma"),
    (r"^(blocks\.\d+\.attn)\.([qkv])_proj\.(\w+)$", r"\1.\2.\3"),
    (r"^(blocks\.\d+\.attn)\.([qv])_bias$", r"\1.\2.bias"),
]


def from_eva(state: State) -> State:
    """timm's EVA -> timm's VisionTransformer. Its keys have no bias, ours then one of zeros."""
    renamed: State = {}
    for name, tensor in state.items():
        ours = name
        for pattern, replacement in _EVA:
            ours = re.sub(pattern, replacement, ours)
        renamed[ours] = tensor
        if ours != name and ours.endswith(".attn.q.bias"):
            renamed.setdefault(ours.replace(".q.", ".k."), torch.zeros_like(tensor))
    return renamed


def head_to_projection(state: State) -> State:
    """The last layer of timm's CLIP towers, a head by its name, is the projection of the features."""
    return {
        f"proj.{name.removeprefix('head.')}" if name.startswith("head.") else name: tensor
        for name, tensor in state.items()
    }


def fuse_qkv(state: State) -> State:
    """Join the separate query, key and value projections of each block into `attn.qkv`."""
    fused = dict(state)
    for name in state:
        if match := re.fullmatch(r"(blocks\.\d+\.attn)\.q\.(weight|bias)", name):
            block, kind = match.groups()
            try:
                fused[f"{block}.qkv.{kind}"] = torch.cat(
                    [fused.pop(f"{block}.{part}.{kind}") for part in "qkv"]
                )
            except KeyError as missing:
                raise ModelError(f"the checkpoint has {name} but no {missing}") from missing
    return fused


def split_swiglu(state: State) -> State:
    """Part a SwiGLU's packed gate and value (`fc1`) into `fc1_g` and `fc1_x`.

    A packed one is known by its shape: twice as much comes out of it as goes into `fc2`.
    """
    split = dict(state)
    for name in state:
        match = re.fullmatch(r"(blocks\.\d+\.mlp)\.fc1\.(weight|bias)", name)
        fc2 = state.get(f"{match[1]}.fc2.weight") if match else None
        if match and fc2 is not None and len(state[name]) == 2 * fc2.shape[-1]:
            gate, value = split.pop(name).chunk(2)
            split[f"{match[1]}.fc1_g.{match[2]}"] = gate
            split[f"{match[1]}.fc1_x.{match[2]}"] = value
    return split


def fold_class_position(state: State) -> State:
    """Add the class token's position to it, which then is the patches' alone.

    DINOv2 puts its registers between class token and patches after positions were added: they have
    none.
    """
    positions = state["pos_embed"].float()  # [1, 1 + patches, D]
    return state | {
        "cls_token": state["cls_token"].float() + positions[:, :1],
        "pos_embed": positions[:, 1:],
    }
