"""A tokenizer's files, beside the weights or on the Hub, and what they are: a digest.

They are found without the libraries that read them, so that a head made once is known again by who
has neither those nor a network.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from vit.checkpoints.hub import why_away
from vit.checkpoints.weights import sha256_file
from vit.errors import ModelError

from .towers import TextTowerFiles

# Any that transformers' tokenizers write. Some say the same in two ways; which is read is theirs.
_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model",
)  # fmt: skip
# Without one of these there is nothing that could be read.
_VOCABULARIES = frozenset(_FILES) - {
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
}  # fmt: skip


@dataclass(frozen=True)
class TokenizerFiles:
    """`folder` is None for the tokenizer in open_clip's package, which has no files of its own."""

    folder: Path | None
    sha256: str


def find_tokenizer(files: TextTowerFiles) -> TokenizerFiles:
    """Find a text tower's tokenizer, downloading it where the model is the Hub's.

    Raises ModelError.
    """
    if not files.needs_tokenizer:
        return TokenizerFiles(None, "open_clip's own")
    assert files.source.config is not None
    folder = files.source.config.parent
    if files.source.address.startswith("hf-hub:"):
        repo, _, commit = files.source.address.removeprefix("hf-hub:").partition("@")
        # As open_clip does: by the name in the config, which is mostly the model's own.
        other = files.tokenizer not in ("", repo)
        folder = _fetch(files.tokenizer, None) if other else _fetch(repo, commit)
    found = [name for name in _FILES if (folder / name).is_file()]
    if not _VOCABULARIES.intersection(found):
        raise ModelError(
            f"{files.source.name} has a text tower and no tokenizer beside it ({folder} has none "
            "of tokenizer.json, vocab.json, spiece.model), so it cannot read your words; save the "
            "tokenizer there too: AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)"
        )
    digest = hashlib.sha256()
    for name in found:
        digest.update(f"{name} {sha256_file(folder / name)}\n".encode())
    return TokenizerFiles(folder, digest.hexdigest())


def _fetch(repo: str, commit: str | None) -> Path:
    """Download what a repository has of a tokenizer's files; the folder they lie in."""
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    folder: Path | None = None
    is_asked = False
    for name in _FILES:
        # Cache first: it also knows which files the commit has not, and the client would ask again.
        cached = try_to_load_from_cache(repo, name, revision=commit)
        if cached is not None and not isinstance(cached, str):
            continue
        if cached is None and not is_asked:
            if why := why_away(repo, commit):
                raise ModelError(
                    f"the tokenizer of {repo} is not in this machine's cache and {why}; run once "
                    "with a network"
                )
            is_asked = True
        try:
            file = cached or hf_hub_download(repo, name, revision=commit)
            folder = Path(file).parent
            commit = commit or folder.name  # the branch may move meanwhile
        except errors.LocalEntryNotFoundError as error:
            raise ModelError(
                f"the tokenizer of {repo} is not in this machine's cache and the Hub cannot be "
                "reached; run once with a network"
            ) from error
        except errors.EntryNotFoundError:
            continue
        except Exception as error:
            raise ModelError(f"downloading the tokenizer of {repo} failed: {error}") from error
    if folder is None:
        raise ModelError(f"{repo} on the Hub has no tokenizer, so it cannot read your words")
    return folder
