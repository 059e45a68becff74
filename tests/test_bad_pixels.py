"""Bad pixels: other people's broken files, and thousands of our own."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline.failures import ERROR_CODES
from tests.helpers import Command, make_photos, photo, rows
from tests.mutations import make_mutated, mutated, seeds

# `make test` fetches them (see the Makefile); they are not ours to ship.
PILLOW_IMAGES = Path(sys.prefix) / "pillow-images"


@pytest.mark.slow
def test_each_of_pillow_s_own_test_images_gets_its_row(
    small_model: Path, process: Command, tmp_path: Path
) -> None:
    if not PILLOW_IMAGES.is_dir():
        pytest.skip("Pillow's test images are not here; `make test` fetches them")
    files = {
        str(p.relative_to(PILLOW_IMAGES))
        for p in PILLOW_IMAGES.rglob("*")
        if p.is_file() and p.name[0] != "."
    }
    assert len(files) > 900
    out = tmp_path / "l.parquet"
    arguments = (
        PILLOW_IMAGES,
        "--include",
        "*",
        "--exclude",
        ".*",
        "--out",
        out,
        "--model",
        small_model,
    )
    ran = process(*arguments, "--max-errors", "100%", "--image-timeout", 30)
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    found = {row["path"]: row for row in rows(out)}
    # One is an archive, whose members are rows.
    assert found.keys() == files - {"hopper.tar"} | {
        "hopper.tar/hopper.png",
        "hopper.tar/hopper.jpg",
    }
    codes = [row["error_code"] for row in found.values()]
    assert set(codes) <= {None, *ERROR_CODES}
    assert not {"timeout", "decoder_crash", "out_of_memory"} & set(codes)
    assert codes.count(None) > 600
    assert found["bmp/b/badwidth.bmp"]["error_code"] == "too_many_pixels"
    assert process("verify", out).returncode == 0


@pytest.mark.slow
def test_mutated_files_each_get_their_row(
    small_model: Path, process: Command, tmp_path: Path
) -> None:
    """A few hundred; `make soak` does ten thousand."""
    photos, out = make_mutated(tmp_path / "p", 600), tmp_path / "l.parquet"
    ran = process(
        photos, "--out", out, "--model", small_model, "--max-errors", "100%", "--workers", 2
    )
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    table = rows(out)
    assert [row["path"] for row in table] == [f"000/{number:06}.jpg" for number in range(600)]
    assert 100 < sum(row["status"] == "ok" for row in table) < 500
    assert process("verify", out).returncode == 0


def test_a_mutation_s_number_is_its_name() -> None:
    assert mutated(7) == mutated(7)
    assert len({mutated(number) for number in range(200)}) > 150
    assert sum(mutated(number) in seeds() for number in range(200)) < 60


def test_odd_sizes_and_wrong_names(small_model: Path, command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    for width, height in ((1, 1), (1, 3000), (30_000, 10), (2, 1)):
        Image.effect_noise((width, height), 50).convert("RGB").save(
            folder / f"{width}x{height}.jpg"
        )
    photo(1).save(folder / "really-a-png.webp", format="PNG")
    photo(2).save(folder / "really-a-gif.JPG", format="GIF")
    photo(3).save(folder / "huge-comment.jpg", comment=b"x" * 60_000)
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    out = tmp_path / "l.parquet"
    ran = command(folder, "--out", out, "--model", small_model, "--max-errors", 1)
    assert ran.returncode == 0, ran.stderr
    found = {row["path"]: (row["error_code"], row["format"]) for row in rows(out)}
    assert found.pop("bomb.png") == ("too_many_pixels", "PNG")
    assert {code for code, _ in found.values()} == {None}
    assert found["really-a-png.webp"][1] == "PNG"


def test_a_size_that_no_column_can_hold_costs_one_row(
    small_model: Path, command: Command, tmp_path: Path
) -> None:
    """A BMP of 4,294,967,169 pixels in width once ended the whole run."""
    folder = make_photos(tmp_path / "p", 3)
    photo(1).save(folder / "wide.bmp")
    data = bytearray((folder / "wide.bmp").read_bytes())
    data[18:22] = (4_294_967_169).to_bytes(4, "little")
    (folder / "wide.bmp").write_bytes(data)
    ran = command(
        folder, "--out", tmp_path / "l.parquet", "--model", small_model, "--max-errors", 1
    )
    assert ran.returncode == 0, ran.stderr
    wide = rows(tmp_path / "l.parquet")[-1]
    assert (wide["error_code"], wide["width"], wide["height"]) == ("too_many_pixels", None, 40)
    assert wide["error_detail"].startswith("4294967169 x 40 pixels")
