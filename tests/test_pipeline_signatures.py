"""Files that nothing decodes: each is named, and says what helps; what is damaged is not called
unsupported.
"""

import io

import pytest

from pipeline.failures import ERROR_CODES, Failure
from pipeline.load.decode import FORMATS, decode_image, register_formats
from pipeline.load.signatures import explain
from tests.helpers import photo
from vit.preprocess import Preprocess

register_formats()


def failed(data: bytes) -> tuple[str, str]:
    result = decode_image(0, data, Preprocess(32, 32, "squash"), 1_000_000)
    assert isinstance(result, Failure), result
    assert result.code in ERROR_CODES
    return result.code, result.detail


def saved(format_name: str) -> bytes:
    buffer = io.BytesIO()
    photo(3, 60, 44).save(buffer, format_name)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\xff\x0a" + bytes(90), "a JPEG XL image"),
        (bytes.fromhex("0000000C4A584C200D0A870A") + bytes(90), "a JPEG XL image"),
        (saved("JPEG2000"), "a JPEG 2000 image"),
        (bytes.fromhex("FF4FFF51") + bytes(90), "a JPEG 2000 image"),
        (b"8BPS\0\1" + bytes(90), "a Photoshop image (PSD)"),
        (saved("ICO"), "an icon (ICO)"),
        (saved("DDS"), "a DirectDraw image (DDS)"),
        (b"\x76\x2f\x31\x01" + bytes(90), "an OpenEXR image"),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n", "a Radiance image (HDR)"),
        (saved("EPS"), "a drawing (EPS)"),
        (b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', "a drawing (SVG)"),
        (b"\xd7\xcd\xc6\x9a" + bytes(90), "a drawing (WMF)"),
        (bytes(128) + b"DICM" + bytes(90), "a medical image (DICOM)"),
    ],
)  # fmt: skip
def test_a_format_that_is_not_read_is_named(data: bytes, name: str) -> None:
    code, detail = failed(data)
    assert code == "unsupported"
    assert detail == f"{name}, a format that is not read here; convert it to JPEG, PNG or TIFF"


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\1\0", bytes.fromhex("00000100 0000 0000") + bytes(90), b"\0\0\1\0" + b"\xff" * 90,
        b"<html><body><svg></svg></body></html>", b"<?xml version='1.0'?><feed/>", b"%!PS-Adobe-3.0\n%%Pages: 2\n",
        b"%PDF-1.7\n", b"\0\0\0\x18ftypisom\0\0\2\0isommp42" + bytes(90), b"RIFF\x24\0\0\0WAVEfmt " + bytes(90),
    ],
)  # fmt: skip
def test_what_is_no_image_stays_so(data: bytes) -> None:
    assert failed(data) == ("not_an_image", "no image format recognised")


@pytest.mark.parametrize("format_name", ["AVIF", "HEIC", "WEBP"])
def test_a_file_that_was_cut_is_truncated_and_not_unsupported(format_name: str) -> None:
    if format_name == "HEIC":
        from pillow_heif import from_pillow

        buffer = io.BytesIO()
        from_pillow(photo(3, 64, 48)).save(buffer)
        data = buffer.getvalue()
    else:
        data = saved(format_name)
    for end in range(16, len(data)):
        code, detail = failed(data[:end])
        assert code == "truncated", (end, detail)
        assert "install" not in detail


def test_a_damaged_avif_is_corrupt() -> None:
    data = bytearray(saved("AVIF"))
    data[40:120] = bytes(80)
    code, detail = failed(bytes(data))
    assert code in ("corrupt", "truncated")
    assert "built without" not in detail


def test_without_its_decoder_the_advice_is_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved("AVIF")
    monkeypatch.setattr("PIL.AvifImagePlugin.SUPPORTED", False)
    assert explain(data, has_heif=True)[0] == "unsupported"
    code, detail = explain(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", has_heif=False)
    assert (code, "pip install pillow-heif" in detail) == ("unsupported", True)


def test_a_name_for_a_format_brings_no_decoder() -> None:
    assert not {"JPEG2000", "ICO", "DDS", "EPS", "PSD", "ICNS", "QOI", "WMF", "FITS"} & set(FORMATS)
