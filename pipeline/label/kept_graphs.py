"""Graphs in the user's cache: one for a model, a precision and a machine.

A graph is a file, and a record beside it, written last, says what it should hold. One that OpenVINO
refused to make has a record alone, so that no night tries again in vain. Whatever cannot be read or
is damaged is as if it were not there.
"""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from filelock import FileLock

from jobs.storage.atomic import read_json, write_bytes, write_json
from vit.classifier import Classifier
from vit.text.head_cache import recipe_digest
from vit.user_cache import user_cache

from .graph import Graph, NoGraph, load_graph, machine_facts, make_graph

_VERSION = 1  # of how graphs are made and checked
_KEPT_DAYS = 60  # without use


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
            "version": _VERSION,
            "weights_sha256": classifier.weights_sha256,
            "architecture": classifier.architecture,
            "mean": classifier.preprocess.mean,
            "std": classifier.preprocess.std,
            "precision": precision,
            "batch_size": batch_size,
            **machine_facts(),
        }
        folder = user_cache("graphs")
        return cls(folder, recipe_digest(recipe), precision, batch_size)

    def load(self) -> Graph | None:
        """The graph that is kept, or None. Raises NoGraph where it was refused before."""
        record = self._read()
        if record is None:
            return None
        if refused := record.get("refused"):
            raise NoGraph(refused)
        try:
            data = np.memmap(self._data, dtype=np.uint8, mode="r")
            if xxhash.xxh3_128_hexdigest(data.data) != record["xxh3_128"]:
                return None
            graph = load_graph(data, self.precision, record["batch_size"])
        except (OSError, ValueError, KeyError, TypeError, NoGraph):
            return None
        with contextlib.suppress(OSError):  # of another user, or a disk that is read-only
            os.utime(self._data)
        return graph

    def make(self, classifier: Classifier) -> tuple[Graph, str]:
        """Make the graph and keep it; return it with why it could not be kept, or nothing.

        Of processes that want the same one at the same time one makes it. Raises NoGraph.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f"{self.digest}.lock"):
                return self.load() or self._make(classifier), ""
        except OSError as error:
            graph = make_graph(classifier, self.precision, self.batch_size)
            return graph, f"{error.filename or self.folder}: {error.strerror or error}"

    def _make(self, classifier: Classifier) -> Graph:
        try:
            graph = make_graph(classifier, self.precision, self.batch_size)
        except NoGraph as error:
            write_json(self._record, {"refused": str(error)})
            raise
        self._sweep()
        data = graph.to_bytes()
        write_bytes(self._data, data)
        digest = xxhash.xxh3_128_hexdigest(data)
        write_json(self._record, {"batch_size": graph.batch_size, "xxh3_128": digest})
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
            return read_json(self._record)
        except OSError:
            return None

    @property
    def _record(self) -> Path:
        return self.folder / f"{self.digest}.json"

    @property
    def _data(self) -> Path:
        return self.folder / f"{self.digest}.blob"
