"""Raw photos as cameras write them, made here: DNG files with a Bayer mosaic and a JPEG preview.

After Adobe's specification 1.4: IFD 0 is the preview and says what is true of the whole file, its
SubIFD is the mosaic.
"""

import io
import struct
from collections.abc import Sequence

import numpy as np
from PIL import Image

_BYTE, _ASCII, _SHORT, _LONG, _RATIONAL, _SRATIONAL = 1, 2, 3, 4, 5, 10
_FORMATS = {_BYTE: "B", _SHORT: "H", _LONG: "I", _RATIONAL: "I", _SRATIONAL: "i"}
_SIZES = {_BYTE: 1, _ASCII: 1, _SHORT: 2, _LONG: 4, _RATIONAL: 8, _SRATIONAL: 8}

Tag = tuple[int, int, Sequence[int] | bytes]

# XYZ to linear sRGB, in ten-thousandths: this camera sees sRGB.
_COLOURS = (32406, -15372, -4986, -9689, 18758, 415, 557, -2040, 10570)


def jpeg_preview(image: Image.Image, orientation: int | None = None) -> bytes:
    """A preview; with an orientation of its own, as some cameras write it, or with none."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[274] = orientation
    image.convert("RGB").save(buffer, "JPEG", quality=95, exif=exif)
    data = buffer.getvalue()
    if orientation is None:
        return data
    return data[:2] + data[data.index(b"\xff\xe1") :]  # no JFIF header before EXIF, as cameras do


def dng(
    image: Image.Image,
    orientation: int = 1,
    preview: bytes | None = None,
    order: str = "<",
    model: str = "Test 1",
) -> bytes:
    """A raw photo of a picture as the sensor has it; `orientation` says how it is turned upright.

    `order` is struct's, of the bytes. Without a preview the mosaic is in IFD 0.
    """
    mosaic = _mosaic(image)
    height, width = mosaic.shape
    pixels = mosaic.astype(f"{order}u2").tobytes()
    of_file: list[Tag] = [
        (271, _ASCII, b"Tests\0"),
        (272, _ASCII, model.encode() + b"\0"),
        (274, _SHORT, [orientation]),
        (50706, _BYTE, [1, 4, 0, 0]),
        (50707, _BYTE, [1, 1, 0, 0]),
        (50708, _ASCII, b"Tests " + model.encode() + b"\0"),
        (50721, _SRATIONAL, [part for value in _COLOURS for part in (value, 10_000)]),
        (50728, _RATIONAL, [1, 1] * 3),
        (50778, _SHORT, [21]),  # D65
    ]
    of_mosaic: list[Tag] = [
        (254, _LONG, [0]),
        (256, _LONG, [width]),
        (257, _LONG, [height]),
        (258, _SHORT, [16]),
        (259, _SHORT, [1]),
        (262, _SHORT, [32803]),
        (277, _SHORT, [1]),
        (278, _LONG, [height]),
        (279, _LONG, [len(pixels)]),
        (284, _SHORT, [1]),
        (33421, _SHORT, [2, 2]),
        (33422, _BYTE, [0, 1, 1, 2]),  # red green / green blue
        (50717, _LONG, [65535]),
    ]
    if preview is None:
        start = 8 + len(_ifd([*of_file, *of_mosaic, (273, _LONG, [0])], 8, order))
        first = _ifd([*of_file, *of_mosaic, (273, _LONG, [start])], 8, order)
        return _header(order) + first + pixels
    with Image.open(io.BytesIO(preview)) as opened:
        small = opened.size
    of_preview: list[Tag] = [
        (254, _LONG, [1]),
        (256, _LONG, [small[0]]),
        (257, _LONG, [small[1]]),
        (258, _SHORT, [8, 8, 8]),
        (259, _SHORT, [7]),
        (262, _SHORT, [6]),
        (277, _SHORT, [3]),
        (278, _LONG, [small[1]]),
        (279, _LONG, [len(preview)]),
        (284, _SHORT, [1]),
    ]

    def first(sub_ifd: int, data: int) -> bytes:
        return _ifd(
            [*of_file, *of_preview, (330, _LONG, [sub_ifd]), (273, _LONG, [data])], 8, order
        )

    second = 8 + len(first(0, 0))
    data = second + len(_ifd([*of_mosaic, (273, _LONG, [0])], second, order))
    mosaic_at = data + len(preview) + len(preview) % 2
    return b"".join(
        [
            _header(order),
            first(second, data),
            _ifd([*of_mosaic, (273, _LONG, [mosaic_at])], second, order),
            preview + b"\0" * (len(preview) % 2),
            pixels,
        ]
    )


def _header(order: str) -> bytes:
    return (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)


def _ifd(tags: Sequence[Tag], at: int, order: str) -> bytes:
    """An IFD that begins at an offset of the file, and what its values point to."""
    entries, beyond = [], b""
    end = at + 2 + 12 * len(tags) + 4
    for tag, kind, values in sorted(tags):
        packed = (
            values
            if isinstance(values, bytes)
            else struct.pack(f"{order}{len(values)}{_FORMATS[kind]}", *values)
        )
        count = len(packed) // _SIZES[kind]
        if len(packed) > 4:
            where = struct.pack(f"{order}I", end + len(beyond))
            beyond += packed + b"\0" * (len(packed) % 2)
        else:
            where = packed.ljust(4, b"\0")
        entries.append(struct.pack(f"{order}HHI", tag, kind, count) + where)
    return struct.pack(f"{order}H", len(tags)) + b"".join(entries) + b"\0\0\0\0" + beyond


def _mosaic(image: Image.Image) -> np.ndarray:
    """What a sensor behind a red, green, green, blue filter sees: linear light, 16 bits."""
    rgb = np.asarray(image.convert("RGB"), np.float64) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    mosaic = linear[..., 1].copy()
    mosaic[0::2, 0::2] = linear[0::2, 0::2, 0]
    mosaic[1::2, 1::2] = linear[1::2, 1::2, 2]
    return (mosaic * 65535).round().astype(np.uint16)
