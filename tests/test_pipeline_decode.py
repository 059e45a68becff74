"""Each odd image: the expected pixels, or the expected reason."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.failures import ERROR_CODES, RETRYABLE, Failure
from pipeline.find.source import Source
from pipeline.load.decode import FORMATS, decode_image, register_formats
from pipeline.load.read import read_image
from pipeline.load.sample import Sample
from tests.helpers import ROOT, photo
from vit.preprocess import Preprocess, fit_image

RGB = Preprocess(32, 32, "squash")
GREY = Preprocess(32, 32, "squash", mean=(0.5,), std=(0.5,))
RGBA = Preprocess(32, 32, "squash", mean=(0.5,) * 4, std=(0.5,) * 4)
MAX_PIXELS = 1_000_000

register_formats()


def decode(path: Path, preprocess: Preprocess = RGB) -> Sample | Failure:
    data = read_image(7, Source(os.fsencode(path)))
    return decode_image(7, data, preprocess, MAX_PIXELS) if isinstance(data, bytes) else data


def decoded(path: Path, preprocess: Preprocess = RGB) -> Sample:
    result = decode(path, preprocess)
    assert isinstance(result, Sample), result
    assert result.index == 7
    return result


def failed(path: Path) -> Failure:
    result = decode(path)
    assert isinstance(result, Failure), result
    assert result.index == 7
    assert result.code in ERROR_CODES
    assert result.detail
    return result


def mean_difference(sample: Sample, image: Image.Image) -> float:
    expected = fit_image(image, Preprocess(32, 32, "squash"))
    assert sample.pixels.shape == expected.shape
    return float((sample.pixels.float() - expected.float()).abs().mean())


@pytest.mark.parametrize(
    ("suffix", "format_name", "options"),
    [
        ("jpg", "JPEG", {"quality": 95}), ("jpg", "JPEG", {"quality": 95, "progressive": True}), ("png", "PNG", {}),
        ("webp", "WEBP", {"quality": 95}), ("webp", "WEBP", {"lossless": True}), ("avif", "AVIF", {"quality": 95}),
        ("tif", "TIFF", {}), ("tif", "TIFF", {"compression": "tiff_lzw"}), ("bmp", "BMP", {}), ("gif", "GIF", {}),
    ],
)  # fmt: skip
def test_every_format(
    tmp_path: Path, suffix: str, format_name: str, options: dict[str, object]
) -> None:
    image = photo(3, 60, 44)
    image.save(tmp_path / f"a.{suffix}", **options)
    sample = decoded(tmp_path / f"a.{suffix}")
    assert mean_difference(sample, image) < (6 if suffix == "gif" else 3)
    assert (sample.facts.width, sample.facts.height, sample.facts.format) == (60, 44, format_name)


def test_a_wrong_extension_does_not_matter(tmp_path: Path) -> None:
    photo(3).save(tmp_path / "a.jpg", format="PNG")
    assert decoded(tmp_path / "a.jpg").facts.format == "PNG"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_photo_upright(tmp_path: Path, orientation: int) -> None:
    upright = photo(3, 60, 44)
    stored = upright
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
            7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    if orientation in undo:
        stored = upright.transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(tmp_path / "a.jpg", quality=97, exif=exif)
    sample = decoded(tmp_path / "a.jpg")
    assert mean_difference(sample, upright) < 2
    assert sample.facts.exif_orientation == orientation
    assert ("exif_rotated" in sample.facts.notes) == (orientation > 1)
    assert (sample.facts.width, sample.facts.height) == stored.size, "as stored in the file"


def test_broken_exif_costs_nothing(tmp_path: Path) -> None:
    image = photo(3, 60, 44)
    for number, exif in enumerate(
        [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
    ):
        image.save(tmp_path / f"{number}.jpg", exif=exif)
        assert decoded(tmp_path / f"{number}.jpg").facts.exif_orientation is None


def test_cmyk(tmp_path: Path) -> None:
    image = photo(3, 60, 44)
    image.convert("CMYK").save(tmp_path / "a.jpg", quality=97)
    sample = decoded(tmp_path / "a.jpg")
    assert sample.facts.notes == ["cmyk_converted"]
    assert mean_difference(sample, image) < 6


def test_grey_and_palette(tmp_path: Path) -> None:
    grey = photo(3, 60, 44, "L")
    grey.save(tmp_path / "a.png")
    assert mean_difference(decoded(tmp_path / "a.png"), grey.convert("RGB")) == 0
    palette = photo(3, 60, 44).quantize(64)
    palette.save(tmp_path / "b.png")
    sample = decoded(tmp_path / "b.png")
    assert mean_difference(sample, palette.convert("RGB")) == 0
    assert sample.facts.notes == ["palette_converted"]
    Image.fromarray(np.eye(40, dtype=bool)).save(tmp_path / "c.png")
    assert decoded(tmp_path / "c.png").pixels.max() > 150


def test_sixteen_bits_are_scaled_not_cut(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 60 * 44).reshape(44, 60).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    expected = Image.fromarray((ramp / 257).round().astype(np.uint8)).convert("RGB")
    for name in ("a.png", "a.tif"):
        sample = decoded(tmp_path / name)
        assert mean_difference(sample, expected) < 0.5
        assert sample.facts.notes == ["depth16_scaled"]


def test_sixteen_bit_colour(tmp_path: Path) -> None:
    colour = np.array(photo(3, 60, 44)).astype(">u2") * 257
    (tmp_path / "a.png").write_bytes(png(60, 44, 16, 2, colour.tobytes()))
    sample = decoded(tmp_path / "a.png")
    assert mean_difference(sample, photo(3, 60, 44)) < 1
    assert sample.facts.notes == ["depth16_scaled"]


def test_float_pixels(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 60 * 44, dtype=np.float32).reshape(44, 60)
    expected = Image.fromarray((values * 255).round().astype(np.uint8)).convert("RGB")
    for number, scaled in enumerate([values, values * 1000 - 500]):
        Image.fromarray(scaled).save(tmp_path / f"{number}.tif")
        sample = decoded(tmp_path / f"{number}.tif")
        assert mean_difference(sample, expected) < 1
        assert sample.facts.notes == ["depth32_scaled"]


def test_one_pixel_that_is_no_number_does_not_make_a_picture_black(tmp_path: Path) -> None:
    whole = np.linspace(-500, 500, 60 * 44, dtype=np.float32).reshape(44, 60)
    holed, infinite = whole.copy(), whole.copy()
    holed[20, 30] = np.nan
    infinite[0, 0], infinite[43, 59] = -np.inf, np.inf
    for name, values in (("whole", whole), ("holed", holed), ("infinite", infinite)):
        Image.fromarray(values).save(tmp_path / f"{name}.tif")
    expected = decoded(tmp_path / "whole.tif").pixels.float()
    assert (decoded(tmp_path / "holed.tif").pixels.float() - expected).abs().max() < 40, (
        "but for that pixel"
    )
    assert (decoded(tmp_path / "holed.tif").pixels.float() - expected).abs().mean() < 0.5
    assert (decoded(tmp_path / "infinite.tif").pixels.float() - expected).abs().max() < 2, (
        "the nearest end"
    )
    for number, value in enumerate((np.nan, np.inf)):
        Image.fromarray(np.full((44, 60), value, np.float32)).save(tmp_path / f"{number}.tif")
        failure = failed(tmp_path / f"{number}.tif")
        assert (failure.code, failure.detail) == (
            "corrupt",
            "none of its pixels is a finite number",
        )
    Image.fromarray(np.full((44, 60), -7, np.float32)).save(tmp_path / "even.tif")
    assert decoded(tmp_path / "even.tif").pixels.max() == 0, (
        "one value throughout is no reason to fail"
    )


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (40, 40), (200, 0, 0, 0))
    image.paste((0, 0, 200, 255), (0, 0, 20, 40))
    image.save(tmp_path / "a.png")
    sample = decoded(tmp_path / "a.png")
    assert sample.pixels[:, 16, 2].tolist() == [0, 0, 200]
    assert sample.pixels[:, 16, 29].tolist() == [255, 255, 255]
    assert sample.facts.notes == ["alpha_flattened"]
    photo(3).convert("RGBA").save(tmp_path / "opaque.png")
    assert decoded(tmp_path / "opaque.png").facts.notes == []
    image.quantize(8).save(tmp_path / "palette.png")
    assert decoded(tmp_path / "palette.png").facts.notes == ["palette_converted", "alpha_flattened"]


def test_a_picture_whose_ends_nobody_looked_at_says_so(tmp_path: Path) -> None:
    cropped = Preprocess(32, 36)
    for size, notes in (((400, 99), ["ends_cut"]), ((99, 400), ["ends_cut"]), ((400, 100), [])):
        Image.effect_noise(size, 50).save(tmp_path / "long.png")
        assert decoded(tmp_path / "long.png", cropped).facts.notes == notes
        assert decoded(tmp_path / "long.png", RGB).facts.notes == []  # squashed: all of it is seen


def test_models_of_one_and_four_channels(tmp_path: Path) -> None:
    photo(3).save(tmp_path / "a.png")
    photo(3).convert("RGBA").save(tmp_path / "b.png")
    assert decoded(tmp_path / "a.png", GREY).pixels.shape == (1, 32, 32)
    sample = decoded(tmp_path / "a.png", RGBA)
    assert sample.pixels.shape == (4, 32, 32)
    assert (sample.pixels[3] == 255).all()
    assert decoded(tmp_path / "b.png", GREY).pixels.shape == (1, 32, 32)


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [photo(seed, 60, 44) for seed in (1, 2, 3)]
    for name, options in (
        ("a.gif", {}),
        ("a.webp", {"lossless": True}),
        ("a.png", {}),
        ("a.tif", {}),
    ):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        sample = decoded(tmp_path / name)
        assert "first_frame" in sample.facts.notes, name
        assert mean_difference(sample, frames[0]) < 6, name


def test_large_jpegs_are_decoded_at_a_fraction_of_their_size(tmp_path: Path) -> None:
    image = photo(3, 900, 660)
    image.save(tmp_path / "a.jpg", quality=95)
    sample = decoded(tmp_path / "a.jpg")
    assert sample.facts.notes == ["scaled_decode"]
    assert (sample.facts.width, sample.facts.height) == (900, 660)
    assert mean_difference(sample, image) < 2
    image.resize((191, 191)).save(tmp_path / "b.jpg")
    assert decoded(tmp_path / "b.jpg").facts.notes == [], "never below three times the model's size"
    image.resize((192, 192)).save(tmp_path / "c.jpg")
    assert decoded(tmp_path / "c.jpg").facts.notes == ["scaled_decode"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(201, 301), (343, 250), (399, 263)])
def test_a_scaled_decode_lies_where_the_whole_image_does(
    tmp_path: Path, size: tuple[int, int], orientation: int
) -> None:
    """201 pixels at half the size are 100.5, in 101: unnoticed, every edge would lie a little off."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    rings = np.stack(
        [127 + 120 * np.sin(np.hypot(x - width * a, y - height) / 9) for a in (0.2, 0.5, 0.9)],
        axis=-1,
    )
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(rings.astype(np.uint8)).save(
        tmp_path / "a.jpg", quality=97, subsampling=0, exif=exif
    )
    data = (tmp_path / "a.jpg").read_bytes()
    preprocess = Preprocess(32, 32, "crop")
    scaled, whole = (
        decode_image(0, data, preprocess, MAX_PIXELS, scaled) for scaled in (True, False)
    )
    assert isinstance(scaled, Sample)
    assert isinstance(whole, Sample)
    assert "scaled_decode" in scaled.facts.notes
    assert (scaled.pixels.float() - whole.pixels.float()).abs().mean() < 1.0


def test_heic_with_the_extra(tmp_path: Path) -> None:
    from pillow_heif import from_pillow

    image = photo(3, 64, 48)
    from_pillow(image).save(tmp_path / "a.heic", quality=90)
    assert register_formats(), "the extra `test` brings pillow-heif"
    sample = decoded(tmp_path / "a.heic")
    assert (sample.facts.format, sample.facts.width, sample.facts.height) == ("HEIF", 64, 48)
    assert mean_difference(sample, image) < 6


@pytest.mark.slow
def test_heic_without_the_extra_says_what_to_install(tmp_path: Path) -> None:
    from pillow_heif import from_pillow

    from_pillow(photo(3, 64, 48)).save(tmp_path / "a.heic")
    script = (
        "import sys; sys.modules['pillow_heif'] = None\n"  # as if it were not installed
        "from pipeline.load.decode import decode_image, register_formats\n"
        "from vit.preprocess import Preprocess\n"
        "assert not register_formats()\n"
        "failure = decode_image(0, open(sys.argv[1], 'rb').read(), Preprocess(32, 32), 10**6)\n"
        "print(failure.code, failure.detail)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "a.heic"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ran.stdout.strip() == (
        "unsupported a HEIC image; install pillow-heif where label-images is installed (pip "
        "install pillow-heif) to read it"
    )


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("text.jpg", b"this is no picture\n" * 100, "not_an_image"),
        ("empty.jpg", b"", "empty_file"),
        ("page.png", b"%!PS-Adobe-3.0\n%%Pages: 1\n", "not_an_image"),
        ("head.jpg", b"\xff\xd8\xff\xe0", "not_an_image"),
    ],
)
def test_files_that_are_no_images(tmp_path: Path, name: str, content: bytes, code: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert failed(tmp_path / name).code == code


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "gif", "bmp"])
def test_truncated_images_are_errors_that_still_know_their_size(
    tmp_path: Path, suffix: str
) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    data = buffer.getvalue()
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data[: len(data) * 2 // 3])
    failure = failed(path)
    assert failure.code in ("truncated", "corrupt", "not_an_image")
    assert "Error" not in failure.detail, "in words for the owner of the photo"
    if suffix in ("jpg", "png", "bmp"):
        assert failure.code == "truncated"
        assert (failure.facts.width, failure.facts.height) == (120, 80)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failed(tmp_path / "gone.jpg").code == "not_found"
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    assert failed(tmp_path / "dangling.jpg").code == "not_found"
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    assert failed(tmp_path / "self.jpg").code == "read_error"
    os.mkfifo(tmp_path / "pipe.jpg")
    assert failed(tmp_path / "pipe.jpg").code == "not_a_file"  # and does not wait for a writer
    photo(1).save(tmp_path / "a.jpg")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert failed(tmp_path / "a.jpg").code == "permission_denied"


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(60_000, 60_000, 1, 0, b""))
    failure = failed(tmp_path / "bomb.png")
    assert failure.code == "too_many_pixels"
    assert "60000 x 60000 pixels; --max-pixels allows 1000000" in failure.detail
    assert failure.facts.width == 60_000


def test_nothing_is_decoded_before_the_size_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "a.jpg", "a.webp", "a.tif", "a.gif", "a.bmp", "a.avif"):
        photo(1, 1200, 900).save(tmp_path / name)

    def too_early(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", too_early)
    for path in tmp_path.iterdir():
        assert failed(path).code == "too_many_pixels", path


def test_out_of_memory_is_a_reason_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(1).save(tmp_path / "a.jpg")

    def exhaust(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("vit.preprocess.fit_image", exhaust)
    assert failed(tmp_path / "a.jpg").code == "out_of_memory"


def test_programs_are_never_started_for_an_image() -> None:
    assert not {"EPS", "MIC", "FPX", "PSD"} & set(FORMATS)
    assert set(ERROR_CODES) > RETRYABLE


SEEDS = {}
for _format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
    _buffer = io.BytesIO()
    photo(5, 40, 30).save(_buffer, _format)
    SEEDS[_format] = _buffer.getvalue()


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.sampled_from(sorted(SEEDS)), cut=st.integers(0, 3000),
    flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=20),
)  # fmt: skip
def test_no_mutated_file_raises(
    tmp_path: Path, seed: str, cut: int, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(SEEDS[seed])
    for position, value in flips:
        data[position % len(data)] = value
    (tmp_path / "mutated").write_bytes(data[: len(data) - cut] if cut < len(data) // 2 else data)
    result = decode(tmp_path / "mutated")
    if isinstance(result, Failure):
        assert result.code in ERROR_CODES
    else:
        assert result.pixels.shape == (3, 32, 32)


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG by hand, for what Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    stride = len(rows) // height
    filtered = (
        b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height))
        if rows
        else b""
    )
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(filtered))
        + chunk(b"IEND", b"")
    )
