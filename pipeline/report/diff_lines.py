"""A Diff in words."""

from collections.abc import Iterator

from pipeline.path_names import printable
from pipeline.so_many import so_many

from .diff import Change, Confidence, Diff, Side

_CHANGES_SHOWN = 20
_EXAMPLES_SHOWN = 3


def diff_lines(diff: Diff) -> Iterator[str]:
    """Say what changed, for people."""
    for name, side in (("old", diff.old), ("new", diff.new)):
        yield f"{name:<11}{_side(side)}"
    yield f"{'photos':<11}{_photos(diff)}"
    if diff.by_path:
        yield " " * 11 + "each table has one root, and they differ: the paths below are compared"
    yield from (f"{'labels' if not n else '':<11}{line}" for n, line in enumerate(_labels(diff)))
    width = len(f"{diff.changes[0].rows:,}") if diff.changes else 0
    for change in diff.changes[:_CHANGES_SHOWN]:
        yield f"{'':<11}{_change(change, width)}"
    if len(diff.changes) > _CHANGES_SHOWN:
        yield f"{'':<11}and others; --json has {len(diff.changes):,} of them"
    yield from _confidence(diff)
    for name, changes in (
        ("failed", diff.failed),
        ("mended", diff.mended),
        ("errors", diff.other_errors),
    ):
        for number, change in enumerate(changes):
            yield f"{'' if number else name:<11}{_change(change, 0)}"
    if not diff.failed and not diff.mended:
        yield f"{'failures':<11}none gained, none lost"


def _side(side: Side) -> str:
    record = side.record
    return (
        f"{side.place}: {so_many(record.counts['rows'], 'row')}, {record.model}, "
        f"{so_many(len(side.labels), 'class', 'classes')}, written {record.created_at}"
    )


def _photos(diff: Diff) -> str:
    text = f"{diff.counts.compared:,} compared: the same file in both"
    rest = (
        (diff.counts.other_file, "changed meanwhile, or not to be told"),
        (diff.counts.only_old, "in the old table alone"),
        (diff.counts.only_new, "in the new one alone"),
    )
    left_out = ", ".join(f"{count:,} {why}" for count, why in rest if count)
    return text + (f"; not compared: {left_out}" if left_out else "")


def _labels(diff: Diff) -> Iterator[str]:
    spaces = diff.spaces
    if not spaces.becomes:
        yield (
            f"not compared: the classes are others ({len(spaces.old):,} and {len(spaces.new):,}, "
            f"{spaces.n_shared:,} called alike). --map FILE says which old name is which new one, "
            "--map same that those called alike are the same"
        )
        return
    share = diff.changed_share
    of = f"{diff.counts.changed:,} of {diff.counts.comparable:,} changed"
    yield of + ("" if share is None else f" ({share:.2%})")
    if left_out := diff.counts.both_ok - diff.counts.comparable:
        yield f"{left_out:,} more not compared: --map has no new name for their old label"


def _change(change: Change, width: int) -> str:
    examples = ", ".join(printable(each.path) for each in change.examples[:_EXAMPLES_SHOWN])
    more = ", ..." if change.rows > _EXAMPLES_SHOWN else ""
    return f"{change.rows:>{width},}  {change.old} -> {change.new}: {examples}{more}"


def _confidence(diff: Diff) -> Iterator[str]:
    if not diff.confidence.rows:
        return
    text = f"mean probability {_means(diff.confidence)}"
    if diff.confidence_of_changed.rows:
        text += f"; of the changed {_means(diff.confidence_of_changed)}"
    yield f"{'confidence':<11}{text}"
    if not diff.spaces.is_one or diff.old.activation != diff.new.activation:
        yield " " * 11 + "of other classes or another kind of head: not the same measure in both"


def _means(confidence: Confidence) -> str:
    said = confidence.to_record()
    return f"{said['old_mean']:.3f} before, {said['new_mean']:.3f} after"
