"""Raw photos: their previews, upright and once; developed where those are small; and every fault."""

import io
import os
import struct
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from pipeline.failures import ERROR_CODES, Failure
from pipeline.load.decode import decode_image, register_formats
from pipeline.load.raw import raw_name
from pipeline.load.sample import Sample
from pipeline.load.thumbnails import thumbnail
from tests.helpers import ROOT, photo
from tests.mutations import seeds
from tests.raw_photos import dng, jpeg_preview
from vit.preprocess import Preprocess, fit_image

rawpy = pytest.importorskip("rawpy")

SQUASH = Preprocess(32, 32, "squash")
MAX_PIXELS = 1_000_000

# How an upright picture is stored so that each EXIF orientation turns it back.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}

register_formats()


def turned(image: Image.Image, orientation: int) -> Image.Image:
    turn = STORED[orientation]
    return image if turn is None else image.transpose(turn)


def decoded(data: bytes, preprocess: Preprocess = SQUASH) -> Sample:
    result = decode_image(0, data, preprocess, MAX_PIXELS)
    assert isinstance(result, Sample), result
    return result


def failed(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[str, str]:
    result = decode_image(0, data, SQUASH, max_pixels)
    assert isinstance(result, Failure), result
    assert result.code in ERROR_CODES
    return result.code, result.detail


def difference(sample: Sample, image: Image.Image) -> float:
    expected = fit_image(image, SQUASH)
    return float((sample.pixels.float() - expected.float()).abs().mean())


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_files_made_here_are_raw_photos(order: str) -> None:
    image = photo(1, 200, 120)
    with rawpy.imread(io.BytesIO(dng(image, 6, jpeg_preview(image), order))) as raw:
        assert (raw.sizes.width, raw.sizes.height, raw.sizes.flip) == (200, 120, 6)
        assert raw.color_desc == b"RGBG"
        pixels = raw.postprocess(
            use_camera_wb=True, user_flip=0, gamma=(2.4, 12.92), no_auto_bright=True
        )
    assert np.abs(pixels.astype(int) - np.asarray(image).astype(int)).mean() < 6


@pytest.mark.parametrize("own", ["none", "the same", "upright"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_preview_is_turned_upright_and_once(orientation: int, own: str) -> None:
    """Cameras store it as the sensor has it, with an EXIF orientation of its own or without; some
    programs turn it and leave the mosaic's orientation.
    """
    if own == "upright" and orientation in (2, 3, 4):
        pytest.skip("of these nothing shows that they were turned already")
    upright = photo(3, 240, 160)
    stored = turned(upright, orientation)
    if own == "upright":
        preview = jpeg_preview(upright, 1)
    else:
        preview = jpeg_preview(stored, orientation if own == "the same" else None)
    sample = decoded(dng(stored, orientation, preview))
    assert difference(sample, upright) < 2
    assert sample.facts.format == "RAW"
    assert (sample.facts.width, sample.facts.height) == stored.size
    was_turned = orientation != 1 and own != "upright"
    assert sample.facts.exif_orientation == (orientation if was_turned else 1)
    assert sample.facts.notes == ["raw_preview"] + ["exif_rotated"] * was_turned


def test_a_preview_s_own_orientation_counts_where_the_mosaic_says_none() -> None:
    upright = photo(3, 240, 160)
    for orientation in (3, 6):
        stored = turned(upright, orientation)
        assert difference(decoded(dng(stored, 1, jpeg_preview(stored, orientation))), upright) < 2
    # An own one that says nothing of a quarter turn, beside a mosaic that does.
    stored = turned(upright, 8)
    assert difference(decoded(dng(stored, 8, jpeg_preview(stored, 1))), upright) < 2


def test_broken_exif_of_a_preview_costs_no_label() -> None:
    stored = turned(photo(3, 240, 160), 6)
    preview = bytearray(jpeg_preview(stored, 6))
    at = preview.index(b"Exif\0\0") + 6
    preview[at : at + 8] = b"XX*\0\xff\xff\xff\xff"
    assert difference(decoded(dng(stored, 6, bytes(preview))), photo(3, 240, 160)) < 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("has_preview", [True, False])
def test_a_small_preview_or_none_is_developed_at_half_size(
    orientation: int, has_preview: bool
) -> None:
    upright = photo(5, 240, 160)
    stored = turned(upright, orientation)
    preview = jpeg_preview(stored.resize((30, 30))) if has_preview else None
    sample = decoded(dng(stored, orientation, preview))
    assert sample.facts.notes[0] == "raw_half_size"
    # LibRaw makes it brighter, as by itself: the picture is the same.
    expected = fit_image(upright, SQUASH).float().flatten()
    found = sample.pixels.float().flatten()
    assert np.corrcoef(expected.numpy(), found.numpy())[0, 1] > 0.97
    assert (sample.facts.width, sample.facts.height) == stored.size
    assert ("exif_rotated" in sample.facts.notes) == (orientation != 1)


def monochrome(image: Image.Image) -> bytes:
    """As of a camera without colours: one linear sample a pixel."""
    pixels = (np.asarray(image.convert("L")).astype("<u2") * 257).tobytes()
    data = dng(image)
    first = struct.unpack_from("<I", data, 4)[0]
    (n,) = struct.unpack_from("<H", data, first)
    changed = bytearray(data)
    for place in range(first + 2, first + 2 + 12 * n, 12):
        if struct.unpack_from("<H", data, place)[0] == 262:
            struct.pack_into("<H", changed, place + 8, 34892)
    assert len(pixels) < len(changed)
    changed[-len(pixels) :] = pixels
    return bytes(changed)


def test_a_monochrome_camera_s_photo_is_developed() -> None:
    image = photo(5, 240, 160)
    sample = decoded(monochrome(image))
    assert sample.facts.notes == ["raw_half_size"]
    expected = fit_image(image.convert("L").convert("RGB"), SQUASH).float().flatten()
    found = sample.pixels.float().flatten()
    assert np.corrcoef(expected.numpy(), found.numpy())[0, 1] > 0.97


def test_a_disk_without_room_for_what_libraw_says_is_no_fault_of_a_photo(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    image = photo(5, 240, 160)
    assert decoded(dng(image, 1, jpeg_preview(image))).facts.notes == ["raw_preview"]


def test_what_is_needed_decides_between_preview_and_mosaic() -> None:
    image = photo(5, 240, 160)
    data = dng(image, 1, jpeg_preview(image.resize((96, 64))))
    notes = {size: decoded(data, Preprocess(size, size, "squash")).facts.notes for size in (64, 65)}
    assert notes == {64: ["raw_preview"], 65: ["raw_half_size"]}
    # Nothing is won where half of the mosaic is smaller yet.
    tiny = dng(image.resize((60, 40)), 1, jpeg_preview(image.resize((36, 24))))
    assert decoded(tiny).facts.notes == ["raw_preview"]


def test_a_large_preview_is_decoded_at_a_fraction() -> None:
    image = photo(5, 960, 640)
    sample = decoded(dng(image, 6, jpeg_preview(image)))
    assert sample.facts.notes == ["raw_preview", "scaled_decode", "exif_rotated"]
    assert difference(sample, image.transpose(Image.Transpose.ROTATE_270)) < 3


def test_limits_hold_for_mosaic_and_preview(monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo(5, 240, 160)
    code, detail = failed(dng(image, 1, jpeg_preview(image.resize((60, 40)))), 240 * 160 - 1)
    assert (code, detail) == (
        "too_many_pixels",
        "240 x 160 pixels; --max-pixels allows 38399",
    )
    bomb = bytearray(jpeg_preview(image))
    at = bomb.index(b"\xff\xc0") + 5
    bomb[at : at + 4] = struct.pack(">HH", 60_000, 50_000)
    code, detail = failed(dng(image, 1, bytes(bomb)))
    assert (code, detail) == (
        "too_many_pixels",
        "50000 x 60000 pixels; --max-pixels allows 1000000",
    )
    assert thumbnail(dng(image, 1, bytes(bomb)), MAX_PIXELS).code == "too_many_pixels"  # type: ignore[union-attr]


def test_cut_raw_photos_fail_and_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """LibRaw's own words would reach the terminal, and cron's mail."""
    image = photo(5, 240, 160)
    whole = dng(image)
    for end in range(8, len(whole), len(whole) // 60):
        code, _ = failed(whole[:end])
        assert code == "truncated" or (end < 700 and code in ("unsupported", "not_an_image")), end
    with_preview = dng(image, 1, jpeg_preview(image))
    at = with_preview.index(b"\xff\xd8\xff")
    for end in range(at, at + len(jpeg_preview(image)), 97):
        assert failed(with_preview[:end])[0] == "truncated", end
    # Cut after its preview it still has its label.
    assert decoded(with_preview[:-1000]).facts.notes == ["raw_preview"]
    assert capfd.readouterr().err == ""


def test_a_damaged_preview_is_a_failure() -> None:
    image = photo(5, 240, 160)
    preview = bytearray(jpeg_preview(image))
    preview[-2000:-1500] = bytes(500)
    del preview[-1000:]
    assert failed(dng(image, 1, bytes(preview)))[0] in ("truncated", "corrupt")


def test_what_libraw_only_prints_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of damaged compressed data it prints a line, and goes on with what pixels it has."""
    really = rawpy.RawPy

    class Printing(really):  # type: ignore[misc, valid-type]
        def postprocess(self, *arguments: Any, **options: Any) -> Any:
            os.write(2, b"unknown file: data corrupted at 1234\n")
            return super().postprocess(*arguments, **options)

    monkeypatch.setattr(rawpy._rawpy, "RawPy", Printing, raising=False)
    monkeypatch.setattr(rawpy, "RawPy", Printing)
    code, detail = failed(dng(photo(5, 240, 160)))
    assert (code, detail) == (
        "corrupt",
        "LibRaw says: unknown file: data corrupted at 1234",
    )
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(100),
        b"FUJIFILMCCD-RAW 0201FF" + bytes(90),
        b"II\x1a\0\0\0HEAPCCDR" + bytes(90),
        b"II*\0\x10\0\0\0CR\2\0" + bytes(90),
    ],
)
def test_what_no_libraw_reads_is_named(data: bytes) -> None:
    code, detail = failed(data)
    assert code in ("unsupported", "truncated")
    assert detail.startswith(str(raw_name(data)))


def test_other_files_are_no_raw_photos() -> None:
    assert {raw_name(data) for data in seeds()} == {None, "a raw photo (DNG)"}
    assert sum(raw_name(data) is not None for data in seeds()) == 2
    assert raw_name(b"") is raw_name(b"II*\0") is raw_name(b"MM\0*\0\0\0\x08") is None


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([b"II*\0", b"MM\0*"]), st.integers(0, 40))
def test_looking_for_a_mosaic_never_fails(rest: bytes, start: bytes, place: int) -> None:
    raw_name(start + rest)
    whole = dng(photo(5, 24, 16), 1, jpeg_preview(photo(5, 12, 8)))
    raw_name(start + whole[4 : 8 + place] + rest + whole[8 + place :])
    raw_name(start + whole[4 : 8 + 12 * place] + rest)


def test_a_plain_tiff_that_has_a_dng_s_version_is_one() -> None:
    """Programs that copy a raw photo's metadata leave it there."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[50706], tags.tagtype[50706] = b"\1\4\0\0", 1
    file, image = io.BytesIO(), photo(3, 240, 160)
    image.save(file, "TIFF", tiffinfo=tags)
    assert raw_name(file.getvalue()) is None
    sample = decoded(file.getvalue())
    assert sample.facts.format == "TIFF"
    assert difference(sample, image) == 0


def test_ifds_in_a_circle_end() -> None:
    data = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<HI", 0, 8) + bytes(20)
    assert raw_name(data) is None


def test_thumbnails_of_raw_photos() -> None:
    upright = photo(5, 800, 600)
    stored = turned(upright, 6)
    made = thumbnail(dng(stored, 6, jpeg_preview(stored)))
    assert isinstance(made, bytes)
    with Image.open(io.BytesIO(made)) as image:
        assert image.size == (320, 240)
        assert not image.getexif()
        assert difference(decoded(made), upright) < 3


def test_without_rawpy_the_advice_is_what_to_install() -> None:
    """And Pillow, which would find a thumbnail in the file, is not asked."""
    script = (
        "import sys; sys.modules['rawpy'] = None\n"
        "from pipeline.load.decode import decode_image, register_formats\n"
        "from tests.raw_photos import dng, jpeg_preview\n"
        "from tests.helpers import photo\n"
        "from vit.preprocess import Preprocess\n"
        "register_formats()\n"
        "data = dng(photo(1, 90, 60), 1, jpeg_preview(photo(1, 90, 60)))\n"
        "failure = decode_image(0, data, Preprocess(32, 32), 10**6)\n"
        "print(failure.code, failure.detail)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ran.stdout == (
        "unsupported a raw photo (DNG); install rawpy where label-images is installed (pip install "
        "rawpy) to read it\n"
    )


def test_the_preview_stays_when_its_file_is_closed() -> None:
    """LibRaw's memory goes with it: what was read of it is looked at again and again."""
    image = photo(5, 240, 160)
    data = dng(image, 6, jpeg_preview(image))
    first = decoded(data).pixels
    for _ in range(20):
        assert (decoded(data).pixels == first).all()
