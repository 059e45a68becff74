"""ViTConfig, the numbers that define a Vision Transformer, and the table of published variants.

Names follow timm: `vit_base_patch16_384` is ViT-B with 16-pixel patches for 384-pixel images,
`deit_tiny_distilled_patch16_224` is DeiT-Ti with a distillation token. This module does not build
networks (model.py) and does not read checkpoints (weights.py).
"""

import re
from dataclasses import dataclass
from typing import Literal

from .errors import ModelError

# Far above any Vision Transformer: a configuration that lies must cost neither time nor memory.
_MOST = {
    "img_size": 16_384,
    "patch_size": 16_384,
    "in_chans": 1024,
    "n_classes": 10_000_000,
    "embed_dim": 65_536,
    "depth": 1024,
    "n_heads": 65_536,
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
    n_classes: int = 1000
    embed_dim: int = 768
    depth: int = 12
    n_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    distilled: bool = False  # a distillation token with a head of its own (DeiT, section 4)
    norm_eps: float = 1e-6
    qkv: Literal["fused", "separate"] = "fused"
    patch_embed: Literal["conv", "linear"] = "conv"
    pos_drop: float = 0.0  # after the position embedding
    proj_drop: float = 0.0  # after the attention projection and inside the MLP
    attn_drop: float = 0.0  # on the attention probabilities
    drop_path: float = 0.0  # stochastic depth: rate of the last block, rising linearly from 0

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= most:
                raise ModelError(
                    f"{name} is {value!r}; it must be a whole number, at least 1 and at most "
                    f"{most:,}"
                )
        for name, limit in (("mlp_ratio", 64), ("norm_eps", 1)):
            if (
                not isinstance(getattr(self, name), int | float)
                or not 0 < getattr(self, name) <= limit
            ):
                raise ModelError(
                    f"{name} is {getattr(self, name)!r}; it must be a number above 0, at most "
                    f"{limit}"
                )
        if self.img_size % self.patch_size:
            raise ModelError(
                f"an image of {self.img_size} pixels cannot be cut into patches of "
                f"{self.patch_size}; choose an image size that is a multiple of the patch size"
            )
        if self.embed_dim % self.n_heads:
            raise ModelError(
                f"embed_dim {self.embed_dim} cannot be split over {self.n_heads} heads; it must "
                "be a multiple of n_heads"
            )
        for name, choices in (("qkv", ("fused", "separate")), ("patch_embed", ("conv", "linear"))):
            if getattr(self, name) not in choices:
                raise ModelError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}"
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
        """Tokens before the patches: the class token, and the distillation token if there is one."""
        return 2 if self.distilled else 1

    @property
    def n_feature_tokens(self) -> int:
        """Tokens whose final states are an image's features: those before the patches."""
        return self.n_prefix_tokens

    @property
    def n_features(self) -> int:
        return self.n_feature_tokens * self.embed_dim

    @property
    def n_tokens(self) -> int:
        return self.n_prefix_tokens + self.n_patches

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.n_heads


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
