"""JPEGs that end early: labelled where only the end marker is missing, never where some of the
picture is.
"""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.failures import Failure
from pipeline.load.decode import decode_image, register_formats
from pipeline.load.jpeg import with_end
from pipeline.load.sample import Sample
from tests.helpers import photo
from vit.preprocess import Preprocess

SQUASH = Preprocess(32, 32, "squash")

PICTURES = {
    "photo": photo(3, 121, 93),
    "grey": photo(4, 60, 44, "L"),
    "cmyk": photo(4, 60, 44).convert("CMYK"),
    "noise": Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)),
    "one colour": Image.new("RGB", (100, 70), (10, 200, 30)),
    "one pixel": photo(1, 1, 1),
    "odd": photo(2, 33, 17),
}
WAYS: dict[str, dict[str, Any]] = {
    "4:2:0": {},
    "4:4:4": {"quality": 95, "subsampling": 0},
    "finest": {"quality": 100, "subsampling": 0},
    "coarse": {"quality": 10},
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "progressive, fine": {"progressive": True, "quality": 95},
    "restarts": {"restart_marker_blocks": 1},
    "restarts by row": {"restart_marker_rows": 1},
    "progressive with restarts": {"progressive": True, "restart_marker_blocks": 3},
}

register_formats()


def jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    assert buffer.getvalue()[-2:] == b"\xff\xd9"
    return buffer.getvalue()


def pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        return image.tobytes()


def decode(data: bytes, scaled: bool = True) -> Sample | Failure:
    return decode_image(0, data, SQUASH, 1_000_000, scaled)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("picture", PICTURES)
def test_wherever_it_is_cut_a_jpeg_is_whole_or_truncated(picture: str, way: str) -> None:
    data = jpeg(PICTURES[picture], **WAYS[way])
    expected = pixels(data)
    for cut in (1, 2):
        assert with_end(data[:-cut]) is not None, "all pixels are there"
    shown_the_same = 0
    for cut in range(1, min(len(data) - 20, 700)):
        whole = with_end(data[:-cut])
        if whole is not None:
            assert pixels(whole) == expected, f"{cut} bytes cut"
            shown_the_same += 1
    assert shown_the_same <= 5, "the last bits of some show nowhere"


@pytest.mark.parametrize("way", WAYS)
def test_a_jpeg_without_its_end_marker_is_labelled_as_the_whole(way: str) -> None:
    data = jpeg(photo(5, 400, 300), **WAYS[way])
    for scaled in (True, False):
        expected = decode(data, scaled)
        assert isinstance(expected, Sample)
        for cut in (1, 2):
            result = decode(data[:-cut], scaled)
            assert isinstance(result, Sample), (cut, result)
            assert (result.pixels == expected.pixels).all()
            of_its_own = result.facts.content_hash
            assert result.facts == replace(expected.facts, content_hash=of_its_own)
        for cut in (8, 40, len(data) // 3, len(data) // 2):
            result = decode(data[:-cut], scaled)
            assert isinstance(result, Failure), f"{cut} bytes cut"
            assert result.code == "truncated"


def test_what_was_cut_and_filled_up_is_not_taken_for_whole() -> None:
    """As a download leaves it that had set its room aside: the zeros would be decoded as picture."""
    data = jpeg(photo(5, 400, 300))
    for cut in (30, len(data) // 3, len(data) // 2):
        for filler in (b"\0", b"\x5a"):
            for length in (1, 12, cut, 1000, 10 * len(data)):
                assert with_end(data[:-cut] + filler * length) is None, (cut, filler, length)


def test_a_later_scan_or_the_last_restarts_are_missed() -> None:
    """Cut where a scan or a stretch between restarts ends: nothing in the data itself is
    incomplete.
    """
    data = jpeg(photo(5, 400, 300), progressive=True)
    places = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    assert len(places) > 5
    restarts = jpeg(photo(5, 400, 300), restart_marker_rows=1)
    between = [
        place
        for place in range(len(restarts))
        if restarts[place : place + 2] in (b"\xff\xd3", b"\xff\xd7")
    ]
    assert between
    for whole, ends in ((data, places[1:]), (restarts, between)):
        for end in ends:
            assert with_end(whole[:end]) is None
            result = decode(whole[:end])
            assert isinstance(result, Failure)
            assert result.code == "truncated"


def test_the_first_picture_of_several() -> None:
    buffer = io.BytesIO()
    photo(5, 400, 300).save(buffer, "MPO", save_all=True, append_images=[photo(6, 400, 300)])
    data = buffer.getvalue()
    expected = decode(data)
    assert isinstance(expected, Sample)
    assert expected.facts.format == "MPO"
    first = data.index(b"\xff\xd9") + 2
    for end in (len(data) - 2, len(data) - 500, first - 2):
        result = decode(data[:end])
        assert isinstance(result, Sample), (end, result)
        assert (result.pixels == expected.pixels).all()
    assert isinstance(decode(data[: first - 200]), Failure)


def test_no_damaged_jpeg_raises() -> None:
    data, generator = jpeg(photo(3, 121, 93), progressive=True)[:-2], np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data[: generator.integers(2, len(data) + 1)])
        for place in generator.integers(0, len(damaged), 3):
            damaged[place] = generator.integers(0, 256)
        whole = with_end(bytes(damaged))
        assert whole is None or pixels(whole)
