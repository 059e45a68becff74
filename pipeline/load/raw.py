"""Raw photos: a camera's own files -> the preview in them, or the mosaic developed at half size.

A file is a raw photo by its bytes, whatever its name and whatever is installed, so that no file
gets other pixels from one machine to the next; Pillow would take the smallest thumbnail of some for
the photo. LibRaw reads them (rawpy, the extra `raw`).
"""

import io
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image, UnidentifiedImageError

from pipeline.failures import ImageFacts
from vit.pixels import ORIENTATION, Unreadable, exif_orientation

# First bytes -> what it is, for formats that are not TIFF.
_SIGNATURES = {
    b"FUJIFILMCCD-RAW": "a Fujifilm raw image (RAF)",
    b"IIU\0": "a Panasonic raw image (RW2)",
    b"IIRO": "an Olympus raw image (ORF)",
    b"IIRS": "an Olympus raw image (ORF)",
    b"MMOR": "an Olympus raw image (ORF)",
    b"FOVb": "a Sigma raw image (X3F)",
    b"\0MRM": "a Minolta raw image (MRW)",
}

# Tags of TIFF 6.0, and of the DNG specification 1.4.
_PHOTOMETRIC, _SUB_IFDS, _DNG_VERSION = 262, 330, 50706
_MOSAIC = (32803, 34892)  # a colour filter array, and one made linear
_MOST_IFDS = 16

# LibRaw's flip, in bits mirrored, upside down and turned a quarter -> EXIF's orientation.
_ORIENTATIONS = (1, 2, 4, 3, 5, 8, 6, 7)


def raw_name(data: bytes) -> str | None:
    """What raw photo a file is by its bytes, in words; None for any other file."""
    if data[4:12] == b"ftypcrx ":
        return "a Canon raw image (CR3)"
    if data[6:14] == b"HEAPCCDR":
        return "a Canon raw image (CRW)"
    for signature, name in _SIGNATURES.items():
        if data.startswith(signature):
            return name
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return None
    return "a Canon raw image (CR2)" if data[8:10] == b"CR" else _tiff_name(data)


def open_raw(
    data: bytes, name: str, max_pixels: int, facts: ImageFacts, needed: int
) -> Image.Image:
    """The photo of a raw file as an image to load: its preview, or developed where a side of that
    has fewer than `needed` pixels; fills in `facts`. Its EXIF orientation turns it upright, once.

    Raises Unreadable, and whatever LibRaw and Pillow do.
    """
    rawpy = _rawpy()
    if rawpy is None:
        raise Unreadable(
            "unsupported",
            f"{name}; install rawpy where label-images is installed (pip install rawpy) to read it",
        )
    try:
        with _said() as said, rawpy.imread(io.BytesIO(data)) as raw:
            sizes = raw.sizes
            facts.format, facts.width, facts.height = "RAW", sizes.width, sizes.height
            _check(sizes.width, sizes.height, max_pixels)
            turned = _ORIENTATIONS[sizes.flip & 7]
            preview = _preview(rawpy, raw, data)
            if preview is not None:
                _check(*preview.size, max_pixels)
            smallest = 0 if preview is None else min(preview.size)
            if preview is None or smallest < min(needed, min(sizes.width, sizes.height) // 2):
                photo = _developed(raw)
                if any(word in said() for word in ("corrupt", "nexpected end")):
                    raise Unreadable("corrupt", f"LibRaw says: {said().strip()[:200]}")
                facts.notes.append("raw_half_size")
                return _turned(photo, turned)
    except rawpy.LibRawFileUnsupportedError as error:
        raise Unreadable(
            "unsupported",
            f"{name} that LibRaw {'.'.join(map(str, rawpy.libraw_version))} does not read: it is of "
            "a camera that this version does not know, or damaged",
        ) from error
    except (rawpy.LibRawUnsufficientMemoryError, rawpy.LibRawTooBigError) as error:
        raise MemoryError from error
    except rawpy.LibRawIOError as error:
        raise Unreadable(
            "truncated", f"{name} that ends before it is complete ({len(data):,} bytes)"
        ) from error
    facts.notes.append("raw_preview")
    is_wide = sizes.width > sizes.height
    return _turned(preview, _of_preview(preview, turned, is_wide))


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """The image, with this EXIF orientation for whoever asks for it."""
    image.info.pop("exif", None)
    image.getexif()[ORIENTATION] = orientation
    return image


def _of_preview(preview: Image.Image, turned: int, is_wide: bool) -> int:
    """The orientation of a preview: its own, and the raw photo's where it has none (LibRaw puts that
    into it, too). One that lies the other way than the mosaic has been turned already.
    """
    own = exif_orientation(preview) or turned
    if turned < 5 or preview.width == preview.height:
        return own
    if (preview.width > preview.height) != is_wide:
        return 1
    return own if own >= 5 else turned


def _preview(rawpy: Any, raw: Any, data: bytes) -> Image.Image | None:
    """The preview, opened and not yet decoded; None where there is none that can be read.

    Of one that the file's end cuts LibRaw makes up the rest: what is not in the file is none.
    """
    try:
        found = raw.extract_thumb()
    except (
        rawpy.LibRawNoThumbnailError,
        rawpy.LibRawUnsupportedThumbnailError,
        rawpy.LibRawRequestForNonexistentImageError,
        rawpy.LibRawIOError,  # cut before its preview, which may lie last
        rawpy.NotSupportedError,
    ):
        return None
    if found.format == rawpy.ThumbFormat.BITMAP:
        is_whole = found.data.tobytes() in data
        return _image(found.data).copy() if is_whole else None  # its memory is the file's
    jpeg: bytes = found.data
    # LibRaw puts EXIF before one that has none.
    stored = jpeg[4 + int.from_bytes(jpeg[4:6]) :] if jpeg[2:4] == b"\xff\xe1" else jpeg
    if not stored or stored not in data:
        return None
    try:
        return Image.open(io.BytesIO(jpeg), formats=["JPEG", "MPO"])
    except UnidentifiedImageError:
        return None


def _developed(raw: Any) -> Image.Image:
    """Half as wide and high: a pixel for each red, two greens and blue; as sRGB in the camera's
    white balance, not turned.
    """
    pixels = raw.postprocess(half_size=True, use_camera_wb=True, user_flip=0, gamma=(2.4, 12.92))
    return _image(pixels)


def _image(pixels: Any) -> Image.Image:
    """LibRaw gives pixels as [height, width, colours], also the one of a monochrome camera."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def _check(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Unreadable(
            "too_many_pixels",
            f"{width} x {height} pixels; --max-pixels allows {max_pixels}",
        )


def _tiff_name(data: bytes) -> str | None:
    """Look through a TIFF's directories, few as they are, for a mosaic or a DNG's version."""
    order = "<" if data[:2] == b"II" else ">"
    seen = set[int]()
    pending = [struct.unpack_from(f"{order}I", data, 4)[0] if len(data) >= 8 else 0]
    while pending and len(seen) < _MOST_IFDS:
        at = pending.pop(0)
        if at in seen or not 8 <= at <= len(data) - 2:
            continue
        seen.add(at)
        (count,) = struct.unpack_from(f"{order}H", data, at)
        end, has_mosaic, is_dng = at + 2 + 12 * count, False, False
        for place in range(at + 2, min(end, len(data) - 11), 12):
            tag, kind, n = struct.unpack_from(f"{order}HHI", data, place)
            if tag == _DNG_VERSION:
                is_dng = True
            if tag == _PHOTOMETRIC:
                (value,) = struct.unpack_from(f"{order}H", data, place + 8)
                has_mosaic |= value in _MOSAIC
            elif tag == _SUB_IFDS and kind in (4, 13) and n:
                (value,) = struct.unpack_from(f"{order}I", data, place + 8)
                n = min(n, _MOST_IFDS)
                if n == 1:
                    pending.append(value)
                elif value + 4 * n <= len(data):
                    pending += struct.unpack_from(f"{order}{n}I", data, value)
        # Programs copy the version into plain TIFFs, too: those have nothing but their one image.
        if is_dng and (has_mosaic or pending or end > len(data)):
            return "a raw photo (DNG)"
        if has_mosaic:
            return "a camera's raw image"
        if end + 4 <= len(data):
            pending += struct.unpack_from(f"{order}I", data, end)
    return None


def _rawpy() -> Any:
    """rawpy, imported when a raw photo is met; None where it is not installed.

    Its own OpenMP reads how many threads to have when it is loaded: there is a worker a core
    already, and its threads do not outlive a fork.
    """
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        import rawpy
    except ImportError:
        return None
    finally:
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads
    return rawpy


@contextmanager
def _said() -> Iterator[Any]:
    """Keep off the terminal what LibRaw prints of damaged files; yields what gives it so far. Some
    of it is said nowhere else: it goes on with pixels that are wrong.
    """
    try:
        before = os.dup(2)
    except OSError:  # there is no stderr
        yield lambda: ""
        return
    try:
        with _nowhere() as kept:
            os.dup2(kept.fileno(), 2)
            try:
                yield lambda: os.pread(kept.fileno(), 10_000, 0).decode(errors="replace")
            finally:
                os.dup2(before, 2)
    finally:
        os.close(before)


def _nowhere() -> Any:
    """A file that is on no disk, where the system has such: a full one is no fault of a photo."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("said"), "w+b")
    return tempfile.TemporaryFile()
