"""`models list --all`: published models, to choose one for a CPU or a GPU. Builds no network."""

from collections.abc import Iterator

from vit.checkpoints.published import Published, best_for_their_cost, published_models

_ORDERS = {
    "gmacs": lambda model: (model.gmacs, model.parameters),
    "accuracy": lambda model: (-(model.top1 or 0), model.gmacs),
    "size": lambda model: (model.parameters, model.gmacs),
}
_HEADING = "   GMACs   top-1      MB  pixels  classes  model"


def table_lines(sort: str) -> Iterator[str]:
    """All published models, `sort` first: gmacs, accuracy or size. Unsupported ones come last."""
    models = sorted(published_models(), key=_ORDERS[sort])
    supported = [model for model in models if not model.unsupported]
    others = [model for model in models if model.unsupported]
    best = best_for_their_cost(supported)
    yield _HEADING
    for model in supported:
        yield f"{'*' if model.name in best else ' '} {_line(model)}"
    if others:
        yield ""
        yield "Published, and not supported by this version (`label-images models show` says why):"
        yield _HEADING
        for model in others:
            yield f"  {_line(model)}"
    yield ""
    yield "  *        the most accurate of those that cost no more"
    yield "  GMACs    billions of multiply-adds an image: what a CPU's time goes by"
    yield "  top-1    percent of ImageNet's validation images right, as timm or torchvision measured"
    yield "           it; - where that was not read, or for other classes"
    yield "  MB       of the weights in float32"
    yield "  --model takes hf-hub:timm/MODEL for these, and torchvision:... as it stands"
    yield f"  {len(models)} models; sources and dates: vit/checkpoints/data/README.md"


def facts_lines(models: list[Published]) -> Iterator[str]:
    """What is published of models that go by one name, before anything is downloaded."""
    if models:
        yield _HEADING
        for model in models:
            yield f"  {_line(model)}"
        yield ""


def _line(model: Published) -> str:
    top1 = "-" if model.top1 is None else f"{model.top1:.1f}"
    return (
        f"{model.gmacs:6.1f}  {top1:>6}  {model.size_mb:6,.0f}  {model.image_size:6}  "
        f"{model.n_classes:7,}  {model.name}"
    )
