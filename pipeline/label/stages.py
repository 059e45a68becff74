"""Stages: how long each step of labelling took."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # not every run imports torch (labeller.py)
    from pipeline.load.batch import Batch

    from .predictions import Predictions


@dataclass
class Stages:
    """Seconds spent in each stage.

    Reading and decoding count all workers (decoding their computing time only, since a worker may
    have to let the model go first), transfer and model the device, writing its thread, and waiting
    this process: what decoding could not hide.
    """

    images: int = 0
    read_s: float = 0.0
    decode_s: float = 0.0
    wait_s: float = 0.0
    transfer_s: float = 0.0
    model_s: float = 0.0
    write_s: float = 0.0
    at_once: int = 1  # how many models ran side by side

    def __iadd__(self, other: "Stages") -> "Stages":
        self.images += other.images
        for name in ("read_s", "decode_s", "wait_s", "transfer_s", "model_s", "write_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def add(self, batch: "Batch", predictions: "Predictions") -> None:
        self.images += len(batch) - len(batch.copies)  # for those nothing was done but reading
        self.read_s += batch.read_s
        self.decode_s += batch.decode_s
        self.transfer_s += predictions.transfer_s
        self.model_s += predictions.model_s

    def to_record(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in asdict(self).items()}

    def rates(self, workers: int) -> dict[str, float]:
        """Images a second that each stage could do alone."""
        n = max(workers, 1)
        seconds = {
            "read": self.read_s / n,
            "decode": self.decode_s / n,
            "transfer": self.transfer_s / self.at_once,
            "model": self.model_s / self.at_once,
            "write": self.write_s / self.at_once,
        }
        return {
            stage: round(self.images / spent, 1)
            for stage, spent in seconds.items()
            if spent and self.images
        }


def timed(batches: Iterable["Batch"], stages: Stages) -> Iterator["Batch"]:
    """Pass batches on, counting the time spent waiting for them."""
    asked = time.perf_counter()
    for batch in batches:
        stages.wait_s += time.perf_counter() - asked
        yield batch
        asked = time.perf_counter()
