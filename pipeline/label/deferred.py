"""This machine as a labeller: the model is loaded when there is work for it, and not before.

Until then it is known by what the cache keeps of it (identity.py), and nothing imports torch. All
that takes the model is local.py's work.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from jobs.manifest import ModelIdentity
from jobs.plan import shard_size_for
from pipeline.garbage import no_collection
from pipeline.load.processes import start_early
from pipeline.settings import Settings
from vit.checkpoints.locate import find_source
from vit.errors import ModelError

from .identity import KeptIdentity
from .labeller import Labelled, Run
from .predictions import Predictions

if TYPE_CHECKING:
    from .local import Machine

Explain = Callable[[ModelError], ModelError]
_Result = TypeVar("_Result")

_COMMIT = re.compile(r"hf-hub:[^@]+@[0-9a-f]{40}")


class DeferredMachine:
    """The labeller of a local run. Where nothing is kept of the model, it is loaded at once, and its
    identity kept, unless nothing is to be written.

    Raises ModelError, as `explain` has it, where that fails, and UsageError for a device that is
    not here.
    """

    def __init__(self, settings: Settings, explain: Explain, writes: bool = True) -> None:
        self.explain, self.writes = explain, writes
        self.settings = self._explained(lambda: _of_a_commit(settings))
        self._kept = KeptIdentity.of(self.settings)
        self._loaded: Machine | None = None
        self._known = self._kept.read() if self._kept else None
        self.identity: ModelIdentity = self._known or self._model().identity

    def load(self) -> bool:  # labeller.py
        is_same = self._model().identity == self.identity
        self.identity = self._model().identity
        return is_same

    def shard_size(self, n_images: int) -> int:
        return shard_size_for(n_images)

    def label(self, run: Run, shards: Sequence[int]) -> Labelled:
        return self._model().label(run, shards)

    def score(self, settings: Settings, features: NDArray[np.float32]) -> Predictions:
        return self._model().score(settings, features)

    def label_again(self, run: Run, n: int) -> dict[str, float]:
        # Of the same commit, whatever its branch is at by now.
        settings = replace(run.settings, model=self.settings.model)
        return self._model().label_again(replace(run, settings=settings), n)

    def close(self) -> None:
        """Nothing is at work here once `label` has returned."""

    def _model(self) -> "Machine":
        if self._loaded is None:
            start_early(self.settings)
            with no_collection():
                from .local import Machine
                from .placement import choose_device

            choose_device(self.settings.device)  # refused before the model is loaded
            self._loaded = self._explained(lambda: Machine(self.settings))
            if self.writes and self._kept and self._known != self._loaded.identity:
                self._kept.write(self._loaded.identity, self._loaded.classifier.read_from)
        return self._loaded

    def _explained(self, work: Callable[[], _Result]) -> _Result:
        try:
            return work()
        except ModelError as error:
            raise self.explain(error) from error


def _of_a_commit(settings: Settings) -> Settings:
    """The same, with the commit that a branch of the Hub's is at now: that never changes."""
    model = settings.model or ""
    if not model.startswith("hf-hub:") or _COMMIT.fullmatch(model):
        return settings
    return replace(settings, model=find_source(model).address)
