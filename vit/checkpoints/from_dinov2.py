"""DINOv2's own .pth files: the backbone, alone or with its linear head over class token and patches.

    dinov2_vitb14_pretrain.pth             cls_token, blocks.0. ...
    torch.hub's dinov2_vitb14_lc           backbone.cls_token, ... and linear_head.weight

What tensors do not show is one for all of them (facebookresearch/dinov2, hubconf.py): images of 224
pixels, for which the positions of 518 are resampled, without antialiasing and scaled by 0.1 more
than the grid, or with it and exactly where there are registers.
"""

from vit.config import ViTConfig, mlp_ratio_of
from vit.errors import ModelError
from vit.preprocess import preset

from .bundle import ModelSpec
from .layouts import State, fold_class_position
from .tensor_names import rename

_IMG_SIZE = 224
# embed_dim, depth: n_heads (Oquab et al. 2023, arXiv:2304.07193, table 16)
_HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1536, 40): 24}
_NAMES = [
    (r"register_tokens", "reg_token"),
    (r"(blocks\.\d+\.mlp)\.w12\.(\w+)", r"\1.fc1.\2"),  # gate and value of a SwiGLU
    (r"(blocks\.\d+\.mlp)\.w3\.(\w+)", r"\1.fc2.\2"),
    (r"linear_head\.(\w+)", r"head.\1"),
    (r"(cls_token|pos_embed|patch_embed\.proj\.\w+|norm\.\w+)", r"\1"),
    (r"(blocks\.\d+\.(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12]|ls[12])\.\w+)", r"\1"),
]


def is_dinov2(state: State) -> bool:
    names = {name.removeprefix("backbone.") for name in state}
    return {"mask_token", "pos_embed", "blocks.0.ls1.gamma"} <= names


def from_dinov2(state: State) -> State:
    """Rename to ours. Raises ModelError for a tensor that DINOv2 has not."""
    state = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
    del state["mask_token"]  # of training
    state = rename(state, _NAMES)
    return fold_class_position(state) if "reg_token" in state else state


def dinov2_spec(state: State) -> ModelSpec:
    """Describe it from its converted tensors. Raises ModelError for what is not published."""
    dim, in_chans, patch_size, _ = state["patch_embed.proj.weight"].shape
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    if (dim, depth) not in _HEADS:
        raise ModelError(
            f"width {dim} and depth {depth} are no size of DINOv2, so the number of heads cannot "
            "be known; save it with timm or transformers, whose config files say it"
        )
    n_classes, n_features = state["head.weight"].shape if "head.weight" in state else (0, 0)
    if n_features not in (0, 2 * dim):
        raise ModelError(
            f"DINOv2's linear head reads {n_features} features, which are of several layers; the "
            f"one of the last layer, with {2 * dim}, is supported"
        )
    is_swiglu = "blocks.0.mlp.fc1_g.weight" in state
    has_registers = "reg_token" in state
    config = ViTConfig(
        img_size=_IMG_SIZE,
        patch_size=patch_size,
        in_chans=in_chans,
        n_classes=n_classes,
        embed_dim=dim,
        depth=depth,
        n_heads=_HEADS[dim, depth],
        mlp_ratio=mlp_ratio_of(state["blocks.0.mlp.fc2.weight"].shape[1], dim),
        mlp="swiglu" if is_swiglu else "gelu",
        layer_scale=True,
        reg_tokens=state["reg_token"].shape[1] if has_registers else 0,
        pos_embed="patches" if has_registers else "all",
        pool="token_avg" if n_classes else "token",
    )
    resampling = "antialiased" if has_registers else "offset"
    return ModelSpec(config, preset("deit", _IMG_SIZE), pos_resampling=resampling)
