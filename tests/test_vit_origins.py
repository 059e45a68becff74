"""What a model's own config files say is obeyed or refused: against the origins' own processors and
transforms.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.data
import torch
import transformers
from timm.models import save_for_hf
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DeiTImageProcessor,
    SiglipImageProcessor,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTImageProcessorPil,
)
from transformers import ViTConfig as TheirConfig

from tests.helpers import largest_difference, peaked_, photo
from vit.checkpoints.image_processors import _PROCESSORS
from vit.classifier import load_classifier
from vit.config import variant
from vit.errors import ModelError
from vit.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, fit_image, normalise

SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 96,
}
THREE = {0: "a", 1: "b", 2: "c"}
# What their crop and ours both cut from the very middle, at every size used here.
PHOTOS = ((500, 375), (210, 330), (64, 64), (90, 70), (91, 117))


def change_json(path: Path, change: dict[str, Any], without: tuple[str, ...] = ()) -> None:
    """Change keys of a JSON file, and take some out."""
    values = json.loads(path.read_text()) | change
    path.write_text(
        json.dumps({name: value for name, value in values.items() if name not in without})
    )


def transformers_folder(
    folder: Path, processor: Any = None, config: dict[str, Any] | None = None, **settings: Any
) -> ViTForImageClassification:
    """Write a small model of three classes with its processor, and change keys of its config.json."""
    theirs = ViTForImageClassification(
        TheirConfig(**SMALL, **{"image_size": 64, "id2label": THREE, **settings})
    ).eval()
    peaked_(theirs)
    theirs.save_pretrained(folder)
    (processor or ViTImageProcessor(size={"height": 64, "width": 64})).save_pretrained(folder)
    change_json(folder / "config.json", config or {})
    return theirs


def ours_of(preprocess: Preprocess, seed: int, size: tuple[int, int]) -> Tensor:
    return normalise(fit_image(photo(seed, *size), preprocess)[None], preprocess)[0]


def pixels_differ(folder: Path, preprocess: Preprocess) -> float:
    """How far our pixels lie from those of the processor in the folder, in levels of 255, at most."""
    theirs = AutoImageProcessor.from_pretrained(folder)
    spread = 255 * min(preprocess.std)
    expected = [
        theirs(photo(seed, *size), return_tensors="pt").pixel_values[0]
        for seed, size in enumerate(PHOTOS)
    ]
    ours = [ours_of(preprocess, seed, size) for seed, size in enumerate(PHOTOS)]
    return spread * max(map(largest_difference, ours, expected))


SQUARE = {"height": 64, "width": 64}
LARGER = {"height": 72, "width": 72}
PROCESSORS = {
    "vit": ViTImageProcessor(size=SQUARE),
    "vit by Pillow": ViTImageProcessorPil(size=SQUARE),
    "bicubic": ViTImageProcessor(size=SQUARE, resample=3),
    "nearest": ViTImageProcessor(size=SQUARE, resample=0),
    "lanczos": ViTImageProcessor(size=SQUARE, resample=1),
    "not normalised": ViTImageProcessor(size=SQUARE, do_normalize=False),
    "not rescaled": ViTImageProcessor(size=SQUARE, do_rescale=False),
    "neither": ViTImageProcessor(size=SQUARE, do_rescale=False, do_normalize=False),
    "to -1..1 at once": ViTImageProcessor(
        size=SQUARE, rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3
    ),
    "a factor alone": ViTImageProcessor(size=SQUARE, rescale_factor=1 / 128, do_normalize=False),
    "a mean of its own": ViTImageProcessor(size=SQUARE, image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_STD)),
    "vit with a crop": ViTImageProcessor(size=LARGER, do_center_crop=True, crop_size=SQUARE),
    "vit by the shorter side": ViTImageProcessor(size={"shortest_edge": 72}, do_center_crop=True, crop_size=SQUARE),
    "deit": DeiTImageProcessor(size=LARGER, crop_size=SQUARE),
    "deit without its crop": DeiTImageProcessor(size=SQUARE, do_center_crop=False),
    "convnext": ConvNextImageProcessor(size={"shortest_edge": 64}),
    "convnext, crop_pct": ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.75),
    "clip": CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=SQUARE),
    "bit": BitImageProcessor(size={"shortest_edge": 72}, crop_size=SQUARE),
    "siglip": SiglipImageProcessor(size=SQUARE),
    "siglip with a crop": SiglipImageProcessor(size=72, do_center_crop=True, crop_size=64),
}  # fmt: skip


@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
def test_a_processor_is_obeyed_to_the_pixel(tmp_path: Path, processor: Any) -> None:
    theirs = transformers_folder(tmp_path, processor)
    ours = load_classifier(str(tmp_path))
    # Pillow rounds between its two passes over an image, torch does not; we resize as Pillow only
    # for Lanczos.
    rounds_otherwise = isinstance(processor, ViTImageProcessorPil) or processor.resample == 1
    assert pixels_differ(tmp_path, ours.preprocess) < (1.01 if rounds_otherwise else 0.01)
    image = photo(1, *PHOTOS[1])
    with torch.inference_mode():
        expected = theirs(processor(image, return_tensors="pt").pixel_values.float()).logits
        logits = ours.model(ours_of(ours.preprocess, 1, PHOTOS[1])[None])
    assert largest_difference(logits, expected) < (0.02 if rounds_otherwise else 1e-4) * float(
        expected.abs().max()
    )


def test_a_crop_that_has_no_middle_lies_at_most_one_pixel_beside_theirs() -> None:
    processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=SQUARE, do_normalize=False)
    theirs = (
        processor(photo(1, 199, 333), return_tensors="pt").pixel_values[0] * 255
    )  # 64 of 107 rows: from 21.5
    ours = fit_image(photo(1, 199, 333), Preprocess(64, 64)).float()
    assert largest_difference(ours[:, :-1], theirs[:, 1:]) < 0.01


@pytest.mark.parametrize(
    ("kind", "image_size"),
    [("ViTImageProcessor", 224), ("DeiTImageProcessor", 224), ("ConvNextImageProcessor", 384),
     ("CLIPImageProcessor", 224), ("BitImageProcessor", 224), ("SiglipImageProcessor", 224),
     ("DeiTFeatureExtractor", 224), ("ViTImageProcessorFast", 224)],
)  # fmt: skip
def test_a_missing_key_means_what_the_class_takes_for_it(
    tmp_path: Path, kind: str, image_size: int
) -> None:
    transformers_folder(tmp_path, image_size=image_size)
    key = "feature_extractor_type" if kind.endswith("Extractor") else "image_processor_type"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({key: kind}))
    assert pixels_differ(tmp_path, load_classifier(str(tmp_path)).preprocess) < 0.01


@pytest.mark.parametrize("kind", _PROCESSORS)
def test_each_class_s_defaults_are_its_own(kind: str) -> None:
    """Also those that no other test's processor comes to, such as a SigLIP's default_to_square."""
    theirs: Any = getattr(transformers, kind)
    for key, ours in _PROCESSORS[kind].items():
        value = getattr(theirs, key, None) or False  # a key a class does not have is off
        if key == "crop_size":
            ours = {"height": ours, "width": ours}
        elif key in ("image_mean", "image_std"):
            ours = list(ours)
        assert value == ours, key
    named = {"size", "crop_size", "crop_pct", *_PROCESSORS["ViTImageProcessor"]}
    assert {key for key in named if getattr(theirs, key, None)} <= _PROCESSORS[kind].keys()


@pytest.mark.parametrize(
    ("said", "image_size"),
    [
        # A missing size is the class's own, a square, also where a number would be a shorter side.
        ({"image_processor_type": "DeiTImageProcessor", "default_to_square": False}, 224),
        ({"image_processor_type": "ViTImageProcessor", "default_to_square": False}, 224),
        ({"image_processor_type": "SiglipImageProcessor", "default_to_square": True}, 224),
        # A SigLIP's number is a shorter side, unless it says otherwise.
        ({"image_processor_type": "SiglipImageProcessor", "size": 72, "do_center_crop": True, "crop_size": 64}, 64),
        ({"image_processor_type": "SiglipImageProcessor", "size": 64, "default_to_square": True}, 64),
        ({"image_processor_type": "SiglipImageProcessor", "size": SQUARE}, 64),
    ],
)  # fmt: skip
def test_whether_a_size_is_a_square_is_each_class_s_own_rule(
    tmp_path: Path, said: dict[str, Any], image_size: int
) -> None:
    transformers_folder(tmp_path, image_size=image_size)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert pixels_differ(tmp_path, load_classifier(str(tmp_path)).preprocess) < 0.01


def test_without_a_class_the_processor_is_that_of_the_model(tmp_path: Path) -> None:
    theirs = DeiTForImageClassificationWithTeacher(DeiTConfig(**SMALL, num_labels=3))
    theirs.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    preprocess = load_classifier(str(tmp_path)).preprocess
    assert (preprocess.resize_size, preprocess.crop_size, preprocess.interpolation) == (
        256,
        224,
        "bicubic",
    )
    assert pixels_differ(tmp_path, preprocess) < 0.01


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        # facebook/deit-base-distilled-patch16-224 and google/vit-base-patch16-224 as published.
        ({"crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True,
          "feature_extractor_type": "DeiTFeatureExtractor", "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD,
          "resample": 3, "size": 256},
         Preprocess(224, 256, "squash", "bicubic", IMAGENET_MEAN, IMAGENET_STD)),
        ({"do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
          "resample": 2, "rescale_factor": 0.00392156862745098, "size": {"height": 224, "width": 224}},
         Preprocess(224, 224, "squash", "bilinear")),
        ({"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 224},
         Preprocess(224, 224, "squash", "bilinear")),
        # As the fast processors of transformers 4 write themselves, and its slow ones of 4.40.
        ({"crop_size": None, "data_format": "channels_first", "default_to_square": True, "device": None,
          "disable_grouping": None, "do_center_crop": None, "do_convert_rgb": None, "do_normalize": True,
          "do_pad": None, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3,
          "image_processor_type": "ViTImageProcessorFast", "image_seq_length": None, "image_std": [0.5] * 3,
          "input_data_format": None, "pad_size": None, "resample": 3, "rescale_factor": 0.00392156862745098,
          "return_tensors": None, "size": {"height": 224, "width": 224}},
         Preprocess(224, 224, "squash", "bicubic")),
        ({"_valid_processor_keys": ["images", "do_resize"], "do_normalize": True, "do_rescale": True,
          "do_resize": True, "image_mean": [0.5] * 3, "image_processor_type": "ViTImageProcessor",
          "image_std": [0.5] * 3, "resample": 2, "rescale_factor": 0.00392156862745098,
          "size": {"height": 224, "width": 224}},
         Preprocess(224, 224, "squash", "bilinear")),
        ({"crop_pct": 0.875, "do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3,
          "feature_extractor_type": "ConvNextFeatureExtractor", "image_std": [0.5] * 3, "resample": 3, "size": 224},
         Preprocess(224, 256, "crop", "bicubic")),
        ({"rescale_factor": 0.00392157, "size": [224, 224]}, Preprocess(224, 224, "squash", "bilinear")),
        ({"image_mean": 0.5, "image_std": 0.5, "do_reduce_labels": False, "rescale_offset": False},
         Preprocess(224, 224, "squash", "bilinear")),
    ],
)  # fmt: skip
def test_real_preprocessor_configs_are_read(
    tmp_path: Path, said: dict[str, Any], expected: Preprocess
) -> None:
    transformers_folder(tmp_path, image_size=224)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert load_classifier(str(tmp_path)).preprocess == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_resize": False}, "do_resize=false: photos keep"),
        ({"do_pad": True, "pad_size": {"height": 64, "width": 64}}, "do_pad=True: photos get a border"),
        ({"resample": 4}, r"resample=4 \(box\), which is not supported"),
        ({"resample": 5}, r"resample=5 \(hamming\)"),
        ({"resample": 9}, r"resample=9 \(no filter"),
        ({"size": {"longest_edge": 64}}, "size={'longest_edge': 64}"),
        ({"size": {"shortest_edge": 64, "longest_edge": 90}}, "'longest_edge': 90"),
        ({"size": {"max_height": 64, "max_width": 64}}, "max_height"),
        ({"size": {"height": 64, "width": 48}}, "only square"),
        ({"size": {"shortest_edge": 64}}, "crops nothing, so photos would not become squares"),
        ({"rescale_offset": True}, "rescale_offset=True"),
        ({"rescale_factor": 0}, "rescale_factor=0; it must be a number above 0"),
        ({"do_normalize": None}, "do_normalize=null, which transformers has read in two ways"),
        ({"do_reduce_labels": True}, "do_reduce_labels=True"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order=True"),
        ({"crop_pct": 0.9}, "crop_pct=0.9"),
        ({"antialias": False}, r"antialias=False, which this tool does not know"),
        ({"auto_map": {"AutoImageProcessor": "mine.Mine"}}, "auto_map"),
        ({"image_processor_type": "EfficientNetImageProcessor"}, "names a EfficientNetImageProcessor"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "has a shortest_edge"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": 64, "crop_pct": 0}, "crop_pct=0; it must"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": 64, "do_center_crop": True}, "no crop but"),
        ({"do_center_crop": True, "crop_size": {"height": 96, "width": 96}}, "a crop of 96 pixels does not fit"),
        ({"do_center_crop": True}, "says do_center_crop=true and no crop_size"),
        ({"do_center_crop": True, "crop_size": None}, "says do_center_crop=true and no crop_size"),
        ({"image_processor_type": "SiglipImageProcessor", "size": 64}, "photos would not become squares"),
    ],
)  # fmt: skip
def test_a_processor_that_cannot_be_obeyed_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    transformers_folder(tmp_path)
    assert load_classifier(str(tmp_path))
    change_json(tmp_path / "preprocessor_config.json", change)
    with pytest.raises(ModelError, match=message):
        load_classifier(str(tmp_path))


def test_rgb_for_a_model_of_grey_images_is_refused(tmp_path: Path) -> None:
    transformers_folder(tmp_path, num_channels=1)
    assert load_classifier(str(tmp_path)).preprocess.mean == (0.5,)
    change_json(tmp_path / "preprocessor_config.json", {"do_convert_rgb": True})
    with pytest.raises(ModelError, match="gives 3 channels, and the model takes 1"):
        load_classifier(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem_type": "regression"}, "trained for regression"),
        (
            {"id2label": {"0": "score"}, "label2id": None},
            "a single output .'score'., which transformers takes as a",
        ),
        ({"num_labels": 5}, "num_labels=5 but id2label names 3"),
        (
            {"label2id": {"b": 0, "a": 1, "c": 2}},
            "label2id has 'b' as class 0 and id2label has 'a' there",
        ),
        (
            {"label2id": {"a": 0, "b": 1, "c": 7}},
            "label2id has 'c' as class 7 and id2label has 'none' there",
        ),
        ({"id2label": {"0": 0, "1": 1, "2": 2}}, "not all of text"),
        ({"id2label": {"0": "a", "1": "b", "3": "c"}, "label2id": None}, "none for class 2"),
        ({"hidden_act": "relu"}, "activation 'relu' is not supported; gelu"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"auto_map": {"AutoModel": "mine.Mine"}}, "auto_map"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config"),
        ({"per_layer_config": {"0": {"hidden_act": "relu"}}}, "per_layer_config"),
        (
            {"layer_scale_init_value": 0.1},
            "layer_scale_init_value=0.1, which this tool does not know",
        ),
        (
            {"use_mean_pooling": True, "n_registers": 4},
            r"use_mean_pooling=True \(and n_registers\)",
        ),
        ({"architectures": ["ViTModel"]}, "has no head: it gives features"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "ViTForMaskedImageModeling"),
    ],
)
def test_a_config_that_changes_scores_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    transformers_folder(tmp_path)
    assert load_classifier(str(tmp_path)).labels == ("a", "b", "c")
    change_json(tmp_path / "config.json", change)
    with pytest.raises(ModelError, match=message):
        load_classifier(str(tmp_path))


GOOGLE = {  # google/vit-base-patch16-224, small
    "_name_or_path": "google/vit-base-patch16-224-in21k", "architectures": ["ViTForImageClassification"],
    "attention_probs_dropout_prob": 0.0, "encoder_stride": 16, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
    "hidden_size": 48, "id2label": {"0": "tench, Tinca tinca", "1": "crane", "2": "crane"}, "image_size": 64,
    "initializer_range": 0.02, "intermediate_size": 96, "label2id": {"crane": 2, "tench, Tinca tinca": 0},
    "layer_norm_eps": 1e-12, "model_type": "vit", "num_attention_heads": 3, "num_channels": 3,
    "num_hidden_layers": 1, "patch_size": 16, "qkv_bias": True, "torch_dtype": "float32",
    "transformers_version": "4.13.0.dev0",
}  # fmt: skip
# What transformers 4 writes beside that when all of a config is saved, and what trainers leave in
# it.
GENERIC = {
    "return_dict": True, "output_hidden_states": False, "output_attentions": False, "torchscript": False,
    "use_bfloat16": False, "tf_legacy_loss": False, "pruned_heads": {}, "tie_word_embeddings": True,
    "chunk_size_feed_forward": 0, "is_encoder_decoder": False, "is_decoder": False, "add_cross_attention": False,
    "cross_attention_hidden_size": None, "tie_encoder_decoder": False, "max_length": 20, "min_length": 0,
    "do_sample": False, "early_stopping": False, "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0,
    "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0, "length_penalty": 1.0,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "bad_words_ids": None, "num_return_sequences": 1,
    "output_scores": False, "return_dict_in_generate": False, "forced_bos_token_id": None, "prefix": None,
    "forced_eos_token_id": None, "remove_invalid_values": False, "exponential_decay_length_penalty": None,
    "suppress_tokens": None, "begin_suppress_tokens": None, "finetuning_task": "image-classification",
    "tokenizer_class": None, "bos_token_id": None, "pad_token_id": None, "eos_token_id": None, "sep_token_id": None,
    "decoder_start_token_id": None, "task_specific_params": None, "problem_type": "single_label_classification",
    "pooler_act": "tanh", "pooler_output_size": 48, "_attn_implementation_autoset": True, "_num_labels": 3,
    "padding": "max_length", "use_cache": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        GOOGLE,
        GOOGLE | GENERIC,
        GOOGLE | {"label2id": {"LABEL_0": 0, "LABEL_1": 1}},  # left at its default
        GOOGLE
        | {
            "label2id": {"tench, Tinca tinca": "0", "crane": "1"}
        },  # numbers as text, as many tutorials write
        TheirConfig(**SMALL, image_size=64, id2label=THREE).to_dict() | {"dtype": "float32"},
    ],
)
def test_real_configs_are_read(tmp_path: Path, config: dict[str, Any]) -> None:
    transformers_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert len(load_classifier(str(tmp_path)).labels) == 3


def test_a_config_without_class_names_has_transformers_own(tmp_path: Path) -> None:
    transformers_folder(tmp_path)
    change_json(tmp_path / "config.json", {"num_labels": 3}, without=("id2label", "label2id"))
    assert load_classifier(str(tmp_path)).labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_the_norm_s_epsilon_is_obeyed(tmp_path: Path) -> None:
    theirs = transformers_folder(tmp_path, layer_norm_eps=0.1)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert (
            largest_difference(load_classifier(str(tmp_path)).model(images), theirs(images).logits)
            < 1e-5
        )


# --- timm


def timm_folder(
    folder: Path, change: dict[str, Any], data: dict[str, Any], without: tuple[str, ...] = ()
) -> Any:
    """Write a small timm model, and change keys of its config.json and of the pretrained_cfg in it."""
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=1).eval()
    save_for_hf(
        theirs, str(folder), model_config={"label_names": list("abc")}, safe_serialization=True
    )
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] = {
        name: value
        for name, value in (config["pretrained_cfg"] | data).items()
        if name not in without
    }
    (folder / "config.json").write_text(json.dumps(config | change))
    return theirs


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(
    "size", [(500, 375), (333, 500), (224, 224), (251, 800), (97, 61), (640, 427)]
)
def test_nearest_is_timm_s_to_the_bit(size: tuple[int, int], crop_mode: str) -> None:
    transform = timm.data.create_transform(
        (3, 224, 224),
        interpolation="nearest",
        crop_pct=0.9,
        crop_mode=crop_mode,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    fit = {"center": "crop"}.get(crop_mode, crop_mode)
    ours = fit_image(photo(3, *size), Preprocess(224, 248, fit, "nearest", (0.0,) * 3, (1.0,) * 3))
    assert torch.equal(ours, (transform(photo(3, *size)) * 255).round().to(torch.uint8))


@pytest.mark.parametrize(
    ("data", "without"),
    [
        ({"interpolation": "nearest"}, ()),
        ({}, ("interpolation",)),
        ({}, ("crop_pct",)),
        ({"crop_pct": None, "crop_mode": None, "interpolation": None}, ()),
        ({}, ("mean", "std")),
        (
            {
                "crop_pct": 1.0,
                "crop_mode": "squash",
                "mean": [0.1, 0.2, 0.3],
                "std": [0.4, 0.5, 0.6],
            },
            (),
        ),
        ({"crop_mode": "border", "crop_pct": 1.0}, ()),
        ({"crop_mode": "border", "crop_pct": 0.8, "mean": [0.1, 0.2, 0.3]}, ()),
        ({"crop_mode": "border", "crop_pct": 1.25}, ()),
        (
            {"test_crop_pct": 1.0, "test_input_size": [3, 288, 288], "min_input_size": [3, 32, 32]},
            (),
        ),
    ],
)
def test_timm_s_preprocessing_is_obeyed(
    tmp_path: Path, data: dict[str, Any], without: tuple[str, ...]
) -> None:
    timm_folder(tmp_path, {}, data, without)
    ours = load_classifier(str(tmp_path)).preprocess
    said = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=said))
    for seed, size in enumerate([(500, 375), (199, 333)]):
        difference = (transform(photo(seed, *size)) - ours_of(ours, seed, size)).abs()
        assert difference.max() <= 2 / 255 / min(ours.std) + 1e-5  # Pillow rounds on the way
        assert difference.mean() <= 0.2 / 255 / min(ours.std)


@pytest.mark.parametrize(
    ("change", "data", "message"),
    [
        ({}, {"interpolation": "random"}, "interpolation 'random' is not supported"),
        ({}, {"interpolation": "box"}, "interpolation 'box'"),
        ({}, {"interpolation": "hamming"}, "interpolation 'hamming'"),
        (
            {},
            {"crop_mode": "bordered"},
            "crop_mode 'bordered' is not supported; center, squash, border",
        ),
        ({}, {"crop_pct": 0}, "crop_pct is 0"),
        ({}, {"crop_pct": 1.2}, "crop_pct is 1.2; .* adds a black border"),
        ({}, {"label_offset": 1}, "label_offset=1"),
        (
            {},
            {"crop_border_pixels": 4},
            "pretrained_cfg says crop_border_pixels=4, which this tool does not know",
        ),
        ({"crop_pct": 0.5}, {}, "crop_pct outside pretrained_cfg"),
        ({"num_classes": 4}, {}, "num_classes=4 and, in model_args, 3"),
        ({"model_args": {"act_layer": "relu"}}, {}, "act_layer='relu'"),
        ({"model_args": {"norm_layer": "rmsnorm"}}, {}, "norm_layer='rmsnorm'"),
        ({"model_args": {"proj_bias": False}}, {}, "proj_bias=False"),
        ({"model_args": {"attn_layer": "diff"}}, {}, "attn_layer='diff'"),
        ({"model_args": {"global_pool": "max"}}, {}, "global_pool='max'"),
        ({"model_args": {"global_pool": ["avg"]}}, {}, "global_pool=\\['avg'\\]"),
        ({"model_args": {"block_fn": "ResPostBlock"}}, {}, "block_fn='ResPostBlock'"),
        ({"model_args": {"norm_eps": 1e-5}}, {}, "norm_eps=1e-05"),
        ({"model_args": {"heads": 3}}, {}, "heads=3"),
        ({"model_args": {"depth": 1, "reg_tokens": 4}}, {}, "no reg_token"),
        ({"model_args": {"depth": 1, "num_heads": 10**9}}, {}, "n_heads is 1000000000"),
        ({"model_args": {"depth": 10**6}}, {}, "depth is 1000000"),
        ({"model_args": {"depth": 1000}}, {}, "says 1,000 blocks and its weights have 1;"),
        ({"model_args": {"mlp_ratio": 1e9}}, {}, "mlp_ratio is 1000000000"),
        ({"model_args": {"class_token": False}}, {}, "pool 'token' takes the class token"),
        ({"model_args": {"depth": 1, "no_embed_class": True}}, {}, "pos_embed of shape"),
        ({"global_pool": "avg", "model_args": {}}, {}, "global_pool='avg'"),
        ({"num_classes": 1, "model_args": {}}, {}, "a single class"),
        (
            {"architecture": "resnet50", "global_pool": "avg"},
            {},
            "'resnet50' is not a Vision Transformer",
        ),
        ({"architecture": "convnext_tiny"}, {}, "'convnext_tiny' is not a Vision Transformer"),
        (
            {"architecture": "deit3_small_patch16_224", "model_args": {"depth": 1}},
            {},
            r"no blocks\.0\.ls1\.gamma",
        ),
    ],
)
def test_a_timm_config_that_cannot_be_obeyed_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    timm_folder(tmp_path, change, data)
    with pytest.raises(ModelError, match=message):
        load_classifier(str(tmp_path))


def test_what_changes_nothing_in_a_timm_config_is_let_be(tmp_path: Path) -> None:
    theirs = timm_folder(
        tmp_path,
        {"dataset": "mine", "model_args": {"depth": 1, "dynamic_img_size": True, "dynamic_img_pad": True,
                                           "strict_img_size": False, "init_values": None, "drop_path_rate": 0.1}},
        {"num_classes": 1000, "notes": ["x"], "paper_ids": "arXiv:1", "hf_hub_id": "a/b", "url": "u"},
    )  # fmt: skip
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert (
            largest_difference(load_classifier(str(tmp_path)).model(images), theirs(images)) < 1e-5
        )


def test_a_flat_timm_config_keeps_its_class_names(tmp_path: Path) -> None:
    timm_folder(tmp_path, {}, {})
    config = json.loads((tmp_path / "config.json").read_text())
    flat = config["pretrained_cfg"] | {
        "architecture": config["architecture"], "num_classes": 3, "num_features": 192, "labels": ["x", "y", "z"],
        "global_pool": "token", "model_args": {"depth": 1},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(flat))
    assert load_classifier(str(tmp_path)).labels == ("x", "y", "z")


@pytest.mark.parametrize(
    ("names", "descriptions", "labels", "label_ids"),
    [
        (["n1", "n2", "n3"], {"n1": "cat", "n2": "dog"}, ("cat", "dog", "n3"), ("n1", "n2", "n3")),
        ({"0": "x", "2": "z", "1": "y"}, None, ("x", "y", "z"), ()),
    ],
)
def test_timm_s_class_names_are_in_the_order_of_their_numbers(
    tmp_path: Path, names: Any, descriptions: Any, labels: Any, label_ids: Any
) -> None:
    timm_folder(tmp_path, {"label_names": names, "label_descriptions": descriptions}, {})
    ours = load_classifier(str(tmp_path))
    assert (ours.labels, ours.label_ids) == (labels, label_ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_names": {"0": "x", "1": "y", "3": "z"}}, "3 classes that are not numbered 0 to 2"),
        ({"label_names": [1, 2, 3]}, "not all of text"),
        ({"label_names": "abc"}, "label_names that are no list"),
        ({"label_descriptions": ["x", "y", "z"]}, "label_descriptions that do not go by name"),
        ({"label_names": ["x", "y"]}, "predicts 3 classes but 2 class names"),
    ],
)
def test_timm_s_class_names_that_are_none_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    timm_folder(tmp_path, change, {})
    with pytest.raises(ModelError, match=message):
        load_classifier(str(tmp_path))


# --- names of architectures


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("beit_base_patch16_224", "relative positions"),
        ("vit_srelpos_small_patch16_224", "relative positions"),
        ("cait_s24_224", "parts of its own"),
        ("vit_base_r50_s16_224", "a ResNet before its blocks"),
        ("vit_dwee_patch16_reg1_gap_256", "differential attention"),
        ("vit_pwee_patch16_reg1_gap_256.sbb_in1k", "attention and MLP side by side"),
        ("aimv2_large_patch14_224", "RMS norms"),
        ("naflexvit_base_patch16_gap", "images of any shape"),
    ],
)
def test_a_published_family_is_not_taken_for_a_mistyped_name(name: str, reason: str) -> None:
    with pytest.raises(
        ModelError, match=f"'{re.escape(name)}' is a published .* not supported: it .*{reason}"
    ):
        variant(name)


@pytest.mark.parametrize(
    "name", ["vit_bse_patch16_224", "vit_base_patch15_224", "vit-base-patch16-224"]
)
def test_a_mistyped_name_is_told_the_form(name: str) -> None:
    with pytest.raises(ModelError, match=f"unknown architecture '{name}'; names look like"):
        variant(name)
