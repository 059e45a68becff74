"""The Vision Transformer, from its parts (Dosovitskiy et al. 2021, arXiv:2010.11929).

    image -> patches -> linear embedding -> class token + position embedding -> encoder -> head

Shapes: B batch, C channels, H W pixels, P patch size, N tokens, D embed_dim, h heads, F features,
K classes.
State-dict keys are those of timm and DeiT (`blocks.0.attn.qkv.weight`). Nothing here knows about
files, class names or pixels' value range.

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


class PatchEmbed(nn.Module):
    """Cut an image into patches and embed each: a convolution whose stride is its kernel."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.proj = nn.Conv2d(config.in_chans, config.embed_dim, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, N, D]"""
        x = self.proj(images)  # [B, D, H/P, W/P]
        return x.flatten(2).transpose(1, 2)  # [B, N, D]


class LinearPatchEmbed(nn.Module):
    """The same map as PatchEmbed, said the other way: cut the patches out, then one linear layer.

    Loads PatchEmbed's weights as they are.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.proj = nn.Linear(config.in_chans * config.patch_size**2, config.embed_dim)
        self.register_load_state_dict_pre_hook(self._flatten_kernel)

    @staticmethod
    def _flatten_kernel(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        key = prefix + "proj.weight"
        if key in state:
            state[key] = state[key].flatten(1)  # [D, C, P, P] -> [D, C*P*P]

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, N, D]"""
        patches = F.unfold(images, self.patch_size, stride=self.patch_size)  # [B, C*P*P, N]
        return self.proj(patches.transpose(1, 2))  # [B, N, D]


class Attention(nn.Module):
    """Multi-head self-attention: softmax(q k^T / sqrt(D/h)) v (Vaswani et al. 2017, section 3.2).

    `qkv="fused"` projects to queries, keys and values with one matrix, "separate" with three; a
    state dict with the fused matrix loads into either.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim, self.n_heads = config.embed_dim, config.n_heads
        self.fused = config.qkv == "fused"
        if self.fused:
            self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias)
        else:
            self.q, self.k, self.v = (nn.Linear(dim, dim, bias=config.qkv_bias) for _ in range(3))
            self.register_load_state_dict_pre_hook(self._split_qkv)
        self.attn_drop = config.attn_drop
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(config.proj_drop)

    @staticmethod
    def _split_qkv(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        for kind in ("weight", "bias"):
            fused = state.pop(f"{prefix}qkv.{kind}", None)
            if fused is not None:
                for name, part in zip("qkv", fused.chunk(3), strict=True):
                    state[f"{prefix}{name}.{kind}"] = part

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, N, D] -> [B, N, D]

        `mask`, bool [B, N]: tokens that are False are not attended to, by any token.
        """
        B, N, D = x.shape
        qkv = self.qkv(x) if self.fused else torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)
        qkv = qkv.view(B, N, 3, self.n_heads, D // self.n_heads)  # [B, N, 3, h, D/h]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, h, N, D/h]
        if mask is not None:
            mask = mask[:, None, None, :]  # [B, 1, 1, N], the same for each head and query
        dropout_p = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout_p
        )  # [B, h, N, D/h]
        x = x.transpose(1, 2).reshape(B, N, D)  # [B, N, D]
        return self.proj_drop(self.proj(x))


class Mlp(nn.Module):
    """Two linear layers with a GELU between, the same for each token."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        hidden_dim = int(config.embed_dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.embed_dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, config.embed_dim)
        self.drop = nn.Dropout(config.proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]"""
        x = self.drop(self.act(self.fc1(x)))  # [B, N, D*mlp_ratio]
        return self.drop(self.fc2(x))  # [B, N, D]


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a residual branch for some images (Huang et al. 2016).

    The others are scaled up, so that the expected value stays.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]"""
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(len(x), 1, 1, device=x.device) >= self.rate  # [B, 1, 1]
        return x * keep / (1 - self.rate)


class Block(nn.Module):
    """One encoder layer: attention, then MLP, each on a normed input and added to the residual."""

    def __init__(self, config: ViTConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.mlp = Mlp(config)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, N, D] -> [B, N, D]; `mask` as in Attention."""
        x = x + self.drop_path(self.attn(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """Image to class logits.

    Takes a ViTConfig, its fields as keywords, or both:
    `VisionTransformer(img_size=384, patch_size=16, n_classes=1000)`.

    The class token's final state goes to the head; a distilled DeiT averages the logits of its
    class and distillation heads, as DeiT does at test time (arXiv:2012.12877, section 4).
    """

    def __init__(self, config: ViTConfig | None = None, **fields: Any) -> None:
        super().__init__()
        self.config = config = replace(config or ViTConfig(), **fields)
        dim = config.embed_dim
        self.patch_embed = (
            PatchEmbed(config) if config.patch_embed == "conv" else LinearPatchEmbed(config)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.n_tokens, dim))
        self.pos_drop = nn.Dropout(config.pos_drop)
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.head = nn.Linear(dim, config.n_classes)
        if config.distilled:
            self.head_dist = nn.Linear(dim, config.n_classes)
        self._init_weights()

    def _init_weights(self) -> None:
        """Truncated normal, std 0.02, zero biases (as DeiT); PatchEmbed keeps torch's own."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias") and not name.startswith("patch_embed"):
                nn.init.zeros_(parameter)
            elif name.endswith(("_token", "pos_embed")) or (
                parameter.ndim == 2 and not name.startswith("patch_embed")
            ):
                nn.init.trunc_normal_(parameter, std=0.02)

    def embed(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> tokens with position embedding [B, N, D], prefix tokens first."""
        x = self.patch_embed(images)  # [B, N - prefix, D]
        prefix = [self.cls_token, self.dist_token] if self.config.distilled else [self.cls_token]
        x = torch.cat([token.expand(len(x), -1, -1) for token in prefix] + [x], dim=1)  # [B, N, D]
        return self.pos_drop(x + self.pos_embed)

    def forward(self, images: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> logits [B, K]; `patch_mask` as in forward_features."""
        return self.forward_head(self.forward_features(images, patch_mask))

    def forward_features(self, images: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> tokens after the last norm [B, N, D]

        `patch_mask`, bool [B, patches]: a patch that is False does not influence the others.
        """
        mask = None
        if patch_mask is not None:
            mask = F.pad(patch_mask, (self.config.n_prefix_tokens, 0), value=True)  # [B, N]
        return self._encode(self.embed(images), mask)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens as forward_features gives them [B, N, D] -> logits [B, K], or features [B, F].

        Features are the class token, F = D; a distilled DeiT's are the class and the distillation
        token, F = 2D: each has a head of its own, so one mean of both (timm's) would not do.
        """
        if pre_logits:
            return x[:, : self.config.n_feature_tokens].flatten(1)  # [B, F]
        if self.config.distilled:
            return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2  # [B, K]
        return self.head(x[:, 0])  # [B, K]

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens as `embed` makes them [B, N, D] -> logits [B, K]; `mask` as in Attention.

        Training may leave patch tokens out between the two; prefix tokens always come first.
        """
        return self.forward_head(self._encode(x, mask))

    def _encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, N, D] -> [B, N, D]: the blocks and the last norm."""
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


class Backbone(nn.Module):
    """Image to features: a VisionTransformer but for its head (head.py)."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> features [B, F]"""
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)

    def on(self, device: torch.device, dtype: torch.dtype) -> "Backbone":
        """This backbone on a device, in a precision; a copy, unless it is there already.

        Moving it in place would take the weights from everybody else who holds the model.
        """
        if all(p.device == device and p.dtype == dtype for p in self.model.parameters()):
            return self
        copied = deepcopy(self)
        del copied.model.head
        if copied.model.config.distilled:
            del copied.model.head_dist
        return copied.to(device, dtype)
