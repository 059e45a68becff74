"""What a fit leaves: a bundle with its head apart, a card for people, and fit.json for programs.

The same folder may be written again, by a later fit: it is known by its fit.json.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from vit.checkpoints.bundle import write_bundle
from vit.checkpoints.hub import HEAD_FILE
from vit.checkpoints.weights import sha256_file
from vit.classifier import Classifier
from vit.errors import ModelError

REPORT_FILE = "fit.json"
# A head's file comes last: until it is there, nobody gets the one's head and the other's names.
_FILES = ("model.safetensors", "config.json", "README.md", REPORT_FILE, HEAD_FILE)

_CARD = """\
# {name}

A classifier of {n_classes} classes, fitted to {n_examples:,} example photos by `label-images models fit`.

- **Backbone**: {backbone}, unchanged (sha256 of `model.safetensors` here: {weights_sha256}).
- **Head**: multinomial logistic regression on features of length 1, {n_features} each; C {strength:g},
  chosen by {folds}-fold cross-validation; temperature {temperature:g}.
- **Made** on {date}, label-images {version}, scikit-learn {scikit_learn}.
- **Left out**: {n_left_out:,} photos that could not be used.

| measured on examples that were left out of a fit ({folds} folds) | |
|---|---|
| accuracy | {accuracy:.2%} |
| expected calibration error (15 bins) | {calibration_error:.4f} |

The figures are of the examples' kind of photos, and of no other.

| class | examples |
|---|---|
{classes}
"""


def check_place(out: Path) -> None:
    """Raise ModelError where `out` is neither free nor an earlier fit's bundle."""
    if out.suffix == ".safetensors":
        raise ModelError(
            f"{out} would be one file, and a head of its own needs a second; name a folder"
        )
    if not out.parent.is_dir():
        raise ModelError(f"{out}: there is no folder {out.parent}; make it first")
    if os.path.lexists(out) and not (out / REPORT_FILE).is_file():
        raise ModelError(
            f"{out} exists and is not a bundle that `models fit` wrote; choose another --out, or "
            "remove it"
        )


def write_fit(classifier: Classifier, report: dict[str, Any], out: Path) -> None:
    """Write bundle, card and report into the folder `out`, in place of an earlier fit's.

    `report` has what the card says (names as in `_CARD`), and `examples`, the count of each class.
    """
    check_place(out)
    made = out.with_name(f".{out.name}.fitting")
    shutil.rmtree(made, ignore_errors=True)  # of a fit that was killed
    write_bundle(classifier.spec, classifier.model.state_dict(), made, classifier.own_head)
    (made / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    facts = {
        "name": classifier.name,
        "weights_sha256": sha256_file(made / "model.safetensors"),
        "classes": "\n".join(f"| {label} | {n} |" for label, n in report["examples"].items()),
    }
    card = _CARD.format(**report | facts)
    (made / "README.md").write_text(card, encoding="utf-8")
    if not out.exists():
        made.rename(out)
        return
    (out / HEAD_FILE).unlink(missing_ok=True)
    for name in _FILES:
        (made / name).replace(out / name)
    made.rmdir()
