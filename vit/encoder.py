"""The encoder's blocks: attention and MLP, with what published networks have in them.

Shapes: B batch, N tokens, D embed_dim, h heads.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ViTConfig
from .rotary import rotate


def layer_norm(config: ViTConfig, dim: int | None = None, present: bool = True) -> nn.Module:
    """A LayerNorm, or nothing in its place."""
    dim = config.embed_dim if dim is None else dim
    return nn.LayerNorm(dim, eps=config.norm_eps) if present else nn.Identity()


class Attention(nn.Module):
    """Multi-head self-attention: softmax(q k^T / sqrt(D/h)) v (Vaswani et al. 2017, section 3.2).

    `qkv="fused"` projects to queries, keys and values with one matrix and leaves the rest to torch's
    kernel. "separate" has three matrices, and all steps are written out. A state dict with the fused
    matrix loads into either.
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
        self.q_norm = layer_norm(config, config.head_dim, present=config.qk_norm)
        self.k_norm = layer_norm(config, config.head_dim, present=config.qk_norm)
        self.attn_drop = config.attn_drop
        self.norm = layer_norm(config, present=config.attn_norm)
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
        q, k, v = self._project(x)  # each [B, h, N, D/h]
        q, k = self.q_norm(q), self.k_norm(k)
        if turns is not None:
            q, k = rotate(q, turns, self.config), rotate(k, turns, self.config)
        if mask is not None:
            mask = mask[:, None, None, :]  # [B, 1, 1, N], the same for each head and query
        dropout_p = self.attn_drop if self.training else 0.0
        attend = F.scaled_dot_product_attention if self.fused else _attend
        x = attend(q, k, v, attn_mask=mask, dropout_p=dropout_p)  # [B, h, N, D/h]
        x = x.transpose(1, 2).reshape(B, N, D)  # [B, N, D]
        return self.proj_drop(self.proj(self.norm(x)))

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """[B, N, D] -> queries, keys and values, each [B, h, N, D/h]"""
        B, N, D = x.shape
        if self.fused:
            qkv = self.qkv(x).view(B, N, 3, self.n_heads, D // self.n_heads)  # [B, N, 3, h, D/h]
            return qkv.permute(2, 0, 3, 1, 4).unbind(0)
        parts = self.q(x), self.k(x), self.v(x)  # each [B, N, D]
        return tuple(part.view(B, N, self.n_heads, -1).transpose(1, 2) for part in parts)


def _attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, dropout_p: float) -> Tensor:
    """F.scaled_dot_product_attention in steps, of [B, h, N, D/h] each; the weights take memory."""
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [B, h, N, N]
    if attn_mask is not None:
        weights = weights.masked_fill(~attn_mask, torch.finfo(weights.dtype).min)
    weights = weights.softmax(dim=-1)
    if attn_mask is not None:  # where nothing may be attended to, nothing is
        weights = weights.masked_fill(~attn_mask, 0)
    return F.dropout(weights, dropout_p) @ v


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
        self.norm = layer_norm(config, config.hidden_dim, present=config.mlp_norm)
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
        self.norm = layer_norm(config, config.hidden_dim, present=config.mlp_norm)
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
        self.norm1 = layer_norm(config)
        self.attn = Attention(config)
        self.ls1 = LayerScale(dim) if config.layer_scale else nn.Identity()
        self.norm2 = layer_norm(config)
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
