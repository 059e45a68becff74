"""Which classes a model has that a table's labels are not from, in words: a night's log then says
which word was changed, and not only that one was.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.path_names import printable

_NAMES_SHOWN = 3
_NAME_LENGTH = 40

Classes = list[dict[str, Any]]  # as a table keeps them (ModelIdentity.classes)


def name_changes(before: Classes, after: Classes) -> str | None:
    """Say which class names were added, removed or renamed; None where they are the same.

    A name counts as renamed where its id, such as a WordNet id, is still there; without ids it is
    one removed and one added.
    """
    old, new = _labels(before), _labels(after)
    if old == new:
        return None
    renamed = list(_renamed(before, after))
    added = Counter(new) - Counter(old) - Counter(name for _, name in renamed)
    removed = Counter(old) - Counter(new) - Counter(earlier for earlier, _ in renamed)
    if not (added or removed or renamed):
        return "the same in another order"
    if not set(old) & set(new) and len(removed) > _NAMES_SHOWN:
        return f"others: {len(old):,} before, {len(new):,} now"
    texts = [f"{_cut(name)} was {_cut(earlier)}" for earlier, name in renamed]
    return "; ".join(
        f"{len(names):,} {what}: {_some(names)}"
        for what, names in (
            ("added", list(map(_cut, added.elements()))),
            ("removed", list(map(_cut, removed.elements()))),
            ("renamed", texts),
        )
        if names
    )


def prompt_changes(before: Classes, after: Classes) -> str | None:
    """Say which words are the same, and have other prompts; None where none is known to have."""
    old = {entry["label"]: entry.get("prompts_sha256") for entry in before}
    names = [
        entry["label"]
        for entry in after
        if "prompts_sha256" in entry
        and old.get(entry["label"]) not in (None, entry["prompts_sha256"])
    ]
    return f"{len(names):,} with other prompts: {_some(map(_cut, names))}" if names else None


def _labels(classes: Classes) -> list[str]:
    return [entry["label"] for entry in classes]


def _renamed(before: Classes, after: Classes) -> Iterator[tuple[str, str]]:
    old = {entry["id"]: entry["label"] for entry in before if "id" in entry}
    for entry in after:
        earlier = old.get(entry.get("id"))
        if earlier is not None and earlier != entry["label"]:
            yield earlier, entry["label"]


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _cut(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 3]}..."
