"""Which families of published models load, counted from the table that `models list --all` reads."""

from docs.generate.regions import table
from vit.checkpoints.published import Published, published_models

# By how a name begins, the first that fits. The rest are the Vision Transformers of timm's
# vision_transformer.py.
_FAMILIES = {
    "torchvision's ViT": ("torchvision:",),
    "BEiT-3": ("beit3_",),
    "DeiT": ("deit_", "deit_tiny"),
    "DeiT-III": ("deit3_",),
    "EVA": ("eva_", "eva_giant"),
    "EVA-02": ("eva02_",),
    "FlexiViT": ("flexivit_",),
}


def _family(model: Published) -> str:
    for family, beginnings in _FAMILIES.items():
        if model.name.startswith(beginnings):
            return family
    if "_clip_" in model.name or "quickgelu" in model.name:
        return "CLIP, fine-tuned"
    if "siglip" in model.name:
        return "SigLIP, fine-tuned"
    if "_rope_" in model.name or "_mixed_" in model.name:
        return "RoPE-ViT"
    if ".sbb" in model.name:
        return "SBB: registers, average pooling"
    return "ViT and others of its file"


def coverage() -> str:
    by_family: dict[str, list[Published]] = {}
    for model in published_models():
        by_family.setdefault(_family(model), []).append(model)
    rows = []
    for family, models in sorted(by_family.items()):
        loaded = [model for model in models if model.unsupported is None]
        best = max((model.top1 or 0 for model in loaded), default=0)
        rows.append(
            (family, str(len(models)), str(len(loaded)), f"{best:.1f}" if best else "not published")
        )
    total = published_models()
    loaded = [model for model in total if model.unsupported is None]
    rows.append(("**all**", f"**{len(total)}**", f"**{len(loaded)}**", ""))
    return table(("family", "published", "load", "best top-1, %"), rows)
