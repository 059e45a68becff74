"""The Vision Transformer, from its parts (Dosovitskiy et al. 2021, arXiv:2010.11929).

    image -> patches -> linear embedding -> class token + position embedding -> encoder -> pool -> head

What later ones added stands where timm has it, under timm's names: registers, `norm_pre`, layer
scale, norms inside a block, SwiGLU, rotary positions (rotary.py), other pools (pooling.py).

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
from .pooling import AttentionPool
from .rotary import RotaryPositions, rotate


def _norm(config: ViTConfig, dim: int | None = None, present: bool = True) -> nn.Module:
    """A LayerNorm, or nothing in its place."""
    dim = config.embed_dim if dim is None else dim
    return nn.LayerNorm(dim, eps=config.norm_eps) if present else nn.Identity()


class PatchEmbed(nn.Module):
    """Cut an image into patches and embed each: a convolution whose stride is its kernel."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.proj = nn.Conv2d(
            config.in_chans, config.embed_dim, patch, stride=patch, bias=not config.norm_pre
        )

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
        n_values = config.in_chans * config.patch_size**2
        self.proj = nn.Linear(n_values, config.embed_dim, bias=not config.norm_pre)
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
        self.config = config
        self.fused = config.qkv == "fused"
        if self.fused:
            self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias)
        else:
            self.q, self.k, self.v = (nn.Linear(dim, dim, bias=config.qkv_bias) for _ in range(3))
            self.register_load_state_dict_pre_hook(self._split_qkv)
        self.q_norm = _norm(config, config.head_dim, present=config.qk_norm)
        self.k_norm = _norm(config, config.head_dim, present=config.qk_norm)
        self.attn_drop = config.attn_drop
        self.norm = _norm(config, present=config.attn_norm)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(config.proj_drop)

    @staticmethod
    def _split_qkv(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        for kind in ("weight", "bias"):
            fused = state.pop(f"{prefix}qkv.{kind}", None)
            if fused is not None:
                for name, part in zip("qkv", fused.chunk(3), strict=True):
                    state[f"{prefix}{name}.{kind}"] = part

    def forward(self, x: Tensor, mask: Tensor | None = None, turns: Tensor | None = None) -> Tensor:
        """[B, N, D] -> [B, N, D]

        `mask`, bool [B, N]: tokens that are False are not attended to, by any token. `turns` are
        this block's rotary positions (rotary.py).
        """
        B, N, D = x.shape
        qkv = self.qkv(x) if self.fused else torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)
        qkv = qkv.view(B, N, 3, self.n_heads, D // self.n_heads)  # [B, N, 3, h, D/h]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, h, N, D/h]
        q, k = self.q_norm(q), self.k_norm(k)
        if turns is not None:
            q, k = rotate(q, turns, self.config), rotate(k, turns, self.config)
        if mask is not None:
            mask = mask[:, None, None, :]  # [B, 1, 1, N], the same for each head and query
        dropout_p = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout_p
        )  # [B, h, N, D/h]
        x = x.transpose(1, 2).reshape(B, N, D)  # [B, N, D]
        return self.proj_drop(self.proj(self.norm(x)))


class QuickGelu(nn.Module):
    """x sigmoid(1.702 x), OpenAI CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Mlp(nn.Module):
    """Two linear layers with a GELU between, the same for each token."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.hidden_dim)
        tanh = config.mlp == "gelu_tanh"  # an approximation too
        self.act: nn.Module = nn.GELU(approximate="tanh" if tanh else "none")
        if config.mlp == "quick_gelu":
            self.act = QuickGelu()
        self.norm = _norm(config, config.hidden_dim, present=config.mlp_norm)
        self.fc2 = nn.Linear(config.hidden_dim, config.embed_dim)
        self.drop = nn.Dropout(config.proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]"""
        x = self.drop(self.act(self.fc1(x)))  # [B, N, D*mlp_ratio]
        return self.drop(self.fc2(self.norm(x)))  # [B, N, D]


class SwiGlu(nn.Module):
    """silu(gate) * value, then a linear layer (Shazeer 2020): instead of the Mlp."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(config.embed_dim, config.hidden_dim)
        self.fc1_x = nn.Linear(config.embed_dim, config.hidden_dim)
        self.norm = _norm(config, config.hidden_dim, present=config.mlp_norm)
        self.fc2 = nn.Linear(config.hidden_dim, config.embed_dim)
        self.drop = nn.Dropout(config.proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]"""
        x = self.drop(F.silu(self.fc1_g(x)) * self.fc1_x(x))  # [B, N, D*mlp_ratio]
        return self.drop(self.fc2(self.norm(x)))  # [B, N, D]


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch, small at first (Touvron et al. 2021, CaiT)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]"""
        return x * self.gamma


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
    """One encoder layer: attention, then MLP, each on a normed input and added to the residual.

    With `post_norm` it is the output that is normed.
    """

    def __init__(self, config: ViTConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        dim, self.post_norm = config.embed_dim, config.post_norm
        self.norm1 = _norm(config)
        self.attn = Attention(config)
        self.ls1 = LayerScale(dim) if config.layer_scale else nn.Identity()
        self.norm2 = _norm(config)
        self.mlp = SwiGlu(config) if config.mlp == "swiglu" else Mlp(config)
        self.ls2 = LayerScale(dim) if config.layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, mask: Tensor | None = None, turns: Tensor | None = None) -> Tensor:
        """[B, N, D] -> [B, N, D]; `mask` and `turns` as in Attention."""
        if self.post_norm:
            x = x + self.drop_path(self.ls1(self.norm1(self.attn(x, mask, turns))))
            return x + self.drop_path(self.ls2(self.norm2(self.mlp(x))))
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), mask, turns)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


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
        self.norm_pre = _norm(config, present=config.norm_pre)
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = _norm(config, present=config.final_norm == "tokens")
        self.attn_pool = None
        if config.pool in ("map", "map_all"):
            self.attn_pool = AttentionPool(config, Mlp(replace(config, mlp_norm=False)))
        self.fc_norm = _norm(config, present=config.final_norm == "pooled")
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
        x = self.patch_embed(images)  # [B, N - prefix, D]
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

        `patch_mask`, bool [B, patches]: a patch that is False does not influence the others.
        """
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
        del copied.model.head_dist
        return copied.to(device, dtype)
