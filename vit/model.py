"""The Vision Transformer, from its parts (Dosovitskiy et al. 2021, arXiv:2010.11929).

    image -> patches -> linear embedding -> class token + position embedding -> encoder -> pool -> head

Patches and their embedding are patch_embed.py's, the encoder's blocks encoder.py's. What later
networks added stands where timm has it, under timm's names: registers, `norm_pre`, layer scale, norms
inside a block, SwiGLU, rotary positions (rotary.py), other pools (pooling.py). Some have convolutions
before the patches (stem.py).

Shapes: B batch, C channels, H W pixels, P patch size, N tokens, D embed_dim, h heads, F features,
K classes.
State-dict keys are those of timm and DeiT (`blocks.0.attn.qkv.weight`); where timm has several
layouts of one layer there is one here, and weights.py brings the others into it. Nothing here knows
about files, class names or pixels' value range.

Where the usual write-ups slip, this does it right: attention is scaled before the softmax, not
after it; the class token is one token, not one a patch; nothing is added to a parameter in place.
"""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ViTConfig
from .encoder import Block, Mlp, layer_norm
from .patch_embed import LinearPatchEmbed, PatchEmbed
from .pooling import AttentionPool
from .rotary import RotaryPositions
from .stem import Stem


class VisionTransformer(nn.Module):
    """Image to class logits.

    Takes a ViTConfig, its fields as keywords, or both:
    `VisionTransformer(img_size=384, patch_size=16, n_classes=1000)`.

    The pooled tokens are the features, which go to the head; a distilled DeiT averages the logits
    of its class and distillation heads, as DeiT does at test time (arXiv:2012.12877, section 4).
    """

    def __init__(self, config: ViTConfig | None = None, **fields: Any) -> None:
        super().__init__()
        self.config = config = replace(config or ViTConfig(), **fields)
        dim = config.embed_dim
        self.stem = Stem() if config.stem != "none" else None
        self.patch_embed = (
            PatchEmbed(config) if config.patch_embed == "conv" else LinearPatchEmbed(config)
        )
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.reg_tokens:
            self.reg_token = nn.Parameter(torch.zeros(1, config.reg_tokens, dim))
        if config.pos_embed != "none":
            n_positions = config.n_pos_prefix + config.n_patches
            self.pos_embed = nn.Parameter(torch.zeros(1, n_positions, dim))
        self.pos_drop = nn.Dropout(config.pos_drop)
        self.rope = RotaryPositions(config) if config.rope != "none" else None
        self.norm_pre = layer_norm(config, present=config.norm_pre)
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = layer_norm(config, present=config.final_norm == "tokens")
        self.attn_pool = None
        if config.pool in ("map", "map_all"):
            self.attn_pool = AttentionPool(config, Mlp(replace(config, mlp_norm=False)))
        self.fc_norm = layer_norm(config, present=config.final_norm == "pooled")
        self.proj: nn.Module = nn.Identity()
        if config.proj_dim:
            self.proj = nn.Linear(dim, config.proj_dim, bias=config.proj_bias)
        self.head = self._linear_head()
        self.head_dist = self._linear_head() if config.distilled else None
        self._init_weights()

    def _linear_head(self) -> nn.Module:
        """One for the features, or for each of a distilled network's tokens."""
        n_features = self.config.embed_dim if self.config.distilled else self.config.n_features
        return (
            nn.Linear(n_features, self.config.n_classes) if self.config.n_classes else nn.Identity()
        )

    def _init_weights(self) -> None:
        """Truncated normal, std 0.02, zero biases (as DeiT); PatchEmbed keeps torch's own."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias") and not name.startswith("patch_embed"):
                nn.init.zeros_(parameter)
            elif name.endswith(("_token", "pos_embed", "latent")) or (
                parameter.ndim == 2 and not name.startswith("patch_embed")
            ):
                nn.init.trunc_normal_(parameter, std=0.02)

    def embed(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> tokens with position embedding [B, N, D], prefix tokens first."""
        config = self.config
        x = images if self.stem is None else self.stem(images)  # [B, C, H, W], of the map
        x = self.patch_embed(x)  # [B, N - prefix, D]
        if config.pos_embed == "patches":
            x = x + self.pos_embed
        prefix = [self.cls_token] if config.class_token else []
        prefix += [self.dist_token] if config.distilled else []
        prefix += [self.reg_token] if config.reg_tokens else []
        x = torch.cat(
            [token.expand(x.shape[0], -1, -1) for token in prefix] + [x], dim=1
        )  # [B, N, D]
        if config.pos_embed == "all":
            x = x + self.pos_embed
        return self.norm_pre(self.pos_drop(x))

    def forward(self, images: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> logits [B, K]; `patch_mask` as in forward_features."""
        tokens = self.forward_features(images, patch_mask)
        return self.forward_head(tokens, patch_mask=patch_mask)

    def forward_features(self, images: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> tokens after the last norm [B, N, D]

        `patch_mask`, bool [B, patches]: a patch that is False does not influence the others. Raises
        ValueError where there is a stem, whose convolutions would let it.
        """
        if patch_mask is not None and self.stem is not None:
            raise ValueError("a network with a stem takes no patch_mask")
        return self._encode(self.embed(images), self._token_mask(patch_mask))

    def forward_head(
        self, x: Tensor, pre_logits: bool = False, patch_mask: Tensor | None = None
    ) -> Tensor:
        """Tokens as forward_features gives them [B, N, D] -> logits [B, K], or features [B, F].

        A distilled DeiT's features are the class and the distillation token, F = 2D: each has a
        head of its own, so one mean of both (timm's) would not do. `patch_mask`: what is pooled.
        """
        if not pre_logits and self.head_dist is not None:
            return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2  # [B, K]
        features = self.proj(self.fc_norm(self._pool(x, self._token_mask(patch_mask))))  # [B, F]
        return features if pre_logits else self.head(features)  # [B, K]

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens as `embed` makes them [B, N, D] -> logits [B, K]; `mask` as in Attention.

        Training may leave patch tokens out between the two; prefix tokens always come first.
        """
        patch_mask = None if mask is None else mask[:, self.config.n_prefix_tokens :]
        return self.forward_head(self._encode(x, mask), patch_mask=patch_mask)

    def _encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, N, D] -> [B, N, D]: the blocks and the last norm."""
        turns = self.rope(x.device) if self.rope is not None else [None] * len(self.blocks)
        for block, block_turns in zip(self.blocks, turns, strict=True):
            x = block(x, mask, block_turns)
        return self.norm(x)

    def _token_mask(self, patch_mask: Tensor | None) -> Tensor | None:
        """[B, patches] -> [B, N]: prefix tokens are never masked."""
        if patch_mask is None:
            return None
        return F.pad(patch_mask, (self.config.n_prefix_tokens, 0), value=True)

    def _pool(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, N, D] -> [B, D], or two of them side by side [B, 2D]. `mask`, bool [B, N]."""
        pool = self.config.pool
        if pool == "token":
            return x[:, : 2 if self.config.distilled else 1].flatten(1)
        n_left_out = 0 if pool.endswith("_all") else self.config.n_prefix_tokens
        tokens, mask = x[:, n_left_out:], None if mask is None else mask[:, n_left_out:]
        if self.attn_pool is not None:
            return self.attn_pool(tokens, mask)
        if mask is None:
            mean = tokens.mean(dim=1)
        else:
            mean = (tokens * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return torch.cat([x[:, 0], mean], dim=1) if pool == "token_avg" else mean


def without_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A VisionTransformer's tensors but for those of its head, or heads."""
    is_head = ("head.", "head_dist.")
    return {name: tensor for name, tensor in state.items() if not name.startswith(is_head)}


class Backbone(nn.Module):
    """Image to features: a VisionTransformer but for its head (head.py)."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> features [B, F]"""
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)

    def in_steps(self) -> "Backbone":
        """This backbone with the steps of attention written out, and queries, keys and values by
        matrices of their own: OpenVINO runs that faster.

        The weights are the same tensors, not copies.
        """
        with torch.device("meta"):
            model = VisionTransformer(replace(self.model.config, qkv="separate", n_classes=0))
        model.load_state_dict(without_head(self.model.state_dict()), assign=True)
        return Backbone(model).eval().requires_grad_(False)

    def on(self, device: torch.device, dtype: torch.dtype) -> "Backbone":
        """This backbone on a device, in a precision; a copy, unless it is there already.

        Moving it in place would take the weights from everybody else who holds the model.
        """
        if all(p.device == device and p.dtype == dtype for p in self.model.parameters()):
            return self
        copied = deepcopy(self)
        del copied.model.head
        del copied.model.head_dist
        return copied.to(device, dtype)
