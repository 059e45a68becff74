"""A JPEG that lacks nothing but its end marker: told from one that lacks some of its picture.

Both end early, and libjpeg paints what is missing grey without a word. So nothing is taken on
trust: the headers must say that the scan at the end is the last one needed and has all its restart
markers, and then the picture must be the same whatever is appended, and another one when the scan's
last bytes are taken away.
"""

import hashlib
import io
import random
import re
from dataclasses import dataclass, field
from math import ceil

from PIL import Image

_EOI = b"\xff\xd9"
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # neither a 255 among the data nor a restart
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_HUFFMAN = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; others are rare and stay truncated
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

_LAST_BYTES = 8  # of a scan; if the picture does not need them, they are padding and not its end

# Put in the place of what may be missing. If that is one bit or two, every possible value is among
# the first four; if it is more, it is most unlikely to look the same in all of them.
_FILLINGS = [bytes([value]) * 48 for value in (0xFE, 0x00, 0x55, 0xAA)] + [
    random.Random(seed).randbytes(48).replace(b"\xff", b"\xfe") for seed in range(4)
]
_STRIP_ROWS = 256


def with_end(data: bytes) -> bytes | None:
    """The JPEG with an end marker, where that is all it lacks; None where pixels may be missing."""
    whole = data.rstrip(b"\xff")  # half of the marker may be there
    start = _last_scan(whole)
    if start is None or len(whole) <= start:
        return None
    try:
        picture = _picture(whole + _EOI)
        if any(_picture(whole + filling + _EOI) != picture for filling in _FILLINGS):
            return None
        if len(whole) - start > _LAST_BYTES:
            shorter = whole[:-_LAST_BYTES].rstrip(b"\xff")
            if all(_picture(shorter + filling + _EOI) == picture for filling in _FILLINGS):
                return None
    except Exception:  # noqa: BLE001 - decoders raise whatever a damaged file provokes
        return None
    return whole + _EOI


@dataclass
class _Frame:
    width: int
    height: int
    sampling: dict[
        int, tuple[int, int]
    ]  # by component: how many blocks across and down in a unit of all
    missing: dict[int, list[int | None]] = field(
        default_factory=dict
    )  # low bits of each coefficient still to come

    def __post_init__(self) -> None:
        self.missing = {component: [None] * 64 for component in self.sampling}

    @property
    def is_complete(self) -> bool:
        return all(bits == 0 for component in self.missing.values() for bits in component)

    def units(self, components: list[int]) -> int:
        """How many units a scan of these components is made of."""
        across, down = (
            max(sampling[axis] for sampling in self.sampling.values()) for axis in (0, 1)
        )
        if len(components) > 1:
            return ceil(self.width / (8 * across)) * ceil(self.height / (8 * down))
        own_across, own_down = self.sampling[components[0]]
        return ceil(ceil(self.width * own_across / across) / 8) * ceil(
            ceil(self.height * own_down / down) / 8
        )


def _last_scan(data: bytes) -> int | None:
    """Where the last stretch of data begins; None unless that ends the last scan needed, which has
    all its restarts.
    """
    frame, interval, place = None, 0, 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            return None
        marker = data[place + 1]
        if marker == 0xFF:  # any number may stand before a marker
            place += 1
            continue
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4])
        segment = data[place + 4 : end]
        if end > len(data) or end < place + 4 or marker == 0xD9:
            return None
        try:
            if marker in _FRAMES:
                if marker not in _HUFFMAN or frame is not None:
                    return None
                frame = _frame(segment)
            elif marker == 0xDD:
                interval = int.from_bytes(segment[:2])
            elif marker == 0xDA:
                if frame is None:
                    return None
                components = _begin_scan(frame, segment)
                following = _MARKER.search(data, end)
                if following is None:
                    restarts = (frame.units(components) - 1) // interval if interval else 0
                    stretches = [end, *(found.end() for found in _RESTART.finditer(data, end))]
                    return (
                        stretches[-1]
                        if len(stretches) == restarts + 1 and frame.is_complete
                        else None
                    )
                end = following.start()
        except (IndexError, KeyError, ValueError, ZeroDivisionError):  # its headers are damaged
            return None
        place = end
    return None


def _frame(segment: bytes) -> _Frame:
    height, width, count = int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5]), segment[5]
    components = (segment[6 + 3 * number : 9 + 3 * number] for number in range(count))
    return _Frame(
        width,
        height,
        {component[0]: (component[1] >> 4, component[1] & 15) for component in components},
    )


def _begin_scan(frame: _Frame, segment: bytes) -> list[int]:
    """Note what a scan brings of the coefficients; return its components."""
    count = segment[0]
    components = [segment[1 + 2 * number] for number in range(count)]
    first, last, bits = segment[1 + 2 * count : 4 + 2 * count]
    for component in components:
        frame.missing[component][first : last + 1] = [bits & 15] * (last + 1 - first)
    return components


def _picture(data: bytes) -> bytes:
    """A digest of the picture, decoded whole: at a fraction of its size differences could vanish."""
    digest = hashlib.sha256()
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        image.load()
        for top in range(0, image.height, _STRIP_ROWS):
            digest.update(
                image.crop((0, top, image.width, min(top + _STRIP_ROWS, image.height))).tobytes()
            )
    return digest.digest()
