"""The names that origins give their tensors -> ours, which are timm's.

transformers' are in transformers_tensors.py, open_clip's in from_open_clip.py.
"""

import re

from torch import Tensor

from vit.errors import ModelError

from .layouts import State

# Each origin's names, as (pattern, ours) pairs; the first pattern that matches the whole name wins.
TORCHVISION = [
    (r"class_token", "cls_token"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"conv_proj\.(\w+)", r"patch_embed.proj.\1"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    (
        r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(\w+)",
        r"blocks.\1.attn.qkv.\2",
    ),
    (
        r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(\w+)",
        r"blocks.\1.attn.proj.\2",
    ),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.ln\.(\w+)", r"norm.\1"),
    (r"heads\.head\.(\w+)", r"head.\1"),
]
_ENCODER_BLOCK = r"Transformer/encoderblock_(\d+)/"
GOOGLE = [
    (r"cls", "cls_token"),
    (r"Transformer/posembed_input/pos_embedding", "pos_embed"),
    (r"embedding/(\w+)", r"patch_embed.proj.\1"),
    (_ENCODER_BLOCK + r"LayerNorm_0/(\w+)", r"blocks.\1.norm1.\2"),
    (_ENCODER_BLOCK + r"LayerNorm_2/(\w+)", r"blocks.\1.norm2.\2"),
    (
        _ENCODER_BLOCK + r"MultiHeadDotProductAttention_1/([qkv])(?:uery|ey|alue)/(\w+)",
        r"blocks.\1.attn.\2.\3",
    ),
    (_ENCODER_BLOCK + r"MultiHeadDotProductAttention_1/out/(\w+)", r"blocks.\1.attn.proj.\2"),
    (_ENCODER_BLOCK + r"MlpBlock_3/Dense_0/(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (_ENCODER_BLOCK + r"MlpBlock_3/Dense_1/(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"Transformer/encoder_norm/(\w+)", r"norm.\1"),
    (r"head/(\w+)", r"head.\1"),
]


def rename(state: State, pairs: list[tuple[str, str]]) -> State:
    renamed: State = {}
    for name, tensor in state.items():
        for pattern, ours in pairs:
            if re.fullmatch(pattern, name):
                renamed[re.sub(pattern, ours, name)] = tensor
                break
        else:
            raise ModelError(
                f"the checkpoint has a tensor {name!r} that a plain Vision Transformer has not"
            )
    return renamed


def from_flax(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Reorder one Google (Flax) tensor: kernels are stored inputs first, heads apart."""
    if name == "embedding/kernel":
        tensor = tensor.permute(3, 2, 0, 1)  # [P, P, C, D] -> [D, C, P, P]
    elif name.endswith("out/kernel"):
        tensor = tensor.flatten(0, 1).T  # [h, D/h, D] -> [D, D]
    elif name.endswith("kernel"):
        tensor = tensor.flatten(1).T  # [D, h, D/h] -> [D, D], or [in, out] -> [out, in]
    elif "MultiHeadDotProductAttention" in name:
        tensor = tensor.flatten()  # bias [h, D/h] -> [D]
    return re.sub(r"(kernel|scale)$", "weight", name), tensor
