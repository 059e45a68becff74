"""The example photos: each is credited, may be shipped, and is small."""

import json
import re

import pytest
from PIL import Image

from tests.helpers import ROOT

PHOTOS = ROOT / "examples" / "photos"
CREDITS = (PHOTOS / "README.md").read_text()
ROWS = {
    name: (classes, whose, licence)
    for name, classes, whose, licence in re.findall(
        r"^\| `(\S+)` \| [^|]+ \| ([^|]*?) ?\| ([^|]+) \| ([^|]+) \|$", CREDITS, re.M
    )
}
NAMES = {str(path.relative_to(PHOTOS)) for path in PHOTOS.rglob("*.*") if path.name != "README.md"}


def test_every_photo_is_credited_and_free() -> None:
    assert ROWS.keys() == NAMES
    assert {licence for _, _, licence in ROWS.values()} == {"public domain", "CC0"}
    assert len(NAMES) == 15
    assert CREDITS.splitlines()[2].startswith("Fifteen photos ")
    sources = CREDITS.partition("Where they come from")[2]
    for name in NAMES:
        assert f"`{name.split('/')[-1].split('.')[0]}`" in sources, name


def test_what_would_be_right_are_classes_of_the_model_in_the_box() -> None:
    known = json.loads((ROOT / "vit" / "embedded" / "config.json").read_text())
    labels = {entry["label"] for entry in known["classes"]}
    right = [name for classes, _, _ in ROWS.values() if classes for name in classes.split(", ")]
    assert len(right) >= 10
    assert set(right) <= labels


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_photo_is_small_and_says_nothing_of_where_it_was_taken(name: str) -> None:
    assert (PHOTOS / name).stat().st_size < 160_000
    with Image.open(PHOTOS / name) as image:
        assert 0x8825 not in image.getexif()  # GPS
