"""ViTConfig, the numbers that define a Vision Transformer, and the one that a published name means.

Names follow timm: `vit_base_patch16_384` is ViT-B with 16-pixel patches for 384-pixel images,
`deit_tiny_distilled_patch16_224` is DeiT-Ti with a distillation token (architectures.py has them
all). This module does not build networks (model.py) and does not read checkpoints (weights.py).
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from .architectures import PATCH_SIZES as PATCH_SIZES
from .architectures import SIZES as SIZES
from .architectures import architecture
from .errors import ModelError
from .timm_arguments import fields_of
from .timm_arguments import mlp_ratio_of as mlp_ratio_of

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

# Stems (stem.py): pixels of the image along one side of a place in the map they make, and its
# channels.
_STEMS = {"none": (1, 0), "efficientnet_lite2": (32, 208)}

# These values, and no others. Each is said where its field is.
_CHOICES = {
    "qkv": ("fused", "separate"),
    "patch_embed": ("conv", "linear"),
    "stem": tuple(_STEMS),
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
    qkv: Literal["fused", "separate"] = "fused"  # matrices, and how attention is computed
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
    # Convolutions before the patch embedding, which cuts its patches out of what they make (stem.py).
    stem: Literal["none", "efficientnet_lite2"] = "none"
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
    proj_bias: bool = False  # of that projection: timm's towers and EVA's CLIP have one

    def __post_init__(self) -> None:
        self._check_values()
        if self.img_size < self.patch_size:
            raise ModelError(
                f"an image of {self.img_size} pixels has no patch of {self.patch_size}; choose an "
                "image size that is a multiple of the patch size"
            )
        if self.n_patches > _MOST_PATCHES:
            raise ModelError(
                f"an image of {self.img_size} pixels has {self.n_patches:,} patches of "
                f"{self.patch_size}; at most {_MOST_PATCHES:,} are supported"
            )
        stride = _STEMS[self.stem][0]
        if self.stem != "none" and (
            self.in_chans != 3 or self.patch_size % stride or self.img_size % self.patch_size
        ):
            raise ModelError(
                f"the stem {self.stem} takes images of 3 channels, patches of a multiple of {stride} "
                f"pixels, and an image size that is a multiple of the patch size; it is given "
                f"{self.in_chans} channels, {self.patch_size} and {self.img_size} pixels"
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
        if self.proj_bias and not self.proj_dim:
            raise ModelError("proj_bias is true and there is no projection; say its proj_dim")
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
            if type(value) is not int or not least <= value <= most:
                raise ModelError(
                    f"{name} is {value!r}; it must be a whole number, at least {least} and at "
                    f"most {most:,}"
                )
        for name, limit in _NUMBERS.items():
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value <= limit:
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
        """Patches along one side of the image.

        Pixels that fill no patch, at its right and bottom, are not looked at: 6 of 384 where
        patches are of 14, as in SigLIP So400m.
        """
        return self.img_size // self.patch_size

    @property
    def n_patches(self) -> int:
        return self.grid_size**2

    @property
    def map_chans(self) -> int:
        """Channels of what patches are cut out of: the image, or the map that a stem makes of it."""
        return self.in_chans if self.stem == "none" else _STEMS[self.stem][1]

    @property
    def map_patch_size(self) -> int:
        """The side of a patch in that: `patch_size` is in pixels of the image."""
        return self.patch_size // _STEMS[self.stem][0]

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


def variant(name: str, n_classes: int = 1000) -> ViTConfig:
    """Return the configuration that timm's name stands for, such as `vit_base_patch16_384`.

    Raises ModelError for a name that is not known, with the reason where it is published.
    """
    known = architecture(name)
    return ViTConfig(**fields_of(known.kind, known.arguments | {"num_classes": n_classes}))
