"""What transformers' config.json and preprocessor_config.json say, as a ModelSpec.

Every key is obeyed, known to change nothing, or refused by its name. A key that is missing means
what the processor's own class takes for it (transformers 5.23), which differs from class to class.

One thing is torchvision's way and not transformers': where a crop cannot be cut from the very
middle, it may lie one pixel beside theirs.
"""

import re
from typing import Any

from vit.config import ViTConfig
from vit.errors import ModelError
from vit.head import Activation
from vit.preprocess import Preprocess

from .bundle import ModelSpec
from .locate import Source
from .values import one_side, per_channel, read_json, refuse_unknown


def transformers_spec(config: dict[str, Any], source: Source) -> ModelSpec:
    if source.preprocessor is None:
        raise ModelError(
            f"{source.name} has no preprocessor_config.json, so how its photos were prepared is "
            "unknown; save the image processor beside the model, or convert it with `label-images "
            "models convert`"
        )
    distilled = _check(config, source)
    in_chans = config.get("num_channels", 3)
    labels = _labels(config, source)
    vit = ViTConfig(
        img_size=one_side(config.get("image_size", 224)),
        patch_size=one_side(config.get("patch_size", 16)),
        in_chans=in_chans,
        n_classes=len(labels),
        embed_dim=config.get("hidden_size", 768),
        depth=config.get("num_hidden_layers", 12),
        n_heads=config.get("num_attention_heads", 12),
        mlp_ratio=config.get("intermediate_size", 3072) / config.get("hidden_size", 768),
        qkv_bias=config.get("qkv_bias", True),
        distilled=distilled,
        norm_eps=config.get("layer_norm_eps", 1e-12),
    )
    what = f"the preprocessor_config.json of {source.name}"
    kind = config.get("image_processor_type") or _DEFAULT_PROCESSOR[config["model_type"]]
    preprocess = _preprocess(read_json(source.preprocessor), kind, in_chans, what)
    return ModelSpec(vit, preprocess, labels, activation=_activation(config, source))


# --- config.json

# As transformers' own pipeline for image classification goes by it.
_ACTIVATIONS: dict[str, Activation] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
}

_ARCHITECTURES = {
    ("vit", "ViTForImageClassification"): False,  # whether it is distilled
    ("deit", "DeiTForImageClassificationWithTeacher"): True,
}
_USED = {
    "architectures", "model_type", "id2label", "label2id", "num_labels", "problem_type",
    "image_size", "patch_size",
    "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "hidden_act",
    "qkv_bias", "layer_norm_eps",
}  # fmt: skip
# Of training, of how the same numbers are computed, of parts a classifier has not (pooler,
# decoder).
_INERT = {
    "hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_dropout", "attention_dropout",
    "classifier_dropout",
    "classifier_dropout_prob", "drop_path_rate", "initializer_range", "encoder_stride",
    "pooler_act",
    "pooler_output_size", "gradient_checkpointing", "chunk_size_feed_forward", "use_cache", "dtype",
    "torch_dtype",
    "attn_implementation", "_attn_implementation", "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "output_hidden_states", "output_attentions", "return_dict", "torchscript", "use_bfloat16",
    "tf_legacy_loss",
    "transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "finetuning_task",
    "loss_type",
    "task_specific_params", "image_processor_type", "out_features", "out_indices", "stage_names",
    "_num_labels", "padding",  # AutoTrain's
}  # fmt: skip
# transformers 4 writes the settings of text generation into every model's config.
_TEXT = {
    "vocab_size", "is_encoder_decoder", "is_decoder", "add_cross_attention",
    "cross_attention_hidden_size",
    "tie_word_embeddings", "tie_encoder_decoder", "max_length", "min_length", "do_sample",
    "early_stopping",
    "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p",
    "typical_p",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id",
    "forced_eos_token_id",
    "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens",
    "tokenizer_class", "prefix", "bos_token_id", "pad_token_id", "eos_token_id", "sep_token_id",
    "decoder_start_token_id", "max_position_embeddings", "type_vocab_size", "problem_type",
}  # fmt: skip


def _check(config: dict[str, Any], source: Source) -> bool:
    """Refuse what the plain network would compute otherwise.

    Says whether the model is distilled.
    """
    for name in (
        "pruned_heads",
        "auto_map",
    ):  # written by every transformers 4, and almost always empty
        if config.get(name):
            raise ModelError(
                f"{source.name} has {name}={config[name]!r}, which the plain Vision Transformer "
                "has not"
            )
    known = _USED | _INERT | _TEXT | {"pruned_heads", "auto_map"}
    refuse_unknown(f"the config.json of {source.name}", config, known)
    if config.get("hidden_act", "gelu") != "gelu":
        raise ModelError(
            f"activation {config['hidden_act']!r} is not supported; the Vision Transformer's is "
            "gelu"
        )
    kinds = [(config["model_type"], name) for name in config.get("architectures") or ()]
    if ("deit", "DeiTForImageClassification") in kinds:
        raise ModelError(
            f"{source.name} is a DeiTForImageClassification, which has a distillation token but "
            "no head for it; supported are ViTForImageClassification and "
            "DeiTForImageClassificationWithTeacher"
        )
    for kind in kinds:
        if kind not in _ARCHITECTURES:
            raise ModelError(
                f"{source.name} is a {kind[1]} of the kind {kind[0]}; supported are "
                "ViTForImageClassification (vit) and DeiTForImageClassificationWithTeacher "
                "(deit), which end in a head for classes"
            )
    return any(_ARCHITECTURES[kind] for kind in kinds)


def _activation(config: dict[str, Any], source: Source) -> Activation:
    problem = config.get("problem_type") or "single_label_classification"
    if problem not in _ACTIVATIONS:
        raise ModelError(
            f"{source.name} was trained for {problem}, so its outputs are no scores of classes; "
            f"supported are {' and '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[problem]


def _labels(config: dict[str, Any], source: Source) -> tuple[str, ...]:
    names, count = config.get("id2label"), config.get("num_labels")
    if not names:  # what transformers leaves unsaid
        names = {
            str(class_id): f"LABEL_{class_id}" for class_id in range(2 if count is None else count)
        }
    if count is not None and count != len(names):
        raise ModelError(
            f"{source.name} says num_labels={count} but id2label names {len(names)}; correct its "
            "config"
        )
    missing = [class_id for class_id in range(len(names)) if str(class_id) not in names]
    if missing:
        raise ModelError(
            f"{source.name} has id2label for {len(names)} classes and none for class "
            f"{missing[0]}; correct its config: classes are numbered from 0 on"
        )
    labels = tuple(names[str(class_id)] for class_id in range(len(names)))
    if not all(isinstance(label, str) for label in labels):
        raise ModelError(
            f"the class names of {source.name} (id2label) are not all of text; give them with "
            "quotes"
        )
    if len(labels) == 1 and config.get("problem_type") != "multi_label_classification":
        raise ModelError(
            f"{source.name} has a single output ({labels[0]!r}), which transformers takes as a "
            "regression and which as a class would be 100% sure of every photo; a classifier has "
            "two or more"
        )
    # Two classes may have one name (ImageNet has two cranes), and label2id can then keep only one
    # of them. It may also have been left at its default. But where both name a class they must mean
    # the same.
    for label, class_id in (config.get("label2id") or {}).items():
        if not re.fullmatch(r"LABEL_\d+", label) and labels[int(class_id) : int(class_id) + 1] != (
            label,
        ):
            raise ModelError(
                f"{source.name} disagrees with itself: label2id has {label!r} as class {class_id} "
                f"and id2label has {names.get(str(class_id), 'none')!r} there; correct its "
                "config, or the labels may be wrong"
            )
    return labels


# --- preprocessor_config.json

_HALF, _CLIP_MEAN = (0.5, 0.5, 0.5), (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_COMMON: dict[str, Any] = {
    "do_resize": True, "do_center_crop": False, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_pad": False, "resample": 3, "image_mean": _HALF, "image_std": _HALF,
    "default_to_square": True,
    "do_convert_rgb": False,
}  # fmt: skip
_CLIP = _COMMON | {
    "size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True,
    "default_to_square": False,
    "image_mean": _CLIP_MEAN, "image_std": _CLIP_STD, "do_convert_rgb": True,
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
_DEFAULT_PROCESSOR = {"vit": "ViTImageProcessor", "deit": "DeiTImageProcessor"}
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


def _preprocess(said: dict[str, Any], usual_kind: str, in_chans: int, what: str) -> Preprocess:
    """What the processor does, which is of `usual_kind` where it does not name its class."""
    kind = said.get("image_processor_type") or said.get("feature_extractor_type") or usual_kind
    kind = re.sub(r"(Fast|Pil)$", "", kind.replace("FeatureExtractor", "ImageProcessor"))
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
