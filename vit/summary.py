"""A layer-by-layer summary of a Vision Transformer: output shapes and parameter counts."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import ViTConfig
from .model import VisionTransformer


@dataclass(frozen=True)
class Layer:
    name: str
    kind: str
    output_shape: tuple[int, ...]
    n_parameters: int  # its own and those of the layers inside it


def summarise(config: ViTConfig, batch_size: int = 1) -> list[Layer]:
    """Run the network on the meta device, which computes shapes alone, and list its layers in
    order.

    Parameters that belong to no layer of their own (tokens, position embedding) are listed too.
    """
    with torch.device("meta"):
        model = VisionTransformer(config).eval()
        images = torch.empty(batch_size, config.in_chans, config.img_size, config.img_size)
    shapes: dict[str, tuple[int, ...]] = {}

    def record(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            shapes[name] = tuple(output.shape)

        module.register_forward_hook(hook)

    for name, module in model.named_modules():
        if not isinstance(module, nn.Identity):  # holds the place of a layer this network has not
            record(name, module)
    with torch.no_grad():
        model(images)

    def layers() -> Iterator[Layer]:
        for name, module in model.named_modules():
            if name in shapes:  # all but containers, which are never called
                count = sum(parameter.numel() for parameter in module.parameters())
                yield Layer(name or "(whole)", type(module).__name__, shapes[name], count)
        for name, parameter in model.named_parameters(recurse=False):
            yield Layer(name, "Parameter", tuple(parameter.shape), parameter.numel())

    return list(layers())
