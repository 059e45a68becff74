"""A model with a text tower, and the user's words -> a Head, made once and kept.

Each prompt is embedded once, when the head is made, and never for an image. Embeddings of a word's
prompts are scaled to length 1, averaged, and scaled again, as open_clip makes its classifiers
(build_zero_shot_classifier). With the model's own scale and bias folded in,

    head(image) = activation(exp(logit_scale) * word . image / |image| + logit_bias)

which is what CLIP (softmax; Radford et al. 2021, figure 3) and SigLIP (sigmoid; Zhai et al. 2023,
algorithm 1) were trained to say. `word_vectors` gives the words themselves, for search.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.checkpoints.layouts import State
from vit.checkpoints.locate import find_source
from vit.checkpoints.weights import read_checkpoint, sha256_file
from vit.errors import ModelError
from vit.head import Activation, Head

from .head_cache import keep_head, read_head, recipe_digest
from .tokenizer_files import find_tokenizer
from .towers import TextTower, TextTowerFiles, open_tower, text_tower_of
from .vocabulary import DEFAULT_TEMPLATE, Vocabulary, read_vocabulary, vocabulary_of

# Another number where the same words would come out as another head. What the libraries compute
# may differ in the last bits from version to version, as it does from machine to machine: that is
# no other head.
_RULES = 1
_PROMPTS_AT_ONCE = 64


@dataclass(frozen=True)
class Words:
    """What the user says: a file of words, templates for their prompts, and the activation.

    Without an activation it is the one that the model was trained with.
    """

    path: Path
    templates: tuple[str, ...] = ()
    activation: Activation | None = None


@dataclass(frozen=True)
class WordsHead:
    """`prompts` are those of each name. `sha256` is over all that the head was made of: equal
    digests, equal labels.

    `is_settled`: it is kept, and made of nothing but the words and what lies beside the weights.
    """

    head: Head
    names: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    sha256: str
    notes: tuple[str, ...] = ()
    is_settled: bool = False


def head_of_words(files: TextTowerFiles, words: Words, weights_sha256: str) -> WordsHead:
    """The head that scores a model's features for the user's words. Raises ModelError."""
    vocabulary = read_vocabulary(words.path, words.templates)
    activation = _activation(files, words, vocabulary)
    tokenizer = find_tokenizer(files)
    assert files.source.config is not None
    recipe: dict[str, Any] = {
        "rules": _RULES,
        "weights": weights_sha256,
        "config": sha256_file(files.source.config),
        "tokenizer": tokenizer.sha256,
        "activation": activation,
        "prompts": vocabulary.prompts,
    }
    digest = recipe_digest(recipe)
    notes = []
    if vocabulary.used_default:
        notes.append(
            f"words without prompts of their own get the prompt {DEFAULT_TEMPLATE!r}; --template "
            "says another"
        )
    # A tokenizer of another repository of the Hub may be another one tomorrow.
    is_settled = tokenizer.folder in (None, files.source.config.parent)
    head = read_head(digest)
    if head is None:
        state = read_checkpoint(files.source.weights)
        scale, bias = _scale_and_bias(state, files)
        tower = open_tower(files, state, tokenizer.folder)
        del state
        weight = _class_embeddings(tower, vocabulary, str(words.path), files.source.name) * scale
        head = Head(
            weight,
            torch.full([len(vocabulary.names)], bias),
            normalise=True,
            activation=activation,
        )
        if why := keep_head(head, digest):
            is_settled = False
            notes.append(
                f"what the words became could not be kept in {why}; the next run makes it again"
            )
    return WordsHead(head, vocabulary.names, vocabulary.prompts, digest, tuple(notes), is_settled)


def word_vectors(model: str, words: Sequence[str], templates: Sequence[str] = ()) -> Tensor:
    """The unit vectors of words in a model's own space: float32 [W, F], in the order of the words.

    A photo's features, scaled to length 1, times one of them is the cosine between the two. `model`
    is named as for load_classifier, and must read text. Each word gets a prompt of each template,
    by default `a photo of a {}`; with the template `{}` a word is a prompt as it stands. Nothing is
    kept: each call reads the model's weights. Raises ModelError.
    """
    vocabulary = vocabulary_of(words, templates)
    files = text_tower_of(find_source(model))
    if files is None:
        raise ModelError(
            f"{model} reads no text, so words cannot be looked for with it; choose a CLIP or a "
            "SigLIP, by its folder or on the Hub"
        )
    state = read_checkpoint(files.source.weights)
    tower = open_tower(files, state, find_tokenizer(files).folder)
    return _class_embeddings(tower, vocabulary, "the words", files.source.name)


def _activation(files: TextTowerFiles, words: Words, vocabulary: Vocabulary) -> Activation:
    name, first = files.source.name, vocabulary.names[0]
    activation = words.activation or ("sigmoid" if files.has_bias else "softmax")
    if activation == "sigmoid" and not files.has_bias:
        raise ModelError(
            f"--activation sigmoid does not go with {name}: it was trained to choose among words "
            "and learned no bias, so a sigmoid would be 100% sure of every word; leave it out, or "
            "take a SigLIP"
        )
    if activation == "softmax" and len(vocabulary.names) == 1:
        raise ModelError(
            f"{words.path} has a single word, {first!r}, and a softmax chooses among words, so it "
            "would be 100% sure of it for every photo; add what else a photo may show, or take a "
            "SigLIP with its sigmoid"
        )
    return activation


def _scale_and_bias(state: State, files: TextTowerFiles) -> tuple[float, float]:
    """By what a model multiplies a cosine, and what it adds."""
    for tensor in ("logit_scale", *(["logit_bias"] if files.has_bias else [])):
        if tensor not in state:
            raise ModelError(
                f"{files.source.name} has no {tensor} among its tensors, so how sure it is cannot "
                "be said; it is no whole model of images and text"
            )
    if "logit_bias" in state and not files.has_bias:
        raise ModelError(
            f"{files.source.name} has a logit_bias among its tensors that its config does not "
            "account for; its config must be the one of the weights"
        )
    scale = float(state["logit_scale"].float().exp())
    return scale, float(state["logit_bias"]) if files.has_bias else 0.0


def _class_embeddings(tower: TextTower, vocabulary: Vocabulary, said: str, name: str) -> Tensor:
    """Each word's embedding, of length 1: float32 [K, F]. `said` is where the words come from.

    Raises ModelError.
    """
    _check_tokens(tower, vocabulary, said, name)
    flat = [prompt for prompts in vocabulary.prompts for prompt in prompts]
    chunks = [
        tower.embed(flat[start : start + _PROMPTS_AT_ONCE])
        for start in range(0, len(flat), _PROMPTS_AT_ONCE)
    ]
    each = F.normalize(torch.cat(chunks), dim=-1)  # [P, F]
    means = [part.mean(dim=0) for part in each.split([len(own) for own in vocabulary.prompts])]
    weight = F.normalize(torch.stack(means), dim=-1)  # [K, F]
    if not bool(weight.isfinite().all()):
        raise ModelError(f"{name} gives no finite numbers for {said}")
    return weight.clone()  # out of inference mode


def _check_tokens(tower: TextTower, vocabulary: Vocabulary, said: str, name: str) -> None:
    """Refuse prompts that the tower would cut off, or not see, and words it cannot tell apart."""
    nothing = tower.tokens("")
    seen: dict[Sequence[tuple[int, ...]], str] = {}
    for word, prompts in zip(vocabulary.names, vocabulary.prompts, strict=True):
        tokens = [tower.tokens(prompt) for prompt in prompts]
        for prompt, its in zip(prompts, tokens, strict=True):
            if len(its) > tower.context_length:
                raise ModelError(
                    f"{said}: the prompt {prompt!r} of {word!r} is {len(its)} tokens long, and "
                    f"{name} reads {tower.context_length}; shorten it"
                )
            if max(its, default=0) >= tower.vocab_size:
                raise ModelError(
                    f"the tokenizer of {name} makes tokens that its text tower does not know; it "
                    "is another model's"
                )
            if its == nothing:
                raise ModelError(
                    f"{said}: {name} sees nothing in the prompt {prompt!r} of {word!r}; write it "
                    "in letters"
                )
            if tower.unknown is not None and tower.unknown in its:
                raise ModelError(
                    f"{said}: the tokenizer of {name} does not know all letters of the prompt "
                    f"{prompt!r} of {word!r}; write it in those of a language it was trained in"
                )
        same = seen.setdefault(tuple(sorted(tokens)), word)
        if same != word:
            raise ModelError(
                f"{said}: {same!r} and {word!r} are the same words to {name}, so it could not tell "
                "them apart; leave one out, or give them prompts that differ"
            )
