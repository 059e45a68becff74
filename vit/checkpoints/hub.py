"""The Hugging Face Hub, through its own client: a model's files, all from one commit, cached.

What a commit holds never changes, so a commit that is in the cache needs no request. For all else
one short probe says whether the Hub can be reached: left to itself the client tries for half a
minute before it takes what it has. The probe is a request of the client's, so that HF_ENDPOINT,
HF_HUB_OFFLINE, HTTPS_PROXY and NO_PROXY are obeyed.

What arrives is compared with what the Hub calls it by, its hash; the client itself compares sizes.
"""

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vit.errors import ModelError

# In order of preference: safetensors cannot carry code.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# transformers 5 writes the second where there is a tokenizer beside the image processor.
PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
# Beside a bundle's weights: a head that was made apart from them (bundle.py).
HEAD_FILE = "head.safetensors"
# And the calibrated graph of a quantised one: OpenVINO's two files.
GRAPH_FILE, GRAPH_WEIGHTS_FILE = "int8.xml", "int8.bin"

# In all, looking up the name included, for which no timeout of a request counts.
PROBE_S = 2.5

_COMMIT = re.compile(r"[0-9a-f]{40}")
# A file of a revision: None where the revision has none. Raises LocalEntryNotFoundError where that
# cannot be known.
_Get = Callable[[str, str | None], Path | None]


@dataclass(frozen=True)
class HubFiles:
    """The files of a model in the cache, and the commit they are of."""

    commit: str
    weights: Path
    config: Path
    preprocessor: Path | None = None
    head: Path | None = None
    graph: Path | None = None


def fetch(repo: str, revision: str | None) -> HubFiles:
    """Find the files of a model in the cache, or download them. Raises ModelError."""
    name = f"hf-hub:{repo}@{revision}" if revision else f"hf-hub:{repo}"
    with _as_model_errors(name, repo, revision):
        if (known := _in_cache(repo, revision)) and _is_commit(revision):
            return known
        why = why_away(repo, revision)
        if why is None:
            return _files(repo, revision, _download(repo))
        if known:
            return known
        raise ModelError(
            f"{name} is not in this machine's cache and {why}; run once with a network, or copy "
            "the model's folder here and name its path"
        )


def why_away(repo: str, revision: str | None) -> str | None:
    """Say why the Hub is not to be asked for a repository; None where it answers, whatever it
    says. Takes PROBE_S at most.
    """
    problem = _probe(repo, revision)
    return _why_away(problem) if _is_away(problem) else None


def why_not_at_hand(repo: str, revision: str) -> str | None:
    """Say why a model is neither in the cache nor to be had from the Hub; None where it is.

    Downloads nothing. Raises ModelError for a repository in the cache that is no model.
    """
    if _is_commit(revision) and _in_cache(repo, revision):
        return None
    problem = _probe(repo, revision)
    if problem is None:
        return None
    if _is_away(problem):
        return _why_away(problem)
    return f"{_hub()} does not give it ({_first_line(problem)})"


def _is_commit(revision: str | None) -> bool:
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def _in_cache(repo: str, revision: str | None) -> HubFiles | None:
    """What the cache holds of a revision; None where anything is missing."""
    from huggingface_hub import errors, try_to_load_from_cache

    def get(file: str, revision: str | None) -> Path | None:
        cached = try_to_load_from_cache(repo, file, revision=revision)
        if cached is None:
            raise errors.LocalEntryNotFoundError(f"{file} is not in the cache")
        return Path(cached) if isinstance(cached, str) else None

    try:
        return _files(repo, revision, get)
    except errors.LocalEntryNotFoundError:
        return None


def _download(repo: str) -> _Get:
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    def get(file: str, revision: str | None) -> Path | None:
        cached = try_to_load_from_cache(repo, file, revision=revision)
        if cached is not None and _is_commit(revision):
            return Path(cached) if isinstance(cached, str) else None
        try:
            path = Path(hf_hub_download(repo, file, revision=revision))
        except errors.LocalEntryNotFoundError:
            raise  # no network any more: whether the revision has the file is unknown
        except errors.EntryNotFoundError:
            return None
        return _proven(path)

    return get


def _files(repo: str, revision: str | None, get: _Get) -> HubFiles:
    """The files of a revision, as `get` finds them. Raises ModelError where it is no model."""

    def first(files: tuple[str, ...]) -> Path | None:
        return next((path for file in files if (path := get(file, commit))), None)

    config, weight_files = get("config.json", revision), WEIGHT_FILES
    if config is None:
        config, weight_files = get(OPEN_CLIP_CONFIG, revision), OPEN_CLIP_WEIGHTS
    if config is None:
        raise ModelError(
            f"{repo} on the Hub has no config.json; it is not a timm, transformers or open_clip "
            "model"
        )
    # The branch may move while we download: the rest comes from the commit the config came from.
    commit = config.parent.name
    if (weights := first(weight_files)) is None:
        raise ModelError(
            f"{repo} on the Hub has no {' or '.join(weight_files)}; weights split over several "
            "files are not supported"
        )
    said = config.read_text(encoding="utf-8", errors="replace")
    # timm's config says how photos are prepared. Nothing else is asked for: a cache that another
    # program filled does not know what the Hub has not.
    is_transformers = "model_type" in said
    preprocessor = first(PREPROCESSOR_FILES) if is_transformers else None
    is_bundle = "label_images_bundle" in said
    head = get(HEAD_FILE, commit) if is_bundle else None
    graph = None
    if is_bundle and '"quantised"' in said and get(GRAPH_WEIGHTS_FILE, commit):
        graph = get(GRAPH_FILE, commit)
    return HubFiles(commit, weights, config, preprocessor, head, graph)


def _proven(path: Path) -> Path:
    """A file that was just downloaded, if it is what the Hub says. Raises ModelError.

    The cache calls a file by what the Hub does: the SHA-256 of a large one, git's hash of a small.
    """
    blob = path.resolve()
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return path  # a cache without links, or another server's names
    digest = hashlib.sha256()
    if len(blob.name) == 40:
        digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    with blob.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    if digest.hexdigest() == blob.name:
        return path
    for damaged in (path, blob):
        damaged.unlink(missing_ok=True)
    raise ModelError(f"{path.name} arrived damaged, and was dropped; run again")


def _probe(repo: str, revision: str | None) -> Exception | None:
    """Ask the Hub for a model's config; return the error, None where all is well."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    said: list[Exception | None] = []

    def ask() -> None:
        try:
            url = hf_hub_url(repo, "config.json", revision=revision)
            commit = get_hf_file_metadata(url, timeout=PROBE_S).commit_hash
            said.append(None if commit else ConnectionError("what answers is not the Hub"))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            said.append(error)

    # In a thread, since looking up a name cannot be cut short; one that hangs ends with the process.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_S)
    return said[0] if said else TimeoutError(f"no answer within {PROBE_S:g} s")


def _is_away(problem: Exception | None) -> bool:
    """Whether a probe did not find the Hub; else whoever downloads finds out what is wrong."""
    from huggingface_hub import errors

    the_hubs_word = (
        errors.EntryNotFoundError,  # as of open_clip's models
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.HFValidationError,
    )
    return problem is not None and not isinstance(problem, the_hubs_word)


def _why_away(problem: Exception | None) -> str:
    from huggingface_hub import errors

    assert problem is not None
    if isinstance(problem, errors.OfflineModeIsEnabled):
        return "the Hub is not asked, since HF_HUB_OFFLINE is set"
    return f"{_hub()} cannot be reached ({_first_line(problem)})"


def _hub() -> str:
    from huggingface_hub import constants

    is_usual = constants.ENDPOINT == "https://huggingface.co"
    return "the Hub" if is_usual else f"the Hub at {_without_credentials(constants.ENDPOINT)}"


def _first_line(problem: Exception) -> str:
    lines = _without_credentials(str(problem)).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(problem).__name__


def _without_credentials(text: str) -> str:
    """What is said here is printed, and kept in tables; a mirror's or proxy's password is not."""
    return re.sub(r"(?<=://)[^/\s@]+@", "", text)


@contextmanager
def _as_model_errors(name: str, repo: str, revision: str | None) -> Iterator[None]:
    """Say the client's errors as ModelErrors, with what to do."""
    from huggingface_hub import errors

    try:
        yield
    except ModelError:
        raise
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{name} is gated: accept its terms on the Hub, then run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"the Hub has no model {repo!r}, or it is private; check the name, or run `hf auth "
            "login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{repo} has no revision {revision!r} on the Hub") from error
    except errors.HFValidationError as error:
        raise ModelError(f"{repo!r} is not a Hub name; write hf-hub:OWNER/NAME") from error
    except Exception as error:
        raise ModelError(
            f"downloading {name} failed ({_first_line(error)}); run again, with a network"
        ) from error
