"""A convolutional stem: what some Vision Transformers have before their patch embedding.

    images -> EfficientNet-Lite2's stages 1 to 6 -> patches -> linear embedding -> ...

Dosovitskiy et al. 2021, section 3.1, call it the hybrid architecture. A Vision Transformer has to
learn from its images alone that neighbouring pixels belong together, and needs millions of them for
it; convolutions know it from the start. So it is for small networks trained on few images, such as
the one in the box.

The stages are those of EfficientNet-Lite2 (Tan and Le 2019, arXiv:1905.11946; the Lite form has ReLU6
and no squeeze-and-excitation), with its batch norms folded into the convolutions, as they are once a
network is trained.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FIRST = 32  # channels of the first convolution
# Of each stage: how its first block convolves, kernel, expansion, channels, blocks.
_STAGES: tuple[tuple[Literal["keep", "halve", "halve_even"], int, int, int, int], ...] = (
    ("keep", 3, 1, 16, 1),
    ("halve_even", 3, 6, 24, 3),
    ("halve", 5, 6, 48, 3),
    ("halve", 3, 6, 88, 4),
    ("keep", 5, 6, 120, 4),
    ("halve", 5, 6, 208, 5),
)


class HalvingConv(nn.Conv2d):
    """A convolution of kernel 3 and stride 2 that is padded at the right and bottom alone.

    So TensorFlow's "SAME" pads even sizes. The stages were trained on images of 260 pixels, which
    they halve to 130, 65, 33, 17 and 9: the two convolutions that saw even sizes are of this kind,
    the others are padded alike on all sides.
    """

    def __init__(self, ins: int, outs: int, groups: int = 1) -> None:
        super().__init__(ins, outs, 3, stride=2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out, H/2, W/2]"""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class InvertedResidual(nn.Module):
    """Widen, look around in each channel alone, narrow (Sandler et al. 2018, MobileNetV2)."""

    def __init__(
        self,
        ins: int,
        outs: int,
        size: Literal["keep", "halve", "halve_even"],
        kernel: int,
        expansion: int,
    ) -> None:
        super().__init__()
        hidden = ins * expansion
        self.expand = nn.Conv2d(ins, hidden, 1) if expansion > 1 else None
        self.depthwise: nn.Module
        if size == "halve_even":
            self.depthwise = HalvingConv(hidden, hidden, groups=hidden)
        else:
            stride = 1 if size == "keep" else 2
            self.depthwise = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden)
        self.project = nn.Conv2d(hidden, outs, 1)
        self.has_residual = size == "keep" and ins == outs

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out, H, W], or half as high and wide"""
        hidden = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        hidden = self.project(F.relu6(self.depthwise(hidden), inplace=True))
        return x + hidden if self.has_residual else hidden


class Stem(nn.Module):
    """Image to a map of 208 channels, a 32nd of its size (config.py has both numbers too)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = HalvingConv(3, _FIRST)
        blocks, ins = [], _FIRST
        for size, kernel, expansion, outs, n_blocks in _STAGES:
            for place in range(n_blocks):
                blocks.append(
                    InvertedResidual(ins, outs, "keep" if place else size, kernel, expansion)
                )
                ins = outs
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 208, H/32, W/32]"""
        # The channels of a pixel side by side: 262 images/s of 128 pixels instead of 105, on 2 cores of
        # an Intel Xeon with AVX512, for the first five stages in fp32.
        x = images.contiguous(memory_format=torch.channels_last)
        return self.blocks(F.relu6(self.first(x), inplace=True))


def stem_macs(img_size: int) -> int:
    """The multiply-adds that the stem takes for an image of so many pixels."""
    macs = 0

    def count(conv: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal macs
        assert isinstance(conv, nn.Conv2d)
        macs += conv.weight.numel() * out.shape[2] * out.shape[3]

    with torch.device("meta"):  # which computes shapes alone
        stem = Stem()
        for module in stem.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(count)
        stem(torch.empty(1, 3, img_size, img_size))
    return macs
