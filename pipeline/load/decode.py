"""A file's bytes -> RGB pixels of the model's size, or a Failure with a reason.

Runs in loader workers. One image in, one value out, whatever the bytes hold: nothing here raises
for a bad file. `DECODE_RULES` is part of the fingerprint: change it when the same file would give
other pixels.
"""

import io
import logging
import warnings

import numpy as np
from PIL import AvifImagePlugin, Image, UnidentifiedImageError

from pipeline.failures import Failure, ImageFacts
from vit.preprocess import MODES, Preprocess, fit_image

from . import jpeg
from .sample import Sample
from .signatures import ends_early, explain

# 3: floats that are no numbers, JPEGs without an end marker and `interpolation: nearest` give pixels
# of their own.
DECODE_RULES = "3"

# A scaled JPEG decode leaves at least this many times the model's size, for the resize to filter
# down from. With 2, of photos with detail down to the pixel 9% got another best class than timm's
# from a random network, with 3 it was 1%: benchmarks/agreement.py.
SCALED_DECODE_MARGIN = 3

# The decoders that may run. Others of Pillow's start programs (EPS) or are rarely fuzzed.
FORMATS = ["JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "HEIF"]

# EXIF orientation (tag 274) -> what turns the stored pixels upright (EXIF 2.32, 4.6.4 A).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 274


class _Refused(Exception):
    """Ends the decoding of one image; becomes a Failure."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


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
    index: int, data: bytes, preprocess: Preprocess, max_pixels: int, scaled: bool = True
) -> Sample | Failure:
    """Decode, turn upright, convert and resize one image. Never raises for a bad file.

    `scaled` lets a large JPEG be decoded at a fraction of its size.
    """
    facts = ImageFacts()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; the pixels decide
            try:
                image, extent = _decode(data, preprocess, max_pixels, facts, scaled)
            except OSError as error:
                whole = (
                    jpeg.with_end(data)
                    if facts.format in ("JPEG", "MPO") and _says_truncated(error)
                    else None
                )
                if whole is None:
                    raise
                facts.notes.clear()
                image, extent = _decode(whole, preprocess, max_pixels, facts, scaled)
            # Turned upright when it is small: the same pixels for less work.
            turn = _UPRIGHT.get(facts.exif_orientation or 1)
            return Sample(index, fit_image(image, preprocess, extent, turn), facts)
    except _Refused as refusal:
        return Failure(index, refusal.code, str(refusal), facts)
    except MemoryError:
        return Failure(index, "out_of_memory", "decoding needed more memory than there was", facts)
    except Exception as error:  # noqa: BLE001 - decoders raise whatever a damaged file provokes
        code = "truncated" if _says_truncated(error) or ends_early(data) else "corrupt"
        return Failure(index, code, f"{type(error).__name__}: {error}"[:300], facts)


def _decode(
    data: bytes, preprocess: Preprocess, max_pixels: int, facts: ImageFacts, scaled: bool
) -> tuple[Image.Image, tuple[float, float] | None]:
    """Decode to an image of the model's mode as it is stored, and its extent; fills in `facts` on
    the way.
    """
    try:
        image: Image.Image = Image.open(
            io.BytesIO(data), formats=[name for name in FORMATS if name in _known()]
        )
    except UnidentifiedImageError:
        raise _Refused(*explain(data, has_heif="HEIF" in _known())) from None
    # A header may claim any size; the table's columns hold what 32 bits can.
    facts.width, facts.height = (side if 0 <= side < 1 << 31 else None for side in image.size)
    facts.format = image.format
    if image.width * image.height > max_pixels:
        raise _Refused(
            "too_many_pixels",
            f"{image.width} x {image.height} pixels; --max-pixels allows {max_pixels}",
        )
    if (
        getattr(image, "is_animated", False) and image.format != "MPO"
    ):  # an MPO's others are previews
        facts.notes.append("first_frame")
    if any(";16" in str(tile) for tile in getattr(image, "tile", ())):
        facts.notes.append("depth16_scaled")
    stored_size, extent = image.size, None
    if scaled and image.format in ("JPEG", "MPO"):
        # Decodes at 1/2, 1/4 or 1/8 of the size: a fraction of the work on a large photo.
        least = SCALED_DECODE_MARGIN * preprocess.resize_size
        if drafted := image.draft(None, (least, least)):
            extent = drafted[1][2:]
    image.load()
    if image.size != stored_size:
        facts.notes.append("scaled_decode")
    facts.exif_orientation = _orientation(
        image
    )  # only now: looking for a PNG's EXIF decodes the PNG
    image = _convert(image, MODES[preprocess.in_chans], facts.notes)
    if facts.exif_orientation in _UPRIGHT:
        facts.notes.append("exif_rotated")
    return image, extent


def _known() -> set[str]:
    """The formats this Pillow can open; AVIF depends on its build, HEIF on pillow-heif."""
    Image.init()
    return set(Image.OPEN)


def _says_truncated(error: Exception) -> bool:
    return "truncated" in str(error).lower()


def _orientation(image: Image.Image) -> int | None:
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # noqa: BLE001 - broken EXIF must not cost the photo its label
        return None
    return value if isinstance(value, int) and 1 <= value <= 8 else None


def _convert(image: Image.Image, mode: str, notes: list[str]) -> Image.Image:
    """Convert any of Pillow's modes to L, RGB or RGBA."""
    if image.mode.startswith(("I", "F")):
        if "depth16_scaled" not in notes:
            notes.append("depth16_scaled" if image.mode.startswith("I;16") else "depth32_scaled")
        image = _to_8_bits(image)
    if image.mode == "CMYK":
        notes.append("cmyk_converted")
    elif image.mode in ("P", "PA"):
        notes.append("palette_converted")
    if image.has_transparency_data and mode != "RGBA":
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] != 255:
            # What lies under transparent pixels is arbitrary; people see such pictures on white.
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
            notes.append("alpha_flattened")
    if image.mode == mode:
        return image
    try:
        return image.convert(mode)
    except ValueError as error:
        raise _Refused(
            "unsupported", f"colour mode {image.mode} cannot be converted to {mode}"
        ) from error


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16- and 32-bit grey to 0..255: by their type's range where that is known, else by their
    own.
    """
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):  # one NaN must not make all of it black
        finite = values[np.isfinite(values)]
        if not len(finite):
            raise _Refused("corrupt", "none of its pixels is a finite number")
        low, high = float(finite.min()), float(finite.max())
    if image.mode.startswith("I;16") or (image.mode == "I" and low >= 0 and 255 < high <= 65535):
        values = values / 257  # 65535 -> 255
    elif image.mode == "F" and low >= 0 and high <= 1:
        values = values * 255
    elif low < 0 or high > 255:
        values = (values - low) * (255 / ((high - low) or 1))
    return Image.fromarray(np.nan_to_num(values.round(), nan=0.0).clip(0, 255).astype(np.uint8))
