"""Growth: a deeper network that computes what a shallower one does, to go on training from.

New blocks stand evenly between the old ones. Each is a copy of the block before it whose two
branches end in zeros, so it adds nothing to the residual stream until training makes it (Net2Net,
Chen et al. 2016, arXiv:1511.05641; zeroed branches as in Zhang et al. 2019, arXiv:1901.09321).
"""

from dataclasses import asdict

from torch import Tensor

from vit.config import ViTConfig
from vit.errors import ModelError

_OF_TRAINING = ("pos_drop", "proj_drop", "attn_drop", "drop_path")  # a trained network has none
# What ends each branch of a block (vit/encoder.py).
_ENDS = ("attn.proj.weight", "attn.proj.bias", "mlp.fc2.weight", "mlp.fc2.bias")


def grow(state: dict[str, Tensor], config: ViTConfig, target: ViTConfig) -> dict[str, Tensor]:
    """The tensors of a network of `config`, for the deeper one of `target` (or the same).

    Raises ModelError where they differ in anything but depth and dropout.
    """
    theirs, ours = asdict(config), asdict(target)
    other = [
        f"{name} is {theirs[name]} there and {value} here"
        for name, value in ours.items()
        if name not in _OF_TRAINING
        and (value < theirs[name] if name == "depth" else value != theirs[name])
    ]
    if other:
        raise ModelError(
            "a training can begin with a bundle of its own architecture, or of fewer blocks: "
            f"{'; '.join(other)}"
        )
    # The old block that each new one is, or is a copy of; the first of them is the block itself.
    origin = [place * config.depth // target.depth for place in range(target.depth)]
    grown = {name: tensor for name, tensor in state.items() if not name.startswith("blocks.")}
    for place, old in enumerate(origin):
        is_new = place > 0 and origin[place - 1] == old
        prefix = f"blocks.{old}."
        for name in (name for name in state if name.startswith(prefix)):
            inner = name.removeprefix(prefix)
            ends = is_new and inner in _ENDS
            grown[f"blocks.{place}.{inner}"] = (
                state[name].new_zeros(state[name].shape) if ends else state[name].clone()
            )
    return grown
