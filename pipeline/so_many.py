"""Numbers of things in words: 1 photo, 2 photos."""


def so_many(n: int, one: str, many: str | None = None) -> str:
    """`n` of something. `many` is what more of them are called, where that is not one with an s."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"
