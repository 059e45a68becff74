"""The columns of the table and of embeddings, and the error codes, from their schemas."""

import pyarrow as pa

from docs.generate.regions import cell, prose, table
from pipeline.failures import ERROR_CODES, RETRYABLE
from pipeline.table import embeddings, labels

# What each column says. Its type and whether it may be null are the schema's to say; a column that
# is not here, or no longer there, stops the build.
_SAYS = {
    "path": "relative to `root`; with it the key. A name that is not UTF-8 is escaped (`caf\\xe9.jpg`)",
    "path_bytes": "such a name's bytes; null for all others",
    "root": "the folder it was found under, absolute; for a file that was named outright, the folder "
    "it lies in",
    "size_bytes": "as found. With `mtime` it is what \"changed\" means; null where it could not be "
    "looked up",
    "mtime": "when the file was changed, as found; of an image in an archive the archive's time when the "
    "image was labelled",
    "content_hash": "XXH3-128 of the file's bytes, 32 hex digits; null where they could not be read, "
    "and in rows carried over from tables made before version 3",
    "width": "in pixels, as stored in the file; null where it could not be read",
    "height": "the same",
    "format": "what the file really is, such as `JPEG`, whatever its name says",
    "exif_orientation": "1 to 8, as stored in the file; the photo is turned upright before it is "
    "labelled",
    "decode_notes": "what was done to the pixels: `exif_rotated`, `cmyk_converted`, "
    "`palette_converted`, `alpha_flattened` (on white), `depth16_scaled`, `depth32_scaled`, "
    "`first_frame`, `scaled_decode`, `raw_preview` (the preview in a raw photo was labelled), "
    "`raw_half_size` (its mosaic was developed at half size), `ends_cut` (over four times as long as "
    "wide: cut to four times before the model's own crop)",
    "status": "`ok` or `error`",
    "error_code": "why it has no label ([the codes](#error-codes)); null where `ok`",
    "error_detail": "the same in a sentence; null where `ok`",
    "label": "the best class's name; null where `error`, as in the next three",
    "class_id": "its number",
    "probability": "how sure the model is of it, 0 to 1",
    "top_k": "the `--top-k` best, descending, the best included",
    "model": "the model's name",
    "fingerprint": "of all that decides a label: weights, architecture, preprocessing, class names, "
    "top-k, decode rules. One for the whole table",
    "run_id": "the run that computed the label; a row that was carried over, moved or reused keeps that of "
    "the row it came from",
    "labelled_at": "and when, likewise",
}  # fmt: skip

_SAYS_OF_EMBEDDINGS = {
    "root": "as in the table",
    "path": "as in the table",
    "size_bytes": "of the file that was labelled",
    "mtime": "the same",
    "content_hash": "the same",
    "fingerprint": "of what decides the features: the backbone's half of the model's",
    "embedding": "the features, 768 numbers of a ViT-B",
}


def _rows(schema: pa.Schema, says: dict[str, str]) -> str:
    names = set(schema.names)
    if names != says.keys():
        odd = ", ".join(sorted(names ^ says.keys()))
        raise SystemExit(f"docs/generate/columns.py and the schema differ in: {odd}")
    rows = [
        (
            f"`{field.name}`",
            cell(_type(field.type)),
            "yes" if field.nullable else "",
            cell(says[field.name]),
        )
        for field in schema
    ]
    return table(("column", "type", "may be null", ""), rows)


def _type(type: pa.DataType) -> str:
    if pa.types.is_list(type):
        return f"list of {_type(type.value_type)}"
    if pa.types.is_struct(type):
        return f"struct({', '.join(field.name for field in type.fields)})"
    if pa.types.is_floating(type):
        return f"float{type.bit_width}"
    return str(type).replace(", tz=", ", ")


def columns() -> str:
    return _rows(labels.SCHEMA, _SAYS)


def embedding_columns() -> str:
    return _rows(embeddings.SCHEMA, _SAYS_OF_EMBEDDINGS)


def error_codes() -> str:
    rows = [
        (f"`{code}`", cell(prose(why)), "yes" if code in RETRYABLE else "no")
        for code, why in ERROR_CODES.items()
    ]
    return table(("`error_code`", "", "tried again each run"), rows)
