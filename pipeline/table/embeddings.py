"""Embeddings: the features of each labelled image, for search and for labelling again without decoding.

A folder of files with the keys and the order of the table of labels, a row for each image with
status ok. Size, mtime and content_hash are those the image had, as in the table: a row proves by
itself which state of a file it is of.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from .product import Product

if TYPE_CHECKING:
    from .record import TableRecord

SCHEMA = pa.schema(
    [
        pa.field("root", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64()),
        pa.field("mtime", pa.timestamp("us", tz="UTC")),
        pa.field("content_hash", pa.string()),
        pa.field("fingerprint", pa.string(), nullable=False),  # the features half
        # Null only in parts, which have a row for each image, also for one that failed.
        pa.field("embedding", pa.list_(pa.float32())),
    ]
)


def _problems(rows: pa.Table, record: "TableRecord", _: pa.Array) -> Iterator[str]:
    if set(pc.unique(rows["fingerprint"]).to_pylist()) - {record.fingerprint}:
        yield "rows of another fingerprint than the table's: embeddings of two models are mixed"
    if rows["embedding"].null_count:
        yield "a row has no embedding"
    if len(pc.unique(pc.list_value_length(rows["embedding"]))) > 1:
        yield "embeddings are not all of one length"
    if not pc.all(pc.is_finite(pc.list_flatten(rows["embedding"])), min_count=0).as_py():
        yield "an embedding is not finite"


EMBEDDINGS = Product(
    name="embeddings",
    schema=SCHEMA,
    row_group_rows=8_192,  # 25 MB of ViT-B's 768 numbers each
    decided_by=lambda fingerprint: fingerprint.features_fields,
    problems=_problems,
    write_options={
        "use_dictionary": ["root", "fingerprint"],
        # Each number's first bytes together, then its second: those are alike, and compress.
        "use_byte_stream_split": ["embedding.list.element"],
    },
)
