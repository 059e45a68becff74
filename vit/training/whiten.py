"""First weights for a patch embedding, from the images themselves."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.model import VisionTransformer

_SAMPLE = 60_000  # patches: some hundred for each of the directions they have
_FLOOR = 0.01  # of the mean variance; directions with less are noise, not to be blown up
_SCALE = 0.5


@torch.no_grad()
def whiten_patches_(model: VisionTransformer, images: Tensor) -> None:
    """Set the patch embedding to the patches' principal components, each scaled to the same
    variance.

    `images`, float [n, C, H, W], normalised, a random sample of the training images. Neighbouring
    pixels are nearly equal, so a random embedding starts with nearly equal tokens and must first
    learn to tell them apart (LeCun et al. 1998, "Efficient BackProp", section 4.3). With more
    dimensions than the patches have, the others keep their random weights.
    """
    projection, patch_size = model.patch_embed.proj, model.config.patch_size
    patches = (
        F.unfold(images, patch_size, stride=patch_size).transpose(1, 2).flatten(0, 1)
    )  # [patches, C*P*P]
    patches = patches[torch.randperm(len(patches), device=patches.device)[:_SAMPLE]]
    mean = patches.mean(dim=0)
    variances, directions = torch.linalg.eigh(
        (patches - mean).T @ (patches - mean) / len(patches)
    )  # ascending
    scale = _SCALE / (variances + _FLOOR * variances.mean()).sqrt()
    kernels = (directions * scale).T.flip(0)[
        : model.config.embed_dim
    ]  # [up to D, C*P*P], most variance first
    assert projection.bias is not None
    projection.weight[: len(kernels)] = kernels.view(-1, *projection.weight.shape[1:])
    projection.bias[: len(kernels)] = -kernels @ mean
