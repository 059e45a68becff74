"""ModelIdentity of a classifier, and identities kept in the user's cache.

By a kept one a night is planned without torch: the model is loaded only when there is work for it,
and then says itself which one it is (deferred.py). An entry counts as long as all is as it was: what
was asked for, this project's code, and every file the model was read from, by the stamp that the
kernel gives it. Weights are not read again to know it, and so an entry is a guess: good enough to
say that nothing changed, never to label by.
"""

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jobs
import vit
from jobs.manifest import Fingerprint, ModelIdentity
from jobs.records import canonical_sha256, read_record, write_record
from jobs.storage.atomic import remove
from pipeline.load.decode_rules import DECODE_RULES
from pipeline.settings import DEFAULT_TOP_K, Settings
from vit.user_cache import user_cache

if TYPE_CHECKING:  # a night without work imports no torch
    from vit.classifier import Classifier

_VERSION = 1
# A file that changed this shortly before it was read may change once more within the same tick of
# the clock that stamps it: two seconds are the coarsest there is (FAT).
_SETTLED_S = 2.0

# Size, time of change, inode, and the time the inode changed, which no program can set.
Stamp = tuple[int, int, int, int]


def identify(classifier: "Classifier", top_k: int | None) -> ModelIdentity:
    fingerprint = Fingerprint(
        weights_sha256=classifier.weights_sha256,
        architecture=classifier.architecture,
        # Through JSON once, so that it equals what a manifest gives back (lists, not tuples).
        preprocess=json.loads(json.dumps(asdict(classifier.preprocess))),
        temperature=classifier.temperature,
        labels_sha256=classifier.labels_sha256,
        top_k=min(top_k or DEFAULT_TOP_K, len(classifier.labels)),
        decode_rules=DECODE_RULES,
        activation=classifier.head.activation,
        head_sha256=classifier.head_sha256,
    )
    size = classifier.preprocess.crop_size
    return ModelIdentity(
        classifier.name,
        classifier.address,
        classifier.labels,
        classifier.label_ids,
        size,
        fingerprint,
        classifier.notes,
        classifier.prompts,
    )


@dataclass(frozen=True)
class KeptIdentity:
    """The entry of the cache for what was asked for: `of(settings)`, before the model is read."""

    path: Path
    asked: dict[str, Any]
    since: float  # in time.time()'s seconds

    @classmethod
    def of(cls, settings: Settings) -> "KeptIdentity | None":
        """None where nothing can be kept: there is no cache, or the class names cannot be read.

        A name of the Hub has to be a commit's (vit.checkpoints.locate.Source.address).
        """
        since, folder = time.time(), user_cache("identities")
        model = settings.model or "embedded"
        if model != "embedded" and not model.startswith(("hf-hub:", "torchvision:")):
            model = os.path.abspath(model)
        try:
            labels = settings.labels and [
                settings.labels.suffix,
                hashlib.sha256(settings.labels.read_bytes()).hexdigest(),
            ]
        except OSError:
            return None
        asked = {
            "model": model,
            "labels": labels,
            "arch": settings.arch,
            "preprocess": settings.preprocess,
            "templates": list(settings.templates),
            "activation": settings.activation,
            "top_k": settings.top_k or DEFAULT_TOP_K,  # a table says what its command did not
            "decode_rules": DECODE_RULES,
        }
        if not folder.is_absolute():  # of a user without a home
            return None
        return cls(folder / f"{canonical_sha256(asked)}.json", asked, since)

    def read(self) -> ModelIdentity | None:
        """The identity, where all that it was made from is as it was."""
        try:
            entry = read_record(self.path, _VERSION)
            if (
                entry is None
                or entry["asked"] != self.asked
                or entry["code"] != _code()
                or entry["files"] != _as_json(stamps(map(Path, entry["read_from"])))
            ):
                return None
            return ModelIdentity.from_record(entry["identity"])
        except (OSError, KeyError, TypeError, ValueError):
            return None

    def write(self, identity: ModelIdentity, read_from: Iterable[Path]) -> None:
        """Keep the identity of a model that was read since `of`, unless one of its files cannot be
        vouched for. Where nothing can be written nothing is kept, and the next run reads the model.
        """
        places = [*map(os.path.abspath, read_from)]
        try:
            files = stamps(map(Path, places))
            if not places or not all(self._is_settled(stamp) for stamp in files.values()):
                self.drop()
                return
            entry = {
                "asked": self.asked,
                "code": _code(),
                "read_from": places,
                "files": _as_json(files),
                "identity": identity.to_record(),
            }
            # What would come back otherwise is better not kept.
            if ModelIdentity.from_record(json.loads(json.dumps(entry["identity"]))) != identity:
                self.drop()
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_record(self.path, _VERSION, entry)
        except (OSError, TypeError, ValueError):
            return

    def drop(self) -> None:
        """Forget what was kept."""
        try:
            remove(self.path)
        except OSError:
            return

    def _is_settled(self, stamp: Stamp) -> bool:
        """Whether a file with this stamp is as it was when reading began, and any change of it will
        show.

        Whole seconds are what somebody wrote into an image of a disk (squashfs), where another file
        may have the same, or the clock of a file system that is too coarse.
        """
        changed_ns = stamp[3]
        return changed_ns < (self.since - _SETTLED_S) * 1e9 and changed_ns % 1_000_000_000 != 0


def stamps(places: Iterable[Path]) -> dict[str, Stamp]:
    """The stamp of each file in folders (not below), or of files themselves, by path.

    Links are followed, and files that are missing are not there. Raises OSError where a place is
    gone.
    """
    found: dict[str, Stamp] = {}
    for place in places:
        status = os.stat(place)
        if not stat.S_ISDIR(status.st_mode):
            found[str(place)] = _stamp(status)
            continue
        with os.scandir(place) as entries:
            for entry in entries:
                try:
                    status = entry.stat()
                except FileNotFoundError:  # a link that leads nowhere, or gone meanwhile
                    continue
                if stat.S_ISREG(status.st_mode):
                    found[entry.path] = _stamp(status)
    return found


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns


def _as_json(files: dict[str, Stamp]) -> dict[str, list[int]]:
    return {path: list(stamp) for path, stamp in files.items()}


@cache
def _code() -> str:
    """What reads models: versions, and the stamps of this project's own files, which change with no
    version where somebody works on them.
    """
    ours = [Path(vit.__file__).parent, Path(jobs.__file__).parent, Path(__file__).parents[1]]
    folders = [
        Path(folder)
        for top in ours
        for folder, _, _ in os.walk(top)
        if os.path.basename(folder) != "__pycache__"
    ]
    versions = [version(name) for name in ("label-images", "torch", "torchvision")]
    return canonical_sha256([versions, _as_json(stamps(folders))])
