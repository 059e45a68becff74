"""`label-images diff`: what changed between two tables, counted against plain dictionaries."""

import json
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.manifest import Fingerprint
from jobs.records import canonical_sha256
from pipeline.errors import LabelImagesError, TableError
from pipeline.report import tally
from pipeline.report.in_step import in_step
from pipeline.report.tally import compare_tables
from pipeline.table.labels import LABELS
from pipeline.table.merge import write_file
from pipeline.table.record import TableRecord
from tests.helpers import ROOT, Command, make_photos, photo

AT = datetime(2026, 1, 1, tzinfo=UTC)
CLASSES = ("cat", "dog", "owl")
Row = dict[str, Any]


def row(path: str, label: str | None = "cat", **values: Any) -> Row:
    """A row of a table: labelled, or failed where its label is None."""
    failed = {"status": "error", "error_code": "corrupt", "label": None, "probability": None}
    return {
        "path": path,
        "root": "/photos",
        "size_bytes": 1,
        "mtime": AT,
        "content_hash": f"{path:>032}",
        "status": "ok",
        "label": label,
        "probability": 0.5,
        "model": "m",
        "fingerprint": "f",
        "run_id": "r",
        "labelled_at": AT,
        **(failed if label is None else {}),
        **values,
    }


def write(
    path: Path, rows: list[Row], classes: tuple[str, ...] = CLASSES, activation: str = "softmax"
) -> Path:
    """A table of rows that need not be sound in what `diff` does not read."""
    fields = Fingerprint("0", {}, {}, 1.0, "0", 5, "3", activation).to_record()
    record = TableRecord("p", "now", "r", "0.1", "m", canonical_sha256(fields), fields, [], [])
    columns = [
        pa.array([each.get(field.name) for each in rows], field.type) for field in LABELS.schema
    ]
    table = pa.table(columns, schema=LABELS.schema)
    named = [{"class_id": number, "label": name} for number, name in enumerate(classes)]
    write_file(LABELS, path, [table], len(rows), record, named)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> Any:
    def make(old: list[Row], new: list[Row], **named: Any) -> tuple[Path, Path]:
        return write(tmp_path / "old.parquet", old), write(tmp_path / "new.parquet", new, **named)

    return make


def test_changes_failures_and_confidence(pair: Any, command: Command, tmp_path: Path) -> None:
    old = [
        row("a", "cat", probability=0.25), row("b", "cat"), row("c", "dog"), row("d", None),
        row("e", "owl"), row("f", None), row("g"), row("h"), row("i", None),
    ]  # fmt: skip
    new = [
        row("a", "dog", probability=0.75), row("b", "dog"), row("c", "dog"), row("d", "owl"),
        row("e", None, error_code="truncated"), row("f", None, error_code="timeout"),
        row("h", "owl", content_hash="0" * 32), row("i", None), row("j"),
    ]  # fmt: skip
    tables = pair(old, new)
    ran = command("diff", *tables, "--json", "--out", tmp_path / "rows.parquet")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["counts"] == {
        "compared": 7, "only_old": 1, "only_new": 1, "other_file": 1, "both_ok": 3,
        "comparable": 3, "changed": 2,
    }  # fmt: skip
    assert found["changed_share"] == pytest.approx(2 / 3, abs=1e-6)
    (change,) = found["changes"]
    assert (change["old"], change["new"], change["rows"]) == ("cat", "dog", 2)
    assert [example["path"] for example in change["examples"]] == ["a", "b"]
    assert change["examples"][0] == {
        "root": "/photos", "path": "a", "old_label": "cat", "new_label": "dog",
        "old_probability": 0.25, "new_probability": 0.75, "old_error_code": None,
        "new_error_code": None,
    }  # fmt: skip
    for kind, old_code, new_code in (
        ("failed", "ok", "truncated"),
        ("mended", "corrupt", "ok"),
        ("other_errors", "corrupt", "timeout"),
    ):
        (change,) = found[kind]
        assert (change["old"], change["new"], change["rows"]) == (old_code, new_code, 1)
    confidence = found["confidence"]
    assert (confidence["rows"], confidence["old_mean"]) == (3, pytest.approx(1.25 / 3, abs=1e-6))
    assert confidence["new_histogram"][5] == 2
    assert found["confidence_of_changed"]["new_mean"] == 0.625
    rows = pq.read_table(tmp_path / "rows.parquet")
    assert rows.schema.remove_metadata() == tally.DIFFERING
    assert rows.select(
        ["path", "what", "old_label", "new_label", "new_error_code"]
    ).to_pylist() == [
        dict(zip(("path", "what", "old_label", "new_label", "new_error_code"), values, strict=True))
        for values in (
            ("a", "relabelled", "cat", "dog", None),
            ("b", "relabelled", "cat", "dog", None),
            ("d", "mended", None, "owl", None),
            ("e", "failed", "owl", None, "truncated"),
            ("f", "other_error", None, None, "timeout"),
        )
    ]
    said = command("diff", *tables).stdout
    assert "7 compared: the same file in both; not compared: 1 changed meanwhile" in said
    assert "2 of 3 changed (66.67%)" in said
    assert "2  cat -> dog: a, b\n" in said
    assert "mean probability 0.417 before, 0.583 after; of the changed 0.375 before, 0.625" in said
    assert "failed     1  ok -> truncated: e" in said


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ({}, {"mtime": None}, True),  # touched: the bytes are the same
        ({}, {"content_hash": "0" * 32}, False),
        ({"content_hash": None}, {}, True),
        ({"content_hash": None}, {"size_bytes": 2}, False),
        ({"content_hash": None}, {"mtime": datetime(2026, 1, 2, tzinfo=UTC)}, False),
        ({"content_hash": None, "mtime": None}, {"content_hash": None, "mtime": None}, False),
    ],
)
def test_which_files_are_the_same(pair: Any, old: Row, new: Row, same: bool) -> None:
    found = compare_tables(*pair([row("a", **old)], [row("a", "dog", **new)]))
    assert (found.counts.compared, found.counts.other_file, found.counts.changed) == (
        (1, 0, 1) if same else (0, 1, 0)
    )


names = st.sampled_from(["a", "b", "a/b", "é", "z", "\U0001f600", "ﬀ", "A"])
outcomes = st.sampled_from([*CLASSES, None])
tables = st.dictionaries(st.tuples(st.sampled_from(["/p", "/q", "/p/x"]), names), outcomes)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(old=tables, new=tables, at_once=st.integers(1, 5))
def test_the_counts_are_those_of_dictionaries(
    pair: Any,
    monkeypatch: pytest.MonkeyPatch,
    old: dict[tuple[str, str], str | None],
    new: dict[tuple[str, str], str | None],
    at_once: int,
) -> None:
    monkeypatch.setattr("pipeline.report.in_step._ROWS_AT_ONCE", at_once)
    monkeypatch.setattr("pipeline.report.tally.only_root", lambda _: None)
    paths = pair(
        *(
            [row(path, label, root=root) for (root, path), label in sorted(each.items())]
            for each in (old, new)
        )
    )
    differing: list[pa.Table] = []
    found = compare_tables(*paths, take=differing.append)
    both = old.keys() & new.keys()
    ok = [key for key in both if old[key] and new[key]]
    changes = Counter((old[key], new[key]) for key in ok if old[key] != new[key])
    counts = found.counts
    assert (counts.compared, counts.only_old, counts.only_new) == (
        len(both), len(old) - len(both), len(new) - len(both)
    )  # fmt: skip
    assert (counts.both_ok, counts.comparable, counts.changed) == (
        len(ok), len(ok), changes.total()
    )  # fmt: skip
    assert {(each.old, each.new): each.rows for each in found.changes} == changes
    assert sum(each.rows for each in found.failed) == sum(
        bool(old[key] and not new[key]) for key in both
    )
    assert all(
        len(each.examples) == min(each.rows, tally.EXAMPLES_KEPT)
        for each in (*found.changes, *found.failed, *found.mended)
    )
    keys = [(each["root"], each["path"]) for rows in differing for each in rows.to_pylist()]
    assert keys == sorted(key for key in both if old[key] != new[key])


def test_the_most_frequent_changes_have_examples_and_no_more_are_kept(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "CHANGES_KEPT", 2)
    monkeypatch.setattr(tally, "EXAMPLES_KEPT", 3)
    monkeypatch.setattr("pipeline.report.in_step._ROWS_AT_ONCE", 4)
    # The most frequent change comes last, when others have been the most frequent so far.
    to = ["dog"] * 3 + ["owl"] * 4 + ["cat"] * 9
    old = [row(f"{n:02}", "dog" if now == "cat" else "cat") for n, now in enumerate(to)]
    found = compare_tables(*pair(old, [row(f"{n:02}", now) for n, now in enumerate(to)]))
    assert [(each.old, each.new, each.rows, len(each.examples)) for each in found.changes] == [
        ("dog", "cat", 9, 3),
        ("cat", "owl", 4, 3),
    ]
    assert found.counts.changed == 16


def test_photos_that_moved_to_another_place_are_compared_by_the_path_below(
    pair: Any, command: Command
) -> None:
    tables = pair([row("a"), row("b")], [row("a", "dog", root="/moved"), row("b", root="/moved")])
    assert "1 of 2 changed" in (said := command("diff", *tables).stdout)
    assert "each table has one root, and they differ" in said
    tables = pair([row("a"), row("b")], [row("a", root="/moved"), row("b", root="/photos")])
    assert compare_tables(*tables).counts.compared == 1, "with several roots the roots count"


# -- other classes ---------------------------------------------------------------------------------


def test_other_classes_are_not_compared_and_the_command_says_so(
    pair: Any, command: Command
) -> None:
    tables = pair([row("a"), row("b", None)], [row("a", "puma"), row("b", "dog")],
                  classes=("puma", "dog", "owl"))  # fmt: skip
    found = compare_tables(*tables)
    assert (found.counts.both_ok, found.counts.comparable, found.changed_share) == (1, 0, None)
    assert [each.rows for each in found.mended] == [1]
    said = command("diff", *tables).stdout
    assert "not compared: the classes are others (3 and 3, 2 called alike)" in said
    assert "not the same measure in both" in said


def test_classes_in_another_order_are_the_same(pair: Any) -> None:
    found = compare_tables(*pair([row("a", "cat")], [row("a", "cat")], classes=CLASSES[::-1]))
    assert (found.counts.comparable, found.counts.changed) == (1, 0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "old,new\ncat,puma\ncat,lynx\ndog,hound\n"),
        ("m.csv", "cat,puma\ncat,lynx\n\ndog,hound\n"),
        ("m.json", '{"cat": ["puma", "lynx"], "dog": "hound"}'),
    ],
)
def test_a_mapping_says_what_is_the_same(
    pair: Any, command: Command, tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    new = [row(*each) for each in (("a", "lynx"), ("b", "hound"), ("c", "puma"), ("d", "puma"))]
    tables = pair([row("a", "cat"), row("b", "cat"), row("c", "owl"), row("d", "cat")], new,
                  classes=("puma", "lynx", "hound", "eagle"))  # fmt: skip
    ran = command("diff", *tables, "--map", tmp_path / name)
    assert "1 of 3 changed (33.33%)" in ran.stdout
    assert "1 more not compared: --map has no new name for their old label" in ran.stdout
    assert "cat -> hound: b" in ran.stdout


def test_names_that_both_have_are_the_same_where_the_command_says_so(
    pair: Any, command: Command
) -> None:
    tables = pair([row("a"), row("b", "owl")], [row("a", "dog"), row("b", "eagle")],
                  classes=("cat", "dog", "eagle"))  # fmt: skip
    assert "1 of 1 changed" in command("diff", *tables, "--map", "same").stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat,puma,x\n", "row 1 has 3 values instead of 2"),
        ('{"cat": 3}', "'cat' has 3, which is no name"),
        ('{"cat": ', "it holds lines OLD NAME,NEW NAME"),
        ("", "holds no names"),
        ("cta,puma\n", "the old table has no class 'cta'"),
        ("cat,pmua\n", "the new table has no class 'pmua'"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(
    pair: Any, command: Command, tmp_path: Path, text: str, message: str
) -> None:
    tables = pair([row("a")], [row("a", "puma")], classes=("puma",))
    (tmp_path / "m").write_text(text)
    ran = command("diff", *tables, "--map", tmp_path / "m")
    assert (ran.returncode, message in ran.stderr) == (2, True), ran.stderr
    ran = command("diff", tables[0], tables[0], "--map", tmp_path / "m")
    assert (ran.returncode, "leave --map out" in ran.stderr) == (2, True)
    ran = command("diff", *tables, "--map", tmp_path / "none")
    assert (ran.returncode, "cannot be read: No such file" in ran.stderr) == (2, True)
    ran = command("diff", *tables, "--map", "same")
    assert (ran.returncode, "no name of a class is in both" in ran.stderr) == (2, True)


# -- tables as they are ----------------------------------------------------------------------------


def test_real_tables_of_one_file_and_of_many(
    command: Command, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.table.product.Product.file_rows", 4)
    folder = make_photos(tmp_path / "photos", 10)
    options = ("--model", small_model, "--workers", 0)
    old, many = tmp_path / "old.parquet", tmp_path / "many"
    assert command(folder, "--out", old, *options).returncode == 0
    photo(99).save(folder / "0003.jpg")
    (folder / "0004.jpg").unlink()
    photo(98).save(folder / "new.jpg")
    assert command(folder, "--out", f"{many}/", *options).returncode == 0
    assert len(list(many.iterdir())) > 1
    found = json.loads(command("diff", old, f"{many}/", "--json").stdout)
    assert found["counts"] == {
        "compared": 8, "only_old": 1, "only_new": 1, "other_file": 1, "both_ok": 8,
        "comparable": 8, "changed": 0,
    }  # fmt: skip
    assert "failures   none gained, none lost" in command("diff", old, many).stdout
    assert command("diff", old, folder).returncode == 2


@pytest.mark.parametrize("version", [1, 2])
def test_a_table_of_a_version_before(command: Command, tmp_path: Path, version: int) -> None:
    before = ROOT / "tests" / "data" / f"table-v{version}.parquet"
    found = json.loads(command("diff", before, before, "--json").stdout)
    assert found["counts"]["compared"] == found["old"]["rows"] > 0, "by size and time"


def test_the_best_class_of_sigmoids_is_compared(pair: Any, command: Command) -> None:
    tables = pair([row("a")], [row("a", "dog")], activation="sigmoid")
    said = command("diff", *tables).stdout
    assert "1 of 1 changed" in said
    assert "another kind of head: not the same measure in both" in said


def test_what_is_no_sound_table_is_refused(pair: Any, command: Command, tmp_path: Path) -> None:
    tables = pair([row("b"), row("a")], [row("a")])
    ran = command("diff", *tables)
    assert (ran.returncode, "not in the order" in ran.stderr) == (5, True)
    with pytest.raises(TableError, match="not in the order"):
        list(in_step(*reversed(tables)))
    tables = pair([row("a", "ant")], [row("a")])
    ran = command("diff", *tables)
    assert (ran.returncode, "not the name of one of its table's classes" in ran.stderr) == (5, True)
    tables[1].write_bytes(tables[1].read_bytes()[:-50])
    assert command("diff", *tables).returncode == 5
    assert command("diff", tables[0], tmp_path / "none.parquet").returncode == 2


def test_a_file_that_diff_did_not_write_is_left_alone(
    pair: Any, command: Command, tmp_path: Path
) -> None:
    tables = pair([row("a")], [row("a", "dog")])
    before = tables[1].read_bytes()
    ran = command("diff", *tables, "--out", tables[1])
    assert (ran.returncode, "did not write; choose another" in ran.stderr) == (5, True)
    assert tables[1].read_bytes() == before
    out = tmp_path / "rows.parquet"
    for _ in range(2):
        assert command("diff", *tables, "--out", out).stdout.endswith(f"differing rows -> {out}\n")
    assert command("diff", *tables, "--out", tmp_path).returncode == 2
    assert command("diff", *tables, "--out", tmp_path / "no" / "d.parquet").returncode == 2
    tables = pair([row("a")], [row("b")])
    assert command("diff", *tables, "--out", out).returncode == 0
    assert len(pq.read_table(out)) == 0, "with nothing to say, too"


def test_a_table_that_is_replaced_while_it_is_read_is_noticed(pair: Any, tmp_path: Path) -> None:
    for place in (0, 1):
        tables = pair([row("a"), row("b")], [row("a", "dog"), row("b")])

        def replace(_: pa.Table, victim: Path = tables[place]) -> None:
            write(tmp_path / "next.parquet", [row("a")]).replace(victim)

        with pytest.raises(LabelImagesError, match=rf"replaced .*{tables[place].name}"):
            compare_tables(*tables, take=replace)


def test_names_are_shown_escaped(pair: Any, command: Command) -> None:
    said = command("diff", *pair([row("a\x1b\n")], [row("a\x1b\n", "dog")])).stdout
    assert r"cat -> dog: a\x1b\n" in said


def test_every_field_of_a_diff_is_documented(pair: Any, command: Command) -> None:
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "report.md").read_text()))
    old = [row("a"), row("b"), row("c", None), row("d", None)]
    new = [row("a", "dog"), row("b", None), row("c"), row("d", None, error_code="timeout")]

    def names_in(value: Any) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(names_in, value))
        return value.keys() | names_in([*value.values()]) if isinstance(value, dict) else set()

    told = names_in(json.loads(command("diff", *pair(old, new), "--json").stdout))
    assert {"changes", "examples", "only_old", "new_histogram"} <= told
    assert told | set(tally.DIFFERING.names) <= documented
