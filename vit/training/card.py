"""What training leaves beside the weights: a model card for people, training.json for programs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vit.checkpoints.bundle import ModelSpec, write_bundle

_CARD = """\
# {name}

- **Architecture**: Vision Transformer{on_stem}, {img_size}-pixel images, {patch_size}-pixel patches, width {embed_dim},
  depth {depth}, {n_heads} heads, {n_parameters:,} parameters; {size_mb:.1f} MB on disk.
- **Preprocessing**: shorter side to {img_size} pixels ({interpolation}, antialiased), centre crop,
  mean {mean}, std {std}.
- **Data**: {n_classes} classes, {images:,} images to train on, {validation_images:,} to validate{left_out}.
- **Recipe** (`{command}`): {recipe}.
- **Trained** on {device} in {precision}, torch {torch}.
- **Temperature**: {temperature}, {temperature_is}.

| measured on validation images | |
|---|---|
| top-1, all of them | {top1:.2%} |
| top-5, all of them | {top5:.2%} |
| expected calibration error (15 bins) on the others, without temperature | {raw_calibration_error:.4f} |
| the same with temperature | {calibration_error:.4f} |
"""


def write_trained(
    spec: ModelSpec, state: dict[str, Tensor], report: dict[str, Any], out: Path
) -> None:
    """Write bundle, card (README.md) and training.json into the folder `out`.

    `report` has the parts recipe, data, machine and measured (evaluate.judge), whose temperature
    becomes the bundle's; and the command, where it is another than vit/train.py's.
    """
    write_bundle(replace(spec, temperature=report["measured"]["temperature"]), state, out)
    data, measured = report["data"], report["measured"]
    unreadable = data["unreadable_images"] + data["unreadable_validation_images"]
    temperature_is = "fitted on every other validation image"
    if measured["temperature"] != measured["fitted_temperature"]:
        temperature_is = (
            "that is, none: the one fitted on every other validation image, "
            f"{measured['fitted_temperature']},\n  made the calibration error on the others "
            f"worse, {measured['fitted_calibration_error']:.4f} instead of "
            f"{measured['raw_calibration_error']:.4f}"
        )
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    numbers = {
        **vars(spec.config),
        **vars(spec.preprocess),
        **data,
        **report["machine"],
        **measured,
        "left_out": f"; {unreadable:,} more could not be read and were left out"
        if unreadable
        else "",
        "temperature_is": temperature_is,
        "on_stem": "" if spec.config.stem == "none" else f" on the stem {spec.config.stem}",
        "command": report.get("command", "python -m vit.train"),
        "name": spec.name,
        "n_parameters": sum(tensor.numel() for tensor in state.values()),
        "size_mb": (out / "model.safetensors").stat().st_size / 1e6,
        "recipe": ", ".join(f"{name} {value}" for name, value in report["recipe"].items()),
    }
    (out / "README.md").write_text(_CARD.format(**numbers), encoding="utf-8")
