"""Hostile input: refused with a clear error; nothing executed, nothing written elsewhere."""

import io
import json
import os
import pickle
import shutil
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import Command, make_photos, photo, rows


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("form", ["torch.save", "pickle", "legacy", "npz", "zip with a path"])
def test_a_checkpoint_that_is_a_pickle_bomb(
    photos: Path, command: Command, tmp_path: Path, form: str
) -> None:
    target, path = (
        tmp_path / "executed",
        tmp_path / ("weights.npz" if form == "npz" else "weights.pth"),
    )
    bomb = {"model": {"cls_token": Bomb(target)}}
    if form == "pickle":
        path.write_bytes(pickle.dumps(bomb))
    elif form == "npz":
        np.savez(path, cls=np.array([Bomb(target)], dtype=object))
    elif form == "zip with a path":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../executed", b"x")
            archive.writestr("archive/data.pkl", pickle.dumps(bomb))
            archive.writestr("archive/version", b"3")
    else:
        torch.save(bomb, path, _use_new_zipfile_serialization=form == "torch.save")
    target.unlink(missing_ok=True)  # savez may have looked into it
    ran = command(photos, "--out", tmp_path / "l.parquet", "--model", path)
    assert ran.returncode == 2, ran.stderr
    assert str(path) in ran.stderr
    assert not target.exists()
    assert not (tmp_path / "l.parquet").exists()


CONFIG_LIES: list[tuple[str, Any]] = [
    ("architecture.depth", 10**9), ("architecture.depth", -1), ("architecture.depth", "12"),
    ("architecture.embed_dim", 10**12), ("architecture.embed_dim", 0), ("architecture.n_heads", 0),
    ("architecture.n_heads", 7), ("architecture.img_size", 10**9), ("architecture.patch_size", 0),
    ("architecture.n_classes", 10**15), ("architecture.mlp_ratio", 1e300), ("architecture.mlp_ratio", float("nan")),
    ("architecture.in_chans", 10**6), ("architecture.norm_eps", "x"), ("architecture.odd", 1), ("architecture", []),
    ("architecture", None), ("preprocess.crop_size", 10**9), ("preprocess.resize_size", 10**9),
    ("preprocess.resize_size", -5), ("preprocess.mean", [0.5]), ("preprocess.mean", "abc"),
    ("preprocess.std", [0.0, 0.0, 0.0]), ("preprocess.interpolation", "__import__('os')"), ("preprocess", 3),
    ("classes", [{"label": "a"}] * 3), ("classes", [{"label": 1}] * 10), ("classes", "abcdefghij"), ("classes", {}),
    ("classes", [{"label": "a", "id": []}] * 10), ("classes", [{}] * 10), ("classes", None),
    ("temperature", 0), ("temperature", float("nan")), ("temperature", "hot"), ("temperature", 10**400),
    ("name", "../../../../etc/passwd"), ("name", "\x1b[2J"), ("label_images_bundle", 99),
]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"), CONFIG_LIES, ids=[f"{k}={str(v)[:12]}" for k, v in CONFIG_LIES]
)
def test_a_bundle_whose_json_lies(
    small_model: Path, photos: Path, command: Command, tmp_path: Path, key: str, value: Any
) -> None:
    bundle, out = tmp_path / "bundle", tmp_path / "l.parquet"
    shutil.copytree(small_model, bundle)
    config = json.loads((bundle / "config.json").read_text())
    where, *names = key.split(".")
    if names:
        config[where][names[0]] = value
    else:
        config[where] = value
    (bundle / "config.json").write_text(json.dumps(config))
    before = sorted(path.name for path in tmp_path.iterdir())
    started = time.monotonic()
    ran = command(photos, "--out", out, "--model", bundle)
    assert time.monotonic() - started < 60
    if key == "name" and isinstance(value, str):  # a name is only ever a name
        assert ran.returncode == 0
        assert "\x1b" not in ran.stderr
        assert {row["model"] for row in rows(out)} == {value}
        return
    assert ran.returncode == 2, (ran.stdout, ran.stderr)
    assert ran.stderr.startswith("label-images: ")
    assert len(ran.stderr) < 2000
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "cwd"])


@pytest.mark.parametrize("lie", ["header", "offsets", "overlap", "shape", "dtype", "empty", "cut"])
def test_a_bundle_whose_tensors_lie(
    small_model: Path, photos: Path, command: Command, tmp_path: Path, lie: str
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small_model, bundle)
    path = bundle / "model.safetensors"
    data = path.read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + n])
    name = "head.weight"
    if lie == "header":
        path.write_bytes(struct.pack("<Q", 2**62) + data[8:])
    elif lie == "empty":
        path.write_bytes(b"")
    elif lie == "cut":
        path.write_bytes(data[:-1000])
    else:
        if lie == "offsets":
            header[name]["data_offsets"][1] += 2**40
        elif lie == "overlap":
            header[name]["data_offsets"] = header["head.bias"]["data_offsets"]
        elif lie == "shape":
            header[name]["shape"] = [2**31, 2**31]
        else:
            header[name]["dtype"] = "F64"
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + n :])
    ran = command(photos, "--out", tmp_path / "l.parquet", "--model", bundle)
    assert ran.returncode == 2, ran.stderr
    assert str(path) in ran.stderr
    assert not (tmp_path / "l.parquet").exists()


def test_a_list_of_paths_that_climbs_out_only_reads(
    small_model: Path, command: Command, tmp_path: Path
) -> None:
    make_photos(tmp_path / "outside", 1)
    listed = tmp_path / "list"
    listed.write_text(
        "../outside/0000.jpg\n../../../../../../etc/passwd\n/etc/shadow\n../outside/../outside/0000.jpg\n"
    )
    out = tmp_path / "l.parquet"
    ran = command("--files-from", listed, "--out", out, "--model", small_model, "--max-errors", 9)
    assert ran.returncode == 0, ran.stderr
    found = {row["path"]: row["status"] for row in rows(out)}
    assert found[f"{tmp_path}/outside/0000.jpg".lstrip("/")] == "ok"
    assert found["etc/passwd"] == "error"
    assert not any(".." in path for path in found)
    assert b"root:" not in out.read_bytes(), "no byte of a file that is no image comes out"


def test_a_job_folder_that_points_elsewhere_is_refused(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    out, precious = tmp_path / "l.parquet", tmp_path / "precious"
    precious.mkdir()
    (precious / "00000.part").write_text("mine")
    job = tmp_path / ".l.parquet.job"
    arguments = (photos, "--out", out, "--model", small_model)
    for name in ("", "lock", "parts", "receipts"):
        if name:
            job.mkdir(exist_ok=True)
        link = job / name if name else job
        link.symlink_to(precious / "00000.part" if name == "lock" else precious)
        ran = command(*arguments)
        assert ran.returncode == 5
        assert f"{link} is a link, which label-images never makes: remove it" in ran.stderr
        assert [path.read_text() for path in precious.iterdir()] == ["mine"]
        link.unlink()
    # Temporary files planted as links, and a manifest whose numbers would lead out of the folder.
    for name in ("manifest.json.tmp", "plan.arrow.tmp", "holder.json", "run.json"):
        (job / name).symlink_to(precious / "00000.part")
    (tmp_path / "l.parquet.tmp").symlink_to(precious / "00000.part")
    (job / "manifest.json").write_text(
        json.dumps({"version": 2, "plan_id": "../../precious", "shard_size": 0})
    )
    assert command(*arguments).returncode == 0
    assert [path.read_text() for path in precious.iterdir()] == ["mine"]


def test_metadata_of_an_image_is_never_run_or_believed(
    small_model: Path, command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    exif = Image_exif(
        {0x010E: "$(touch /tmp/x); \x1b[31m' OR 1=1 --", 0x8769: b"\xff" * 5000, 0x0112: 99}
    )
    photo(1).save(folder / "a.jpg", exif=exif, comment=b"%s" * 1000)
    big = io.BytesIO()
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Comment", "x" * 10_000_000, zip=True)  # a bomb of text
    photo(2).save(big, "PNG", pnginfo=info)
    (folder / "b.png").write_bytes(big.getvalue())
    svg = (
        b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><svg>&e;</svg>"
    )
    (folder / "c.png").write_bytes(svg)
    (folder / "d.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/x) (w) file\n"
    )
    ran = command(
        folder, "--out", tmp_path / "l.parquet", "--model", small_model, "--max-errors", 9
    )
    assert ran.returncode == 0
    found = {
        row["path"]: (row["error_code"], row["exif_orientation"])
        for row in rows(tmp_path / "l.parquet")
    }
    assert found["a.jpg"] == (None, None)
    assert found["c.png"][0] == found["d.jpg"][0] == "unsupported", "named, and never opened"
    assert found["b.png"][0] in (None, "corrupt")
    assert os.listdir(folder)


def Image_exif(tags: dict[int, Any]) -> Any:
    from PIL import Image

    exif = Image.Exif()
    for tag, value in tags.items():
        if tag != 0x8769:
            exif[tag] = value
    return exif
