"""What a file that no decoder opened is, by its first bytes: why it failed, in words that help.

Nothing here decodes. The formats named are those that pictures really come in and that are not read
here (raw photos are: raw.py); a file of none of them is no image.
"""

from PIL import AvifImagePlugin, WebPImagePlugin

# First bytes -> the format's name, with its article.
_NOT_DECODED = {
    b"\xff\x0a": "a JPEG XL image",
    b"\x00\x00\x00\x0cJXL \r\n\x87\n": "a JPEG XL image",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"II\xbc\x01": "a JPEG XR image",
    b"8BPS": "a Photoshop image (PSD)",
    b"gimp xcf": "a GIMP image (XCF)",
    b"\x76\x2f\x31\x01": "an OpenEXR image",
    b"#?RADIANCE": "a Radiance image (HDR)",
    b"#?RGBE": "a Radiance image (HDR)",
    b"DDS ": "a DirectDraw image (DDS)",
    b"qoif": "a QOI image",
    b"BPG\xfb": "a BPG image",
    b"FLIF": "a FLIF image",
    b"icns": "an Apple icon (ICNS)",
    b"SIMPLE  =": "a FITS image",
    b"AT&TFORM": "a DjVu image",
    b"\xd7\xcd\xc6\x9a": "a drawing (WMF)",
    b"\xc5\xd0\xd3\xc6": "a drawing (EPS)",
    b"<svg": "a drawing (SVG)",
}

_HEIC_BRANDS = frozenset([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"])
_AVIF_BRANDS = frozenset([b"avif", b"avis"])


def explain(data: bytes, has_heif: bool) -> tuple[str, str]:
    """The error code of a file that nothing recognised, and its detail; `has_heif` says whether
    HEIC can be read.
    """
    brands = _brands(data)
    if _AVIF_BRANDS.intersection(brands):
        if AvifImagePlugin.SUPPORTED:
            return _damaged("an AVIF image", data)
        return (
            "unsupported",
            "an AVIF image; this Pillow was built without AVIF, install a newer one",
        )
    if _HEIC_BRANDS.intersection(brands[:1]):
        if has_heif:
            return _damaged("a HEIC image", data)
        return "unsupported", (
            "a HEIC image; install pillow-heif where label-images is installed (pip install "
            "pillow-heif) to read it"
        )
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        if WebPImagePlugin.SUPPORTED:
            return _damaged("a WebP image", data)
        return (
            "unsupported",
            "a WebP image; this Pillow was built without WebP, install a newer one",
        )
    for signature, name in _NOT_DECODED.items():
        if data.startswith(signature):
            return _not_decoded(name)
    if _is_icon(data):
        return _not_decoded("an icon (ICO)")
    if data.startswith(b"%!PS-Adobe") and b" EPSF-" in data[:32]:
        return _not_decoded("a drawing (EPS)")
    if data[:4] == b"\x01\0\0\0" and data[40:44] == b" EMF":
        return _not_decoded("a drawing (EMF)")
    if data[128:132] == b"DICM":
        return _not_decoded("a medical image (DICOM)")
    if (
        data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<?xml", b"<!DOCTYPE svg"))
        and b"<svg" in data[:1000]
    ):
        return _not_decoded("a drawing (SVG)")
    return "not_an_image", "no image format recognised"


def ends_early(data: bytes) -> bool:
    """Whether a file of boxes (AVIF, HEIC) or a RIFF (WebP) is shorter than it says itself."""
    if data[:4] == b"RIFF":
        return 8 + int.from_bytes(data[4:8], "little") > len(data)
    if data[4:8] != b"ftyp":
        return False
    place, kinds = 0, set()
    while place < len(data):
        if len(data) - place < 8:  # not even the next box's header
            return True
        size, kind = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16])
        elif size == 0:  # up to the end, wherever that is
            size = len(data) - place
        if size < 8 or place + size > len(data):
            return place + size > len(data)
        kinds.add(kind)
        place += size
    return b"mdat" not in kinds or not kinds & {b"meta", b"moov"}


def _brands(data: bytes) -> list[bytes]:
    """What an ISO media file says it is: its main brand first."""
    if data[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(data[:4]), len(data), 256)
    return [data[8:12], *(data[place : place + 4] for place in range(16, end, 4))]


def _is_icon(data: bytes) -> bool:
    """The signature alone is 00 00 01 00, and many a file begins so."""
    return (
        data[:4] == b"\0\0\1\0"
        and len(data) >= 22
        and 0 < int.from_bytes(data[4:6], "little") < 256
        and not data[9]
    )


def _not_decoded(name: str) -> tuple[str, str]:
    return "unsupported", f"{name}, a format that is not read here; convert it to JPEG, PNG or TIFF"


def _damaged(name: str, data: bytes) -> tuple[str, str]:
    if ends_early(data):
        return "truncated", f"{name} that ends before it is complete ({len(data):,} bytes)"
    return "corrupt", f"{name} whose headers are damaged"
