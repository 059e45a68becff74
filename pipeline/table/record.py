"""What a table says of itself: the record in its metadata, and the names of its classes.

JSON under `label_images` (what made the table) and `label_images_classes`.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.plan import KNOWN
from jobs.receipts import Provenance
from jobs.records import canonical_sha256
from jobs.storage.object_store import AnyPath, as_arrow
from pipeline.errors import TableError
from pipeline.table.embeddings import EMBEDDINGS
from pipeline.table.labels import LABELS
from pipeline.table.product import TABLE_VERSION, Product

PRODUCTS = {product.name: product for product in (LABELS, EMBEDDINGS)}


@dataclass(frozen=True)
class TableRecord:
    """What a table says of itself.

    `made_by` is what made its rows, all of them: carried ones, too. `selection` decided which files
    were found, `choice` is the model that a command without --model goes on with; both are None
    where an earlier version did not say them. `counts` has rows, ok, and errors by code. `mounts`
    are the (root, folder) that were mount points.
    """

    plan_id: str
    created_at: str
    run_id: str
    tool_version: str
    model: str
    fingerprint: str
    fingerprint_fields: dict[str, Any]
    made_by: list[Provenance]
    roots: list[str]
    selection: dict[str, Any] | None = None
    choice: dict[str, Any] | None = None
    counts: dict[str, Any] = field(default_factory=lambda: {"rows": 0, "ok": 0, "errors": {}})
    repaired_at: str | None = None
    mounts: list[tuple[str, str]] = field(default_factory=list)
    product_name: str = LABELS.name
    labels_at: str | None = None  # of another product: where the labels of its images are
    beside: dict[str, str] = field(default_factory=dict)  # of labels: other products, and where
    receipts_sha256: str = ""  # of the shards that its last merge took; the same in each product
    version: int = TABLE_VERSION  # of the table that says this; a new table always has today's

    @property
    def product(self) -> Product:
        return PRODUCTS[self.product_name]

    @property
    def schema(self) -> pa.Schema:
        """The columns that its files have."""
        return self.product.schema_of(self.version)

    @property
    def precision(self) -> str:
        return " and ".join(dict.fromkeys(maker.precision for maker in self.made_by))

    @property
    def device(self) -> str:
        return " and ".join(dict.fromkeys(maker.device for maker in self.made_by))

    def counting(self, n_rows: int, errors: dict[str, int]) -> "TableRecord":
        """The record of so many rows, of which some failed."""
        ok = n_rows - sum(errors.values())
        return replace(self, counts={"rows": n_rows, "ok": ok, "errors": errors})

    def to_json(self) -> dict[str, Any]:
        libraries = self.made_by[-1].libraries if self.made_by else {}
        readable = {"precision": self.precision, "device": self.device, "libraries": libraries}
        return asdict(self) | {"version": TABLE_VERSION} | readable

    @classmethod
    def from_json(cls, values: Any, path: AnyPath) -> "TableRecord":
        """Rebuild a record, of this version or one before. Raises TableError."""
        if isinstance(values, dict) and isinstance(version := values.get("version"), int):
            if version > TABLE_VERSION:
                raise TableError(
                    f"{path} was written by a newer label-images (table version {version}, this "
                    f"is {TABLE_VERSION}); use that one, or choose another --out"
                )
            with suppress(TypeError, ValueError, AttributeError):  # a name or value that is damaged
                if _is_whole(values):
                    return _rebuilt(values)
        raise TableError(
            f"{path} is damaged: what it says of itself is not as it was written; choose another "
            "--out, or replace it with --overwrite"
        )


# What the readers of a record count on, beside its version.
_RECORD = {
    "plan_id": str, "created_at": str, "run_id": str, "tool_version": str, "roots": list,
    "counts": dict, "model": str, "fingerprint": str, "fingerprint_fields": dict,
    "precision": str, "device": str,
}  # fmt: skip
_COUNTS = {"rows": int, "ok": int, "errors": dict}


def _is_whole(values: dict[str, Any]) -> bool:
    """Whether a record says all that it should: damage may have left it JSON, with a key that
    nobody knows.
    """
    return (
        1 <= values["version"] <= TABLE_VERSION
        and all(isinstance(values.get(name), kind) for name, kind in _RECORD.items())
        and all(isinstance(values["counts"].get(name), kind) for name, kind in _COUNTS.items())
        and canonical_sha256(values["fingerprint_fields"]) == values["fingerprint"]
        and (values["version"] == 1 or isinstance(values.get("made_by"), list))
        and values.get("product_name", LABELS.name) in PRODUCTS
    )


def _rebuilt(values: dict[str, Any]) -> TableRecord:
    if values["version"] == 1:
        only = Provenance(values["precision"], values["device"], values.get("libraries", {}))
        values = {**values, "made_by": [only], "selection": values.get("wanted")}
    else:
        values = {**values, "made_by": [Provenance(**maker) for maker in values["made_by"]]}
        values["mounts"] = [(root, folder) for root, folder in values.get("mounts", [])]
    known = {each.name for each in fields(TableRecord)}
    return TableRecord(**{name: value for name, value in values.items() if name in known})


def read_record(path: AnyPath) -> TableRecord | None:
    """Read what a table says of itself; None when there is no file.

    Raises TableError for a file that this tool did not write, or that a newer version of it did.
    """
    if not path.exists():
        return None
    try:
        with pq.ParquetFile(as_arrow(path)) as file:
            metadata, schema = file.metadata.metadata or {}, file.schema_arrow
            values = json.loads(metadata[b"label_images"])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise TableError(
            f"{path} was not written by label-images, or is damaged ({type(error).__name__}); "
            "choose another --out, or replace it with --overwrite"
        ) from error
    record = TableRecord.from_json(values, path)
    if not schema.equals(record.schema):
        raise TableError(
            f"{path} has other columns than this version of label-images writes; choose another "
            "--out, or replace it with --overwrite"
        )
    return record


def read_classes(path: AnyPath) -> list[dict[str, Any]]:
    """Read the classes that a table's labels are from. Raises TableError."""
    try:
        classes = json.loads(pq.read_metadata(as_arrow(path)).metadata[b"label_images_classes"])
        assert all(isinstance(entry["label"], str) for entry in classes)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, AssertionError) as error:
        raise TableError(
            f"{path} does not say what its classes are ({error}); label again with --overwrite"
        ) from error
    return list(classes)


def read_known(path: AnyPath, in_archives: bool = False, table: AnyPath | None = None) -> pa.Table:
    """Read the columns of a table that a plan is made from, or only the rows of images
    `in_archives`.

    Raises TableError where it is damaged.
    """
    encoded = ["root", "status", "error_code", "fingerprint"]
    try:
        with pq.ParquetFile(
            as_arrow(path), read_dictionary=encoded, page_checksum_verification=True
        ) as file:
            if not in_archives:
                return file.read(columns=KNOWN.names)
            batches = file.iter_batches(columns=KNOWN.names)
            rows = [
                pa.table(batch).filter(pc.match_substring(batch["path"], ".tar", ignore_case=True))
                for batch in batches
            ]
            return pa.concat_tables(
                [KNOWN.empty_table(), *(each.select(KNOWN.names).cast(KNOWN) for each in rows)]
            )
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, error, table) from error


def damaged(path: AnyPath, error: Exception, table: AnyPath | None = None) -> TableError:
    """What to say of a file whose pages cannot be read, or are not as they were written.

    `table` is the folder, of a table of many files.
    """
    return TableError(
        f"{path} is damaged ({error}); keep what can still be proven with `label-images verify "
        f"{table or path} --repair`, or label all again with --restart"
    )
