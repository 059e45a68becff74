"""Training: one step after another from first weights to trained ones, resumable anywhere.

The recipe is a short form of DeiT's (Touvron et al. 2021, arXiv:2012.12877, table 9): warm-up and
cosine, label smoothing, crops and colours, mixup and cutmix, random erasing, stochastic depth, an
average of the weights. The patch embedding starts as whitening (whiten.py), most steps see a random
part of the patches, at that part of the cost (Li et al. 2023, arXiv:2212.00794), and Muon trains
the encoder's matrices (muon.py), AdamW everything else. A teacher's soft targets (soft_targets.py)
are a part of the loss where there are any.

A step's random draws depend on the seed and its number alone, so a resumed training ends with the
same weights as one that was never interrupted. Reading data, judging and the command: train.py.
"""

import math
import os
import pickle
from contextlib import nullcontext
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vit.config import ViTConfig
from vit.errors import ModelError
from vit.model import VisionTransformer
from vit.preprocess import Preprocess, normalise

from .augment import augment, mix
from .growth import grow
from .labelled_images import LabelledImages
from .muon import Muon
from .recipe import Recipe, learning_rate
from .whiten import whiten_patches_

_WHITEN_IMAGES = 2000


class Training:
    """A network on its way: its weights and their average, its optimisers, and how far it is."""

    def __init__(
        self,
        config: ViTConfig,
        recipe: Recipe,
        n_images: int,
        device: torch.device,
        bf16: bool,
        soft_targets: str | None = None,
    ) -> None:
        """`soft_targets` is the SHA-256 of the file of the data's soft targets, if it has any."""
        if config.stem != "none":
            raise ModelError(
                "a stem is not trained here; examples/hybrid.py trains what comes after one"
            )
        torch.manual_seed(recipe.seed)
        self.recipe, self.device, self.bf16 = recipe, device, bf16
        self.steps_per_epoch = max(1, n_images // recipe.batch_size)
        self.n_steps = math.ceil(recipe.epochs * self.steps_per_epoch)
        self.architecture = asdict(config)
        self.settings = {
            "n_images": n_images,
            "soft_targets": soft_targets,
            **self.architecture,
            **asdict(recipe),
        }
        self.step = 0
        # Of the training whose weights this one began with: its step, settings and start; or of the
        # bundle: its name and architecture.
        self.start: dict[str, Any] | None = None
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
        images, targets = self.batch(data, preprocess)
        is_last_part = done >= 1 - recipe.full
        how = (
            "none"
            if is_last_part or torch.rand(()) >= recipe.mix
            else "mixup"
            if torch.rand(()) < 0.5
            else "cutmix"
        )
        images, targets = mix(images, targets, how)

        rate = learning_rate(done, recipe)
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = rate
        self.model.train()
        # The CPU's fused attention saves memory, not time: forwards and backwards of 64 tokens
        # took it three times as long as the plain one (AMX, bf16).
        attention = sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16), attention:
            tokens = self.model.embed(images)  # [B, N, D]
            if not is_last_part:
                tokens = keep_patches(tokens, recipe.keep, self.model.config.n_prefix_tokens)
            logits = self.encode(tokens)  # [B, K]
        loss = loss_of(logits.float(), targets, recipe)
        loss.backward()
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.average.update_parameters(self.model)
        self.step += 1
        return loss.detach()

    def batch(self, data: LabelledImages, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
        """The next step's images, augmented [B, C, H, W], and their targets [B, K]; with a
        teacher's beside them [B, 2K].
        """
        chosen = self.chosen(len(data))
        images = normalise(data.images[chosen.to(data.images.device)].to(self.device), preprocess)
        targets, boxes = self.targets(data.targets[chosen]), None  # [B, K]
        if data.soft:
            views = torch.randint(data.soft.n_views, (len(chosen),))  # [B]
            at = chosen.to(data.soft.boxes.device), views.to(data.soft.boxes.device)
            boxes, soft = data.soft.boxes[at].to(self.device), data.soft.logits[at].to(self.device)
            targets = self.with_soft(targets, soft)
        recipe = self.recipe
        return augment(images, recipe.crop_area, recipe.strength, recipe.erase, boxes), targets

    def targets(self, class_ids: Tensor) -> Tensor:
        """[B] -> float [B, K], all on the class."""
        return F.one_hot(class_ids.to(self.device), self.model.config.n_classes).float()

    def with_soft(self, targets: Tensor, logits: Tensor) -> Tensor:
        """Targets [B, K] with a teacher's beside them, to be mixed alike: [B, 2K]."""
        soft = (logits.float() / self.recipe.distil_temperature).softmax(dim=-1)  # [B, K]
        return torch.cat([targets, soft], dim=1)

    def chosen(self, n_images: int) -> Tensor:
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
            "start": self.start,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        temporary = path.with_name(path.name + ".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises ModelError for one of another training."""
        state = self._read(path)
        _refuse_other(
            self.settings, state["settings"], f"{path} is of another training", "settings"
        )
        self.step, self.start = state["step"], state["start"]
        self._load(state)

    def begin_from(self, path: Path) -> None:
        """Begin with the weights, average and optimisers of another training's checkpoint.

        Raises ModelError for one of another architecture.
        """
        state = self._read(path)
        theirs = state["settings"]
        _refuse_other(
            self.architecture, theirs, f"{path} is of another architecture", "architecture"
        )
        self.start = {"step": state["step"], "settings": theirs, "start": state["start"]}
        self._load(state)

    def begin_with(self, state: dict[str, Tensor], config: ViTConfig, name: str) -> None:
        """Begin with a trained network's tensors, those of the bundle `name`: the average's alone,
        for a bundle keeps no optimisers. Raises ModelError for one of another architecture.
        """
        grown = grow(state, config, self.model.config)
        self.model.load_state_dict({name: tensor.float() for name, tensor in grown.items()})
        self.average.module.load_state_dict(self.model.state_dict())
        self.start = {"model": name, "architecture": asdict(config)}

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)  # never unpickled
            assert isinstance(state, dict)
            # A field of ViTConfig that came later was at its default.
            settings = asdict(ViTConfig()) | state["settings"]
            return {"start": None} | state | {"settings": settings}
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            raise ModelError(
                f"{path} is not a checkpoint of a training, or damaged; remove it to start anew"
            ) from error

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)


def _refuse_other(ours: dict[str, Any], theirs: dict[str, Any], what: str, which: str) -> None:
    other = [
        f"{name} was {theirs.get(name)} and is {value}"
        for name, value in ours.items()
        if theirs.get(name) != value
    ]
    if other:
        raise ModelError(f"{what} ({'; '.join(other)}); give the same {which}, or remove it")


def loss_of(logits: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
    """The loss for logits [B, K] and targets [B, K], or [B, 2K] with a teacher's beside them.

    Of the teacher it is the divergence from its probabilities at the same temperature, times the
    square of that, which keeps the size of the gradients (Hinton et al. 2015, section 2).
    """
    n_classes = logits.shape[1]
    loss = F.cross_entropy(logits, targets[:, :n_classes], label_smoothing=recipe.label_smoothing)
    if targets.shape[1] == n_classes:
        return loss
    temperature = recipe.distil_temperature
    divergence = F.kl_div(
        F.log_softmax(logits / temperature, dim=-1), targets[:, n_classes:], reduction="batchmean"
    )
    return loss.lerp(divergence * temperature**2, recipe.distil)


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
