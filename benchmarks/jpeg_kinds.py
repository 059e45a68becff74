"""JPEGs of each kind that people have, in small: odd sizes, colours, samplings and damage.

jpeg_kinds() -> {name: (bytes, the fraction of its size to decode it at)}
"""

import io
import struct
from typing import Any

from PIL import Image, ImageCms

from .photos import small_photo

_FRACTIONS = (1, 2, 4, 8)


def jpeg_kinds() -> dict[str, tuple[bytes, int]]:
    """A JPEG of each kind, each at full size and those of a plain photo at all fractions."""
    photo = Image.open(io.BytesIO(small_photo(0)))
    odd = photo.crop((0, 0, 333, 251))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[274] = 6  # EXIF orientation: turned by 90 degrees
    cmyk = _encode(odd.convert("CMYK"))
    plain = _encode(odd)
    kinds = {
        "4:2:0": plain,
        "4:2:2": _encode(odd, subsampling=1),
        "4:4:4": _encode(odd, subsampling=0),
        "progressive": _encode(odd, progressive=True),
        "restart markers": _encode(odd, restart_marker_blocks=3),
        "grey": _encode(odd.convert("L")),
        "RGB, not YCbCr": _encode(odd, keep_rgb=True),
        "EXIF orientation 6": _encode(odd, exif=exif),
        "ICC profile": _encode(odd, icc_profile=profile),
    }
    found = {
        f"{name}, 1/{fraction}" if fraction > 1 else name: (data, fraction)
        for name, data in kinds.items()
        for fraction in _FRACTIONS
        if fraction == 1 or name in ("4:2:0", "4:2:2", "4:4:4", "progressive", "grey")
    }
    return found | {
        "CMYK (Adobe)": (cmyk, 1),
        "YCCK (Adobe)": (_as_ycck(cmyk), 1),
        "truncated in its middle": (plain[: len(plain) // 2], 1),
        "without its end marker": (plain[:-2], 1),
        "bytes after its end": (plain + b"\0" * 1000, 1),
        "damaged in its middle": (_damaged(plain), 1),
        "no JPEG": (b"\xff\xd8\xff" + b"none" * 100, 1),
    }


def _encode(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def _as_ycck(cmyk: bytes) -> bytes:
    """The same samples, said to be YCCK: the Adobe segment's last byte is 2 and not 0."""
    place = cmyk.index(b"Adobe") + 11
    return cmyk[:place] + struct.pack("B", 2) + cmyk[place + 1 :]


def _damaged(data: bytes) -> bytes:
    middle = len(data) // 2
    return (
        data[:middle]
        + bytes(byte ^ 0x5A for byte in data[middle : middle + 64])
        + data[middle + 64 :]
    )
