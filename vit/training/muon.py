"""Muon, an optimiser for the matrices inside a network (Jordan et al. 2024,
kellerjordan.github.io/posts/muon).

AdamW scales every number of a gradient by itself; Muon makes the whole matrix of the averaged
gradient orthogonal, so that no few directions take all of the step. Measured on this project's
task: vit/embedded/README.md. torch.optim.Muon does the same in bfloat16, matrix by matrix, which
a CPU without bfloat16 runs eight times slower than this; here matrices of one shape go together, in
bfloat16 only where the device is fast at it (AMX: a third of the time that float32 takes).
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vit.devices import bf16_support

# Found by its author so that five rounds bring singular values of 0.01 to 1 between 0.7 and 1.2.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, with decoupled weight decay. Takes matrices only.

    A step's numbers are scaled to have the size AdamW's usually have (0.2, Liu et al. 2025,
    arXiv:2502.16982), so that both can share a learning rate and a weight decay.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        assert all(
            parameter.ndim == 2 for group in self.param_groups for parameter in group["params"]
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._step(parameters, group)

    def _step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        averages = []
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            average = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            average.lerp_(gradient, 1 - group["momentum"])
            averages.append(gradient.lerp(average, group["momentum"]))
        steps = orthogonal(torch.stack(averages))  # [n, rows, columns]
        size = 0.2 * max(steps.shape[1:]) ** 0.5
        for parameter, step in zip(parameters, steps, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(
                step, alpha=-group["lr"] * size
            )


def orthogonal(matrices: Tensor) -> Tensor:
    """Bring each matrix's singular values near 1, keeping its singular vectors: [n, rows, columns]."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT).mT  # the products below are as small as the shorter side
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)  # no singular value above 1
    if bf16_support(x.device):
        x = x.bfloat16()
    a, b, c = _COEFFICIENTS
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.to(matrices.dtype)
