"""Graphs in the user's cache: one for a model, a precision and a machine.

A graph is a file, and a record beside it, written last, says what it should hold. One that OpenVINO
refused to make has a record alone, so that no night tries again in vain. Whatever cannot be read or
is damaged is as if it were not there.
"""

import contextlib
import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from filelock import FileLock

import vit
from jobs.records import read_record, write_record
from jobs.storage.atomic import write_bytes
from vit.classifier import Classifier
from vit.text.head_cache import recipe_digest
from vit.user_cache import user_cache

from .graph import Graph, NoGraph, NotThere, load_graph, make_graph, openvino
from .machine_facts import machine_facts

_VERSION = 1
_KEPT_DAYS = 60  # without use
_REFUSED_DAYS = 7  # then it is tried again: what was in its way may have gone


@dataclass(frozen=True)
class KeptGraph:
    """The place of one graph in the cache."""

    folder: Path
    digest: str
    precision: str
    batch_size: int | None  # None for the fastest

    @classmethod
    def of(cls, classifier: Classifier, precision: str, batch_size: int | None) -> "KeptGraph":
        """Where the graph of a classifier's backbone is kept. Raises NoGraph without OpenVINO."""
        recipe = {
            "code": _code_digest(),
            "weights_sha256": classifier.weights_sha256,
            # Those that were read: the file may be another one by now.
            "tensors": _tensors_digest(classifier),
            "architecture": classifier.architecture,
            "mean": classifier.preprocess.mean,
            "std": classifier.preprocess.std,
            "precision": precision,
            "batch_size": batch_size,
            **machine_facts(),
        }
        folder = user_cache("graphs")
        return cls(folder, recipe_digest(recipe), precision, batch_size)

    def kept_batch_size(self, tries_again: bool = False) -> int | None:
        """The batch size of the graph that is kept; None where none is.

        Raises NoGraph where it was refused before, unless it is to be tried again.
        """
        record = self._read()
        if record is None:
            return None
        if refused := record.get("refused"):
            if tries_again or time.time() - record["at"] > _REFUSED_DAYS * 86_400:
                return None
            raise NoGraph(refused)
        try:
            is_there = isinstance(record.get("batch_size"), int) and self._data.exists()
        except OSError:
            return None
        return record["batch_size"] if is_there else None

    def load(self, batch_size: int | None = None) -> Graph | None:
        """The graph that is kept; None where it is not whole, or of another batch size than is asked
        for, if one is.
        """
        record = self._read()
        if record is None or "refused" in record:
            return None
        try:
            if batch_size not in (None, record["batch_size"]):
                return None
            # The installed one may have become another since this process imported it.
            if record["openvino"] != openvino().get_version():
                return None
            data = np.memmap(self._data, dtype=np.uint8, mode="r")
            if xxhash.xxh3_128_hexdigest(data.data) != record["xxh3_128"]:
                return None
            graph = load_graph(data, self.precision, record["batch_size"])
        except (OSError, ValueError, KeyError, TypeError, NoGraph):
            return None
        for path in (self._data, self._record):
            with contextlib.suppress(OSError):  # of another user, or a disk that is read-only
                os.utime(path)
        return graph

    def make(self, classifier: Classifier, batch_size: int | None = None) -> tuple[Graph, str]:
        """Make the graph and keep it; return it with why it could not be kept, or nothing.

        Without a batch size it is the one of `of`. Of processes that want the same graph at the same
        time one makes it. Raises NoGraph.
        """
        batch_size = batch_size or self.batch_size
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f"{self.digest}.lock"):
                return self.load(batch_size) or self._make(classifier, batch_size), ""
        except OSError as error:
            graph = make_graph(classifier, self.precision, batch_size)
            return graph, f"{error.filename or self.folder}: {error.strerror or error}"

    def _make(self, classifier: Classifier, batch_size: int | None) -> Graph:
        try:
            graph = make_graph(classifier, self.precision, batch_size)
        except NotThere:
            raise
        except NoGraph as error:
            write_record(self._record, _VERSION, {"refused": str(error), "at": time.time()})
            raise
        self._sweep()
        data = graph.to_bytes()
        write_bytes(self._data, data)
        digest = xxhash.xxh3_128_hexdigest(data)
        kept = {
            "batch_size": graph.batch_size,
            "xxh3_128": digest,
            "openvino": openvino().get_version(),
        }
        write_record(self._record, _VERSION, kept)
        return graph

    def _sweep(self) -> None:
        """Remove graphs that nobody has used for long: each is as large as its model."""
        oldest = time.time() - _KEPT_DAYS * 86_400
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < oldest:
                    path.unlink()

    def _read(self) -> dict[str, Any] | None:
        try:
            return read_record(self._record, _VERSION)
        except OSError:
            return None

    @property
    def _record(self) -> Path:
        return self.folder / f"{self.digest}.json"

    @property
    def _data(self) -> Path:
        return self.folder / f"{self.digest}.blob"


def _tensors_digest(classifier: Classifier) -> str:
    digest = xxhash.xxh3_128()
    for name, tensor in classifier.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


@cache
def _code_digest() -> str:
    """Of what the network and a graph of it are: this project's own modules."""
    files = [*sorted(Path(vit.__file__).parent.glob("*.py")), Path(__file__).with_name("graph.py")]
    return xxhash.xxh3_128_hexdigest(b"".join(file.read_bytes() for file in files))
