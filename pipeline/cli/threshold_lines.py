"""What `label-images thresholds` prints: a line a label, or JSON, a record a label."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.path_names import printable
from pipeline.so_many import so_many
from pipeline.table.thresholds import EDGES, LabelScores, Thresholds

_BARS = " ▁▂▃▄▅▆▇█"
_CHART_WIDTH = 32
_NAME_WIDTH = 28
_QUANTILES = ("q05", "q25", "median", "q75", "q95")


def threshold_lines(found: Thresholds, table: str) -> Iterator[str]:
    """Say it in words: a label's scores, the cut, and a chart of all scores with `|` for the cut."""
    yield (
        f"{table}: {so_many(found.n_images, 'labelled image')}, {so_many(found.n_classes, 'label')}, "
        "each scored by itself"
    )
    if found.top_k < found.n_classes:
        yield (
            f"top_k has the {found.top_k:,} best of {found.n_classes:,} scores: of an image with "
            f"{found.top_k:,} better ones a label's score is not known, and not counted. Most of "
            f"those are low; --top-k {found.n_classes} keeps all"
        )
    first, last = _shown(found)
    width = max([5, *(min(_NAME_WIDTH, len(each.label)) for each in found.labels)])
    between = f"{EDGES[first]:.1f} to {EDGES[last]:.1f}"
    yield (
        f"{'label':<{width}}  {'known':>9}  {'lowest':>8}  {'median':>8}  {'95%':>8}  "
        f"{'highest':>8}  {'cut':>8}  {'above':>9}  logits {between}"
    )
    for each in found.labels:
        name = printable(each.label)
        name = name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 3]}..."
        line = f"{name:<{width}}  {each.n_known:>9,}  "
        if each.lowest is None or each.highest is None:
            yield line + each.why
            continue
        shown = (each.lowest, each.quantiles[2], each.quantiles[4], each.highest)
        line += "  ".join(f"{_short(score):>8}" for score in shown)
        cut = "none" if each.cut is None else _short(each.cut)
        above = "" if each.n_above is None else f"{each.n_above:,}"
        why = f"  ({each.why})" if each.why else ""
        yield f"{line}  {cut:>8}  {above:>9}  {_chart(each, first, last)}{why}"


def thresholds_json(found: Thresholds) -> str:
    """A list with a record a label, which DuckDB reads as a table."""
    return json.dumps([_record(each, found.n_images) for each in found.labels], indent=1)


def _record(each: LabelScores, n_images: int) -> dict[str, Any]:
    quantiles = each.quantiles or (None,) * len(_QUANTILES)
    return {
        "class_id": each.class_id,
        "label": each.label,
        "known": each.n_known,
        "unknown": n_images - each.n_known,
        "lowest": each.lowest,
        **dict(zip(_QUANTILES, quantiles, strict=True)),
        "highest": each.highest,
        "cut": each.cut,
        "above": each.n_above,
        "why_no_cut": each.why or None,
    }


def _shown(found: Thresholds) -> tuple[int, int]:
    """The edges between which all labels have their scores: charts then say the same by the same
    place.
    """
    is_used = np.zeros(len(EDGES) - 1, np.bool_)
    for each in found.labels:
        is_used |= each.counts > 0
    used = np.flatnonzero(is_used)
    return (int(used[0]), int(used[-1]) + 1) if len(used) else (0, len(EDGES) - 1)


def _chart(each: LabelScores, first: int, last: int) -> str:
    """Bars of the square roots of counts: else a few photos beside many could not be seen."""
    edges = np.linspace(first, last, _CHART_WIDTH + 1).round().astype(int)
    total = np.concatenate([[0], np.cumsum(each.counts)])
    heights = np.sqrt(total[edges[1:]] - total[edges[:-1]])
    levels = np.ceil(heights / max(heights.max(), 1) * (len(_BARS) - 1)).astype(int)
    bars = "".join(_BARS[level] for level in levels)
    if each.cut is None:
        return bars
    logit = float(np.log(each.cut) - np.log1p(-each.cut))
    place = int(np.searchsorted(EDGES[edges], logit - 1e-6))
    return f"{bars[:place]}|{bars[place:]}"


def _short(score: float) -> str:
    if score > 0.999:
        return f"{score:.6f}"  # a cut at 1.000 would leave nothing
    return f"{score:.3f}" if score >= 0.1 else f"{score:.2g}"
