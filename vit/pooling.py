"""Pooling by attention: one learned query looks at the tokens (the MAP head of Zhai et al. 2022).

Other pools take no weights and stand in model.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ViTConfig


class AttentionPool(nn.Module):
    """Tokens -> one vector an image: attention of a learned query, then an MLP beside a residual.

    Keys are timm's (`attn_pool.latent`, `q`, `kv`, `proj`, `norm`, `mlp`).
    """

    def __init__(self, config: ViTConfig, mlp: nn.Module) -> None:
        super().__init__()
        dim, self.n_heads = config.embed_dim, config.n_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))  # the query, before its projection
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = mlp

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, N, D] -> [B, D]; `mask`, bool [B, N]: tokens that are False are not looked at."""
        B, N, D = x.shape
        q = self.q(self.latent).view(1, 1, self.n_heads, -1).transpose(1, 2)  # [1, h, 1, D/h]
        kv = self.kv(x).view(B, N, 2, self.n_heads, D // self.n_heads)
        k, v = kv.permute(2, 0, 3, 1, 4)  # each [B, h, N, D/h]
        if mask is not None:
            mask = mask[:, None, None, :]  # [B, 1, 1, N]
        x = F.scaled_dot_product_attention(q.expand(B, -1, -1, -1), k, v, attn_mask=mask)
        x = self.proj(x.transpose(1, 2).reshape(B, D))  # [B, D]
        return x + self.mlp(self.norm(x))
