"""Plans, manifests and fingerprints."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.manifest import MANIFEST_VERSION, Fingerprint, Manifest
from jobs.plan import KNOWN, LISTING, Plan, make_plan, rows_below, shard_size_for
from jobs.records import canonical_sha256, write_record

FINGERPRINT = Fingerprint("w" * 64, {"depth": 12}, {"mean": [0.5, 0.5, 0.5]}, 1.0, "l" * 64, 5, "1")
MANIFEST = Manifest(
    "id",
    "0.1",
    "now",
    {"roots": ["/a"]},
    None,
    300,
    128,
    {"found": 300},
    "m",
    FINGERPRINT,
    {"top_k": 5},
)


def listing(*images: tuple[str, int, int]) -> pa.Table:
    names, sizes, times = zip(*images, strict=True) if images else ((), (), ())
    nothing = [None] * len(names)
    columns = [["/r"] * len(names), names, nothing, sizes, times, nothing, nothing]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, LISTING, strict=True)],
        schema=LISTING,
    )


def known(*rows: tuple[str, int, int, str | None, str]) -> pa.Table:
    images = listing(*(row[:3] for row in rows)).drop_columns(["container", "offset"])
    for name, values in (
        ("status", ["error" if row[3] else "ok" for row in rows]),
        ("error_code", [row[3] for row in rows]),
        ("fingerprint", [row[4] for row in rows]),
    ):
        images = images.append_column(name, pa.array(values, pa.string()))
    assert images.column_names == KNOWN.names
    return images


def actions(plan: Plan) -> dict[str, str]:
    return dict(
        zip(plan.pending["path"].to_pylist(), plan.pending["action"].to_pylist(), strict=True)
    )


def test_each_image_gets_its_action() -> None:
    table = known(
        ("changed-size", 1, 1, None, "f"), ("changed-time", 1, 1, None, "f"), ("gone", 1, 1, None, "f"),
        ("ok", 1, 1, None, "f"), ("retry", 1, 1, "read_error", "f"), ("spoilt", 1, 1, "corrupt", "f"),
        ("stale", 1, 1, None, "g"),
    )  # fmt: skip
    found = listing(("changed-size", 2, 1), ("changed-time", 1, 2), ("new", 1, 1), ("ok", 1, 1), ("retry", 1, 1),
                    ("spoilt", 1, 1), ("stale", 1, 1))  # fmt: skip
    plan = make_plan(found, table, "f", ["read_error"])
    assert actions(plan) == {"changed-size": "changed", "changed-time": "changed", "new": "new", "retry": "retry",
                             "stale": "stale"}  # fmt: skip
    assert plan.kept.to_pylist() == [3, 5]  # "ok" and "spoilt"
    assert plan.counts == {
        "found": 7, "new": 1, "changed": 2, "stale": 1, "retry": 1, "incomplete": 0,
        "relabelled": 0, "carried": 2, "gone": 1,
        "unseen": 0
    }  # fmt: skip
    assert plan.pending["position"].to_pylist() == [0, 1, 2, 4, 6]


def test_rows_of_what_cannot_be_seen_stay_as_they_are() -> None:
    """Whatever they hold: failed for a reason that may have passed, or of another fingerprint."""
    table = known(
        ("a", 1, 1, None, "g"), ("b", 1, 1, "read_error", "f"), ("c", 1, 1, None, "f"), ("d", 1, 1, None, "f")
    )  # fmt: skip
    unseen = pa.array([True, True, False, False])
    plan = make_plan(listing(("c", 1, 1), ("e", 1, 1)), table, "f", ["read_error"], unseen)
    assert actions(plan) == {"e": "new"}
    assert plan.kept.to_pylist() == [0, 1, 2]
    assert plan.counts == {
        "found": 2, "new": 1, "changed": 0, "stale": 0, "retry": 0, "incomplete": 0,
        "relabelled": 0, "carried": 1, "gone": 1,
        "unseen": 2
    }  # fmt: skip


def test_without_a_table_all_are_new_and_a_repeated_path_counts_once() -> None:
    plan = make_plan(listing(("b", 1, 1), ("a", 1, 1), ("b", 1, 1)), None, "f", [])
    assert plan.pending["path"].to_pylist() == ["a", "b"]
    assert plan.counts["found"] == plan.counts["new"] == 2
    assert make_plan(listing(), None, "f", []).changes_nothing


def test_a_size_that_is_unknown_both_times_has_not_changed() -> None:
    table = known(("pipe", None, None, "not_a_file", "f"))  # type: ignore[arg-type]
    assert make_plan(listing(("pipe", None, None)), table, "f", []).changes_nothing  # type: ignore[arg-type]
    assert actions(make_plan(listing(("pipe", 1, 1)), table, "f", [])) == {"pipe": "changed"}


names = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6),
    unique=True,
)


@settings(max_examples=80, deadline=None)
@given(before=names, now=names)
def test_every_image_is_one_row_of_the_next_table_in_byte_order(
    before: list[str], now: list[str]
) -> None:
    first = make_plan(listing(*((name, 1, 1) for name in before)), None, "f", [])
    in_order = first.pending["path"].to_pylist()
    assert in_order == sorted(before, key=lambda name: name.encode())
    plan = make_plan(
        listing(*((name, 1, 1) for name in now)),
        known(*((name, 1, 1, None, "f") for name in in_order)),
        "f",
        [],
    )
    rows: list[Any] = [None] * plan.counts["found"]
    for position, path in zip(
        plan.pending["position"].to_pylist(), plan.pending["path"].to_pylist(), strict=True
    ):
        rows[position] = path
    kept = iter(plan.kept.to_pylist())
    rows = [in_order[next(kept)] if row is None else row for row in rows]
    assert rows == sorted(now, key=lambda name: name.encode())
    assert plan.counts["gone"] == len(set(before) - set(now))


def test_rows_below_a_folder() -> None:
    table = known(("a/b", 1, 1, None, "f"), ("a/c/d", 1, 1, None, "f"), ("ab", 1, 1, None, "f"))
    assert rows_below(table, "/r", "a")["path"].to_pylist() == ["a/b", "a/c/d"]
    assert rows_below(table, "/r", "")["path"].to_pylist() == ["a/b", "a/c/d", "ab"]
    assert len(rows_below(table, "/other", "")) == 0


@given(n=st.integers(0, 200_000_000), at_least=st.sampled_from([32, 128, 256]))
def test_shards_cover_the_images_once(n: int, at_least: int) -> None:
    size = shard_size_for(n, 1000, at_least)
    manifest = replace(MANIFEST, n_images=n, shard_size=size)
    assert at_least <= size <= 8192
    assert size <= max(shard_size_for(n), at_least)
    assert size % at_least == 0, "whole batches"
    last = manifest.n_shards - 1
    assert n == 0 or last * size < n <= (last + 1) * size
    assert n == 0 or manifest.shard_rows(last) == n - last * size


def test_a_manifest_round_trips_and_a_strange_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    assert Manifest.read(path) is None
    MANIFEST.write(path)
    assert Manifest.read(path) == MANIFEST
    written = path.read_text()
    path.write_text(written.replace('"n_images": 300', '"n_images": 301'))
    assert Manifest.read(path) is None, "edited"
    path.write_text(written[: len(written) // 2])
    assert Manifest.read(path) is None, "cut"
    values = asdict(MANIFEST)
    for version, strange in (
        (MANIFEST_VERSION + 1, values),
        (MANIFEST_VERSION, {**values, "extra": 1}),
        (MANIFEST_VERSION, {**values, "fingerprint": {"other": 1}}),
    ):
        write_record(path, version, strange)
        assert Manifest.read(path) is None


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("weights_sha256", "v" * 64, "the weights (was wwwwwwwwwwww..., is vvvvvvvvvvvv...)"),
        ("architecture", {"depth": 6}, "architecture.depth (was 12, is 6)"),
        (
            "preprocess",
            {"mean": [0.4, 0.5, 0.5]},
            "preprocess.mean (was [0.5, 0.5, 0.5], is [0.4, 0.5, 0.5])",
        ),
        ("temperature", 0.9, "temperature (was 1.0, is 0.9)"),
        ("labels_sha256", "k" * 64, "the class names (was llllllllllll..., is kkkkkkkkkkkk...)"),
        ("top_k", 3, "top_k (was 5, is 3)"),
        ("decode_rules", "2", "decode_rules (was 1, is 2)"),
        ("activation", "sigmoid", "activation (was softmax, is sigmoid)"),
        ("head_sha256", "h" * 64, "the head (was that of the weights, is hhhhhhhhhhhh...)"),
    ],
)
def test_a_changed_setting_is_named(field: str, value: object, reason: str) -> None:
    changed = replace(FINGERPRINT, **{field: value})
    assert changed.digest != FINGERPRINT.digest
    assert changed.differences(FINGERPRINT) == [reason]
    assert FINGERPRINT.differences(FINGERPRINT) == []


def test_a_fingerprint_s_halves_change_with_what_they_are_of() -> None:
    halves = {
        "weights_sha256": ("v" * 64, {"features", "head"}),  # one file holds both
        "architecture": ({"depth": 6}, {"features"}),
        "preprocess": ({"mean": [0.4, 0.5, 0.5]}, {"features"}),
        "decode_rules": ("2", {"features"}),
        "temperature": (0.9, {"head"}),
        "labels_sha256": ("k" * 64, {"head"}),
        "top_k": (3, {"head"}),
        "activation": ("sigmoid", {"head"}),
        "head_sha256": ("h" * 64, {"head"}),
    }
    assert halves.keys() == asdict(FINGERPRINT).keys(), "each field belongs to a half"
    for field, (value, expected) in halves.items():
        changed = replace(FINGERPRINT, **{field: value})
        moved = {
            name
            for name in ("features", "head")
            if getattr(changed, f"{name}_digest") != getattr(FINGERPRINT, f"{name}_digest")
        }
        assert moved == expected, field
    assert len({FINGERPRINT.digest, FINGERPRINT.features_digest, FINGERPRINT.head_digest}) == 3


def test_a_head_of_its_own_is_one_half_and_the_weights_the_other() -> None:
    own = replace(FINGERPRINT, head_sha256="h" * 64)
    other_head = replace(own, head_sha256="g" * 64)
    other_weights = replace(own, weights_sha256="v" * 64)
    assert own.features_digest == other_head.features_digest != other_weights.features_digest
    assert own.head_digest == other_weights.head_digest != other_head.head_digest
    assert len({own.digest, other_head.digest, other_weights.digest, FINGERPRINT.digest}) == 4
    assert other_head.differences(own) == ["the head (was hhhhhhhhhhhh..., is gggggggggggg...)"]
    for each in (own, FINGERPRINT):
        assert Fingerprint.from_record(each.to_record()) == each
    assert "head_sha256" not in FINGERPRINT.to_record()


def test_the_fingerprint_of_a_table_of_before_is_as_valid_as_it_was() -> None:
    """As 0.1.0 wrote it before a fingerprint had halves; another digest would make its rows stale."""
    digest = "78bde45ae15884db48dcf70a0ff9d1e8b5142753652611879957600b5cfdea62"
    record = {
        "weights_sha256": "w" * 64, "architecture": {"depth": 12},
        "preprocess": {"mean": [0.5, 0.5, 0.5]}, "temperature": 1.0, "labels_sha256": "l" * 64,
        "top_k": 5, "decode_rules": "1",
    }  # fmt: skip
    earlier = Fingerprint.from_record(record)
    assert earlier == FINGERPRINT
    assert earlier.digest == digest == canonical_sha256(record)
    assert FINGERPRINT.to_record() == record, "and that version reads what is written now"
    assert FINGERPRINT.differences(earlier) == []
