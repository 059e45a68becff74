"""The benchmarks run, at toy size: what they measure is not looked at, that they measure it is."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from benchmarks import gpu
from benchmarks.decode import PREPROCESS, fraction_of, pillow, whole
from benchmarks.goals import report_goals
from benchmarks.gpu_report import summarise
from benchmarks.gpu_runs import growth
from benchmarks.models import make_models
from benchmarks.photos import SMALL_BYTES, small_photo, write_photos
from pipeline.load.decode import decode_image, register_formats
from pipeline.load.sample import Sample


def run(module: str, *arguments: str | Path) -> Any:
    """Run a benchmark as a process and return the record that its last line is."""
    ran = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_photos_are_of_the_size_they_are_named_for(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", 3)
    sizes = [path.stat().st_size for path in sorted(folder.iterdir())]
    assert len(sizes) == 3
    assert all(0.8 < size / SMALL_BYTES < 1.2 for size in sizes)
    assert small_photo(0) == small_photo(0) != small_photo(1)


@pytest.mark.parametrize("size", [(500, 375), (1999, 1501)])
def test_another_decoder_goes_the_whole_way_to_the_same_pixels(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    register_formats()
    file = tmp_path / "a.jpg"
    with Image.open(io.BytesIO(small_photo(1))) as photo:
        photo.resize(size).save(file)
    sample = decode_image(0, file.read_bytes(), PREPROCESS, 10**8)
    assert isinstance(sample, Sample)
    assert (fraction_of(*size, PREPROCESS) > 1) == ("scaled_decode" in sample.facts.notes)
    theirs = whole(lambda data, fraction: np.asarray(pillow(data, fraction)), file)
    assert (theirs == sample.pixels).all()


@pytest.mark.slow
def test_decode() -> None:
    record = run("decode", "--photos", "1", "--large", "1", "--rounds", "1")
    assert (record["small"]["fraction"], record["large"]["fraction"]) == (1, 4)
    assert record["large"]["whole_ms"]["Pillow"] > 0
    assert "damaged in its middle" in record["pixels"]


def test_goals_are_of_what_was_measured_and_no_other() -> None:
    seconds = {"label-images, bf16": 8.0, "timm, bf16": 10.0, "openvino, bf16": 8.0}
    rates = {
        "bf16": {"model_only": 12.0, "bound": 11.0, "openvino_model_only": 12.0},
        "int8": {"openvino_model_only": 20.0},
    }
    goals = report_goals("vit_base_patch16_224", "small", 80, seconds, rates)
    assert {name: (goal["ratio"], goal["met"]) for name, goal in goals.items()} == {
        "bf16 / timm bf16": (0.8, True),
        "bf16 / OpenVINO's script": (1.0, False),
        "bf16, model only / OpenVINO's own benchmark": (1.0, True),
        "bf16, whole / bound": (0.909, False),
    }
    large = report_goals("vit_base_patch16_224", "large", 80, seconds, rates)
    assert "bf16 / timm bf16" not in large  # that goal is for small photos


@pytest.mark.soak  # a dozen processes of torch; what it is made of is tested above and below
def test_compare() -> None:
    toy = ["--images", "3", "--rounds", "1", "--seconds", "1", "--only", "timm"]
    record = run("compare", *toy, "--precision", "fp32")
    assert set(record["median_s"]) == {"label-images, fp32", "timm, fp32"}
    assert record["images_per_s"]["fp32"]["bound"] > 0
    assert "fp32, whole / bound" in record["goals"]


@pytest.mark.soak
def test_attention_forms() -> None:
    pytest.importorskip("nncf")
    record = run("attention_forms", "--arch", "toy", "--rounds", "1", "--batches", "1")
    forms = {f"{p}, {form}" for p in ("fp32", "int8") for form in ("one kernel", "in steps")}
    assert set(record["images_per_s"]) >= forms
    assert all(rate > 0 for rate in record["images_per_s"].values())


@pytest.mark.soak
def test_the_script_for_openvino_gives_timms_labels(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from benchmarks.openvino_peer import write_graph

    photos = write_photos(tmp_path / "photos", 6)
    make_models("vit_tiny_patch16_224", tmp_path)
    write_graph(tmp_path, batch_size=4)  # the last batch is not whole
    tables = []
    for name in ("openvino", "timm"):
        out = tmp_path / f"{name}.parquet"
        command = [sys.executable, "-m", "benchmarks.contenders", name]
        subprocess.run([*command, str(photos), str(tmp_path), str(out)], check=True)
        tables.append(pq.read_table(out).to_pydict())
    theirs, timms = tables
    assert theirs["path"] == timms["path"]
    assert theirs["class_ids"] == timms["class_ids"]
    np.testing.assert_allclose(theirs["probabilities"], timms["probabilities"], atol=1e-4)


def test_gpu_ratios_take_the_model_as_it_was_run() -> None:
    def model(way: str, rate: float) -> dict[str, Any]:
        return {"arch": "b", "precision": "bf16", "way": way, "images_per_s": rate}

    ways = {"compiled": 4000, "reduce_overhead": 4200, "run, compiled": 4000, "run, eager": 2000}
    whole = {"arch": "b", "images_per_s": 1800, "images_per_s_under_way": 1980}
    summary = summarise(
        [
            {"part": "decode", "records": [{"images_per_s": 3000.0}]},
            {"part": "model", "records": [model(way, rate) for way, rate in ways.items()]},
            {
                "part": "whole",
                "records": [
                    whole | {"compile": False, "memory_growth": 0.01},
                    whole | {"compile": True, "memory_growth": None},
                    {"arch": "b", "compile": None, "failed": "no memory"},
                ],
            },
        ]
    )
    assert {name: (entry["value"], entry["met"]) for name, entry in summary.items()} == {
        "b: model as a run has it / best of torch.compile": (0.952, True),
        "b, eager: whole / min(model, decode)": (0.9, True),
        "b, eager: whole / min(model, decode), once under way": (0.99, True),
        "b, eager: growth of the main process's memory": (0.01, True),
        "b, compiled: whole / min(model, decode)": (0.6, False),
        "b, compiled: whole / min(model, decode), once under way": (0.66, False),
    }


def test_growth_is_of_the_last_third_over_the_middle_one() -> None:
    assert growth([1, 2, 100, 100, 110, 105]) == 0.1
    assert growth([1, 2, 3]) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_without_one_says_what_can_be_done() -> None:
    with pytest.raises(SystemExit, match="--toy --device cpu"):
        gpu.measure_on("cuda", is_toy=False, out=Path("nowhere"))


@pytest.mark.slow
def test_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    apart = gpu.run_part_apart

    def here(name: str, arguments: list[str], limit_s: float) -> tuple[list[Any], str]:
        """Only one part gets a process of its own: each would import torch, and that is most of it."""
        if name == "decode":
            return apart(name, arguments, limit_s)
        return list(
            gpu.run_part(gpu.argument_parser().parse_args(["--part", name, *arguments]))
        ), ""

    monkeypatch.setattr(gpu, "run_part_apart", here)
    words = ["gpu", "--toy", "--device", "cpu", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    gpu.main()
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    result = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert [part["part"] for part in result["parts"]] == [
        "decode",
        "main",
        "model",
        "whole",
        "memory",
    ]
    assert not [part["problem"] for part in result["parts"] if part["problem"]]
    ways = {record["way"]: record for record in result["parts"][2]["records"]}
    assert ways["eager"]["images_per_s"] > 0
    assert ways["cuda_graph"]["left_out"] == "needs CUDA"
    whole = result["parts"][3]["records"][0]
    assert whole["images"] == 12
    assert whole["memory"][-1]["main_mb"] >= 0
    assert result["parts"][4]["records"][0]["at_once"] == 2  # of 16, and an eighth fits
    assert record["summary"]["with the same best classes"]["value"] == 1
    assert "no GPU" in (tmp_path / "out" / "gpu.md").read_text()
