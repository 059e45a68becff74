"""ModelChoice: which model labels, and how; what a table remembers of the command that made it.

A command that names no model goes on with the table's: a forgotten --model never changes a label.
What replaces the labels of a whole table needs a word from the user: an option that asks for it, or
--relabel.
"""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vit.errors import ModelError

from .settings import DEFAULT_TOP_K, Settings


@dataclass(frozen=True)
class ModelChoice:
    """`model` and `labels` are found from any working folder
    (vit.checkpoints.locate.Source.address).
    """

    model: str
    labels: str | None = None
    arch: str | None = None
    preprocess: str | None = None
    top_k: int = DEFAULT_TOP_K

    @classmethod
    def of(cls, settings: Settings, address: str) -> "ModelChoice":
        """What to remember of a run's settings, whose model was found at `address`."""
        labels = os.path.abspath(settings.labels) if settings.labels else None
        return cls(
            address, labels, settings.arch, settings.preprocess, settings.top_k or DEFAULT_TOP_K
        )

    @classmethod
    def from_record(cls, record: Any) -> "ModelChoice | None":
        """Rebuild what `to_record` gave; None where a table, of an earlier version, remembers
        nothing.
        """
        try:
            return cls(**record)
        except TypeError:
            return None

    def to_record(self) -> dict[str, Any]:
        return asdict(self)

    def is_named_by(self, model: str) -> bool:
        """Whether --model asks for this one: by its address, its path, or its name on the Hub."""
        return (
            model == self.model
            or self.model.startswith(f"{model}@")
            or os.path.abspath(model) == self.model
        )


@dataclass(frozen=True)
class Chosen:
    """Settings with a model, and whether the user said a word for labels other than the table's.

    `is_remembered`: the model is the table's, since the command names none.
    """

    settings: Settings
    is_asked_for: bool
    is_remembered: bool

    def explained(self, error: ModelError) -> ModelError:
        """An error of the model, with where its name comes from if the command does not say it."""
        if not self.is_remembered:
            return error
        return ModelError(
            f"{error}. {self.settings.table} was labelled with that model, and this command names "
            f"none; name it with "
            "--model where it lies now"
        )


def choose_model(settings: Settings, remembered: ModelChoice | None) -> Chosen:
    """Fill in from the table what the command leaves open.

    Another model brings its own labels and preprocessing.
    """
    asked = settings.relabel or settings.restart or settings.model is not None
    if remembered is None:
        asked = asked or settings.top_k is not None
        return Chosen(replace(settings, model=settings.model or "embedded"), asked, False)
    asked = asked or any(
        given is not None and given != before
        for given, before in (
            (settings.top_k, remembered.top_k),
            (settings.arch, remembered.arch),
            (settings.preprocess, remembered.preprocess),
            (os.path.abspath(settings.labels) if settings.labels else None, remembered.labels),
        )
    )
    filled = replace(settings, top_k=settings.top_k or remembered.top_k)
    if settings.model is None or remembered.is_named_by(settings.model):
        filled = replace(
            filled,
            model=settings.model or remembered.model,
            labels=settings.labels or (Path(remembered.labels) if remembered.labels else None),
            arch=settings.arch or remembered.arch,
            preprocess=settings.preprocess or remembered.preprocess,
        )
    return Chosen(filled, asked, settings.model is None)
