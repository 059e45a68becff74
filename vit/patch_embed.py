"""Images -> tokens: a patch each, embedded (Dosovitskiy et al. 2021, section 3.1).

Shapes: B batch, C channels, H W pixels, P patch size, N tokens, D embed_dim. Where a network has a
stem (stem.py), pixels and channels here are those of the map that it makes.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .config import ViTConfig


class PatchEmbed(nn.Module):
    """Cut an image into patches and embed each: a convolution whose stride is its kernel."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        patch = config.map_patch_size
        self.proj = nn.Conv2d(
            config.map_chans, config.embed_dim, patch, stride=patch, bias=not config.norm_pre
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
        self.patch_size = config.map_patch_size
        n_values = config.map_chans * self.patch_size**2
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
