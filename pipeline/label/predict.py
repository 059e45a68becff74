"""Batch -> Predictions: normalise, run the backbone, score its features with the head, top-k.

Where and in which precision the backbone runs is chosen in placement.py; the head is always in
float32 (vit/head.py). A GPU works on while this
process does something else: `start` hands it a batch, `Running.finish` waits for the results.
"""

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.console import Console
from pipeline.errors import LabelImagesError
from pipeline.load.batch import Batch
from vit.classifier import Classifier
from vit.head import Head
from vit.preprocess import normalise

from .placement import Placement
from .predictions import Predictions

# Images that are scored together: their number is filled up to that. On a GPU many, so that a batch is
# few steps of work. On a CPU few, since ViT-Ti in int8 has batches of 4 or 8; and with 16 in one thread
# MKL computes each row in the same way, which with 32 or 128 it does not where there is no AVX512.
_SCORED_AT_ONCE_GPU, _SCORED_AT_ONCE_CPU = 128, 16


@dataclass(frozen=True)
class Running:
    """A batch on the device; its results are there once `finish` returns."""

    class_ids: Tensor
    probabilities: Tensor
    is_finite: Tensor
    features: Tensor | None
    clock: "_Clock"

    def finish(self) -> Predictions:
        """Wait for the results. Raises LabelImagesError where the device failed meanwhile."""
        with _explained(self.clock.device):
            transfer_s, model_s = self.clock.wait()
        return Predictions(
            self.class_ids.numpy(),
            self.probabilities.numpy(),
            self.is_finite.numpy(),
            None if self.features is None else self.features.numpy(),
            transfer_s,
            model_s,
        )


class Predictor:
    """The model on its device, in its precision. `limit` is how many images fit there at once.

    The classifier stays as it is, float32 on the CPU. `keeps_features` has predictions bring the
    features, too.
    """

    def __init__(
        self,
        classifier: Classifier,
        placement: Placement,
        top_k: int,
        console: Console,
        keeps_features: bool = False,
    ) -> None:
        self.keeps_features = keeps_features
        self.classifier = classifier
        self.placement = placement
        self.console = console
        self.top_k = min(top_k, len(classifier.labels))
        self.limit = placement.batch_size
        # How many batches are handed to the device before the results of one are asked for.
        self.batches_ahead = 1 if placement.device.type == "cuda" else 0
        # Weights in the precision itself rather than autocast: nothing is cast again in each batch.
        self.backbone: Any = classifier.backbone.on(placement.device, placement.dtype)
        if placement.compile:
            self.backbone = torch.compile(self.backbone)
        self.head = classifier.head.to(placement.device)

    def __call__(self, batch: Batch) -> Predictions:
        return self.start(batch).finish()

    @torch.inference_mode()
    def start(self, batch: Batch) -> Running:
        """Begin with a batch.

        Raises LabelImagesError where the device fails, or has no memory for even one image.
        """
        with _explained(self.placement.device):
            return self._start(batch)

    def _start(self, batch: Batch) -> Running:
        clock = _Clock(self.placement.device)
        if not len(batch.images):
            empty, is_finite = torch.empty(0, self.top_k), torch.empty(0, dtype=torch.bool)
            none = torch.empty(0, self.head.n_features) if self.keeps_features else None
            return Running(empty.int(), empty, is_finite, none, clock)
        images = batch.images.to(self.placement.device, non_blocking=True)  # uint8 [B, C, H, W]
        clock.mark()
        features = self._features(images)  # [B, F]
        class_ids, best, is_finite = best_classes(self.head, features, self.top_k)
        ids, best, is_finite = (
            tensor.to("cpu", non_blocking=True) for tensor in (class_ids, best, is_finite)
        )
        kept = None
        if self.keeps_features:
            kept = features.float().to("cpu", non_blocking=True)
        clock.mark()
        return Running(ids, best, is_finite, kept, clock)

    def _features(self, images: Tensor) -> Tensor:
        """Run the backbone on uint8 [B, C, H, W], in halves from the first time its memory does not
        suffice.
        """
        while True:
            try:
                return torch.cat(
                    [self._run_backbone(chunk) for chunk in images.split(self.limit)]
                )  # [B, F]
            except torch.OutOfMemoryError as error:
                if min(self.limit, len(images)) == 1:
                    raise LabelImagesError(
                        f"{self.placement.device} has not enough memory for one image: "
                        f"{str(error).splitlines()[0]}; end what else runs on it, or use --device "
                        "cpu"
                    ) from error
                self.limit = min(self.limit, len(images)) // 2
            torch.cuda.empty_cache()  # outside of the handler, which still holds the failed attempt's tensors
            message = (
                f"{self.placement.device} ran out of memory: {self.limit} images at a time from here "
                "on"
            )
            self.console.warn("out_of_memory", message, {"batch_size": self.limit})

    def _run_backbone(self, images: Tensor) -> Tensor:
        inputs = normalise(images, self.classifier.preprocess, self.placement.dtype)
        n = len(inputs)
        if self.placement.compile and n < self.limit:
            # One shape, one compilation: a short batch is filled up, and the filling cut off again.
            inputs = torch.cat([inputs, inputs.new_zeros(self.limit - n, *inputs.shape[1:])])
        features: Tensor = self.backbone(inputs)
        return features[:n]  # [B, F]


def best_classes(head: Head, features: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features [B, F] -> ids and scores [B, k] of the best classes, and whether all was finite [B].

    In chunks of one shape, the last filled up, and on a CPU in one thread: what a row becomes depends
    neither on how many are scored with it nor on which (tested with MKL, torch's library on PCs), so
    that labels made again from embeddings are the same to the bit.
    """
    on_cpu = features.device.type == "cpu"
    at_once = _SCORED_AT_ONCE_CPU if on_cpu else _SCORED_AT_ONCE_GPU
    n, chunks = len(features), []
    with one_thread() if on_cpu else nullcontext():
        filled = torch.cat([features, features.new_zeros(-n % at_once, features.shape[1])])
        for chunk in filled.split(at_once):
            scores = head.scores(chunk)  # [at_once, K]
            best, class_ids = scores.topk(top_k, dim=-1)  # [at_once, k]
            # Both: a sigmoid makes a proper score of an infinite feature. A score that is no number
            # is the best one, and the largest of any is none either.
            is_finite = (chunk.abs().amax(dim=-1) < torch.inf) & (best[:, 0] < torch.inf)
            chunks.append((class_ids.int(), best, is_finite))
        class_ids, best, is_finite = (torch.cat(parts)[:n] for parts in zip(*chunks, strict=True))
    return class_ids, best, is_finite


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread meanwhile, whichever thread calls it: the setting is the process's.

    How MKL shares out rows among threads must not show in a score. And beside OpenVINO torch's other
    threads would wait for more to do without sleeping, and take the cores: with ViT-Ti in int8 a
    quarter of the images a second on two cores.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def score_features(
    classifier: Classifier, device: torch.device, top_k: int, features: NDArray[np.float32]
) -> Predictions:
    """Score features [n, F] that were kept, on a device, as `Predictor` does those it has made."""
    head = classifier.head.to(device)

    @torch.inference_mode()
    def score(some: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return best_classes(head, some, top_k)

    # Each thread scores images of its own, since torch may share out none. The outer `one_thread` puts
    # torch's setting back once all threads have ended.
    n_threads = torch.get_num_threads() if device.type == "cpu" else 1
    share = math.ceil(len(features) / n_threads / _SCORED_AT_ONCE_CPU) * _SCORED_AT_ONCE_CPU
    with one_thread(), ThreadPoolExecutor(n_threads) as pool:
        parts = list(pool.map(score, torch.tensor(features, device=device).split(share or 1)))
    class_ids, best, is_finite = (
        torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)
    )
    return Predictions(class_ids, best, is_finite)


@contextmanager
def _explained(device: torch.device) -> Iterator[None]:
    """Turn a device's failure, and a CPU's want of memory, into an error that says what to do."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        if device.type != "cpu":
            raise LabelImagesError(
                f"{device} failed: {first}; finished shards are kept, run the same command to go "
                "on, with --device cpu if it fails again"
            ) from error
        if "can't allocate memory" not in str(error):
            raise
        raise LabelImagesError(
            f"not enough memory for the model: {first}; finished shards are kept, run the same "
            "command with a smaller --batch-size"
        ) from error


class _Clock:
    """Measures the device's own time between marks: a GPU runs behind this process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        self.marks: list[Any] = []
        self.mark()

    def mark(self) -> None:
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def wait(self) -> tuple[float, float]:
        """Wait for the last mark; return the seconds between the first and second, and the second
        and third.
        """
        if len(self.marks) < 3:
            return 0.0, 0.0
        first, second, third = self.marks
        if not self.on_gpu:
            return 0.0, third - first  # nothing is moved
        third.synchronize()
        return first.elapsed_time(second) / 1000, second.elapsed_time(third) / 1000
