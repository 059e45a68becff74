"""What timm's config.json says, as a ModelSpec.

Every key is obeyed, known to change nothing, or refused by its name, with timm's own defaults for
what is missing (timm.data.resolve_data_config).
"""

import math
from dataclasses import replace
from typing import Any

from vit.architectures import architecture
from vit.config import ViTConfig
from vit.errors import ModelError
from vit.preprocess import IMAGENET_MEAN, IMAGENET_STD, INTERPOLATIONS, Preprocess
from vit.timm_arguments import TABLE_ONLY, fields_of, refused

from .bundle import ModelSpec
from .values import one_side, per_channel, refuse_unknown

# The part that says how photos are prepared: what it may say (timm refuses other keys itself) ...
_DATA = {"input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"}
_FITS = {"center": "crop", "squash": "squash", "border": "border"}
_DATA_INERT = {
    "num_classes", "label_names", "label_descriptions", "label_offset", "architecture", "tag",
    "custom_load", "url",
    "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "license", "description",
    "origin_url",
    "paper_name", "paper_ids", "notes", "first_conv", "classifier", "pool_size", "test_pool_size",
    "fixed_input_size",
    # recommendations, which timm follows only when asked to
    "min_input_size", "test_input_size", "test_crop_pct",
    "num_features", "labels", "global_pool", "model_args",  # in the flat files of older versions
}  # fmt: skip

_PROJECTIONS = {512, 640, 768, 896, 1024, 1152, 1280}  # sizes of the embeddings of published CLIPs


def timm_spec(config: dict[str, Any]) -> ModelSpec:
    is_flat = "pretrained_cfg" not in config  # older files
    data = config if is_flat else config["pretrained_cfg"]
    refuse_unknown(
        "timm's config.json" if is_flat else "timm's pretrained_cfg", data, _DATA | _DATA_INERT
    )
    if not is_flat and (astray := _DATA & config.keys()):
        raise ModelError(
            f"timm's config.json has {', '.join(sorted(astray))} outside pretrained_cfg, where "
            "timm does not read it; move it in, or take it out"
        )
    if data.get("label_offset"):
        raise ModelError(
            f"timm's config.json says label_offset={data['label_offset']!r}: the head has classes "
            "that are to be left out; load it with timm, which leaves them out, and save it with "
            "save_for_hf"
        )
    vit = _network(config, data)
    if vit.n_classes == 1:
        raise ModelError(
            "the timm model has a single class, which would be 100% sure of every photo; it needs "
            "two"
        )
    labels, label_ids = _labels(config, data)
    is_tower = not labels and _is_tower(config["architecture"], data.get("tag"), vit.n_classes)
    if is_tower:  # timm keeps the projection where its classifiers have the head, with a bias
        vit = replace(vit, n_classes=0, proj_dim=vit.n_classes, proj_bias=True)
    return ModelSpec(vit, _preprocess(data, vit.in_chans), labels, label_ids, is_tower=is_tower)


def _is_tower(architecture: str, tag: str | None, n_outputs: int) -> bool:
    """Whether a model's last layer is a CLIP's projection: timm's tags of those that were fine-tuned
    for classes have `ft_` in them.
    """
    is_pretrained_alone = bool(tag) and "ft_" not in str(tag)
    return "_clip_" in architecture and is_pretrained_alone and n_outputs in _PROJECTIONS


def _labels(
    config: dict[str, Any], data: dict[str, Any]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names and, where they are descriptions of other names, those: timm's are then ids."""
    names = config.get("label_names") or data.get("label_names")
    names = names or config.get("labels") or data.get("labels") or ()
    if isinstance(names, dict):  # class number: name, which timm allows to have gaps
        if set(map(str, names)) != {str(class_id) for class_id in range(len(names))}:
            raise ModelError(
                f"timm's config.json has label_names for {len(names)} classes that are not "
                f"numbered 0 to {len(names) - 1}; every class needs a name"
            )
        names = [names[str(class_id)] for class_id in range(len(names))]
    descriptions = config.get("label_descriptions") or data.get("label_descriptions") or {}
    if not isinstance(names, list | tuple) or not isinstance(descriptions, dict):
        raise ModelError(
            "timm's config.json has label_names that are no list, or label_descriptions that do "
            "not go by name; write them as timm's save_for_hf does"
        )
    labels = tuple(descriptions.get(name, name) for name in names)
    if not all(isinstance(text, str) and text.strip() for text in (*labels, *names)):
        raise ModelError(
            "the class names in timm's config.json are not all of text, or some are empty"
        )
    return labels, tuple(names) if descriptions else ()


def _network(config: dict[str, Any], data: dict[str, Any]) -> ViTConfig:
    """What timm builds: its entry for the architecture's name, with the file's model_args over it."""
    known = architecture(config["architecture"])
    made_with = {
        name: value for name, value in (config.get("model_args") or {}).items() if value is not None
    }
    for name in made_with.keys() & set(TABLE_ONLY):
        raise refused(name, made_with[name])
    # A fine-tuned model may have the number of its first training left in pretrained_cfg: timm goes
    # by the outer one.
    n_classes = config.get("num_classes", data.get("num_classes"))
    if config.get("num_classes") not in (None, made_with.get("num_classes", n_classes)):
        raise ModelError(
            f"timm's config.json says num_classes={config['num_classes']} and, in model_args, "
            f"{made_with['num_classes']}; correct it to what the head has"
        )
    in_chans, *size = data["input_size"]
    arguments = {"global_pool": data.get("global_pool")} | known.arguments
    arguments |= {"num_classes": n_classes, "in_chans": in_chans, "img_size": size} | made_with
    fields = fields_of(known.kind, arguments)
    # Written for readers alone: timm builds by the arguments. Where it tells another story than
    # they do, one of the two is a mistake, and nobody can say which.
    said, built = config.get("global_pool"), fields["pool"].removesuffix("_all")
    if said and said != built:
        raise ModelError(
            f"timm's config.json says global_pool={said!r}, and a {config['architecture']} with "
            f"its model_args has {built!r}; correct it, or say it in model_args"
        )
    return ViTConfig(**fields)


def _preprocess(data: dict[str, Any], in_chans: int) -> Preprocess:
    crop_size = one_side(data["input_size"][1:])
    crop_mode = data.get("crop_mode") or "center"
    if crop_mode not in _FITS:
        raise ModelError(f"timm's crop_mode {crop_mode!r} is not supported; {', '.join(_FITS)} are")
    interpolation = data.get("interpolation") or "bicubic"
    if interpolation not in INTERPOLATIONS:
        raise ModelError(
            f"timm's interpolation {interpolation!r} is not supported; "
            f"{', '.join(INTERPOLATIONS)} are. Labels would differ with another one than the "
            "model was made for"
        )
    crop_pct = 0.875 if data.get("crop_pct") is None else data["crop_pct"]
    most = math.inf if crop_mode == "border" else 1
    if (
        isinstance(crop_pct, bool)
        or not isinstance(crop_pct, int | float)
        or not 0 < crop_pct <= most
    ):
        raise ModelError(
            f"timm's crop_pct is {crop_pct!r}; it is the share of the resized photo that the crop "
            f"takes, above 0 and at most 1 (with more, timm's crop_mode {crop_mode!r} adds a black "
            "border, which is not supported)"
        )
    return Preprocess(
        crop_size=crop_size,
        resize_size=math.floor(crop_size / crop_pct),
        fit=_FITS[crop_mode],
        interpolation=interpolation,
        mean=per_channel(data.get("mean") or IMAGENET_MEAN, in_chans),
        std=per_channel(data.get("std") or IMAGENET_STD, in_chans),
    )
