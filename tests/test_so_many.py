"""Numbers of things, as messages say them."""

import pytest

from pipeline.so_many import so_many


@pytest.mark.parametrize(
    ("n", "words", "said"),
    [
        (0, ("photo",), "0 photos"),
        (1, ("photo",), "1 photo"),
        (1_200, ("photo",), "1,200 photos"),
        (1, ("class", "classes"), "1 class"),
        (2, ("class", "classes"), "2 classes"),
    ],
)
def test_one_is_no_plural(n: int, words: tuple[str, ...], said: str) -> None:
    assert so_many(n, *words) == said
