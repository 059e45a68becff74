"""Names of published heads: timm's order, one name a class, and what is not certain refused."""

import csv
import gzip
from pathlib import Path

import pytest
import timm
import timm.data
import torch
from timm.data import ImageNetInfo
from timm.models import save_for_hf

from vit.checkpoints.bundle import imagenet_labels
from vit.checkpoints.class_names import AMBIGUOUS, HEADS, names_of_head
from vit.classifier import load_classifier
from vit.errors import ModelError

INFO = Path(timm.data.__file__).parent / "_info"


def theirs(n_classes: int) -> list[str]:
    """timm's order of a head's classes; which subset it is by timm's own table of numbers."""
    subset = timm.data.infer_imagenet_subset({"num_classes": n_classes})
    if subset:
        return ImageNetInfo(subset).label_names()
    assert n_classes == 10450  # timm has the list and does not infer it
    return (INFO / "imagenet21k_miil_w21_synsets.txt").read_text(encoding="utf-8").split()


@pytest.mark.parametrize("n_classes", HEADS)
def test_every_head_is_in_timms_order_and_no_two_classes_are_called_alike(n_classes: int) -> None:
    names = names_of_head(n_classes, "x")
    assert list(names.label_ids) == theirs(n_classes)
    assert len(set(names.labels)) == len(names.labels) == n_classes
    assert all(name.strip() == name and name for name in names.labels)


def test_a_class_is_called_by_its_first_lemma() -> None:
    with (INFO / "imagenet_synset_to_lemma.txt").open(encoding="utf-8", newline="") as file:
        lemmas = dict(csv.reader(file, delimiter="\t"))
    names = names_of_head(21843, "x")
    for id_, name in zip(names.label_ids, names.labels, strict=True):
        first = lemmas[id_].split(", ")[0]
        assert name == first or (name.startswith(f"{first} (") and name.endswith(")")), id_
    by_id = dict(zip(names.label_ids, names.labels, strict=True))
    assert (by_id["n02012849"], by_id["n03126707"]) == ("crane (wading bird)", "crane (lifting device)")  # fmt: skip
    assert (by_id["n01558993"], by_id["n02510455"]) == ("robin (Turdus migratorius)", "giant panda")
    assert by_id["n01887896"] == "calf (n01887896)"


def test_the_thousand_keep_their_names_and_have_ids() -> None:
    names = names_of_head(1000, "x")
    assert names.labels == imagenet_labels()
    assert (names.labels[134], names.label_ids[134]) == ("crane bird", "n02012849")


def test_googles_list_has_two_classes_more_where_others_take_them_out() -> None:
    ids = names_of_head(21843, "x").label_ids
    others = ids[:9205] + ids[9206:15027] + ids[15028:]
    assert others == names_of_head(21841, "x").label_ids


@pytest.mark.parametrize("n_classes", [2, 999, 21842, 19167])
def test_a_number_that_does_not_say_which_classes_asks_for_labels(n_classes: int) -> None:
    why = r" \(.*\)" if n_classes in AMBIGUOUS else ""
    with pytest.raises(ModelError, match=rf"m\.pth has {n_classes} .* for them{why}; .* --labels"):
        names_of_head(n_classes, "m.pth")


def test_a_bare_checkpoint_of_12k_classes_has_names_and_ids(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=11821)
    torch.save(model.state_dict(), tmp_path / "12k.pth")
    ours = load_classifier(str(tmp_path / "12k.pth"))
    assert (ours.labels[0], ours.label_ids[0]) == ("benthos (organism)", "n00005787")
    assert len(ours.labels) == len(ours.label_ids) == 11821


def test_a_models_own_names_come_before_these_and_labels_before_all(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    own = [f"own {class_id}" for class_id in range(1000)]
    config = {"label_names": own, "model_args": {"depth": 1}}
    save_for_hf(model, str(tmp_path / "model"), model_config=config, safe_serialization=True)
    ours = load_classifier(str(tmp_path / "model"))
    assert (ours.labels, ours.label_ids) == (tuple(own), ())
    (tmp_path / "mine.txt").write_text("\n".join(f"mine {n}" for n in range(1000)))
    ours = load_classifier(str(tmp_path / "model"), tmp_path / "mine.txt")
    assert (ours.labels[999], ours.label_ids) == ("mine 999", ())


def test_a_model_with_names_does_not_read_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("the table was read")

    monkeypatch.setattr(gzip, "open", read)
    assert load_classifier("embedded").labels[0] == "goldfish"
