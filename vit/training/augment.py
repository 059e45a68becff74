"""Augmentation of whole batches on their device: every image its own draw, no loop over images.

    augment    crop, flip, turn and colour, erase: [B, C, H, W] -> [B, C, H, W]
    mix        mixup or cutmix with another image of the batch, targets mixed alike

Images are normalised floats. The draws come from torch's global generator, so a seed repeats them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(
    images: Tensor,
    crop_area: float = 0.5,
    strength: float = 0.0,
    erase: float = 0.0,
    boxes: Tensor | None = None,
) -> Tensor:
    """Random resized crop of at least `crop_area` (or `boxes`, [B, 4], as in soft_targets.py) and
    flip, then as asked for:

    `strength` 0 to 1: rotation, shear, brightness, contrast and saturation, RandAugment's useful
    half (Cubuk et al. 2020) at one common strength. `erase`: probability of random erasing (Zhong
    et al. 2020).
    """
    images = _crop_flip_turn(images, crop_area, strength, boxes)
    if strength:
        images = _colour(images, strength)
    if erase:
        images = images.masked_fill(
            _boxes(images, *_uniform(images, 0.02, 0.25, 1)) & _coin(images, erase), 0
        )
    return images


def mix(images: Tensor, targets: Tensor, how: str, alpha: float = 0.8) -> tuple[Tensor, Tensor]:
    """Mix each image with the one before it in the batch, and its targets, float [B, K], alike.

    `how` is mixup, cutmix or none.

    mixup blends them (Zhang et al. 2018), cutmix pastes a box of one into the other (Yun et al.
    2019); the share of an image is its share of the target.
    """
    if how == "none":
        return images, targets
    share = torch.distributions.Beta(alpha, alpha).sample((len(images),)).to(images.device)  # [B]
    others = images.roll(1, 0)
    if how == "mixup":
        images = images.lerp(others, share[:, None, None, None])
    else:
        boxes = _boxes(images, share)  # [B, 1, H, W]
        images = torch.where(boxes, others, images)
        share = boxes.float().mean(dim=(1, 2, 3))  # what of a box stuck out did not get in
    return images, targets.lerp(targets.roll(1, 0), share[:, None])


def _uniform(images: Tensor, low: float, high: float, n: int) -> list[Tensor]:
    """n independent draws, each [B]."""
    return [torch.empty(len(images), device=images.device).uniform_(low, high) for _ in range(n)]


def _coin(images: Tensor, probability: float) -> Tensor:
    return torch.rand(len(images), 1, 1, 1, device=images.device) < probability  # [B, 1, 1, 1]


def _crop_flip_turn(
    images: Tensor, crop_area: float, strength: float, boxes: Tensor | None
) -> Tensor:
    """One affine map and one interpolation for crop, flip, rotation and shear."""
    if boxes is None:
        (area,) = _uniform(images, crop_area, 1, 1)
        (log_aspect,) = _uniform(images, -0.2, 0.2, 1)
        width = (area.sqrt() * log_aspect.exp()).clamp(max=1)  # [B], of the image's
        height = (area.sqrt() / log_aspect.exp()).clamp(max=1)
        x, y = _uniform(images, -1, 1, 2)
        x, y = x * (1 - width), y * (1 - height)  # the centre: -1 left or top, 1 right or bottom
    else:
        left, top, width, height = boxes.unbind(dim=1)
        x, y = 2 * left + width - 1, 2 * top + height - 1
    angle, shear = _uniform(images, -0.5 * strength, 0.5 * strength, 2)  # radians
    flip = torch.randint(2, (len(images),), device=images.device) * 2 - 1  # -1 or 1
    rows = [
        torch.stack([width * angle.cos() * flip, width * (shear - angle.sin()), x], dim=1),
        torch.stack([height * angle.sin() * flip, height * angle.cos(), y], dim=1),
    ]
    theta = torch.stack(rows, dim=1)  # [B, 2, 3]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)  # [B, H, W, 2]
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _colour(images: Tensor, strength: float) -> Tensor:
    """Brightness, contrast and saturation, each by up to `strength` / 2."""
    gain, contrast, saturation = (
        draw[:, None, None, None]
        for draw in _uniform(images, 1 - strength / 2, 1 + strength / 2, 3)
    )
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - mean) * contrast + mean + (gain - 1)
    grey = images.mean(dim=1, keepdim=True)
    return grey.lerp(images, saturation)


def _boxes(images: Tensor, area: Tensor) -> Tensor:
    """A random box of `area` [B], a share of the image, in each image: bool [B, 1, H, W]."""
    height, width = images.shape[-2:]
    x, y = _uniform(images, 0, 1, 2)
    half = area.sqrt() / 2
    columns = (torch.arange(width, device=images.device) + 0.5) / width
    rows = (torch.arange(height, device=images.device) + 0.5) / height
    in_columns = (columns - x[:, None]).abs() < half[:, None]  # [B, W]
    in_rows = (rows - y[:, None]).abs() < half[:, None]  # [B, H]
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]  # [B, 1, H, W]
