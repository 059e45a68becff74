"""Identity: what a run must know of a model besides its weights, to plan a job and to write its
table.

The driver of a Ray cluster gets it from a node: it needs neither the weights nor torch.
"""

from dataclasses import dataclass
from typing import Any

from jobs.manifest import Fingerprint


@dataclass(frozen=True)
class Identity:
    """`label_ids` (such as WordNet ids) are empty or as many as `labels`; `image_size` is in
    pixels.

    `address` finds the model again from any working folder, also where its `name` does not.
    """

    name: str
    address: str
    labels: tuple[str, ...]
    label_ids: tuple[str, ...]
    image_size: int
    fingerprint: Fingerprint

    def describe(self) -> str:
        return (
            f"model: {self.name}, {len(self.labels):,} classes, {self.image_size} x "
            f"{self.image_size} pixels"
        )

    def classes(self) -> list[dict[str, Any]]:
        """The classes as a table keeps them."""
        return [
            {"class_id": class_id, "label": label}
            | ({"id": self.label_ids[class_id]} if self.label_ids else {})
            for class_id, label in enumerate(self.labels)
        ]
