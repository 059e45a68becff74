"""A file's bytes -> RGB pixels of the model's size, or a Failure with a reason.

Runs in loader workers. One image in, one value out, whatever the bytes hold: nothing here raises
for a bad file. Where the same file would give other pixels, DECODE_RULES changes (decode_rules.py).
"""

import io
import logging
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from PIL import AvifImagePlugin, Image, UnidentifiedImageError

from pipeline.failures import Failure, ImageFacts
from vit.pixels import Unreadable, load_stored

from . import jpeg
from .raw import open_raw, raw_name
from .reuse import as_digits, hash_of
from .sample import Sample
from .signatures import ends_early, explain

if TYPE_CHECKING:  # whoever makes thumbnails alone needs no torch
    from torch import Tensor

    from vit.preprocess import Preprocess

T = TypeVar("T")

# A scaled JPEG decode leaves at least this many times the model's size, for the resize to filter
# down from. With 2, of photos with detail down to the pixel 9% got another best class than timm's
# from a random network, with 3 it was 1%: benchmarks/agreement.py.
SCALED_DECODE_MARGIN = 3

# The decoders that may run. Others of Pillow's start programs (EPS) or are rarely fuzzed.
FORMATS = ["JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "HEIF"]


def register_formats() -> bool:
    """Let Pillow read HEIC where pillow-heif is installed; return whether it is.

    Call once a process.
    """
    Image.MAX_IMAGE_PIXELS = None  # --max-pixels decides, before anything is decoded
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what is wrong with a file, its row says
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # there is a worker a core already
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.options.DECODE_THREADS = 1
    pillow_heif.register_heif_opener()
    return True


def decode_image(
    index: int,
    data: bytes,
    preprocess: "Preprocess",
    max_pixels: int,
    scaled: bool = True,
    content_hash: str | None = None,
) -> Sample | Failure:
    """Decode, turn upright, convert and resize one image. Never raises for a bad file.

    `scaled` lets a large JPEG be decoded at a fraction of its size. `content_hash` is the bytes',
    where it is known already.
    """
    facts = ImageFacts(content_hash=content_hash or as_digits(hash_of(data)))

    def decode(whole: bytes) -> Sample:
        return Sample(index, _decode(whole, preprocess, max_pixels, facts, scaled), facts)

    return guarded(index, data, facts, decode)


def guarded(
    index: int, data: bytes, facts: ImageFacts, decode: Callable[[bytes], T]
) -> T | Failure:
    """What `decode` makes of an image's bytes; a Failure for whatever it raises of a bad file.

    A JPEG that lacks only its end marker is given to it once more, with one. `decode` fills in
    `facts`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; the pixels decide
            try:
                return decode(data)
            except OSError as error:
                whole = (
                    jpeg.with_end(data)
                    if facts.format in ("JPEG", "MPO") and _says_truncated(error)
                    else None
                )
                if whole is None:
                    raise
                facts.notes.clear()
                return decode(whole)
    except Unreadable as refusal:
        return Failure(index, refusal.code, str(refusal), facts)
    except MemoryError:
        return Failure(index, "out_of_memory", "decoding needed more memory than there was", facts)
    except Exception as error:  # noqa: BLE001 - decoders raise whatever a damaged file provokes
        code = "truncated" if _says_truncated(error) or ends_early(data) else "corrupt"
        return Failure(index, code, _detail(error)[:300], facts)


def open_image(data: bytes, max_pixels: int, facts: ImageFacts, needed: int) -> Image.Image:
    """Open an image without decoding it; fills in `facts`. Raises Unreadable, and whatever Pillow
    does.

    `needed` are the pixels that no side should have fewer of, where a file has more than one
    picture to choose from, as raw photos do.
    """
    if raw := raw_name(data):
        return open_raw(data, raw, max_pixels, facts, needed)
    try:
        image: Image.Image = Image.open(
            io.BytesIO(data), formats=[name for name in FORMATS if name in _known()]
        )
    except UnidentifiedImageError:
        raise Unreadable(*explain(data, has_heif="HEIF" in _known())) from None
    # A header may claim any size; the table's columns hold what 32 bits can.
    facts.width, facts.height = (side if 0 <= side < 1 << 31 else None for side in image.size)
    facts.format = image.format
    if image.width * image.height > max_pixels:
        raise Unreadable(
            "too_many_pixels",
            f"{image.width} x {image.height} pixels; --max-pixels allows {max_pixels}",
        )
    return image


def _decode(
    data: bytes, preprocess: "Preprocess", max_pixels: int, facts: ImageFacts, scaled: bool
) -> "Tensor":
    """Decode to the model's pixels; fills in `facts` on the way."""
    image = open_image(data, max_pixels, facts, preprocess.resize_size)
    if (
        getattr(image, "is_animated", False) and image.format != "MPO"
    ):  # an MPO's others are previews
        facts.notes.append("first_frame")
    least = SCALED_DECODE_MARGIN * preprocess.resize_size if scaled else None
    stored = load_stored(image, facts.notes, least)
    facts.exif_orientation = stored.exif_orientation
    return stored.to_input(preprocess, facts.notes)


def _known() -> set[str]:
    """The formats this Pillow can open; AVIF depends on its build, HEIF on pillow-heif."""
    Image.init()
    return set(Image.OPEN)


def _detail(error: Exception) -> str:
    """What a decoder complains of: in its own words alone, where it raised them on purpose."""
    said = str(error)
    is_meant = isinstance(error, OSError | SyntaxError) and said
    return said if is_meant else f"{type(error).__name__}: {said}"


def _says_truncated(error: Exception) -> bool:
    return "truncated" in str(error).lower()
