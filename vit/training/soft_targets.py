"""What a teacher says of the training images, stored once: its logits for some views of each.

A network learns more from a good one's probabilities than from class names alone (Hinton et al.
2015, arXiv:1503.02531), the more so if both see the same crop (Beyer et al. 2022,
arXiv:2106.05237). A teacher costs more than its student, so it sees a few crops of each image once,
and the student is shown these (Shen and Xing 2022, arXiv:2112.01528).

One safetensors file, in the order of the images that training reads:

    boxes   float32 [N, V, 4]   each view: left, top, width, height, as shares of the image
    logits  float16 [N, V, K]   the teacher's for it
    metadata: images_sha256     of the pixels as read, which say that these are the same images

Any teacher will do; how it is run is not in here. Mirrored views need none of their own: a mirrored
image shows the same things.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vit.checkpoints.weights import sha256_file
from vit.errors import ModelError


@dataclass(frozen=True)
class SoftTargets:
    """Views of each image, boxes float32 [N, V, 4], and a teacher's logits for each, float16
    [N, V, K]; `sha256` is the file's.
    """

    boxes: Tensor
    logits: Tensor
    sha256: str

    @property
    def n_views(self) -> int:
        return self.boxes.shape[1]

    def to(self, device: torch.device) -> "SoftTargets":
        return SoftTargets(self.boxes.to(device), self.logits.to(device), self.sha256)


def write_soft_targets(path: Path, images: Tensor, boxes: Tensor, logits: Tensor) -> None:
    """Write a teacher's logits [N, V, K] for the views `boxes` [N, V, 4] of `images`, uint8
    [N, C, H, W] as labelled_images.read_images gives them.
    """
    save_file(
        {"boxes": boxes.float().contiguous(), "logits": logits.half().contiguous()},
        path,
        {"images_sha256": _sha256(images)},
    )


def read_soft_targets(path: Path, images: Tensor, n_classes: int) -> SoftTargets:
    """Read the soft targets of these very `images`. Raises ModelError for those of others."""
    try:
        with safe_open(path, "pt") as file:
            boxes, logits = file.get_tensor("boxes"), file.get_tensor("logits")
            theirs = (file.metadata() or {}).get("images_sha256")
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is not a file of soft targets: {error}") from error
    n, views = len(images), boxes.shape[1] if boxes.ndim == 3 else 0
    if not views or boxes.shape != (n, views, 4) or logits.shape != (n, views, n_classes):
        raise ModelError(
            f"{path} has boxes {list(boxes.shape)} and logits {list(logits.shape)}; {n:,} images "
            f"of {n_classes} classes take [{n}, views, 4] and [{n}, views, {n_classes}]"
        )
    if theirs != _sha256(images):
        raise ModelError(
            f"{path} is of other images than those to train on, or of another order or size of "
            "them; make it anew from the same data"
        )
    left_top, size = boxes.double().split(2, dim=-1)  # each [N, V, 2]
    inside = (left_top >= 0).all() and (size > 0).all() and (left_top + size <= 1.0001).all()
    if not (inside and logits.isfinite().all()):
        raise ModelError(f"{path} has boxes outside of the image or logits that are no numbers")
    return SoftTargets(boxes.float(), logits, sha256_file(path))


def _sha256(images: Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().data).hexdigest()
