"""How often is a table right? Compare it with a CSV of true labels.

    label-images PHOTOS --out labels.parquet
    python -m benchmarks.accuracy labels.parquet labels.csv --file file --truth wnid

The CSV has a column with each photo's path and one with its true class: a label, or the id that
stands beside the label in the table's metadata (such as a WordNet id). Photos of classes the model
does not know are left out and counted. Printed: top-1, top-k, and the expected calibration error of
the best probability (15 bins). The last line is JSON.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from vit.training.evaluate import calibration_error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path)
    parser.add_argument("truth_csv", type=Path)
    parser.add_argument("--file", default="file", help="the CSV's column of paths")
    parser.add_argument("--truth", default="label", help="the CSV's column of true classes")
    arguments = parser.parse_args()
    classes = json.loads(pq.read_metadata(arguments.table).metadata[b"label_images_classes"])
    known = {entry["label"]: entry["class_id"] for entry in classes} | {
        entry["id"]: entry["class_id"] for entry in classes if "id" in entry
    }
    rows = {row["path"]: row for row in pq.read_table(arguments.table).to_pylist()}
    with arguments.truth_csv.open(newline="", encoding="utf-8") as file:
        pairs = [
            (rows[entry[arguments.file]], known.get(entry[arguments.truth]))
            for entry in csv.DictReader(file)
        ]
    judged = [(row, truth) for row, truth in pairs if truth is not None and row["status"] == "ok"]
    right = np.array([row["class_id"] == truth for row, truth in judged])
    in_top_k = np.array(
        [truth in [entry["class_id"] for entry in row["top_k"]] for row, truth in judged]
    )
    confidence = np.array([row["probability"] for row, _ in judged])
    k = max(len(row["top_k"]) for row, _ in judged)
    result = {
        "benchmark": "accuracy",
        "photos": len(pairs),
        "judged": len(judged),
        "top1": int(right.sum()),
        f"top{k}": int(in_top_k.sum()),
        "calibration_error": round(
            calibration_error(torch.from_numpy(confidence), torch.from_numpy(right)), 4
        ),
    }
    print(f"{len(judged)} of {len(pairs)} photos are of classes the model knows")
    print(
        f"top-1 {right.sum()} ({right.mean():.1%}), top-{k} {in_top_k.sum()} "
        f"({in_top_k.mean():.1%})"
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
