"""Heads made of words, kept in the user's cache by what they were made of.

A night that asks for the same words of the same model finds its head here, and needs neither the
libraries nor a network. An entry is one .safetensors file with a digest of its tensors; one that is
damaged is as if it were not there.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from vit.errors import ModelError
from vit.head import Head
from vit.user_cache import user_cache

_SUFFIX = ".safetensors"


def cache_folder() -> Path:
    """Where heads are kept."""
    return user_cache("heads")


def recipe_digest(recipe: Mapping[str, Any]) -> str:
    """sha256 of all that a head is made of, as canonical JSON: its name in the cache."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_head(digest: str) -> Head | None:
    """The head that was kept under this digest; None where there is none that can be trusted."""
    try:
        data = (cache_folder() / f"{digest}{_SUFFIX}").read_bytes()
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        if metadata["recipe"] != digest or metadata["tensors"] != _sha256(data[8 + length :]):
            return None
        tensors = load(data)
        return Head(
            tensors["weight"], tensors["bias"], normalise=True, activation=metadata["activation"]
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, ModelError):
        return None


def keep_head(head: Head, digest: str) -> str | None:
    """Keep a head for another night; return why it could not be kept.

    Written under another name first: a reader, of whichever run, sees all of it or nothing.
    """
    tensors = {"weight": head.weight.contiguous(), "bias": head.bias.contiguous()}
    bare = save(tensors)
    metadata = {
        "recipe": digest,
        "activation": head.activation,
        "tensors": _sha256(bare[8 + int.from_bytes(bare[:8], "little") :]),
        "torch": torch.__version__,
    }
    path = cache_folder() / f"{digest}{_SUFFIX}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(save(tensors, metadata))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        return f"{path.parent}: {error.strerror or error}"
    return None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
