"""Who watches over the nights: drift, the history that status shows, metrics, cron and systemd."""

import configparser
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.spatial.distance import jensenshannon

from jobs.job import Job
from pipeline.drift import LEAST_ROWS, ClassMix, Drift, divergences, measure_drift
from pipeline.finish.metrics import _last_success
from tests.helpers import ROOT, Command, make_photos, photo

NIGHTLY = (ROOT / "docs" / "nightly.md").read_text()


def mix(rows: Any, probability: float = 0.5) -> ClassMix:
    rows = np.asarray(rows, np.int64)
    return ClassMix(rows, probability * float(rows.sum()))


def labels(n: int) -> tuple[str, ...]:
    return tuple(f"class {number}" for number in range(n))


# -- drift -----------------------------------------------------------------------------------------


def test_the_distance_is_the_one_that_scipy_computes() -> None:
    generator = np.random.default_rng(0)
    for n_classes in (2, 7, 200):
        p, q = generator.dirichlet(np.full(n_classes, 0.3), 2)
        q[0] = 0
        q /= q.sum()
        assert divergences(p, q) ** 0.5 == pytest.approx(jensenshannon(p, q, base=2), abs=1e-12)
    assert divergences(np.array([1.0, 0]), np.array([0, 1.0])) == 1


@pytest.mark.parametrize(
    ("n_new", "n_classes"),
    [
        (100, 10),
        (100, 200),
        pytest.param(100, 1000, marks=pytest.mark.soak),
        pytest.param(2000, 200, marks=pytest.mark.soak),
    ],
)
def test_few_rows_of_the_same_mix_are_no_drift(n_new: int, n_classes: int) -> None:
    generator = np.random.default_rng(1)
    source = 1 / np.arange(1, n_classes + 1)
    source /= source.sum()
    uncorrected, corrected, above = [], [], 0
    for _ in range(60):
        new, earlier = (mix(generator.multinomial(n, source)) for n in (n_new, 20_000))
        drift = measure_drift(new, earlier, labels(n_classes))
        assert drift.distance is not None
        uncorrected.append(float(divergences(new.shares, earlier.shares)) ** 0.5)
        corrected.append(drift.distance)
        above += drift.exceeds(0)
    assert np.mean(corrected) < 0.45 * np.mean(uncorrected)
    assert above <= 4, "1 in 100 is expected"


def test_another_mix_is_drift_and_what_moved_is_named() -> None:
    earlier, new = np.full(50, 400), np.full(50, 4)
    new[7] += 200
    drift = measure_drift(mix(new, 0.25), mix(earlier, 0.75), labels(50))
    assert drift.distance is not None
    exact = divergences(new / new.sum(), earlier / earlier.sum()) ** 0.5
    assert drift.distance == pytest.approx(exact, abs=0.03)
    assert drift.exceeds(0.3)
    assert not drift.exceeds(0.9)
    assert not drift.exceeds(None)
    assert drift.classes[0] == ("class 7", pytest.approx(0.02), pytest.approx(204 / 400))
    assert "most of class 7 (2.0% -> 51.0%); mean probability 0.750 -> 0.250" in str(drift)
    assert drift == measure_drift(mix(new, 0.25), mix(earlier, 0.75), labels(50)), "no chance in it"


def test_too_few_rows_say_nothing_and_the_line_says_so() -> None:
    for new, earlier in ((LEAST_ROWS - 1, 500), (500, LEAST_ROWS - 1)):
        drift = measure_drift(mix([new, 0]), mix([0, earlier]), labels(2))
        assert drift.distance is None
        assert not drift.exceeds(0)
        assert str(drift) == (
            f"drift: not known of {new:,} new rows, {earlier:,} before; it takes {LEAST_ROWS} "
            "labelled ones of each"
        )
    assert measure_drift(mix([LEAST_ROWS, 0]), mix([0, LEAST_ROWS]), labels(2)).distance is not None


def status(command: Command, out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(command("status", out, "--json").stdout)
    return found


@pytest.fixture
def nights(
    tmp_path: Path, small_model: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Label the photos in a folder, as each night does."""
    monkeypatch.setattr("pipeline.drift.LEAST_ROWS", 20)
    folder, out = make_photos(tmp_path / "photos", 40), tmp_path / "l.parquet"

    def night(*options: Any) -> subprocess.CompletedProcess[str]:
        quick = ("--workers", 0, "--audit", 0)
        return command(folder, "--out", out, "--model", small_model, *quick, *options)

    return folder, out, night


@pytest.mark.slow
def test_each_night_says_how_its_photos_differ(nights: Any, command: Command) -> None:
    folder, out, night = nights
    assert "drift" not in night().stderr, "there is nothing before"
    (folder / "0003.jpg").unlink()
    photo(99).save(folder / "0004.jpg")
    ran = night()
    assert "drift: not known of 1 new row, 38 before" in ran.stderr
    for number in range(30):
        photo(5).save(folder / f"same{number}.jpg", quality=30 + number)
    ran = night("--max-drift", 0.1, "--quiet", "--shard-size", 7)
    assert ran.returncode == 0
    assert ran.stdout == ""
    assert re.fullmatch(
        r"drift: 0\.\d{3} \(.*\), most of class \d .*; more than --max-drift 0\.1\n", ran.stderr
    )
    table = pq.read_table(out)
    is_new = np.array([path.startswith("same") for path in table["path"].to_pylist()])
    shares, means = [], []
    for rows in (is_new, ~is_new):
        class_ids = table["class_id"].to_numpy()[rows]
        shares.append(np.bincount(class_ids, minlength=10) / len(class_ids))
        means.append(float(table["probability"].to_numpy()[rows].mean()))
    job_run = Job(out).read_run()
    assert job_run is not None
    drift = job_run["drift"]
    assert (drift["new_rows"], drift["earlier_rows"]) == (30, 39)
    assert drift["new_mean_probability"] == pytest.approx(means[0], abs=1e-6)
    assert drift["earlier_mean_probability"] == pytest.approx(means[1], abs=1e-6)
    whole = float(divergences(*shares)) ** 0.5
    assert whole - 0.3 < drift["distance"] < whole
    moved = np.abs(shares[0] - shares[1]).argmax()
    assert drift["classes"][0] == {
        "label": f"class {moved}",
        "earlier_share": pytest.approx(shares[1][moved], abs=1e-6),
        "new_share": pytest.approx(shares[0][moved], abs=1e-6),
    }
    assert status(command, out)["runs"][-1]["drift"] == drift
    night()
    assert status(command, out)["runs"][-1]["drift"] is None
    said = command("status", out).stdout
    assert re.search(
        rf"  0         30          0 +[\d,.]+ +{means[0]:.3f} +{drift['distance']:.3f}\n", said
    )


def test_a_night_of_new_photos_that_all_fail_says_nothing_of_drift(
    nights: Any, command: Command
) -> None:
    folder, out, night = nights
    night()
    (folder / "bad.jpg").write_text("no photo")
    ran = night("--max-errors", 1)
    assert "failed: " in ran.stderr
    assert "drift" not in ran.stderr
    assert status(command, out)["runs"][-1]["drift"] is None


def test_rows_before_are_those_with_a_label(nights: Any) -> None:
    folder, _, night = nights
    (folder / "bad.jpg").write_text("no photo")
    night()
    photo(99).save(folder / "new.jpg")
    assert "drift: not known of 1 new row, 40 before" in night().stderr


def test_a_drift_that_cannot_be_computed_costs_the_run_nothing(
    nights: Any, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out, night = nights
    night()
    photo(99).save(folder / "new.jpg")

    def failing(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.finish.history.mix_of_parts", failing)
        ran = night()
    assert ran.returncode == 0, ran.stderr
    assert "how new photos differ is not known: [Errno 5]" in ran.stderr
    assert "41 found" in ran.stdout
    run = Job(out).read_run()
    assert run is not None
    assert (run["counts"]["found"], run["drift"]) == (41, None)
    assert status(command, out)["runs"][-1]["exit_code"] == 0
    assert "nothing changed" in night().stdout


def test_drift_is_of_one_model_alone(nights: Any, command: Command) -> None:
    folder, out, night = nights
    night()
    for number in range(30):
        photo(5).save(folder / f"same{number}.jpg", quality=30 + number)
    assert night("--top-k", 3).returncode == 0, "all are labelled again, and new ones with them"
    drift = status(command, out)["runs"][-1]["drift"]
    assert (drift["new_rows"], drift["earlier_rows"]) == (30, 40)


def test_max_drift_is_a_distance(command: Command, photos: Path, tmp_path: Path) -> None:
    ran = command(photos, "--out", tmp_path / "l.parquet", "--max-drift", 2)
    assert (ran.returncode, "--max-drift" in ran.stderr) == (2, True)


# -- status ----------------------------------------------------------------------------------------


def test_status_shows_the_last_runs_and_where_the_embeddings_are(
    nights: Any, command: Command, tmp_path: Path
) -> None:
    folder, out, night = nights
    assert night("--embeddings", tmp_path / "e").returncode == 0
    folder.rename(tmp_path / "away")
    assert night().returncode == 2
    said = command("status", out).stdout
    assert f"beside    embeddings in {tmp_path / 'e'}\n" in said
    assert status(command, out)["table"]["beside"] == {"embeddings": str(tmp_path / "e")}
    header, failed, first = said.splitlines()[-3:]
    assert header.split() == ["runs", "finished", "exit", "labelled", "failed", "images/s",
                              "mean", "p", "drift"]  # fmt: skip
    assert re.match(r" {10}[\d-]{10} [\d:]{8}    2  /", failed)
    assert str(folder)[:40] in failed
    assert re.match(r" {10}[\d-]{10} [\d:]{8}    0         40          0 +[\d,.]+ +- +-$", first)
    for column in ("exit", "labelled", "failed", "images/s"):
        assert first[header.index(column) + len(column) - 1] != " ", column


def test_a_history_of_before_drift_is_shown(nights: Any, command: Command) -> None:
    _, out, night = nights
    night()
    job = Job(out)
    (run,) = job.history()
    with job.held():
        job.add_to_history({name: value for name, value in run.items() if name != "drift"})
    assert command("status", out).returncode == 0


# -- metrics ---------------------------------------------------------------------------------------


def samples(path: Path) -> dict[str, dict[tuple[str, ...], float]]:
    """Each metric's values by its labels but `table`, as Prometheus reads them."""
    parser = pytest.importorskip("prometheus_client.parser")
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in parser.text_string_to_metric_families(path.read_text()):
        assert family.type == "gauge"
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert sample.timestamp is None, "the textfile collector takes none"
            rest = tuple(value for name, value in sample.labels.items() if name != "table")
            found.setdefault(sample.name.removeprefix("label_images_"), {})[rest] = sample.value
    return found


def test_metrics_of_a_run_that_went_well_and_of_one_that_failed(
    nights: Any, tmp_path: Path, command: Command
) -> None:
    folder, out, night = nights
    (folder / "bad.jpg").write_text("no photo")
    (tmp_path / "node").mkdir()
    path = tmp_path / "node" / "l.prom"
    night()
    for number in range(30):
        photo(5).save(folder / f"same{number}.jpg", quality=30 + number)
    assert night("--metrics", path).returncode == 0
    assert [each.name for each in path.parent.iterdir()] == ["l.prom"]
    assert path.stat().st_mode & 0o444 == 0o444 & ~_umask(), "node_exporter may read it"
    assert f'{{table="{out}"}}' in path.read_text()
    found = samples(path)
    run = status(command, out)["runs"][-1]
    assert found["last_run_exit_status"] == {(): 0}
    assert found["last_success_timestamp_seconds"] == found["last_run_timestamp_seconds"]
    assert found["last_run_images"] == {
        ("labelled",): 30, ("reused",): 0, ("failed",): 0, ("relabelled",): 0, ("carried",): 41
    }  # fmt: skip
    assert found["table_rows"] == {(): 71}
    assert found["table_failed_rows"] == {("not_an_image",): 1}
    assert found["last_run_drift_distance"] == {(): run["drift"]["distance"]}
    assert found["last_run_mean_probability"][("new",)] == run["drift"]["new_mean_probability"]
    assert set(found["last_run_stage_images_per_second"]) == {(name,) for name in run["rates"]}
    assert found["last_run_images_per_second"][()] == run["images_per_s"]
    documented = (ROOT / "docs" / "monitoring.md").read_text()
    assert all(f"`{name}`" in documented for name in found)
    folder.rename(tmp_path / "away")
    assert night("--metrics", path).returncode == 2
    failed = samples(path)
    assert failed.keys() == {
        "build_info", "last_run_exit_status", "last_run_timestamp_seconds",
        "last_run_duration_seconds", "last_success_timestamp_seconds",
    }  # fmt: skip
    assert failed["last_run_exit_status"] == {(): 2}
    assert failed["last_success_timestamp_seconds"] == found["last_success_timestamp_seconds"]
    assert failed["last_run_timestamp_seconds"][()] > found["last_run_timestamp_seconds"][()]
    (tmp_path / "away").rename(folder)
    with Job(out).held():
        assert night("--metrics", path).returncode == 4
    assert samples(path)["last_run_exit_status"] == {(): 4}
    assert night("--metrics", path).returncode == 0, "nothing changed"
    assert samples(path)["last_run_images"][("carried",)] == 71


def _umask() -> int:
    import os

    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_a_command_that_is_refused_for_its_options_leaves_the_metrics(
    nights: Any, tmp_path: Path
) -> None:
    _, _, night = nights
    path = tmp_path / "l.prom"
    assert night("--metrics", path).returncode == 0
    before = path.read_bytes()
    assert night("--metrics", path, "--max-drift", 2).returncode == 2
    assert path.read_bytes() == before
    for document in ("docs/monitoring.md", "pipeline/finish/metrics.py"):
        said = " ".join((ROOT / document).read_text().split())
        assert "refused for its options" in said, document


def test_a_night_that_never_went_well_names_no_success(nights: Any, tmp_path: Path) -> None:
    folder, _, night = nights
    folder.rename(tmp_path / "away")
    path = tmp_path / "l.prom"
    path.touch()
    assert night("--metrics", path).returncode == 2
    assert "last_success" not in path.read_text()
    assert "last_run_exit_status" in path.read_text()


def test_the_success_of_another_table_is_not_this_ones(tmp_path: Path) -> None:
    path = tmp_path / "l.prom"
    path.write_text('label_images_last_success_timestamp_seconds{table="/a.parquet"} 12.5\n')
    assert _last_success(path, "/a.parquet") == 12.5
    assert _last_success(path, "/b.parquet") is None
    assert _last_success(tmp_path / "none", "/a.parquet") is None


def test_odd_names_of_tables_are_escaped(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    out, path = tmp_path / 'a"b\\c\nd.parquet', tmp_path / "l.prom"
    ran = command(photos, "--out", out, "--model", small_model, "--metrics", path)
    assert ran.returncode == 0, ran.stderr
    (family, *_) = parser.text_string_to_metric_families(path.read_text())
    assert family.samples[0].labels["table"] == str(out)


def test_a_name_that_node_exporter_passes_over_is_told(nights: Any, tmp_path: Path) -> None:
    _, _, night = nights
    ran = night("--metrics", tmp_path / "labels.txt", "--quiet")
    assert (ran.returncode, ran.stdout) == (0, "")
    assert "node_exporter reads only names that end in .prom; call it labels.txt.prom" in ran.stderr
    assert "last_run_exit_status" in (tmp_path / "labels.txt").read_text(), "others may read it"
    assert night("--metrics", tmp_path / "l.prom", "--quiet").stderr == ""


def test_metrics_replace_nothing_of_others(nights: Any, command: Command, tmp_path: Path) -> None:
    folder, out, night = nights
    other = tmp_path / "other.prom"
    other.write_text("# HELP up\n")
    for path, message in (
        (other, "did not write"),
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "l.prom", "there is no folder"),
        (out, "each needs its own place"),
    ):
        ran = night("--metrics", path)
        assert (ran.returncode, message in ran.stderr) == (2, True), ran.stderr
    assert other.read_text() == "# HELP up\n"
    assert not out.exists()
    ran = command(folder / "0000.jpg", "--metrics", tmp_path / "l.prom")
    assert (ran.returncode, "name one with --out" in ran.stderr) == (2, True)


def test_a_table_is_not_lost_with_its_metrics(
    nights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, night = nights

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.finish.metrics.write_bytes", full)
    ran = night("--metrics", tmp_path / "l.prom")
    assert ran.returncode == 0
    assert "l.prom could not be written: No space left on device" in ran.stderr
    assert out.exists()


# -- cron and systemd ------------------------------------------------------------------------------


@pytest.fixture
def health_check() -> Iterator[tuple[str, list[str]]]:
    """A server that notes what it is asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the line of cron takes curl")
@pytest.mark.parametrize("exit_code", [0, 3, 143])
def test_the_line_of_cron_tells_the_health_check_how_the_night_ended(
    health_check: tuple[str, list[str]], tmp_path: Path, exit_code: int
) -> None:
    address, asked = health_check
    (line,) = re.findall(r"^30 2 \* \* \*  (.*hc-ping.*)$", NIGHTLY, re.M)
    assert "%" not in line, "which cron takes for the end of the line"
    stub = tmp_path / "label-images"
    stub.write_text(f"#!/bin/sh\necho $@ > {tmp_path}/arguments\nexit {exit_code}\n")
    stub.chmod(0o755)
    line = line.replace("/opt/label-images/bin/label-images", str(stub))
    line = line.replace("https://hc-ping.com", address)
    ran = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert asked == [f"/YOUR-UUID/{exit_code}"]
    assert (tmp_path / "arguments").read_text() == (
        "/data/photos --out /data/labels.parquet --quiet\n"
    )


def units() -> dict[str, str]:
    """The units in docs/nightly.md, by name."""
    found = re.findall(r"^```ini\n# (label-images\.\w+)\n(.*?)^```", NIGHTLY, re.M | re.S)
    return dict(found)


def test_the_units_of_systemd_say_what_they_should() -> None:
    assert units().keys() == {"label-images.service", "label-images.timer"}
    parsed = {}
    for name, text in units().items():
        parsed[name] = configparser.ConfigParser(interpolation=None)
        parsed[name].optionxform = str  # type: ignore[assignment, method-assign]
        parsed[name].read_string(text)
    service, timer = parsed["label-images.service"], parsed["label-images.timer"]
    assert service["Service"]["Type"] == "oneshot", "a run may take hours"
    assert timer["Install"]["WantedBy"] == "timers.target"
    assert timer["Timer"]["Persistent"] == "true"
    words = service["Service"]["ExecStart"].split()
    assert words[0] == "/opt/label-images/bin/label-images"
    assert words[-2:] == ["--metrics", "/var/lib/node_exporter/label_images.prom"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_the_units_of_systemd_are_sound(tmp_path: Path) -> None:
    for name, text in units().items():
        (tmp_path / name).write_text(
            text.replace("/opt/label-images/bin/label-images", "/bin/true")
        )
    names = [str(tmp_path / name) for name in units()]
    ran = subprocess.run(
        ["systemd-analyze", "verify", *names], capture_output=True, text=True, check=False
    )
    assert not [line for line in ran.stderr.splitlines() if "label-images" in line], ran.stderr
    assert ran.returncode == 0, ran.stderr


def test_a_drift_is_one_line() -> None:
    assert "\n" not in str(Drift(1, 2))
