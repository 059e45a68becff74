"""Job: the folder beside a table that holds the state of the work on it.

    .labels.parquet.job/
        lock, holder.json          who is at work; in an object store lease.json
        manifest.json              what the job is; written last when a plan is frozen
        plan.arrow, kept.arrow     the images to label; the rows to carry over (plan_files.py)
        parts/00004.part           the rows of a finished shard (Parquet); of a product beside the
                                   labels parts/00004.PRODUCT.part
        receipts/00004.json        the proof that it is finished; written last
        run.json, history.json     what the last run did; how the last runs ended
        table.json, files/         of a table that is a folder: its files, and those to come

The state is derived, never flagged: a shard is done when its receipt proves its part, the job is
done when the table carries its plan_id.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.storage.arrow import map_arrow
from jobs.storage.atomic import atomic_output, make_folder, remove, remove_files
from jobs.storage.object_store import REQUESTS_AT_ONCE, AnyPath, StorePath, job_folder, local_copy

from . import plan_files
from .errors import JobError
from .holding import hold
from .manifest import MANIFEST_VERSION, Manifest
from .plan import Plan
from .receipts import (
    LABELS,
    Provenance,
    Receipt,
    proves,
    read_receipt,
    sha256_file,
    write_receipt,
)
from .records import read_record, record_version, write_record
from .table_index import Index, settle

RUN_VERSION = 2  # 1 had no digest
HISTORY_VERSION = 1
RUNS_KEPT = 60  # in the history: two months of nights


class Job:
    """The job behind the table at `out`. Creates nothing until it is held."""

    def __init__(self, out: AnyPath) -> None:
        self.out = out
        self.folder: AnyPath = job_folder(out)
        self.manifest_path = self.folder / "manifest.json"
        self.run_path = self.folder / "run.json"
        self.history_path = self.folder / "history.json"
        self.check_held: Callable[[], None] = _no_check  # that this run still holds the job
        self._copies: dict[str, Path] = {}  # on this machine, of a plan in a store

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Hold the job, creating its folder; yield whether something keeps other runs off it.

        Raises JobLocked when another run has it, or JobError where it cannot write, or its folder
        goes meanwhile.
        """
        with hold(self.folder, self.out) as check:
            self.check_held = check or _no_check
            settle(self.index(), self.staged, self.out)
            yield check is not None

    # -- the plan ------------------------------------------------------------------------------

    @property
    def manifest(self) -> Manifest | None:
        """The manifest, or None when there is none that proves itself.

        Raises JobError for the unfinished job of a newer version: what that has done is not ours to
        drop.
        """
        version = record_version(self.manifest_path)
        if version is not None and version > MANIFEST_VERSION and self.has_plan:
            raise JobError(
                f"{self.folder} holds an unfinished job of a newer label-images; go on with that "
                "one, or begin anew with --restart"
            )
        return Manifest.read(self.manifest_path)

    def freeze(self, manifest: Manifest, plan: Plan) -> Manifest:
        """Make `plan` the job, in place of an earlier one; return the manifest with its digests.

        The old manifest goes first and the new one comes last: a crash between leaves no job, not
        a mixture of two.
        """
        self.check_held()
        remove(self.manifest_path)
        self.clear()
        self._copies.clear()
        make_folder(self.folder / "parts")  # before the plan, of which they are part
        make_folder(self.folder / "receipts")
        manifest = replace(manifest, digests=plan_files.write_plan(self.folder, plan))
        manifest.write(self.manifest_path)
        return manifest

    @property
    def has_plan(self) -> bool:
        return plan_files.is_there(self.folder)

    def proves_plan(self, manifest: Manifest) -> bool:
        """Whether the plan is, to the byte, the one the manifest was written for."""
        return plan_files.is_as_written(self.folder, manifest.digests)

    def pending(self) -> pa.Table:
        """The images to label, memory-mapped (jobs.plan.PENDING); row number = index."""
        return map_arrow(self.plan_copy())

    def kept(self, product: str = LABELS) -> pa.Array:
        """Row numbers of the base table to carry over, in the order of the new one. Of another
        product than the labels the row for each of those, null where it has none.
        """
        kept = map_arrow(self._copy(plan_files.KEPT))
        if product in kept.column_names:
            return kept[product].combine_chunks()
        if product == LABELS:
            return kept["row"].combine_chunks()  # as a version before called it
        return pa.nulls(len(kept), pa.int64())

    def plan_copy(self) -> Path:
        """The plan as a file of this machine, for as long as this process lives."""
        return self._copy(plan_files.PENDING)

    def donors_copy(self, manifest: Manifest) -> Path | None:
        """Rows that may give their labels (donors.py), as a file; None where none may."""
        return self._copy(plan_files.DONORS) if self.has_donors(manifest) else None

    def has_donors(self, manifest: Manifest) -> bool:
        return plan_files.DONORS in manifest.digests

    def _copy(self, name: str) -> Path:
        if name not in self._copies:
            self._copies[name] = local_copy(self.folder / name)
        return self._copies[name]

    # -- the shards ----------------------------------------------------------------------------

    def part_path(self, shard: int, product: str = LABELS) -> AnyPath:
        name = f"{shard:05}" if product == LABELS else f"{shard:05}.{product}"
        return self.folder / "parts" / f"{name}.part"

    def part_paths(self, manifest: Manifest, shard: int) -> dict[str, AnyPath]:
        return {product: self.part_path(shard, product) for product in manifest.products}

    def receipt_path(self, shard: int) -> AnyPath:
        return self.folder / "receipts" / f"{shard:05}.json"

    def commit(
        self,
        manifest: Manifest,
        shard: int,
        run_id: str,
        writers: Mapping[str, Callable[[Path], dict[str, int]]],
        made_by: Provenance | None = None,
        reused: int = 0,
    ) -> None:
        """Let `writers` write the shard's parts, then write its receipt: the shard is done.

        There is one for each product of the manifest. It takes the path to write to and returns the
        failed images by error code, where its product has codes. `made_by` and `reused` are for the
        receipt.
        """
        self.check_held()
        errors: dict[str, int] = {}
        digests: dict[str, str] = {}
        for product, part in self.part_paths(manifest, shard).items():
            with atomic_output(part) as temporary:
                errors |= writers[product](temporary)
            digests[product] = sha256_file(part)
        rows = manifest.shard_rows(shard)
        receipt = Receipt(manifest.plan_id, shard, rows, errors, digests, run_id, made_by, reused)
        write_receipt(self.receipt_path(shard), receipt)  # last: it vouches for all before it

    def receipts(self, manifest: Manifest, proven: bool = True) -> dict[int, Receipt]:
        """The finished shards, each proved by its receipt.

        Not `proven` again: for who has just seen them written, and need not read all parts.
        """
        with ThreadPoolExecutor(
            REQUESTS_AT_ONCE if isinstance(self.folder, StorePath) else 1
        ) as threads:
            read = partial(self.proven if proven else self._claimed, manifest)
            found = threads.map(read, range(manifest.n_shards))
            return {shard: receipt for shard, receipt in enumerate(found) if receipt}

    def _claimed(self, manifest: Manifest, shard: int) -> Receipt | None:
        receipt = read_receipt(self.receipt_path(shard))
        return receipt if receipt and receipt.plan_id == manifest.plan_id else None

    def drop_shards(self, shards: Iterable[int]) -> None:
        """Let shards be unfinished again."""
        self.check_held()
        manifest = self.manifest
        for shard in shards:
            remove(self.receipt_path(shard))  # first: without it the parts count for nothing
            for part in self.part_paths(manifest, shard).values() if manifest else ():
                remove(part)

    def proven(self, manifest: Manifest, shard: int) -> Receipt | None:
        """A shard's receipt, where it proves the parts; None for a shard that is not finished."""
        receipt = read_receipt(self.receipt_path(shard))
        rows, parts = manifest.shard_rows(shard), self.part_paths(manifest, shard)
        return receipt if proves(receipt, manifest.plan_id, shard, rows, parts) else None

    # -- a table of many files (table_index.py) ------------------------------------------------

    @property
    def index_path(self) -> AnyPath:
        return self.folder / "table.json"

    @property
    def staged(self) -> AnyPath:
        return self.folder / "files"

    def index(self) -> Index | None:
        return Index.read(self.index_path)

    def switch(self, index: Index) -> None:
        """Let the files staged for an index be the table."""
        self.check_held()
        make_folder(self.out)
        index.write(self.index_path)
        settle(index, self.staged, self.out, are_proven=True)

    # -- the end -------------------------------------------------------------------------------

    def finish(self, plan_id: str) -> None:
        """Drop what only an unfinished job needs; run.json stays, and the manifest of the table's
        plan.

        Right at any time when the table is up to date, also over the remains of a crash.
        """
        manifest = Manifest.read(self.manifest_path)
        if manifest is None or manifest.plan_id != plan_id:
            remove(self.manifest_path)
        self.clear()

    def write_run(self, record: dict[str, Any]) -> None:
        write_record(self.run_path, RUN_VERSION, record)

    def read_run(self) -> dict[str, Any] | None:
        """What the last run did; None where that is missing or does not prove itself."""
        return read_record(self.run_path, RUN_VERSION)

    def add_to_history(self, run: dict[str, Any], mounts: list[list[str]] | None = None) -> None:
        """Note how a run ended, after those before it, and where disks were mounted, if it says so.

        A newer version's history is left alone.
        """
        if (record_version(self.history_path) or 0) > HISTORY_VERSION:
            return
        record = {
            "runs": [*self.history(), run][-RUNS_KEPT:],
            "mounts": self.mounts() if mounts is None else mounts,
        }
        write_record(self.history_path, HISTORY_VERSION, record)

    def mounts(self) -> list[list[str]] | None:
        """The (root, folder) that were mount points in the last run; None where nothing says so."""
        return (read_record(self.history_path, HISTORY_VERSION) or {}).get("mounts")

    @property
    def is_newer(self) -> bool:
        """Whether a newer version has written here, of whose records nothing is known."""
        versions = ((self.manifest_path, MANIFEST_VERSION), (self.history_path, HISTORY_VERSION))
        return any((record_version(path) or 0) > ours for path, ours in versions)

    @property
    def has_history(self) -> bool:
        """Whether there is a history that proves itself."""
        return read_record(self.history_path, HISTORY_VERSION) is not None

    def history(self) -> list[dict[str, Any]]:
        """How the last runs ended, the last one at the end; what does not prove itself is
        forgotten.
        """
        record = read_record(self.history_path, HISTORY_VERSION) or {}
        return list(record.get("runs", []))

    def clear(self) -> None:
        """Drop plan, parts and receipts."""
        # The plan first: without it receipts and parts count for nothing, whatever a crash leaves.
        plan_files.remove_plan(self.folder)
        remove_files(self.folder / "receipts")
        remove_files(self.folder / "parts")


def _no_check() -> None:
    """Where nothing keeps other runs off the job, or nobody holds it."""
