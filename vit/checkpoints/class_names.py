"""The names of published heads' classes, by how many there are: ImageNet and what it is part of.

Whoever trains on ImageNet has its classes in the order of their WordNet ids, and the parts of
ImageNet in use have each a size of their own, so the number of classes says which they are. Where
it does not, no name is guessed and --labels has to give them: a wrong order is a wrong label. A
model's own names come before these (classifier.py).

Names and ids are WordNet 3.0's (data/README.md: licence, and how the table was made), read when a
model without names of its own is loaded, and not before.
"""

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path

from vit.errors import ModelError

from .bundle import imagenet_labels

WORDNET_TABLE = Path(__file__).parent / "data" / "wordnet-classes.tsv.gz"

# A head's number of classes, and what it was trained on.
HEADS = {
    1000: "ImageNet-1k",
    10450: "ImageNet-21k-P of winter 2021 (Alibaba MIIL)",
    11221: "ImageNet-21k-P of fall 2011 (Alibaba MIIL)",
    11821: "ImageNet-12k (timm)",
    21841: "ImageNet-22k, the whole of fall 2011",
    21843: "ImageNet-21k as Google has it: the 21,841 and two more, at 9205 and 15027",
}


AMBIGUOUS = {
    19167: "ImageNet-21k of winter 2021, of which no order is known here",
    21842: "Microsoft's order of ImageNet-22k, which puts the thousand of ImageNet-1k first, or another",
}


@dataclass(frozen=True)
class ClassNames:
    """In class order: names, no two alike, and WordNet ids such as n01443537."""

    labels: tuple[str, ...]
    label_ids: tuple[str, ...]


def names_of_head(n_classes: int, model: str) -> ClassNames:
    """The names of a published head with so many classes, of a model called `model`.

    Raises ModelError where the number does not say which classes they are.
    """
    if n_classes not in HEADS:
        why = f" ({AMBIGUOUS[n_classes]})" if n_classes in AMBIGUOUS else ""
        raise ModelError(
            f"{model} has {n_classes} classes and no names for them{why}; give a file with "
            "one name a line: --labels classes.txt"
        )
    head = str(n_classes)
    with gzip.open(WORDNET_TABLE, "rt", encoding="utf-8", newline="") as file:
        rows = [
            (row["wordnet_id"], row["name"])
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if head in row["heads"].split(",")
        ]
    assert len(rows) == n_classes
    ids, labels = zip(*rows, strict=True)
    # The thousand were called by torchvision's names before this table was; they keep those.
    return ClassNames(imagenet_labels() if n_classes == 1000 else labels, ids)
