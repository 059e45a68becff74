"""`models fetch`: models into this user's cache, and proof that they will load from there."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from pipeline.console import Console
from pipeline.errors import UsageError
from pipeline.plan.default_model import DEFAULT_MODEL
from vit.backbone import load_backbone
from vit.checkpoints.locate import Source, find_source
from vit.checkpoints.published import published_models
from vit.classifier import Classifier, load_classifier
from vit.errors import ModelError
from vit.head import Activation
from vit.text.tokenizer_files import find_tokenizer
from vit.text.towers import text_tower_of


def fetch(
    names: tuple[str, ...],
    labels: Path | None,
    console: Console,
    templates: tuple[str, ...] = (),
    activation: Activation | None = None,
) -> Iterator[str]:
    """Fetch each model and say where it lies; without a name the default model. One that fails is
    named, and the others still come.

    Raises UsageError in the end where one failed.
    """
    failed, names = 0, names or (DEFAULT_MODEL,)
    for name in names:
        try:
            _refuse_unsupported(name)
            source = find_source(name)
            # By its address, which names the commit that was fetched: nothing is asked of the Hub.
            if labels is None and (tower := text_tower_of(source)):
                find_tokenizer(tower)
                size = load_backbone(source.address).model.config.img_size
                loads = f"no classes of its own: it reads text (--labels words.txt), {size} pixels"
            else:
                asked = source.address, labels, None, None, templates, activation
                loads = _loads(load_classifier(*asked))
        except ModelError as error:
            failed += 1
            console.warn("not_fetched", f"{name}: {error}")
            continue
        yield _text(name, source, loads, _word_options(labels, templates, activation))
    if failed:
        raise UsageError(f"{failed} of {len(names)} models cannot be used; the reason is above")


def _refuse_unsupported(name: str) -> None:
    """Raise ModelError for a published model that will not load, before it is downloaded."""
    address = name.partition("@")[0]
    for model in published_models():
        if model.address == address and model.unsupported:
            raise ModelError(model.unsupported)


def _word_options(labels: Path | None, templates: tuple[str, ...], activation: str | None) -> str:
    """What the command that uses the model says of its labels."""
    words = ["--labels", str(labels)] if labels else []
    for template in templates:
        words += ["--template", template]
    words += ["--activation", activation] if activation else []
    return f" {shlex.join(words)}" if words else ""


def _loads(classifier: Classifier) -> str:
    more = " ..." if len(classifier.labels) > 3 else ""
    labels = ", ".join(classifier.labels[:3]) + more
    size = classifier.model.config.img_size
    return f"{len(classifier.labels):,} classes ({labels}), {size} pixels"


def _text(name: str, source: Source, loads: str, options: str) -> str:
    graph = [source.graph, source.graph.with_suffix(".bin")] if source.graph else []
    places = (source.weights, source.head, *graph, source.config, source.preprocessor)
    files = [path for path in places if path]
    size_mb = sum(path.stat().st_size for path in files) / 1e6
    is_default = name == DEFAULT_MODEL  # a command means it without a word, and asks nobody for it
    offline = "HF_HUB_OFFLINE=1 " if name.startswith("hf-hub:") and not is_default else ""
    model = "" if is_default else f" --model {name}"
    lines = [
        name,
        f"  lies in  {source.weights.parent}",
        f"  size     {size_mb:,.1f} MB: {', '.join(path.name for path in files)}",
        f"  loads    {loads}",
        f"  offline  {offline}label-images PATH... --out TABLE{model}{options}",
    ]
    return "\n".join(lines)
