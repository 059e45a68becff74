"""Head: features -> a score for each class. One linear map, whatever it was made from.

A trained head, a distilled DeiT's two, text embeddings and a probe fitted to examples are all this,
so whoever has an image's features can score it with any of them, and the backbone need not run
again. It always computes in float32: bfloat16 has 8 bits, too few to tell scores apart, and the
head is a thousandth of the work.
"""

import hashlib
import json
import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ModelError
from .model import VisionTransformer

Activation = Literal["softmax", "sigmoid"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


@dataclass(frozen=True, eq=False)  # tensors are not compared with ==
class Head:
    """`weight` [K, F] and `bias` [K], float32. `normalise` scales features to length 1 before it.

    `temperature` divides what comes out before the activation: a softmax over all classes, of which
    one is right, or a sigmoid for each class alone, of which any number may be.
    """

    weight: Tensor
    bias: Tensor
    normalise: bool = False
    activation: Activation = "softmax"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        weight, bias = list(self.weight.shape), list(self.bias.shape)
        if len(weight) != 2 or not all(weight) or bias != weight[:1]:
            raise ModelError(
                "a head's weight is of shape [classes, features] and its bias [classes], not "
                f"{weight} and {bias}"
            )
        if {self.weight.dtype, self.bias.dtype} != {torch.float32}:
            raise ModelError(
                f"a head computes in float32, and this one's weight is {self.weight.dtype} and "
                f"its bias {self.bias.dtype}"
            )
        if self.weight.device != self.bias.device:
            raise ModelError(
                f"a head's weight is on {self.weight.device} and its bias on {self.bias.device}"
            )
        if self.activation not in ACTIVATIONS:
            raise ModelError(
                f"a head's activation is {self.activation!r}; choose one of "
                f"{', '.join(ACTIVATIONS)}"
            )
        if not 0 < self.temperature < math.inf:
            raise ModelError(
                f"a head has temperature {self.temperature}; it must be above 0, and finite"
            )

    @classmethod
    def of(
        cls,
        model: VisionTransformer,
        temperature: float = 1.0,
        activation: Activation = "softmax",
    ) -> "Head":
        """The head inside a model, for what its forward_head(pre_logits=True) gives."""
        if not isinstance(model.head, nn.Linear):
            raise ModelError("it has no head: it gives features, and no scores for classes")
        weight: Tensor = model.head.weight
        bias: Tensor = model.head.bias
        if isinstance(model.head_dist, nn.Linear):
            # The mean of two linear maps of two tokens is one map of both, side by side.
            weight = torch.cat([weight, model.head_dist.weight], dim=1) / 2  # [K, 2D]
            bias = (bias + model.head_dist.bias) / 2  # [K]
        return cls(
            weight.detach().float(),
            bias.detach().float(),
            activation=activation,
            temperature=temperature,
        )

    @property
    def n_classes(self) -> int:
        return self.weight.shape[0]

    @property
    def n_features(self) -> int:
        return self.weight.shape[1]

    @property
    def sha256(self) -> str:
        """A digest of what turns features into logits: the two tensors, and `normalise`.

        The same for the same head on every machine and in every file. Temperature and activation
        stand beside it in a fingerprint.
        """
        facts = {"shape": list(self.weight.shape), "normalise": self.normalise}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for tensor in (self.weight, self.bias):
            digest.update(tensor.detach().cpu().numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device) -> "Head":
        return replace(self, weight=self.weight.to(device), bias=self.bias.to(device))

    def scores(self, features: Tensor) -> Tensor:
        """Features [B, F] of any precision -> float32 scores [B, K]."""
        with torch.autocast(features.device.type, enabled=False):  # in float32, whoever calls
            features = features.float()  # [B, F]
            if self.normalise:
                features = F.normalize(features, dim=-1)
            logits = F.linear(features, self.weight, self.bias) / self.temperature  # [B, K]
            if self.activation == "softmax":
                return logits.softmax(dim=-1)
            # A CPU takes up to 32 elements at a time, and what is left in the end in another way, with
            # another last bit at times. With an even number in a row nothing is left of 16 rows.
            n_classes = logits.shape[1]
            return F.pad(logits, (0, n_classes % 2)).sigmoid()[:, :n_classes]
