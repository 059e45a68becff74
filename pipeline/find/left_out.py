"""What a scan left out, counted by extension, so that nobody takes a folder of .cr2 or .mov for an
empty one.
"""

from collections import Counter

NO_EXTENSION, HIDDEN, OTHERS = "no extension", "hidden", "others"

_MOST_KINDS, _LONGEST = 1000, 12  # whatever names a folder holds, this takes no memory to speak of
_SHOWN = 8


class LeftOut(Counter[str]):
    """Files that are no images by their name: how many, by lower-case extension."""

    def add(self, path: str) -> None:
        kind = _kind(path)
        self[kind if kind in self or len(self) < _MOST_KINDS else OTHERS] += 1

    def __str__(self) -> str:
        """The number of all, and the most frequent kinds: 304 (.cr2 214, .mov 90)."""
        kinds = sorted(
            ((kind, count) for kind, count in self.items() if kind != OTHERS),
            key=lambda kind: (-kind[1], kind[0]),
        )
        shown = [f"{kind} {count:,}" for kind, count in kinds[:_SHOWN]]
        rest = self[OTHERS] + sum(count for _, count in kinds[_SHOWN:])
        return f"{self.total():,} ({', '.join([*shown, f'{OTHERS} {rest:,}'] if rest else shown)})"


def _kind(path: str) -> str:
    name = path[path.rfind("/") + 1 :]
    if name.startswith("."):
        return HIDDEN
    dot = name.rfind(".")
    extension = name[dot:].lower() if dot > 0 else ""
    return (
        extension
        if 1 < len(extension) <= _LONGEST
        else OTHERS
        if len(extension) > 1
        else NO_EXTENSION
    )
