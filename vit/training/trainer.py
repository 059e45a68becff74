"""Recipe and Training: one step after another from first weights to trained ones, resumable
anywhere.

The recipe is a short form of DeiT's (Touvron et al. 2021, arXiv:2012.12877, table 9): warm-up and
cosine, label smoothing, crops and colours, mixup and cutmix, random erasing, stochastic depth, an
average of the weights. The patch embedding starts as whitening (whiten.py), most steps see a random
part of the patches, at that part of the cost (Li et al. 2023, arXiv:2212.00794), and Muon trains
the encoder's matrices (muon.py), AdamW everything else.

A step's random draws depend on the seed and its number alone, so a resumed training ends with the
same weights as one that was never interrupted. Reading data, judging and the command: train.py.
"""

import math
import os
import pickle
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vit.config import ViTConfig
from vit.errors import ModelError
from vit.model import VisionTransformer
from vit.preprocess import Preprocess, normalise

from .augment import augment, mix
from .labelled_images import LabelledImages
from .muon import Muon
from .whiten import whiten_patches_

_WHITEN_IMAGES = 2000


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Recipe:
    """What fixes a training beside its data and its architecture.

    The defaults suit a few hundred epochs.
    """

    epochs: float = _setting(300.0, "times each image is seen")
    batch_size: int = _setting(512, "images a step")
    lr: float = _setting(2e-3, "highest learning rate, of AdamW and (scaled to match) of Muon")
    weight_decay: float = _setting(0.05, "decoupled weight decay, of matrices only")
    warmup: float = _setting(0.03, "share of the steps in which the learning rate rises")
    label_smoothing: float = _setting(0.1, "share of the target that all classes get")
    crop_area: float = _setting(0.25, "smallest share of an image that a random crop shows")
    strength: float = _setting(0.5, "0 to 1: rotation, shear, brightness, contrast, saturation")
    erase: float = _setting(0.25, "probability of random erasing")
    mix: float = _setting(0.5, "share of the steps with mixup or cutmix")
    keep: float = _setting(0.5, "share of the patches that most steps see")
    full: float = _setting(
        0.2, "share of the steps, the last ones, that see all patches and are not mixed"
    )
    average: float = _setting(
        0.999, "how much of the average of the weights a step leaves in place"
    )
    seed: int = _setting(0, "fixes initial weights, order of the images and augmentation")


class Training:
    """A network on its way: its weights and their average, its optimisers, and how far it is."""

    def __init__(
        self, config: ViTConfig, recipe: Recipe, n_images: int, device: torch.device, bf16: bool
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device, self.bf16 = recipe, device, bf16
        self.steps_per_epoch = max(1, n_images // recipe.batch_size)
        self.n_steps = math.ceil(recipe.epochs * self.steps_per_epoch)
        self.settings = {"n_images": n_images, **asdict(config), **asdict(recipe)}
        self.step = 0
        self.model = VisionTransformer(config).to(device)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average))
        self.encode: Any = self.model.encode
        if device.type == "cuda":  # on a CPU compiled steps measured no faster
            self.encode = torch.compile(self.encode)
        self.optimisers = _optimisers(self.model, recipe)

    def whiten(self, data: LabelledImages, preprocess: Preprocess) -> None:
        """Set the patch embedding's first weights from the data; before the first step."""
        torch.manual_seed(self.recipe.seed)
        sample = data.images[torch.randperm(len(data))[:_WHITEN_IMAGES].to(data.images.device)]
        whiten_patches_(self.model, normalise(sample.to(self.device), preprocess))

    def run_step(self, data: LabelledImages, preprocess: Preprocess) -> Tensor:
        """Train on the next batch. Returns its loss."""
        recipe, done = self.recipe, self.step / self.n_steps
        torch.manual_seed(recipe.seed + 1_000_000_007 * (self.step + 1))
        chosen = self._chosen(len(data))
        images = normalise(data.images[chosen.to(data.images.device)].to(self.device), preprocess)
        images = augment(images, recipe.crop_area, recipe.strength, recipe.erase)
        is_last_part = done >= 1 - recipe.full
        targets = data.targets[chosen].to(self.device)
        how = (
            "none"
            if is_last_part or torch.rand(()) >= recipe.mix
            else "mixup"
            if torch.rand(()) < 0.5
            else "cutmix"
        )
        images, targets = mix(images, targets, self.model.config.n_classes, how)

        rate = learning_rate(done, recipe)
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = rate
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            tokens = self.model.embed(images)  # [B, N, D]
            if not is_last_part:
                tokens = keep_patches(tokens, recipe.keep, self.model.config.n_prefix_tokens)
            logits = self.encode(tokens)  # [B, K]
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=recipe.label_smoothing)
        loss.backward()
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.average.update_parameters(self.model)
        self.step += 1
        return loss.detach()

    def _chosen(self, n_images: int) -> Tensor:
        """The indices of the step's images, [batch_size]; each epoch shuffles anew and drops the
        rest.
        """
        epoch, place = divmod(self.step, self.steps_per_epoch)
        order = _shuffled(n_images, self.recipe.seed + epoch)
        return order[place * self.recipe.batch_size :][: self.recipe.batch_size]

    def averaged_model(self) -> VisionTransformer:
        model: VisionTransformer = self.average.module  # type: ignore[assignment]
        return model

    def save(self, path: Path) -> None:
        """Write a checkpoint, atomically."""
        state = {
            "settings": self.settings,
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        temporary = path.with_name(path.name + ".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises ModelError for one of another training."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)  # never unpickled
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            raise ModelError(
                f"{path} is not a checkpoint of a training, or damaged; remove it to start anew"
            ) from error
        theirs = state["settings"]
        other = [
            f"{name} was {theirs.get(name)} and is {value}"
            for name, value in self.settings.items()
            if theirs.get(name) != value
        ]
        if other:
            raise ModelError(
                f"{path} is of another training ({'; '.join(other)}); give the same settings, or "
                "remove it"
            )
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)


def learning_rate(done: float, recipe: Recipe) -> float:
    """The learning rate when a share `done` of the steps is done: a linear rise, then a cosine to
    0.
    """
    if done < recipe.warmup:
        return recipe.lr * done / recipe.warmup
    return recipe.lr * (
        0.5 + 0.5 * math.cos(math.pi * (done - recipe.warmup) / (1 - recipe.warmup))
    )


def keep_patches(tokens: Tensor, share: float, n_prefix: int) -> Tensor:
    """Keep the prefix tokens and a random share of each image's patches: [B, N, D] -> [B, fewer,
    D].
    """
    B, N, D = tokens.shape
    n_kept = max(1, round(share * (N - n_prefix)))
    kept = (
        torch.rand(B, N - n_prefix, device=tokens.device).argsort(dim=1)[:, :n_kept] + n_prefix
    )  # [B, n_kept]
    patches = tokens.gather(1, kept[:, :, None].expand(-1, -1, D))  # [B, n_kept, D]
    return torch.cat([tokens[:, :n_prefix], patches], dim=1)


@lru_cache(maxsize=1)
def _shuffled(n_images: int, seed: int) -> Tensor:
    return torch.randperm(n_images, generator=torch.Generator().manual_seed(seed))


def _optimisers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the encoder's matrices; AdamW for embeddings and head, without decay for biases,
    norms and tokens.
    """
    named = list(model.named_parameters())
    matrices = [p for name, p in named if name.startswith("blocks.") and p.ndim == 2]
    maps = [
        p
        for name, p in named
        if not name.startswith("blocks.") and name.endswith("weight") and p.ndim > 1
    ]
    rest = [p for _, p in named if not any(p is other for other in matrices + maps)]
    groups = [
        {"params": maps, "weight_decay": recipe.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    muon = Muon(matrices, recipe.lr, recipe.weight_decay)
    return [muon, torch.optim.AdamW(groups, recipe.lr, betas=(0.9, 0.98))]
