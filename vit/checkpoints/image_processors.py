"""What transformers' preprocessor_config.json says, as a Preprocess.

Every key is obeyed, known to change nothing, or refused by its name. A key that is missing means
what the processor's own class takes for it (transformers 5.23), which differs from class to class.

One thing is torchvision's way and not transformers': where a crop cannot be cut from the very
middle, it may lie one pixel beside theirs.
"""

import re
from typing import Any

from vit.errors import ModelError
from vit.preprocess import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocess

from .values import one_side, per_channel, refuse_unknown

_COMMON: dict[str, Any] = {
    "do_resize": True, "do_center_crop": False, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_pad": False, "resample": 3, "image_mean": HALF, "image_std": HALF,
    "default_to_square": True,
    "do_convert_rgb": False,
}  # fmt: skip
_CLIP = _COMMON | {
    "size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True,
    "default_to_square": False,
    "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "do_convert_rgb": True,
}  # fmt: skip
# What each class takes for a key that is missing; and what one of them alone knows, crop_pct. A
# size that is missing is a square where it says so here, whatever default_to_square makes of a
# number.
_PROCESSORS: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": _COMMON | {"size": {"height": 224, "width": 224}, "resample": 2},
    "DeiTImageProcessor": _COMMON
    | {"size": {"height": 256, "width": 256}, "crop_size": 224, "do_center_crop": True},
    "ConvNextImageProcessor": _COMMON
    | {"size": {"shortest_edge": 384}, "crop_pct": 224 / 256, "default_to_square": False},
    "CLIPImageProcessor": _CLIP,
    "BitImageProcessor": _CLIP,
    "SiglipImageProcessor": _COMMON
    | {"size": {"height": 224, "width": 224}, "default_to_square": False, "do_convert_rgb": True},
}
# Whose processor a model has that names none, and what it says in the published models of a family.
# Sides are for the family's usual 224 pixels; a model of another size takes them in proportion.
_IMAGENET = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
FAMILY_PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTImageProcessor", {"size": 224}),
    "deit": ("DeiTImageProcessor", {"size": 256, "crop_size": 224, **_IMAGENET}),
    "dinov2": ("BitImageProcessor", {"size": 256, "crop_size": 224, **_IMAGENET}),
    "dinov2_with_registers": ("BitImageProcessor", {"size": 256, "crop_size": 224, **_IMAGENET}),
    "clip": ("CLIPImageProcessor", {"size": 224, "crop_size": 224}),
    "siglip": ("SiglipImageProcessor", {"size": 224, "default_to_square": True}),
    "siglip2": ("Siglip2ImageProcessor", {}),
}
_INERT_PROCESSOR = {
    "image_processor_type", "feature_extractor_type", "processor_class", "_processor_class",
    "data_format",
    "input_data_format", "device", "return_tensors", "disable_grouping", "image_seq_length",
    "_valid_processor_keys",
    "transformers_version", "name_or_path", "_name_or_path",
    "crop_size", "pad_size",  # unless there is a crop; and a border is refused
}  # fmt: skip
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_RESAMPLE_UNSUPPORTED = {4: "box", 5: "hamming"}
# Steps some processors have and none of ours: nothing where they are off.
_OFF = re.compile(r"do_\w+|rescale_offset|reduce_labels|use_square_size")


def processor_preprocess(
    said: dict[str, Any], usual_kind: str, in_chans: int, what: str
) -> Preprocess:
    """What the processor does, which is of `usual_kind` where it does not name its class.

    `what` is what messages call the file. Raises ModelError.
    """
    kind = said.get("image_processor_type") or said.get("feature_extractor_type") or usual_kind
    kind = re.sub(r"(Fast|Pil)$", "", kind.replace("FeatureExtractor", "ImageProcessor"))
    if kind == "Siglip2ImageProcessor":
        raise ModelError(
            f"{what} names a {kind}, which gives each photo a number of patches for its own shape, "
            "and this tool's networks see squares; SigLIP 2 models of one size load, such as "
            "google/siglip2-base-patch16-224"
        )
    if kind not in _PROCESSORS:
        raise ModelError(
            f"{what} names a {kind}, and what that does to a photo is unknown to this tool; it "
            f"knows {', '.join(_PROCESSORS)}"
        )
    defaults = _PROCESSORS[kind]
    said = {
        name: value
        for name, value in said.items()
        if value or name in defaults or not _OFF.fullmatch(name)
    }
    refuse_unknown(what, said, {*defaults, *_INERT_PROCESSOR})
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "resample"):
        if (
            name in said and said[name] is None and defaults[name]
        ):  # off in transformers 4, on in transformers 5
            raise ModelError(
                f"{what} says {name}=null, which transformers has read in two ways; say true or "
                "false"
            )
    values = defaults | {name: value for name, value in said.items() if value is not None}
    if not values["do_resize"]:
        raise ModelError(
            f"{what} says do_resize=false: photos keep their own sizes, which is not supported"
        )
    if values["do_pad"]:
        raise ModelError(
            f"{what} says do_pad={values['do_pad']!r}: photos get a border, which is not supported"
        )
    if values["do_convert_rgb"] and in_chans != 3:
        raise ModelError(
            f"{what} says do_convert_rgb=true, which gives 3 channels, and the model takes "
            f"{in_chans}"
        )
    resample = values["resample"]
    if resample not in _RESAMPLE:
        raise ModelError(
            f"{what} says resample={resample!r} "
            f"({_RESAMPLE_UNSUPPORTED.get(resample, 'no filter of Pillow')}), which is not "
            f"supported; {', '.join(f'{number} ({name})' for number, name in _RESAMPLE.items())} "
            "are"
        )
    resize_size, crop_size, fit = _sizes(values, kind, what)
    mean, std = _scaled(values, in_chans, what)
    return Preprocess(crop_size, resize_size, fit, _RESAMPLE[resample], mean, std)


def family_preprocess(family: str, img_size: int, in_chans: int, name: str) -> Preprocess:
    """What the published models of a family do, for one that does not say it.

    DINOv2's were trained for larger images than they are used with, so theirs is not `img_size`.
    """
    kind, said = FAMILY_PROCESSORS[family]
    if not family.startswith("dinov2"):
        sides = {
            side: said[side] * img_size // 224 for side in ("size", "crop_size") if side in said
        }
        said = said | sides
    if in_chans != 3 and family != "vit":
        raise ModelError(
            f"{name} takes images of {in_chans} channels and has no preprocessor_config.json, and "
            f"the {family} models that were published take 3; save the image processor beside it"
        )
    return processor_preprocess(said, kind, in_chans, name)


def _sizes(values: dict[str, Any], kind: str, what: str) -> tuple[int, int, str]:
    """To what size a photo is resized, what is cut from it, and whether its aspect ratio is kept."""
    size, crops = values["size"], values["do_center_crop"]
    if isinstance(size, int) and not values["default_to_square"]:
        size = {"shortest_edge": size}
    if isinstance(size, dict) and set(size) not in ({"height", "width"}, {"shortest_edge"}):
        raise ModelError(
            f"{what} says size={size}; supported are {{height, width}}, {{shortest_edge}} and a "
            "single number"
        )
    keeps_aspect = isinstance(size, dict) and "shortest_edge" in size
    if kind == "ConvNextImageProcessor":
        if not keeps_aspect or crops:
            raise ModelError(
                f"{what} says size={size} and do_center_crop={str(crops).lower()}; a {kind} has a "
                "shortest_edge, and no crop but the one of crop_pct"
            )
        side = one_side(size)
        if side >= 384:  # from there on it squashes, whatever crop_pct says
            return side, side, "squash"
        if not 0 < values["crop_pct"] <= 1:
            raise ModelError(
                f"{what} says crop_pct={values['crop_pct']!r}; it must be above 0 and at most 1"
            )
        return int(side / values["crop_pct"]), side, "crop"
    if keeps_aspect and not crops:
        raise ModelError(
            f"{what} resizes the shorter side (size={size}) and crops nothing, so photos would "
            "not become squares; the processor the model was trained with says "
            "do_center_crop=true, or size with height and width"
        )
    if crops and "crop_size" not in values:
        raise ModelError(
            f"{what} says do_center_crop=true and no crop_size, and a {kind} has none of its own; "
            "add the crop_size the model was trained with"
        )
    side = one_side(size)
    return (
        side,
        one_side(values["crop_size"]) if crops else side,
        "crop" if keeps_aspect else "squash",
    )


def _scaled(
    values: dict[str, Any], in_chans: int, what: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std that do in one step, for x / 255, what rescaling and normalising do to x."""
    factor = values["rescale_factor"] if values["do_rescale"] else 1.0
    if not isinstance(factor, int | float) or not factor > 0:
        raise ModelError(f"{what} says rescale_factor={factor!r}; it must be a number above 0")
    mean = per_channel(values["image_mean"] if values["do_normalize"] else 0.0, in_chans)
    std = per_channel(values["image_std"] if values["do_normalize"] else 1.0, in_chans)
    scale = 255 * factor
    if abs(scale - 1) > 1e-5:  # 0.00392157 is 1/255 as well
        mean, std = tuple(value / scale for value in mean), tuple(value / scale for value in std)
    return mean, std
