"""Makes vit/checkpoints/data/wordnet-classes.tsv.gz, the names that class_names.py reads.

    python -m benchmarks.class_names path/to/WordNet-3.0/dict/data.noun

Which synset is a class of which head comes from the lists that timm ships (timm/data/_info); each
is sorted by WordNet id, so one table in that order holds them all. The names come from WordNet
itself. A class is called by its synset's first lemma. One in seven shares that with other classes
(there are two cranes): those get in brackets their hypernym's first lemma, `crane (wading bird)`;
where that is shared as well, their own last lemma, `robin (Turdus migratorius)`; and the WordNet id
where nothing else tells them apart. The last line printed is JSON.
"""

import argparse
import gzip
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import timm.data

from vit.checkpoints.class_names import WORDNET_TABLE

# A head's number of classes: the list in timm/data/_info.
LISTS = {
    1000: "imagenet_synsets.txt",
    10450: "imagenet21k_miil_w21_synsets.txt",
    11221: "imagenet21k_miil_synsets.txt",
    11821: "imagenet12k_synsets.txt",
    21841: "imagenet22k_synsets.txt",
    21843: "imagenet21k_goog_synsets.txt",
}


@dataclass(frozen=True)
class Synset:
    lemmas: tuple[str, ...]
    hypernyms: tuple[str, ...]  # their ids


def timm_synsets(n_classes: int) -> list[str]:
    """The WordNet ids of a head's classes, in class order."""
    folder = Path(timm.data.__file__).parent / "_info"
    return (folder / LISTS[n_classes]).read_text(encoding="utf-8").split()


def read_wordnet(data_noun: Path) -> dict[str, Synset]:
    """WordNet id -> synset, of WordNet's database of nouns (its format: wndb(5WN))."""
    synsets = {}
    for line in data_noun.read_text(encoding="latin-1").splitlines():
        if line.startswith("  "):  # the licence, at the top
            continue
        fields = line.split(" | ")[0].split()
        n_lemmas = int(fields[3], 16)
        lemmas = fields[4 : 4 + 2 * n_lemmas : 2]
        start = 5 + 2 * n_lemmas
        pointers = [
            fields[at : at + 4] for at in range(start, start + 4 * int(fields[start - 1]), 4)
        ]
        synsets[f"n{fields[0]}"] = Synset(
            tuple(lemma.replace("_", " ") for lemma in lemmas),
            tuple(f"n{offset}" for symbol, offset, _, _ in pointers if symbol in ("@", "@i")),
        )
    return synsets


def class_names(ids: list[str], wordnet: dict[str, Synset]) -> dict[str, str]:
    """Each id's name, no two alike."""
    names = {id_: wordnet[id_].lemmas[0] for id_ in ids}
    brackets = {
        "hypernym": {id_: wordnet[wordnet[id_].hypernyms[0]].lemmas[0] for id_ in ids},
        "own last lemma": {id_: wordnet[id_].lemmas[-1] for id_ in ids},
        "id": {id_: id_ for id_ in ids},
    }
    for kind, texts in brackets.items():
        counts = Counter(names.values())
        for id_, name in names.items():
            first = wordnet[id_].lemmas[0]
            if counts[name] > 1 and texts[id_] != first:
                names[id_] = f"{first} ({texts[id_]})"
        print(
            f"{sum(count for count in counts.values() if count > 1):6} share a name before: {kind}"
        )
    assert len(set(names.values())) == len(names)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_noun", type=Path)
    arguments = parser.parse_args()
    lists = {n_classes: timm_synsets(n_classes) for n_classes in LISTS}
    ids = sorted(set().union(*lists.values()))
    members = {n_classes: set(list_) for n_classes, list_ in lists.items()}
    for n_classes, list_ in lists.items():
        assert list_ == sorted(members[n_classes]), f"{n_classes} are not in the order of their ids"
    names = class_names(ids, read_wordnet(arguments.data_noun))
    rows = [
        "\t".join([id_, names[id_], ",".join(str(n) for n, of in members.items() if id_ in of)])
        for id_ in ids
    ]
    text = "\n".join(["wordnet_id\tname\theads", *rows]) + "\n"
    WORDNET_TABLE.parent.mkdir(exist_ok=True)
    WORDNET_TABLE.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(json.dumps({"classes": len(ids), "bytes": WORDNET_TABLE.stat().st_size}))


if __name__ == "__main__":
    main()
