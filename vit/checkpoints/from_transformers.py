"""What a folder of transformers' save_pretrained says of itself, as a ModelSpec.

The network stands in config.json, in the `vision_config` of it where there is a text tower beside,
and how photos are prepared in preprocessor_config.json (image_processors.py). Every key is obeyed,
known to change nothing, or refused by its name. A key that is missing means what the config's own
class takes for it (transformers 5.23).
"""

import re
from typing import Any

from vit.config import ViTConfig
from vit.errors import ModelError
from vit.head import Activation
from vit.preprocess import Preprocess

from .bundle import ModelSpec
from .image_processors import FAMILY_PROCESSORS, family_preprocess, processor_preprocess
from .locate import Source
from .transformers_networks import ANY_SIZE, ARCHITECTURES, FAMILIES, TOWERS, network_fields
from .values import read_json, refuse_unknown

# As transformers' own pipeline for image classification goes by it.
_ACTIVATIONS: dict[str, Activation] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
}

_USED = {"architectures", "model_type", "id2label", "label2id", "num_labels", "problem_type"}
# Of training, of how the same numbers are computed, of parts a classifier has not (pooler, decoder,
# a text tower).
_INERT = {
    "hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_dropout", "attention_dropout",
    "classifier_dropout", "classifier_dropout_prob", "dropout", "drop_path_rate",
    "initializer_range", "initializer_factor", "encoder_stride", "pooler_act",
    "pooler_output_size", "gradient_checkpointing", "chunk_size_feed_forward", "use_cache", "dtype",
    "torch_dtype", "attn_implementation", "_attn_implementation", "_attn_implementation_autoset",
    "_attn_implementation_internal", "output_hidden_states", "output_attentions", "return_dict",
    "torchscript", "use_bfloat16", "tf_legacy_loss", "transformers_version", "_name_or_path",
    "name_or_path", "_commit_hash", "finetuning_task", "loss_type", "task_specific_params",
    "image_processor_type", "out_features", "out_indices", "stage_names", "_out_features",
    "_out_indices", "_num_labels", "padding",  # AutoTrain's
}  # fmt: skip
_DINOV2 = {"layerscale_value", "use_mask_token", "apply_layernorm", "reshape_hidden_states"}
_TOWERS = {"text_config", "text_config_dict", "vision_config", "vision_config_dict"}
_INERT_OF = {
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "clip": _TOWERS | {"projection_dim", "logit_scale_init_value"},
    "siglip": _TOWERS,
    "siglip2": _TOWERS,
}
# transformers 4 writes the settings of text generation into every model's config.
_TEXT = {
    "vocab_size", "is_encoder_decoder", "is_decoder", "add_cross_attention",
    "cross_attention_hidden_size", "tie_word_embeddings", "tie_encoder_decoder", "max_length",
    "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
    "suppress_tokens", "begin_suppress_tokens", "tokenizer_class", "prefix", "bos_token_id",
    "pad_token_id", "eos_token_id", "sep_token_id", "decoder_start_token_id",
    "max_position_embeddings", "type_vocab_size", "problem_type",
}  # fmt: skip

_MOST_CLASSES = 200_000  # ten times what the largest published heads have


def transformers_spec(config: dict[str, Any], source: Source) -> ModelSpec:
    """Read the folder's files. Raises ModelError, or KeyError and the like where one is damaged.

    A model without a head has no labels, and n_classes 0.
    """
    model_type = config["model_type"]
    family = TOWERS.get(model_type, model_type)
    architecture = _architecture(config, family, source)
    values = _network_values(config, family, source)
    has_head = "ForImageClassification" in architecture
    labels = _labels(config, source) if has_head else ()
    activation = _activation(config, source) if has_head else "softmax"
    fields = network_fields(values, family, architecture, source.name) | {"n_classes": len(labels)}
    preprocess, notes = _preprocess(config, family, fields, source)
    resampling = ANY_SIZE.get(family, "")
    if resampling:
        fields["img_size"] = preprocess.crop_size
    return ModelSpec(
        ViTConfig(**fields),
        preprocess,
        labels,
        activation=activation,
        pos_resampling=resampling,
        notes=notes,
    )


def _architecture(config: dict[str, Any], family: str, source: Source) -> str:
    known = ARCHITECTURES[family]
    names = config.get("architectures") or [next(iter(known))]
    for name in names:
        if name not in known:
            raise ModelError(
                f"{source.name} is a {name} of the kind {config['model_type']}, which this tool "
                f"does not know; of that kind it reads {', '.join(known)}"
            )
    return str(names[0])


def _network_values(config: dict[str, Any], family: str, source: Source) -> dict[str, Any]:
    """The keys that say what the network is, all of them; everything else is checked."""
    defaults = FAMILIES[family]
    inert = _USED | _INERT | _TEXT | _INERT_OF.get(family, set()) | {"pruned_heads", "auto_map"}
    parts = {f"the config.json of {source.name}": config}
    vision = config
    if family in TOWERS.values() and config["model_type"] == family:
        vision = config.get("vision_config") or {}
        if config.get("vision_config_dict"):  # as transformers goes by it where both are there
            vision = vision | defaults | config["vision_config_dict"]
        parts[f"the vision_config of {source.name}"] = vision
    for what, part in parts.items():
        for name in ("pruned_heads", "auto_map"):  # every transformers 4 wrote them, mostly empty
            if part.get(name):
                raise ModelError(
                    f"{source.name} has {name}={part[name]!r}, which the plain Vision Transformer "
                    "has not"
                )
        refuse_unknown(what, part, inert | (defaults.keys() if part is vision else set()))
    values = {name: vision.get(name, value) for name, value in defaults.items()}
    if family == "clip" and vision is not config:  # the projection is the whole model's
        values["projection_dim"] = config.get("projection_dim", defaults["projection_dim"])
    return values


def _preprocess(
    config: dict[str, Any], family: str, fields: dict[str, Any], source: Source
) -> tuple[Preprocess, tuple[str, ...]]:
    """How photos are prepared; and what is to be said where nobody wrote it down."""
    said = read_json(source.preprocessor) if source.preprocessor else None
    if said and source.preprocessor and source.preprocessor.name == "processor_config.json":
        said = said.get("image_processor")  # beside a tokenizer's
    if said is None or source.preprocessor is None:
        preprocess = family_preprocess(family, fields["img_size"], fields["in_chans"], source.name)
        note = (
            f"{source.name} has no preprocessor_config.json, so photos are prepared as for the "
            f"published models of its kind ({family}): {preprocess.describe()}"
        )
        return preprocess, (note,)
    what = f"the {source.preprocessor.name} of {source.name}"
    kind = config.get("image_processor_type") or FAMILY_PROCESSORS[family][0]
    return processor_preprocess(said, kind, fields["in_chans"], what), ()


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
    if count is not None and (type(count) is not int or not 1 <= count <= _MOST_CLASSES):
        raise ModelError(
            f"{source.name} says num_labels={count!r}; it must be a whole number, at least 1 and at "
            f"most {_MOST_CLASSES:,}"
        )
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
    if not all(isinstance(label, str) and label.strip() for label in labels):
        raise ModelError(
            f"the class names of {source.name} (id2label) are not all of text; give each one, with "
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
