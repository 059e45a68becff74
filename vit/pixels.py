"""An opened image -> a model's pixels: upright, of the model's mode, resized and cropped.

    load_stored      Pillow's opened image -> Stored, the pixels as its file has them
    Stored.to_input  -> uint8 [C, crop_size, crop_size]

The one way that pixels take, in training as in labelling: a model that learns from other pixels
than it is shown later is wrong without a word. `notes` says what was done to an image, in the words
of the table's column decode_notes. Reading files, limits and formats are the callers'.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # whoever makes thumbnails alone needs no torch
    from torch import Tensor

    from .preprocess import Preprocess

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
ORIENTATION = 274


class Unreadable(Exception):
    """An image that becomes no pixels; `code` is the table's error code for it."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(frozen=True)
class Stored:
    """An image's pixels as they are stored, neither turned nor converted.

    `extent` is the part that is picture, as in fit_image.
    """

    image: Image.Image
    extent: tuple[float, float] | None
    exif_orientation: int | None

    def to_input(self, preprocess: "Preprocess", notes: list[str]) -> "Tensor":
        """Convert, resize, turn upright and crop to uint8 [C, crop_size, crop_size].

        Raises Unreadable.
        """
        from .preprocess import MODES, fit_image, loses_its_ends

        image = _convert(self.image, MODES[preprocess.in_chans], notes)
        if loses_its_ends(image, preprocess):
            notes.append("ends_cut")
        turn = _UPRIGHT.get(self.exif_orientation or 1)
        if turn is not None:
            notes.append("exif_rotated")
        # Turned upright when it is small: the same pixels for less work.
        return fit_image(image, preprocess, self.extent, turn)

    def to_thumbnail(self, side: int) -> Image.Image:
        """The whole picture upright in RGB, no side longer than `side`; a small one stays as it is.

        Raises Unreadable.
        """
        image = _convert(self.image, "RGB", [])
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        turn = _UPRIGHT.get(self.exif_orientation or 1)
        return image if turn is None else image.transpose(turn)


def load_stored(image: Image.Image, notes: list[str], least: int | None = None) -> Stored:
    """Decode an image that Pillow opened. Raises whatever its decoder does.

    `least` lets a large JPEG be decoded at 1/2, 1/4 or 1/8 of its size, no side below that many
    pixels: a fraction of the work on a large photo.
    """
    # Asked before it is decoded: Pillow scales 16-bit colour itself, and keeps no trace of it.
    if any(";16" in str(tile) for tile in getattr(image, "tile", ())):
        notes.append("depth16_scaled")
    stored_size, drafted = image.size, None
    if least is not None and image.format in ("JPEG", "MPO"):
        drafted = image.draft(None, (least, least))
    image.load()
    if image.size != stored_size:
        notes.append("scaled_decode")
    # Only now: looking for a PNG's EXIF decodes the PNG.
    return Stored(image, drafted[1][2:] if drafted else None, exif_orientation(image))


def exif_orientation(image: Image.Image) -> int | None:
    """An image's EXIF orientation, 1 to 8; None where it has none."""
    try:
        value = image.getexif().get(ORIENTATION)
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
        raise Unreadable(
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
            raise Unreadable("corrupt", "none of its pixels is a finite number")
        low, high = float(finite.min()), float(finite.max())
    if image.mode.startswith("I;16") or (image.mode == "I" and low >= 0 and 255 < high <= 65535):
        values = values / 257  # 65535 -> 255
    elif image.mode == "F" and low >= 0 and high <= 1:
        values = values * 255
    elif low < 0 or high > 255:
        values = (values - low) * (255 / ((high - low) or 1))
    return Image.fromarray(np.nan_to_num(values.round(), nan=0.0).clip(0, 255).astype(np.uint8))
