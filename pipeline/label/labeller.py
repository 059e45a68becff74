"""Labeller: whoever does the part of a run's work that takes a model, and what the run gives it to
do so.

There are two: this machine (local.py), and a Ray cluster (ray_driver.py), whose driver never
imports torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jobs.job import Job
from jobs.manifest import Manifest, ModelIdentity
from jobs.receipts import Receipt
from pipeline.console import Console
from pipeline.outcome import library_versions
from pipeline.settings import Settings

from .predictions import Predictions
from .stages import Stages


@dataclass(frozen=True)
class Run:
    """One run of a frozen job: all that labelling its shards takes, but for the weights.

    `deadline` is in time.monotonic()'s seconds. `beside` are the places of the other products, by
    name, held as the job is.
    """

    job: Job
    manifest: Manifest
    identity: ModelIdentity
    settings: Settings
    console: Console
    id: str
    deadline: float = math.inf
    beside: dict[str, Job] = field(default_factory=dict)


@dataclass(frozen=True)
class Labelled:
    """What labelling shards took, and how it was done: placement and libraries as run.json keeps
    them.

    `receipts` are those of the shards, where a node reports them to its driver.
    """

    stages: Stages
    placement: dict[str, Any]
    libraries: dict[str, str] = field(default_factory=library_versions)  # those of whoever labels
    receipts: list[Receipt] = field(default_factory=list)


class Labeller(Protocol):
    @property
    def identity(self) -> ModelIdentity:
        """The model's, which the run is planned for."""

    def load(self) -> bool:
        """Have the model loaded, if that was put off; return whether it is the one of `identity`.

        Where it is not, `identity` is from here on that of the model. Raises ModelError, and
        UsageError for a device that is not there.
        """

    def shard_size(self, n_images: int) -> int:
        """How many images of a job should make a shard."""

    def label(self, run: Run, shards: Sequence[int]) -> Labelled:
        """Label shards, or none, of a frozen job; each leaves a part and a receipt.

        Raises TimeIsUp once the run's deadline is past; finished shards are kept.
        """

    def score(self, settings: Settings, features: NDArray[np.float32]) -> Predictions:
        """Score features [n, F] that were kept, as those of images just decoded are scored."""

    def label_again(self, run: Run, n: int) -> dict[str, float]:
        """Label about `n` committed rows of the job again, on the plainest path (reference.py).

        Return how far off each is, by path: the largest difference of a probability among its best
        classes.
        """

    def close(self) -> None:
        """End what is still at work, so that nobody writes to the job any more."""
