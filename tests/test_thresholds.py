"""`label-images thresholds`: where a label's scores fall into two groups, and where nobody can say."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from pipeline.cli.threshold_lines import _short
from pipeline.console import Console
from pipeline.run import run
from pipeline.settings import Settings
from pipeline.table import thresholds
from pipeline.table.thresholds import EDGES, find_cut, read_thresholds
from tests.helpers import ROOT, Command, make_photos
from vit.checkpoints.bundle import write_bundle
from vit.classifier import load_classifier

Logits = NDArray[np.float64]


def bins(logits: Logits) -> NDArray[np.int64]:
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return np.bincount(thresholds._bins(scores), minlength=len(EDGES) - 1)


def normal(mean: float, spread: float, n: int, seed: int = 0) -> Logits:
    return np.random.default_rng(seed).normal(mean, spread, n)


def both(*groups: Logits) -> Logits:
    return np.concatenate(groups)


@pytest.mark.parametrize(
    ("logits", "between"),
    [
        (both(normal(-8, 1, 500), normal(-2, 1, 500, 1)), (-6, -4)),
        (both(normal(-8, 1, 900), normal(-2, 1, 100, 1)), (-6, -3.5)),
        (both(normal(-10, 1, 4950), normal(-2, 1, 50, 1)), (-7, -3.5)),  # a label of few photos
        (both(normal(-9, 0.5, 1000), normal(-3, 2, 1000, 1)), (-8, -6)),
        (both(normal(-25, 0.5, 40), normal(5, 0.5, 40, 1)), (-12, -8)),  # the middle of a gap
    ],
)
def test_a_cut_lies_between_two_groups(logits: Logits, between: tuple[float, float]) -> None:
    edge, why = find_cut(bins(logits))
    assert edge is not None, why
    assert between[0] < EDGES[edge] < between[1]


@pytest.mark.parametrize(
    ("logits", "why"),
    [
        (normal(-6, 1.5, 5000), "one group"),
        (np.linspace(-10, -2, 3000), "one group"),
        (-10 + np.random.default_rng(0).exponential(1.5, 5000), "one group"),
        (-2 - np.random.default_rng(0).exponential(1.5, 5000), "one group"),
        (-6 + np.random.default_rng(0).standard_t(3, 5000), "one group"),
        (np.full(100, -5.0), "one group"),
        (both(normal(-8, 1, 500), normal(-2, 0.1, 9, 1)), "one group"),  # nine photos are a few
        (both(normal(-8, 1, 9), normal(-2, 1, 9, 1)), "too few scores, 20 at least"),
        (both(normal(-8, 1, 500), normal(-6, 1, 500, 1)), "one group"),
    ],
)
def test_where_there_are_no_two_groups_no_cut_is_made_up(logits: Logits, why: str) -> None:
    assert find_cut(bins(logits)) == (None, why)


def test_scores_of_nothing_and_of_all_have_their_bin() -> None:
    places = thresholds._bins(np.array([0, 1e-38, 0.5, 1], np.float32))
    assert places.tolist() == [0, 0, 300, len(EDGES) - 2]


@pytest.fixture
def tagger(small_model: Path, tmp_path: Path) -> Path:
    """The small model, each class by itself."""
    classifier = load_classifier(str(small_model))
    spec = replace(classifier.spec, activation="sigmoid")
    write_bundle(spec, classifier.model.state_dict(), tmp_path / "tagger")
    return tmp_path / "tagger"


def labelled(tmp_path: Path, model: Path, n: int = 3, **settings: Any) -> Path:
    out: Path = tmp_path / "labels.parquet"
    settings = {"paths": (make_photos(tmp_path / "photos", n),), "out": out} | settings
    run(Settings(model=str(model), workers=0, device="cpu", **settings), Console())
    return out


def with_scores(table: Path, logits: Logits) -> None:
    """Give a table of ten classes a row for each row of logits [n, 10]: copies of its first, but for
    `path` and the k best scores.
    """
    said = pq.read_metadata(table).metadata
    metadata = {key: value for key, value in said.items() if key.startswith(b"label_images")}
    written = pq.read_table(table).replace_schema_metadata(metadata)
    k = len(written["top_k"][0])
    first = written.slice(0, 1).to_pylist()[0]
    rows = []
    for number, scores in enumerate((1 / (1 + np.exp(-logits))).astype(np.float32)):
        best = [
            {"label": f"class {i}", "class_id": int(i), "probability": scores[i]}
            for i in np.argsort(-scores)[:k]
        ]
        rows.append(first | {"path": f"{number:05}.jpg", "top_k": best} | best[0])
    failed = dict.fromkeys(("label", "class_id", "probability", "top_k"))
    rows.append(first | failed | {"path": "z.jpg", "status": "error", "error_code": "corrupt"})
    with pq.ParquetWriter(table, written.schema, write_page_checksum=True) as writer:
        writer.write_table(pa.Table.from_pylist(rows, written.schema), row_group_size=100)


def test_each_label_s_scores_and_cut_are_shown_and_cut_the_table_in_sql(
    tmp_path: Path, tagger: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = labelled(tmp_path, tagger, top_k=10)
    n = 400
    logits = np.random.default_rng(0).normal(-6, 1, (n, 10))
    logits[:40, 3] = normal(1, 0.5, 40)  # what class 3 is true of
    with_scores(table, logits)
    ran = command("thresholds", table)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0] == f"{table}: 400 labelled images, 10 labels, each scored by itself"
    assert lines[1].split()[:7] == ["label", "known", "lowest", "median", "95%", "highest", "cut"]
    assert len(lines) == 12
    shown = {line[:7]: line for line in lines[2:]}
    assert re.search(r" 40  [ ▁▂▃▄▅▆▇█]+\|[ ▁▂▃▄▅▆▇█]+$", shown["class 3"])
    assert shown["class 2"].endswith("(one group)")
    assert " none " in shown["class 2"]

    ran = command("thresholds", table, "--json")
    (tmp_path / "thresholds.json").write_text(ran.stdout)
    found = {record["label"]: record for record in json.loads(ran.stdout)}
    three, scores = found["class 3"], 1 / (1 + np.exp(-logits[:, 3]))
    assert (three["class_id"], three["known"], three["unknown"], three["above"]) == (3, n, 0, 40)
    assert three["lowest"] == pytest.approx(scores.min(), rel=1e-5)
    assert three["highest"] == pytest.approx(scores.max(), rel=1e-5)
    names = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
    for name, share in names.items():
        logit = math.log(three[name] / (1 - three[name]))
        assert logit == pytest.approx(np.quantile(logits[:, 3], share), abs=0.15), name
    assert -5 < math.log(three["cut"] / (1 - three["cut"])) < 0
    assert found["class 2"]["cut"] is None
    assert found["class 2"]["why_no_cut"] == "one group"

    page = (ROOT / "docs" / "words.md").read_text()
    blocks = re.findall(r"^```sql\n(.*?)^```", page, re.M | re.S)
    query = next(block for block in blocks if "thresholds.json" in block)
    monkeypatch.chdir(tmp_path)
    with duckdb.connect() as db:
        rows = db.sql(query).fetchall()
    assert [path for path, _ in rows] == [f"{number:05}.jpg" for number in range(40)]
    assert {tuple(labels) for _, labels in rows} == {("class 3",)}


def test_scores_that_are_not_among_the_best_are_said_to_be_unknown(
    tmp_path: Path, tagger: Path, command: Command
) -> None:
    table = labelled(tmp_path, tagger, top_k=2)
    logits = np.full((60, 10), -9.0)
    logits[:, 0] = normal(-2, 0.5, 60)
    logits[:30, 1] = normal(-3, 0.5, 30, 1)
    logits[30:, 2] = normal(-3, 0.5, 30, 2)
    with_scores(table, logits)
    ran = command("thresholds", table)
    assert "top_k has the 2 best of 10 scores" in ran.stdout
    assert "--top-k 10 keeps all" in ran.stdout
    found = {each.label: each for each in read_thresholds(table).labels}
    assert [found[f"class {i}"].n_known for i in range(4)] == [60, 30, 30, 0]
    assert found["class 3"].why == "no scores"
    assert "class 3          0  no scores" in ran.stdout
    record = json.loads(command("thresholds", table, "--json").stdout)[3]
    assert (record["known"], record["unknown"], record["median"]) == (0, 60, None)


def test_a_table_of_many_files_is_read_as_one(
    tmp_path: Path, tagger: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = make_photos(tmp_path / "photos", 12)
    both = []
    for name in ("labels.parquet", "labels/"):
        out = f"{tmp_path}/{name}"
        ran = command(photos, "--out", out, "--model", tagger, "--top-k", 10, "--workers", 0)
        assert ran.returncode == 0, ran.stderr
        both.append(json.loads(command("thresholds", out, "--json").stdout))
    assert both[0] == both[1]
    assert sum(record["known"] for record in both[0]) == 120


def test_tables_without_such_scores_are_told_what_to_do(
    tmp_path: Path, small_model: Path, tagger: Path, command: Command
) -> None:
    table = labelled(tmp_path, small_model, embeddings=tmp_path / "embeddings")
    ran = command("thresholds", table)
    assert ran.returncode == 2
    assert "were chosen by a softmax" in ran.stderr
    assert "WHERE probability > 0.5" in ran.stderr
    ran = command("thresholds", tmp_path / "embeddings")
    assert (ran.returncode, "holds embeddings, and not labels" in ran.stderr) == (5, True)
    ran = command("thresholds", tmp_path / "none.parquet")
    assert (ran.returncode, "there is no table at" in ran.stderr) == (2, True)
    ran = command("thresholds", tmp_path / "photos")
    assert (ran.returncode, "label-images thresholds" in ran.stderr) == (2, True)


def test_a_damaged_table_is_told(tmp_path: Path, tagger: Path, command: Command) -> None:
    table = labelled(tmp_path, tagger, top_k=10)
    with_scores(table, normal(-6, 1, 2000).reshape(200, 10))
    data = bytearray(table.read_bytes())
    place = pq.read_metadata(table).row_group(0)
    columns = [place.column(number) for number in range(place.num_columns)]
    scores = next(
        each for each in columns if each.path_in_schema == "top_k.list.element.probability"
    )
    start = scores.dictionary_page_offset or scores.data_page_offset
    data[start + scores.total_compressed_size // 2] ^= 255
    table.write_bytes(data)
    ran = command("thresholds", table)
    assert ran.returncode == 5
    assert f"{table} is damaged" in ran.stderr
    assert "--repair" in ran.stderr


def test_memory_is_of_the_labels_and_not_of_the_rows(
    tmp_path: Path, tagger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = labelled(tmp_path, tagger, top_k=10)
    with_scores(table, np.random.default_rng(0).normal(-6, 1, (1000, 10)))
    seen = []
    really_add = thresholds._Scores.add

    def add(scores: thresholds._Scores, top_k: pa.ListArray) -> None:
        seen.append(len(top_k))
        really_add(scores, top_k)

    monkeypatch.setattr(thresholds._Scores, "add", add)
    monkeypatch.setattr(thresholds, "_ROWS_AT_ONCE", 128)
    assert read_thresholds(table).n_images == 1000
    assert sum(seen) == 1001
    assert max(seen) <= 128


def test_a_cut_near_one_is_said_so_that_it_can_be_used() -> None:
    assert [_short(score) for score in (0.99966, 0.99, 0.5, 0.0123)] == [
        "0.999660",
        "0.990",
        "0.500",
        "0.012",
    ]
