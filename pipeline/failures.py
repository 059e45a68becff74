"""Failure: an image that has no label, and why.

No bad file stops a run; each reason is a code an analyst can count. Needs no torch: a scan and
`verify` use the codes, too.
"""

from dataclasses import dataclass, field

# Every reason for which a row can fail. Some may have passed by the next run (RETRYABLE): such rows
# are tried again in each run, the others only when the file has changed.
ERROR_CODES = {
    "not_found": "the file was gone when it was to be read, or is a link that leads nowhere",
    "permission_denied": "the file may not be read by this user",
    "read_error": "the disk or network failed while reading",
    "not_a_file": "a pipe, socket or device with an image's name; it is not opened",
    "empty_file": "the file has no bytes",
    "not_an_image": "no image format was recognised, whatever the name says",
    "truncated": "the file ends before the image does",
    "corrupt": "the image's data is damaged",
    "unsupported": "a format or colour mode that cannot be decoded here; the detail says what helps",
    "too_many_pixels": "more pixels than --max-pixels; not decoded",
    "out_of_memory": "decoding it needed more memory than there was",
    "timeout": "reading and decoding it took longer than --image-timeout",
    "decoder_crash": "its decoder crashed; it was tried in a process of its own",
    "not_finite": "the model gave no finite numbers for it, in the precision used",
}


RETRYABLE = frozenset(
    ["not_found", "permission_denied", "read_error", "not_a_file", "unsupported", "too_many_pixels",
     "out_of_memory", "timeout", "not_finite"]
)  # fmt: skip

# Why an image fails when its disk is not there.
AWAY = ["not_found", "permission_denied", "read_error"]


@dataclass
class ImageFacts:
    """What a file says of its image, as stored, and what was done to the pixels.

    `content_hash` is of all its bytes; None where they could not be read.
    """

    width: int | None = None
    height: int | None = None
    format: str | None = None
    exif_orientation: int | None = None
    notes: list[str] = field(default_factory=list)
    content_hash: str | None = None


@dataclass(frozen=True)
class Failure:
    """One image that could not be read, decoded or labelled, and why; `code` is one of ERROR_CODES."""

    index: int
    code: str
    detail: str
    facts: ImageFacts = field(default_factory=ImageFacts)
