"""Rotary positions: queries and keys are turned by angles that depend on where their patch is.

A head's dimensions are pairs; each pair turns in its plane, as fast as its frequency says, so that
the product of a query and a key depends on how far apart their patches are (Su et al. 2021,
RoFormer; Heo et al. 2024, "Rotary Position Embedding for Vision Transformer"). Prefix tokens have
no place and are not turned. Angles are in float32 whatever the network computes in.
"""

import math

import torch
from torch import Tensor, nn

from .config import ViTConfig


class RotaryPositions(nn.Module):
    """The turns of each block: cosines and sines, [depth, 2, heads, patches, D/h] float32.

    Heads are 1 where all turn alike. Half of a head's dimensions go by the patch's row and half by
    its column, but for "mixed", where each pair goes by both, with frequencies that were learned,
    each block and head its own.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        if config.rope == "mixed":
            frequencies = self._frequencies().repeat(2)  # [D/h/2]
            shape = (2, config.depth, config.n_heads, config.head_dim // 2)
            self.freqs = nn.Parameter(frequencies.expand(shape).clone())  # of columns, of rows

    def _frequencies(self, device: torch.device | None = None) -> Tensor:
        """1 / temperature^(i / n) for each of n = D/h/4 pairs."""
        n = self.config.head_dim // 4
        exponents = torch.arange(n, dtype=torch.float32, device=device) / n
        return 1.0 / self.config.rope_temperature**exponents  # [D/h/4]

    def forward(self, device: torch.device) -> Tensor:
        """-> [depth, 2, heads or 1, patches, D/h], computed anew: no buffer to be rounded or moved."""
        config, g = self.config, self.config.grid_size
        places = torch.arange(g, dtype=torch.float32, device=device)  # [g]
        if config.rope == "dinov3":  # the middles of the patches, from -1 to 1, in turns
            places = (2.0 * ((places + 0.5) / g) - 1.0) * (2 * math.pi)
        elif config.rope_grid:
            places = places / g * config.rope_grid
        rows, columns = places.repeat_interleave(g), places.repeat(g)  # each [patches]
        if config.rope == "mixed":
            freqs = self.freqs.float()  # [2, depth, h, D/h/2]
            angles = columns[:, None] * freqs[0, :, :, None] + rows[:, None] * freqs[1, :, :, None]
        else:
            axes = (columns, rows) if config.rope == "axial" else (rows, columns)
            frequencies = self._frequencies(device)
            angles = torch.cat([axis[:, None] * frequencies for axis in axes], dim=-1)
            angles = angles.expand(config.depth, 1, -1, -1)  # [depth, 1, patches, D/h/2]
        # Both dimensions of a pair turn alike.
        angles = (
            angles.repeat(1, 1, 1, 2) if _in_halves(config) else angles.repeat_interleave(2, -1)
        )
        return torch.stack([angles.cos(), angles.sin()], dim=1)


def _in_halves(config: ViTConfig) -> bool:
    """Whether dimension i pairs with i + D/h/2, as in DINOv3, or else each with its neighbour."""
    return config.rope == "dinov3"


def rotate(x: Tensor, turns: Tensor, config: ViTConfig) -> Tensor:
    """Turn queries or keys [B, h, N, D/h] by one block's `turns`; prefix tokens stay."""
    cos, sin = turns  # each [h or 1, patches, D/h]
    n_prefix = x.shape[2] - cos.shape[1]
    assert n_prefix == config.n_prefix_tokens, "rotary positions are those of all patches"
    prefix, patches = x[:, :, :n_prefix], x[:, :, n_prefix:]
    if _in_halves(config):
        first, second = patches.chunk(2, dim=-1)
        quarter_turn = torch.cat([-second, first], dim=-1)
    else:
        first, second = patches[..., ::2], patches[..., 1::2]
        quarter_turn = torch.stack([-second, first], dim=-1).flatten(-2)
    patches = (patches * cos + quarter_turn * sin).to(x.dtype)
    return torch.cat([prefix, patches], dim=2)  # [B, h, N, D/h]
