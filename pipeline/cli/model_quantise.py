"""`models quantize`: a model and some photos -> an int8 bundle with a card that says how well it does."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pipeline.console import Console
from pipeline.errors import UsageError
from pipeline.label.graph import openvino
from pipeline.label.quantise import QuantisedGraph, check_installed, quantise
from vit.checkpoints.bundle import Quantised, graph_digest, write_bundle
from vit.checkpoints.hub import GRAPH_FILE, GRAPH_WEIGHTS_FILE
from vit.checkpoints.weights import sha256_file
from vit.classifier import Classifier

from .model_texts import Asked

REPORT_FILE = "quantised.json"

_CARD = """\
# {name}

{source} in int8, for CPUs, by `label-images models quantize`.

- **Backbone**: weights and activations in int8 (OpenVINO's graph in `int8.xml` and `int8.bin`), with
  scales fixed by {calibrated_on:,} photos. Norms and softmax stay in floating point, and so does the
  head.
- **Beside it** lie the float weights that it was made of (`model.safetensors`): the audit of each run
  labels some photos again with them.
- **Made** on {date}, label-images {version}, OpenVINO {openvino}, NNCF {nncf}.

| compared with its float self on {photos:,} photos that calibrated nothing | |
|---|---|
| the same best class | {same_best:.1%} |
| difference of the best class's probability, mean | {mean_difference:.4f} |
| the same, largest | {largest_difference:.4f} |
{accuracy}
The figures are of such photos, and of no other.
"""

_ACCURACY = """\
| accuracy on the {labelled_photos:,} of them whose folder is their class, int8 | {accuracy:.2%} |
| the same, float | {accuracy_in_float:.2%} |
"""


def quantise_model(asked: Asked, photos: Path, out: Path, console: Console) -> Iterator[str]:
    """Write the bundle, and say how it compares, line by line. Never replaces what is at `out`."""
    if os.path.lexists(out):
        raise UsageError(f"{out} exists already; choose another --out, or remove it")
    if out.suffix == ".safetensors":
        raise UsageError(
            f"{out} would be one file, and a quantised model is several; name a folder"
        )
    if not out.parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.parent}; make it first")
    check_installed()
    classifier = asked.load()
    made = quantise(classifier, photos, console)
    report = {
        "source": classifier.name,
        "source_sha256": classifier.weights_sha256,
        "calibrated_on": made.calibrated_on,
        **made.agreement.to_record(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "version": version("label-images"),
        "openvino": version("openvino"),
        "nncf": version("nncf"),
    }
    _write(classifier, made, report, out)
    agreement = made.agreement
    yield (
        f"{agreement.photos:,} photos that calibrated nothing: the same best class on "
        f"{agreement.same_best:.1%}, its probability differs by {agreement.mean_difference:.4f} on "
        f"average and {agreement.largest_difference:.4f} at most"
    )
    if agreement.accuracy is not None and agreement.accuracy_in_float is not None:
        yield (
            f"accuracy on {agreement.labelled_photos:,} photos in folders named as classes: "
            f"{agreement.accuracy:.1%}, in float {agreement.accuracy_in_float:.1%}"
        )
    yield f"{out}: label with it by --model {out}"


def _write(classifier: Classifier, made: QuantisedGraph, report: dict[str, Any], out: Path) -> None:
    """Under another name first: a folder with that of the bundle is whole."""
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        temporary.mkdir()
        graph = temporary / GRAPH_FILE
        openvino().save_model(made.model, graph, compress_to_fp16=False)
        digest = graph_digest(sha256_file(graph), sha256_file(temporary / GRAPH_WEIGHTS_FILE))
        quantised = Quantised("int8", made.off, digest)
        spec = replace(classifier.spec, name=out.name, quantised=quantised)
        write_bundle(spec, classifier.model.state_dict(), temporary, classifier.own_head)
        (temporary / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        accuracy = _ACCURACY.format(**report) if report["accuracy"] is not None else ""
        card = _CARD.format(name=out.name, **{**report, "accuracy": accuracy})
        (temporary / "README.md").write_text(card, encoding="utf-8")
        temporary.rename(out)
    except (RuntimeError, SafetensorError) as error:  # OpenVINO's and safetensors' of a full disk
        raise UsageError(f"{out} cannot be written ({error}); is the disk full?") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
