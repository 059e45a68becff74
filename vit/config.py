"""ViTConfig, the numbers that define a Vision Transformer, and the table of published variants.

Names follow timm: `vit_base_patch16_384` is ViT-B with 16-pixel patches for 384-pixel images,
`deit_tiny_distilled_patch16_224` is DeiT-Ti with a distillation token. This module does not build
networks (model.py) and does not read checkpoints (weights.py).
"""

import math
import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from .errors import ModelError

# Far above any Vision Transformer: a configuration that lies must cost neither time nor memory.
# Name: least, most.
_WHOLE_NUMBERS = {
    "img_size": (1, 16_384),
    "patch_size": (1, 16_384),
    "in_chans": (1, 1024),
    "n_classes": (0, 10_000_000),
    "embed_dim": (1, 65_536),
    "depth": (1, 1024),
    "n_heads": (1, 65_536),
    "reg_tokens": (0, 1024),
    "rope_grid": (0, 16_384),
    "proj_dim": (0, 65_536),
}
_NUMBERS = {"mlp_ratio": 64, "norm_eps": 1, "rope_temperature": 1e9}  # above 0, at most this
_MOST_PATCHES = 256**2  # attention over more would take days an image

# These values, and no others. Each is said where its field is.
_CHOICES = {
    "qkv": ("fused", "separate"),
    "patch_embed": ("conv", "linear"),
    "pos_embed": ("all", "patches", "none"),
    "mlp": ("gelu", "gelu_tanh", "quick_gelu", "swiglu"),
    "rope": ("none", "eva02", "axial", "mixed", "dinov3"),
    "pool": ("token", "avg", "avg_all", "map", "map_all", "token_avg"),
    "final_norm": ("tokens", "pooled", "none"),
}


@dataclass(frozen=True)
class ViTConfig:
    """Everything that fixes a VisionTransformer's shapes and behaviour.

    The defaults are ViT-B/16 at 384 pixels (Dosovitskiy et al. 2021, table 1). Dropout rates act
    in training mode only and are the one part that does not change a prediction.
    """

    img_size: int = 384
    patch_size: int = 16
    in_chans: int = 3
    n_classes: int = 1000  # 0: no head, the network ends in its features
    embed_dim: int = 768
    depth: int = 12
    n_heads: int = 12
    mlp_ratio: float = 4.0  # of the MLP's hidden size to embed_dim; see mlp_ratio_of
    qkv_bias: bool = True
    distilled: bool = False  # a distillation token with a head of its own (DeiT, section 4)
    norm_eps: float = 1e-6
    qkv: Literal["fused", "separate"] = "fused"
    patch_embed: Literal["conv", "linear"] = "conv"
    pos_drop: float = 0.0  # after the position embedding
    proj_drop: float = 0.0  # after the attention projection and inside the MLP
    attn_drop: float = 0.0  # on the attention probabilities
    drop_path: float = 0.0  # stochastic depth: rate of the last block, rising linearly from 0

    # What came after the first Vision Transformer. At their defaults these are left out of
    # `record`.
    # Tokens: which stand before the patches, and which of all have a learned position.
    class_token: bool = True
    reg_tokens: int = 0  # registers, after the class token (Darcet et al. 2024)
    pos_embed: Literal["all", "patches", "none"] = "all"
    # Pixels right of and below the last whole patch are left out (SigLIP's 384 of 14). Else the image
    # must be whole patches.
    crops_to_patches: bool = False
    # A norm before the blocks; the patch embedding then has no bias (CLIP).
    norm_pre: bool = False
    # Blocks.
    layer_scale: bool = False  # a factor a channel on both branches (Touvron et al. 2021, CaiT)
    post_norm: bool = False  # x + norm(f(x)) instead of x + f(norm(x))
    qk_norm: bool = False  # of queries and keys, head by head
    attn_norm: bool = False  # of what the heads give, before its projection (NormFormer, BEiT-3)
    mlp_norm: bool = False  # of the hidden layer, before its projection (the same, and EVA-02)
    mlp: Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"] = "gelu"
    # Rotary positions: rows before columns in a head's dimensions (EVA-02), columns before rows
    # (RoPE-ViT), both mixed with frequencies that were learned (RoPE-ViT), or DINOv3's.
    rope: Literal["none", "eva02", "axial", "mixed", "dinov3"] = "none"
    rope_temperature: float = 10_000.0
    rope_grid: int = 0  # patches along one side that positions are scaled to; 0: they are counted
    # Features: the class token, the mean of the patches ("avg_all": of all tokens), what a learned
    # query attends to among them ("map", "map_all"), or token and mean side by side (DINOv2).
    pool: Literal["token", "avg", "avg_all", "map", "map_all", "token_avg"] = "token"
    final_norm: Literal["tokens", "pooled", "none"] = "tokens"  # timm's norm, or its fc_norm
    proj_dim: int = 0  # features are projected to so many dimensions (CLIP's towers); 0: are not

    def __post_init__(self) -> None:
        self._check_values()
        if self.img_size < self.patch_size or (
            self.img_size % self.patch_size and not self.crops_to_patches
        ):
            raise ModelError(
                f"an image of {self.img_size} pixels cannot be cut into patches of "
                f"{self.patch_size}; choose an image size that is a multiple of the patch size"
            )
        if self.n_patches > _MOST_PATCHES:
            raise ModelError(
                f"an image of {self.img_size} pixels has {self.n_patches:,} patches of "
                f"{self.patch_size}; at most {_MOST_PATCHES:,} are supported"
            )
        if self.embed_dim % self.n_heads:
            raise ModelError(
                f"embed_dim {self.embed_dim} cannot be split over {self.n_heads} heads; it must "
                "be a multiple of n_heads"
            )
        if self.rope != "none" and self.head_dim % 4:
            raise ModelError(
                f"rotary positions take heads of a multiple of 4 dimensions, not {self.head_dim}; "
                "correct embed_dim or n_heads"
            )
        if self.pool in ("token", "token_avg") and not self.class_token:
            raise ModelError(
                f"pool {self.pool!r} takes the class token, and class_token is false; choose "
                "avg, avg_all, map or map_all"
            )
        if self.distilled and (
            self.pool != "token" or self.reg_tokens or self.proj_dim or not self.class_token
            or self.final_norm == "pooled"
        ):  # fmt: skip
            raise ModelError(
                "a distilled network's features are its class and distillation tokens: it has no "
                "other pool, no registers, no norm after pooling and no projection"
            )

    def _check_values(self) -> None:
        """Each field by itself."""
        for name, (least, most) in _WHOLE_NUMBERS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value <= most:
                raise ModelError(
                    f"{name} is {value!r}; it must be a whole number, at least {least} and at "
                    f"most {most:,}"
                )
        for name, limit in _NUMBERS.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value <= limit:
                raise ModelError(
                    f"{name} is {value!r}; it must be a number above 0, at most {limit:,.0f}"
                )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ModelError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}"
                )
        for field in fields(self):
            if isinstance(field.default, bool) and not isinstance(getattr(self, field.name), bool):
                raise ModelError(
                    f"{field.name} is {getattr(self, field.name)!r}; it is true or false"
                )

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image."""
        return self.img_size // self.patch_size

    @property
    def n_patches(self) -> int:
        return self.grid_size**2

    @property
    def n_prefix_tokens(self) -> int:
        """Tokens before the patches: the class token, then a distillation token or registers."""
        return self.class_token + self.distilled + self.reg_tokens

    @property
    def n_pos_prefix(self) -> int:
        """Of those, how many have a position."""
        return self.n_prefix_tokens if self.pos_embed == "all" else 0

    @property
    def n_features(self) -> int:
        """The length of an image's features: F in what follows."""
        side_by_side = 2 if self.distilled or self.pool == "token_avg" else 1
        return self.proj_dim or side_by_side * self.embed_dim

    @property
    def n_tokens(self) -> int:
        return self.n_prefix_tokens + self.n_patches

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.n_heads

    @property
    def hidden_dim(self) -> int:
        """The MLP's hidden size, rounded down as timm does it."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def record(self) -> dict[str, Any]:
        """The fields as written to a file. Those added later stand there where they differ.

        So older versions read what they can build, and the fingerprint of a plain Vision
        Transformer stays what it was.
        """
        later = [field.name for field in fields(self)]
        later = later[later.index("class_token") :]
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in later or value != getattr(ViTConfig, name)
        }


def mlp_ratio_of(hidden_dim: int, embed_dim: int) -> float:
    """The mlp_ratio that gives exactly `hidden_dim`, where a file says that and no ratio.

    Their quotient may lose one when it is multiplied and rounded down again (as 3 * (1 / 3) might).
    """
    ratio = hidden_dim / embed_dim
    return ratio if int(embed_dim * ratio) == hidden_dim else math.nextafter(ratio, math.inf)


# size: embed_dim, depth, n_heads. B, L and H: Dosovitskiy et al. 2021 (arXiv:2010.11929), table 1.
# Ti and S: Touvron et al. 2021 (arXiv:2012.12877), table 1. Every one has mlp_ratio 4.
SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
PATCH_SIZES = (8, 14, 16, 32)

_VARIANT = re.compile(
    r"(?P<family>vit|deit)_(?P<size>tiny|small|base|large|huge)(?P<distilled>_distilled)?"
    r"_patch(?P<patch>\d+)_(?P<img>\d+)(\.[\w.]+)?"  # a timm tag such as .augreg_in21k may follow
)

# Published families that are not plain Vision Transformers of the sizes above, by timm's names (a
# size such as so400m may stand in the middle), and what in them this tool does not build. The first
# that fits says it.
_OTHER_FAMILIES = [
    (r"deit3_", "has layer scale, and a position embedding without the class token"),
    (r"beit|eva|vit_7b|.*dinov3", "has layer scale or another MLP, and relative or rotary positions"),
    (r"cait|xcit|vitamin|vit_5b|.*(sapiens|radio)", "has parts of its own"),
    (r"vit_s?relpos_|.*_rope_", "has relative or rotary positions instead of an embedding"),
    (r".*(dinov2|tipsv2|lingbot|intern300m)", "has layer scale"),
    (r".*_reg\d", "has register tokens"),
    (r".*siglip|.*_map(_|$)", "pools by attention instead of taking a class token"),
    (r".*_clip_|vit_pe_", "has a norm before the blocks, or another activation"),
    (r".*_gap_|.*_mci_|flexivit|naflexvit|samvit|test_vit", "averages its patches, or has no class token's position"),
    (r"vit_\w+_(r\d*_s\d+|resnet\d+)", "has a ResNet before its blocks"),
    (r".*_(rpn|xp|\d+x\d+)_", "has blocks of another kind"),
    (r".*_miil", "has other arguments than its name says"),
    (r"vit_(giant|gigantic|medium|little|xsmall|[a-z]*wee|betwixt|so\d+m|\w+_plus)", "has a size of its own"),
]  # fmt: skip


def variant(name: str, n_classes: int = 1000) -> ViTConfig:
    """Return the configuration that timm's name stands for, such as `vit_base_patch16_384`.

    Raises ModelError for a name that is not of that form, with the reason where it is published.
    """
    match = _VARIANT.fullmatch(name)
    for pattern, reason in () if match else _OTHER_FAMILIES:
        if re.match(pattern, name):
            raise ModelError(
                f"{name!r} is a published Vision Transformer that is not supported: it {reason}, "
                "and this tool builds plain ones of timm's vit_* and deit_* from tiny to huge, "
                "such as vit_base_patch16_224"
            )
    if not name.lower().startswith(("vit", "deit")):
        raise ModelError(
            f"{name!r} is not a Vision Transformer this tool knows, and it labels with no other "
            "networks; choose one of timm's vit_* or deit_*, such as vit_base_patch16_224"
        )
    if (
        not match
        or int(match["patch"]) not in PATCH_SIZES
        or (match["distilled"] and match["family"] == "vit")
    ):
        raise ModelError(
            f"unknown architecture {name!r}; names look like vit_base_patch16_384: "
            f"vit_SIZE_patchP_PIXELS with SIZE one of {', '.join(SIZES)} and P one of "
            f"{', '.join(map(str, PATCH_SIZES))}, or deit_SIZE[_distilled]_patchP_PIXELS"
        )
    embed_dim, depth, n_heads = SIZES[match["size"]]
    return ViTConfig(
        img_size=int(match["img"]),
        patch_size=int(match["patch"]),
        n_classes=n_classes,
        embed_dim=embed_dim,
        depth=depth,
        n_heads=n_heads,
        distilled=match["distilled"] is not None,
    )
