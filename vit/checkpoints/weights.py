"""A checkpoint of any known origin -> a state dict with our keys.

    read_checkpoint      file -> tensors under their own names; never unpickles code
    convert_state        timm, DeiT, transformers, torchvision or Google names -> ours
    infer_config         shapes -> ViTConfig
    resample_pos_embed   position embedding -> another image size

Ours are timm's keys. Building the network and checking the fit is classifier.py's work.
"""

import hashlib
import math
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vit.config import SIZES, ViTConfig
from vit.errors import ModelError, no_permission

from .from_dinov2 import from_dinov2, is_dinov2
from .from_open_clip import from_open_clip, is_open_clip
from .layouts import State, from_eva, fuse_qkv, head_to_projection, split_swiglu
from .tensor_names import GOOGLE, TORCHVISION, from_flax, rename
from .transformers_tensors import from_transformers, is_transformers

# Training scripts wrap the state dict in a dict of their own; DeiT uses "model". The average over
# training (EMA) comes first, as in timm's load_state_dict: it is what such a training measures and
# publishes.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
# What DataParallel, torch.compile and Lightning put before every name, in whichever order they were
# wrapped.
_PREFIXES = ("module.", "_orig_mod.", "model.")


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checkpoint(path: Path) -> State:
    """Read the tensors of a .safetensors, .npz, .pth, .pt or .bin file, on the CPU.

    Of a training's checkpoint with the weights and their average (`state_dict` and
    `state_dict_ema`, or `model` and `model_ema`) it is the average. Prefixes that wrappers put
    before all names are taken off.

    Raises ModelError when the file is missing, damaged, or holds anything but tensors: a pickled
    module could run code of its author's, so it is refused and the message says what to do.
    """
    try:
        path.open(
            "rb"
        ).close()  # safetensors takes a file that may not be read for one that is not there
        if path.suffix == ".safetensors":
            # Copied: they are views of the mapped file, which may change, and lie where it has
            # them, not aligned.
            return _unwrapped({name: tensor.clone() for name, tensor in load_file(path).items()})
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unusual pickle: it is read, or refused below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise no_permission(path) from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ModelError(f"no checkpoint at {path}") from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is no checkpoint, or holds more than tensors (a pickled module?); unpickling "
            "that could run its author's code, so it was not loaded. Where you trust it, load it "
            "yourself and save its tensors alone: torch.save(model.state_dict(), 'weights.pth')"
        ) from error
    except RuntimeError as error:
        if "TorchScript" in str(error):
            raise ModelError(
                f"{path} is a TorchScript archive, which holds code, so it was not loaded (OpenAI "
                "publishes CLIP so). Where you trust it, save its tensors alone: "
                "torch.save(torch.jit.load(PATH).state_dict(), 'weights.pth')"
            ) from error
        raise _damaged(path, error) from error
    except (
        SafetensorError,
        OSError,
        EOFError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        raise _damaged(path, error) from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise ModelError(
            f"{path} is not a state dict (names to tensors); save one with "
            "torch.save(model.state_dict(), 'weights.pth')"
        )
    return _unwrapped(loaded)


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path} is damaged or not a checkpoint: {error}; fetch or write it again")


def _unwrapped(state: State) -> State:
    """Take off the prefixes that all names have."""
    while prefix := next(
        (each for each in _PREFIXES if state and all(name.startswith(each) for name in state)), ""
    ):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def origin_of(state: State) -> str:
    """Say who wrote a checkpoint, by its names: timm, transformers, torchvision, google, dinov2 or
    open_clip (also OpenAI).
    """
    if "embedding/kernel" in state:
        return "google"
    if "conv_proj.weight" in state:
        return "torchvision"
    if is_transformers(state):
        return "transformers"
    if is_open_clip(state):
        return "open_clip"
    if is_dinov2(state):
        return "dinov2"
    if "patch_embed.proj.weight" in state:
        return "timm"
    some = ", ".join(sorted(state)[:3])
    raise ModelError(
        f"not a Vision Transformer this tool knows (its tensors are named {some} ...); it reads "
        "timm, DeiT, transformers, torchvision, Google, open_clip and DINOv2 checkpoints"
    )


def convert_state(state: State, config: ViTConfig | None = None) -> State:
    """Rename and reshape a checkpoint's tensors to our layout, as float32.

    Raises ModelError for an unknown origin, and for a tensor its origin's plain ViT does not have.
    """
    origin = origin_of(state)
    if origin == "google":
        state = rename(dict(from_flax(name, tensor) for name, tensor in state.items()), GOOGLE)
    elif origin == "transformers":
        state = from_transformers(state)
    elif origin == "torchvision":
        state = rename(state, TORCHVISION)
    elif origin == "dinov2":
        state = from_dinov2(state)
    else:
        state = from_eva(from_open_clip(state, config) if origin == "open_clip" else state)
        if config and config.proj_dim and not config.n_classes:
            state = head_to_projection(state)
    state = split_swiglu(fuse_qkv(state))
    return {name: tensor.float() for name, tensor in state.items()}


def infer_config(state: State) -> ViTConfig:
    """Read a ViTConfig off the shapes of a converted state dict.

    The number of heads leaves no trace in the shapes: it comes from the published sizes. Raises
    ModelError for another size, or a state dict without a head.
    """
    for name in (
        "patch_embed.proj.weight",
        "cls_token",
        "pos_embed",
        "head.weight",
        "blocks.0.mlp.fc1.weight",
    ):
        if name not in state:
            raise ModelError(
                f"the checkpoint has no {name}: it is no classifier, or not a plain Vision "
                "Transformer; where it is another one of timm's, name it with --arch"
            )
    embed_dim, in_chans, patch_size, _ = state["patch_embed.proj.weight"].shape
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    heads = {dims[:2]: dims[2] for dims in SIZES.values()}
    if (embed_dim, depth) not in heads:
        raise ModelError(
            f"width {embed_dim} and depth {depth} are not a published size, so the number of "
            "heads cannot be known; make a bundle folder with a config.json that says it "
            "(docs/models.md)"
        )
    distilled = "dist_token" in state
    grid = math.isqrt(state["pos_embed"].shape[1] - (2 if distilled else 1))
    return ViTConfig(
        img_size=grid * patch_size,
        patch_size=patch_size,
        in_chans=in_chans,
        n_classes=state["head.weight"].shape[0],
        embed_dim=embed_dim,
        depth=depth,
        n_heads=heads[embed_dim, depth],
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / embed_dim,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        distilled=distilled,
    )


# How origins fit a position embedding to another grid: antialias and offset of resample_pos_embed.
RESAMPLINGS = {"antialiased": (True, 0.0), "plain": (False, 0.0), "offset": (False, 0.1)}


def resample_pos_embed(
    pos_embed: Tensor,
    grid_size: int,
    n_prefix_tokens: int,
    antialias: bool = True,
    offset: float = 0.0,
) -> Tensor:
    """Resample a position embedding [1, prefix + g*g, D] to another grid [1, prefix + grid_size**2,
    D].

    Bicubic, prefix tokens kept (Dosovitskiy et al. 2021, section 3.2, resample the grid in 2D; the
    filter is timm's). The same grid comes back unchanged. DINOv2's own code has no antialiasing,
    and scales by (grid_size + 0.1) / g: an `offset` of 0.1.
    """
    prefix, grid = pos_embed[:, :n_prefix_tokens], pos_embed[:, n_prefix_tokens:]
    old_size = math.isqrt(grid.shape[1])
    if old_size**2 != grid.shape[1]:
        raise ModelError(f"a position embedding of {grid.shape[1]} patches is not square")
    if old_size == grid_size:
        return pos_embed
    grid = grid.reshape(1, old_size, old_size, -1).permute(0, 3, 1, 2)  # [1, D, g, g]
    scale = (grid_size + offset) / old_size
    to: dict[str, Any] = {"scale_factor": scale} if offset else {"size": (grid_size, grid_size)}
    grid = F.interpolate(grid, **to, mode="bicubic", antialias=antialias)
    return torch.cat([prefix, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
