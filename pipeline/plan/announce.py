"""What a comparison found, in words: a run says it before it begins, `label-images plan` shows it."""

from pipeline.console import Console
from pipeline.path_names import printable
from pipeline.so_many import so_many

from .compare import Comparison

# So many of the places that could not be looked at are named.
_PLACES_SHOWN = 20
# Counts that have a line of their own.
_OTHERWISE_SAID = ("unseen", "unseen_places", "moved", "reused")


def announce(comparison: Comparison, console: Console, is_refused: bool = False) -> None:
    """Say what a comparison found, and what could not be looked at, unless a refusal will say that."""
    counts, other = comparison.plan.counts, comparison.scan.other
    shown = {name: count for name, count in counts.items() if name not in _OTHERWISE_SAID}
    text = ", ".join(
        f"{count:,} {name}" for name, count in shown.items() if count or name == "found"
    )
    if likely := counts["reused"]:
        text += f"; {likely:,} of the new most likely reused"
    text = "; ".join([text, *left_out_lines(comparison)])
    facts = {
        "counts": counts,
        "other_files": other.total(),
        "left_out": comparison.scan.clutter.to_record(),
    }
    console.info("plan", text, facts)
    if comparison.n_clutter:
        console.warn("clutter", clutter_line(comparison), {"rows": comparison.n_clutter})
    for line in moved_lines(comparison):
        console.info("moved", line, {"moved": comparison.plan.moved, "rows": counts["moved"]})
    if comparison.n_young:
        console.info("settle", young_line(comparison), {"young": comparison.n_young})
    for line in raw_lines(comparison):
        facts = {"raw": comparison.scan.n_raw, "paired": comparison.scan.n_paired}
        console.info("raw", line, facts)
    for line in repeated_lines(comparison):
        console.info("repeated", line, {"repeated": comparison.scan.n_repeated})
    for line in [] if is_refused else unseen_lines(comparison):
        console.warn("unseen", line)
    for line in comparison.scan.linked:
        console.warn("linked", line)


def left_out_lines(comparison: Comparison) -> list[str]:
    """What the scan left out: clutter, by its kind, and what is no image by its name."""
    clutter, other = comparison.scan.clutter, comparison.scan.other
    lines = [f"left out: {clutter}"] if clutter else []
    return [*lines, f"other files left out: {other}"] if other else lines


def raw_lines(comparison: Comparison) -> list[str]:
    """What is to be said of raw photos that are left out, for want of what reads them or of need."""
    n_raw, n_paired = comparison.scan.n_raw, comparison.scan.n_paired
    lines = []
    if n_raw:
        lines.append(
            f"{so_many(n_raw, 'raw photo is', 'raw photos are')} left out: nothing here reads "
            f"{'it' if n_raw == 1 else 'them'} "
            "(pip install 'label-images[raw]' brings what does)"
        )
    if n_paired:
        files = so_many(n_paired, "file")
        lines.append(f"{files} beside another of the same name left out (--pairs first)")
    return lines


def clutter_line(comparison: Comparison) -> str:
    rows = so_many(
        comparison.n_clutter,
        "row that the table had of clutter goes",
        "rows that the table had of clutter go",
    )
    return (
        f"{rows}: an earlier version labelled what is left out by default now "
        "(--no-default-excludes keeps them)"
    )


def moved_lines(comparison: Comparison) -> list[str]:
    moved = comparison.plan.moved
    roots = ", ".join(f"{printable(old)} -> {printable(new)}" for old, new in moved.items())
    n = comparison.plan.counts["moved"]
    rows = so_many(n, "row goes", "rows go")
    return [f"moved: {roots}: {rows} along, and no file of them is read"] if moved else []


def young_line(comparison: Comparison) -> str:
    return f"left for the next run, changed too lately (--settle): {comparison.n_young:,}"


def repeated_lines(comparison: Comparison) -> list[str]:
    n = comparison.scan.n_repeated
    images = so_many(n, "image lies", "images lie")
    each = "it" if n == 1 else "each"
    return [f"{images} below several PATHs; {each} has one row, under the outermost"] if n else []


def unseen_lines(comparison: Comparison) -> list[str]:
    """What could not be looked at, a line each, and what becomes of its rows."""
    unseen = comparison.unseen
    kept = (
        "; the rows the table has of it are kept (--forget FOLDER drops them)"
        if unseen.n_rows
        else ""
    )
    lines = [*(f"{reason}{kept}" for reason in unseen.reasons), *unseen.notices]
    if len(lines) > _PLACES_SHOWN:
        n_more = len(lines) - _PLACES_SHOWN
        lines[_PLACES_SHOWN:] = [f"and {n_more:,} more places could not be looked at"]
    return lines
