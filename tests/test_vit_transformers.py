"""Each family of transformers, in folders as it writes them: features and logits against its own
classes.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTImageProcessor,
    DeiTModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    Siglip2Config,
    Siglip2ForImageClassification,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from tests.helpers import Command, largest_difference, peaked_
from vit.backbone import load_backbone
from vit.classifier import load_classifier
from vit.errors import ModelError
from vit.preprocess import CLIP_MEAN, HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocess

SQUARE = {"height": 64, "width": 64}
NETWORK: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
SIZED = NETWORK | {"intermediate_size": 96, "image_size": 64, "patch_size": 16}
DINOV2 = NETWORK | {"image_size": 98, "patch_size": 14}
TEXT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
THREE = {"id2label": {0: "a", 1: "b", 2: "c"}}
NAFLEX = NETWORK | {"intermediate_size": 96, "patch_size": 16, "num_patches": 16}

VIT = ViTImageProcessor(size=SQUARE)
DEIT = DeiTImageProcessor(size={"height": 72, "width": 72}, crop_size=SQUARE)
DINO = BitImageProcessor(size={"shortest_edge": 80}, crop_size={"height": 70, "width": 70},
                         image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_STD))  # fmt: skip
WHOLE = BitImageProcessor(size={"shortest_edge": 98}, crop_size={"height": 98, "width": 98})
CLIP = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=SQUARE)
SIGLIP = SiglipImageProcessor(size=SQUARE)


def both(kind: Any, **fields: Any) -> Any:
    """A config with a text tower beside the image tower."""
    own = {
        key: fields.pop(key)
        for key in ("projection_dim", "id2label", "problem_type")
        if key in fields
    }
    return kind(vision_config=fields, text_config=TEXT, **own)


CLASSIFIERS = {
    "ViT": (ViTForImageClassification, ViTConfig(**SIZED, **THREE), VIT),
    "ViT, tanh": (ViTForImageClassification, ViTConfig(**SIZED, **THREE, hidden_act="gelu_pytorch_tanh"), VIT),
    "DeiT": (DeiTForImageClassification, DeiTConfig(**SIZED, **THREE), DEIT),
    "DeiT, distilled": (DeiTForImageClassificationWithTeacher, DeiTConfig(**SIZED, **THREE), DEIT),
    "DINOv2": (Dinov2ForImageClassification, Dinov2Config(**DINOV2, **THREE), DINO),
    "DINOv2, its own size": (Dinov2ForImageClassification, Dinov2Config(**DINOV2, **THREE), WHOLE),
    "DINOv2, a rest": (
        Dinov2ForImageClassification, Dinov2Config(**DINOV2, **THREE),
        BitImageProcessor(size={"shortest_edge": 80}, crop_size={"height": 76, "width": 76}),
    ),
    "DINOv2, SwiGLU": (Dinov2ForImageClassification, Dinov2Config(**DINOV2, **THREE, use_swiglu_ffn=True), DINO),
    "DINOv2, no mask token": (
        Dinov2ForImageClassification, Dinov2Config(**DINOV2, **THREE, use_mask_token=False, qkv_bias=False), DINO,
    ),
    "DINOv2, registers": (
        Dinov2WithRegistersForImageClassification, Dinov2WithRegistersConfig(**DINOV2, **THREE), DINO,
    ),
    "DINOv2, registers, SwiGLU": (
        Dinov2WithRegistersForImageClassification,
        Dinov2WithRegistersConfig(**DINOV2, **THREE, use_swiglu_ffn=True, num_register_tokens=2), WHOLE,
    ),
    "CLIP": (CLIPForImageClassification, both(CLIPConfig, **SIZED, **THREE), CLIP),
    "CLIP, exact gelu": (CLIPForImageClassification, both(CLIPConfig, **SIZED, **THREE, hidden_act="gelu"), CLIP),
    "SigLIP": (SiglipForImageClassification, both(SiglipConfig, **SIZED, **THREE), SIGLIP),
    "SigLIP, no pool": (
        SiglipForImageClassification, both(SiglipConfig, **SIZED, **THREE, vision_use_head=False), SIGLIP,
    ),
    "SigLIP, so400m": (
        SiglipForImageClassification, both(SiglipConfig, **SIZED | {"patch_size": 14}, **THREE), SIGLIP,
    ),
    "SigLIP 2": (Siglip2ForImageClassification, both(Siglip2Config, **NAFLEX, **THREE), SIGLIP),
}  # fmt: skip


def save(folder: Path, theirs: Any, processor: Any) -> Any:
    theirs = theirs.eval()
    peaked_(theirs)
    theirs.save_pretrained(folder)
    if processor:
        processor.save_pretrained(folder)
    return theirs


def run(theirs: Any, images: Tensor) -> Any:
    """Their outputs for images [B, 3, 64, 64]; SigLIP 2 takes them cut into patches."""
    if not type(theirs).__name__.startswith("Siglip2"):
        return theirs(images)
    patches = images.unfold(2, 16, 16).unfold(3, 16, 16)  # [B, 3, 4, 4, 16, 16]
    patches = patches.permute(0, 2, 3, 4, 5, 1).reshape(len(images), 16, -1)  # [B, N, 16*16*3]
    mask, shapes = torch.ones(len(images), 16), torch.tensor([[4, 4]] * len(images))
    return theirs(patches, pixel_attention_mask=mask, spatial_shapes=shapes)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_s_logits_are_transformers_own(tmp_path: Path, kind: str) -> None:
    make, config, processor = CLASSIFIERS[kind]
    theirs = save(tmp_path, make(config), processor)
    ours = load_classifier(str(tmp_path))
    assert ours.labels == ("a", "b", "c")
    assert ours.notes == ()
    size = ours.preprocess.crop_size
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        logits = run(theirs, images).logits
        assert logits.std() > 0.1
        assert largest_difference(ours.model(images), logits) < 1e-4
        assert largest_difference(ours.scores(ours.backbone(images)), logits.softmax(-1)) < 1e-4
        # The same without its head.
        features = load_backbone(str(tmp_path)).backbone(images)
        assert torch.equal(features, ours.backbone(images))


@pytest.mark.parametrize("kind", ["DeiT", "DINOv2, registers, SwiGLU", "DINOv2", "CLIP", "SigLIP"])
def test_a_converted_one_computes_the_same(tmp_path: Path, command: Command, kind: str) -> None:
    make, config, processor = CLASSIFIERS[kind]
    save(tmp_path / "theirs", make(config), processor)
    ran = command("models", "convert", tmp_path / "theirs", "--out", tmp_path / "bundle")
    assert ran.returncode == 0, ran.stderr
    theirs, ours = (
        load_classifier(str(tmp_path / "theirs")),
        load_classifier(str(tmp_path / "bundle")),
    )
    assert (ours.architecture, ours.preprocess) == (theirs.architecture, theirs.preprocess)
    size = ours.preprocess.crop_size
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        assert torch.equal(ours.model(images), theirs.model(images))


def token(theirs: Any, images: Tensor) -> Tensor:
    return theirs(images).last_hidden_state[:, 0]


def pooled(theirs: Any, images: Tensor) -> Tensor:
    return run(theirs, images).pooler_output


def embeds(theirs: Any, images: Tensor) -> Tensor:
    return theirs(images).image_embeds


def of_clip(theirs: Any, images: Tensor) -> Tensor:
    return theirs.get_image_features(images).pooler_output


BACKBONES = {
    "ViT": (ViTModel, ViTConfig(**SIZED), VIT, token),
    "ViT, no pooler": (lambda config: ViTModel(config, add_pooling_layer=False), ViTConfig(**SIZED), VIT, token),
    "DeiT": (DeiTModel, DeiTConfig(**SIZED), DEIT, token),
    "DINOv2": (Dinov2Model, Dinov2Config(**DINOV2), DINO, pooled),
    "DINOv2, registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**DINOV2), DINO, pooled),
    "CLIP": (CLIPModel, both(CLIPConfig, **SIZED, projection_dim=24), CLIP, of_clip),
    "CLIP's image tower": (CLIPVisionModel, CLIPVisionConfig(**SIZED), CLIP, pooled),
    "CLIP's, projected": (CLIPVisionModelWithProjection, CLIPVisionConfig(**SIZED, projection_dim=24), CLIP, embeds),
    "SigLIP": (SiglipModel, both(SiglipConfig, **SIZED), SIGLIP,
               lambda theirs, images: theirs.get_image_features(images).pooler_output),
    "SigLIP's image tower": (SiglipVisionModel, SiglipVisionConfig(**SIZED), SIGLIP, pooled),
    "SigLIP 2's image tower": (Siglip2VisionModel, Siglip2VisionConfig(**NAFLEX), SIGLIP, pooled),
}  # fmt: skip


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_backbone_s_features_are_transformers_own(tmp_path: Path, kind: str) -> None:
    make, config, processor, features_of = BACKBONES[kind]
    theirs = save(tmp_path, make(config), processor)
    ours = load_backbone(str(tmp_path))
    size = ours.preprocess.crop_size
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        expected = features_of(theirs, images)
        assert expected.std() > 0.1
        assert largest_difference(ours.backbone(images), expected) < 1e-4
    assert ours.model.config.n_features == expected.shape[1]
    with pytest.raises(
        ModelError,
        match=r"has no head: it (gives features, and no scores|has no classes of its own)",
    ):
        load_classifier(str(tmp_path))


@pytest.mark.parametrize(
    "depth", [pytest.param(2, marks=pytest.mark.slow), pytest.param(12, marks=pytest.mark.soak)]
)
@pytest.mark.parametrize(
    ("make", "config"),
    [
        (DeiTForImageClassification, DeiTConfig()),
        (Dinov2ForImageClassification, Dinov2Config(image_size=518)),
        (Dinov2WithRegistersForImageClassification, Dinov2WithRegistersConfig(image_size=518, patch_size=14)),
        (CLIPForImageClassification, both(CLIPConfig, patch_size=32)),
        (SiglipForImageClassification, both(SiglipConfig)),
    ],
)  # fmt: skip
def test_full_size_models_without_an_image_processor(
    tmp_path: Path, make: Any, config: Any, depth: int
) -> None:
    getattr(config, "vision_config", config).num_hidden_layers = depth
    theirs = make(config).eval()
    peaked_(theirs, 0.2)
    theirs.save_pretrained(tmp_path)
    ours = load_classifier(str(tmp_path))
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert largest_difference(ours.model(images), theirs(images).logits) < 1e-4


# --- what the folder says, and what it leaves unsaid


def change_json(path: Path, change: dict[str, Any], without: tuple[str, ...] = ()) -> None:
    values = json.loads(path.read_text()) | change
    path.write_text(
        json.dumps({name: value for name, value in values.items() if name not in without})
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ViT", Preprocess(64, 64, "squash", "bilinear", HALF, HALF)),
        ("DeiT", Preprocess(64, 73, "squash", "bicubic", IMAGENET_MEAN, IMAGENET_STD)),
        ("DINOv2", Preprocess(224, 256, "crop", "bicubic", IMAGENET_MEAN, IMAGENET_STD)),
        ("DINOv2, registers", Preprocess(224, 256, "crop", "bicubic", IMAGENET_MEAN, IMAGENET_STD)),
        ("CLIP", Preprocess(64, 64, "crop", "bicubic", CLIP_MEAN, (0.26862954, 0.26130258, 0.27577711))),
        ("SigLIP", Preprocess(64, 64, "squash", "bicubic", HALF, HALF)),
    ],
)  # fmt: skip
def test_without_a_preprocessor_file_it_is_the_family_s_own_and_said_so(
    tmp_path: Path, kind: str, expected: Preprocess
) -> None:
    make, config, _ = CLASSIFIERS[kind]
    save(tmp_path, make(config), None)
    ours = load_classifier(str(tmp_path))
    assert ours.preprocess == expected
    assert len(ours.notes) == 1
    assert f"{tmp_path.name} has no preprocessor_config.json, so photos are" in ours.notes[0]
    assert ours.preprocess.describe() in ours.notes[0]


def test_a_run_and_models_show_say_what_was_taken_for_granted(
    photos: Path, command: Command, tmp_path: Path
) -> None:
    make, config, _ = CLASSIFIERS["SigLIP"]
    model, out = tmp_path / "model", tmp_path / "labels.parquet"
    save(model, make(config), None)
    said = "model has no preprocessor_config.json, so photos are prepared as for the published"
    for arguments in ((photos, "--out", out), ("plan", photos, "--out", out)):
        ran = command(*arguments, "--model", model)
        assert ran.returncode == 0, ran.stderr
        assert ran.stderr.count(said) == 1
    assert f"note           {said}" in command("models", "show", model).stdout


def test_a_processor_beside_a_tokenizer_s_is_read_from_transformers_5_s_file(
    tmp_path: Path,
) -> None:
    make, config, _ = CLASSIFIERS["CLIP"]
    save(tmp_path, make(config), None)
    said = json.loads(CLIP.to_json_string())
    file = tmp_path / "processor_config.json"
    file.write_text(json.dumps({"image_processor": said, "processor_class": "CLIPProcessor"}))
    ours = load_classifier(str(tmp_path))
    assert (ours.preprocess.crop_size, ours.notes) == (64, ())
    file.write_text(
        json.dumps({"processor_class": "CLIPProcessor"})
    )  # transformers 4's says no more
    assert load_classifier(str(tmp_path)).notes


def test_siglip_2_s_own_processor_is_refused(tmp_path: Path) -> None:
    make, config, _ = CLASSIFIERS["SigLIP 2"]
    save(tmp_path, make(config), None)
    with pytest.raises(ModelError, match="Siglip2ImageProcessor, which gives each photo a number"):
        load_classifier(str(tmp_path))


# As openai/clip-vit-base-patch32 has it, and the first lines of what transformers 4 wrote for the
# towers of each: with all of a config's settings, and the image tower's a second time.
OPENAI = {
    "architectures": ["CLIPForImageClassification"], "initializer_factor": 1.0, "logit_scale_init_value": 2.6592,
    "model_type": "clip", "projection_dim": 512, "torch_dtype": "float32", "transformers_version": None,
    "text_config": {"anything": 1}, "text_config_dict": None, "id2label": {"0": "a", "1": "b", "2": "c"},
    "vision_config": {
        "_name_or_path": "", "add_cross_attention": False, "architectures": None, "attention_dropout": 0.0,
        "bad_words_ids": None, "bos_token_id": None, "chunk_size_feed_forward": 0, "do_sample": False, "dropout": 0.0,
        "finetuning_task": None, "hidden_act": "quick_gelu", "hidden_size": 48, "id2label": {"0": "LABEL_0"},
        "image_size": 64, "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 96,
        "label2id": {"LABEL_0": 0}, "layer_norm_eps": 1e-05, "model_type": "clip_vision_model",
        "num_attention_heads": 3, "num_channels": 3, "num_hidden_layers": 2, "patch_size": 16, "projection_dim": 512,
        "pruned_heads": {}, "return_dict": True, "transformers_version": "4.16.0.dev0",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"vision_config_dict": {"hidden_size": 48, "image_size": 64, "patch_size": 16, "num_hidden_layers": 2,
                                "num_attention_heads": 3, "intermediate_size": 96}},
        {"vision_config": OPENAI["vision_config"] | {"hidden_act": "gelu"},
         "vision_config_dict": {"hidden_size": 48, "image_size": 64, "patch_size": 16, "num_hidden_layers": 2,
                                "num_attention_heads": 3, "intermediate_size": 96, "hidden_act": "quick_gelu"}},
    ],
)  # fmt: skip
def test_clip_s_configs_of_transformers_4_are_read(tmp_path: Path, change: dict[str, Any]) -> None:
    make, config, _ = CLASSIFIERS["CLIP"]
    theirs = save(tmp_path, make(config), None)
    (tmp_path / "config.json").write_text(json.dumps(OPENAI | change))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({
        "crop_size": 64, "do_center_crop": True, "do_normalize": True, "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": CLIP_MEAN,
        "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 64,
    }))  # fmt: skip
    ours = load_classifier(str(tmp_path))
    assert (ours.preprocess.fit, ours.preprocess.resize_size) == ("crop", 64)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert largest_difference(ours.model(images), theirs(images).logits) < 1e-4


def test_an_image_tower_saved_by_transformers_4_has_the_whole_model_s_prefix(
    tmp_path: Path,
) -> None:
    theirs = save(tmp_path, CLIPVisionModel(CLIPVisionConfig(**SIZED)), CLIP)
    prefixed = {f"vision_model.{name}": tensor for name, tensor in theirs.state_dict().items()}
    prefixed["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    (tmp_path / "model.safetensors").unlink()
    torch.save(prefixed, tmp_path / "pytorch_model.bin")
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = theirs(images).pooler_output
        assert largest_difference(load_backbone(str(tmp_path)).backbone(images), expected) < 1e-4


@pytest.mark.parametrize("kind", ["DINOv2, SwiGLU", "DINOv2, registers", "CLIP", "SigLIP"])
def test_tensors_under_the_names_they_have_in_memory(tmp_path: Path, kind: str) -> None:
    make, config, processor = CLASSIFIERS[kind]
    theirs = save(tmp_path, make(config), processor)
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    ours = load_classifier(str(tmp_path))
    size = ours.preprocess.crop_size
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        assert largest_difference(ours.model(images), theirs(images).logits) < 1e-4


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("DINOv2, registers", {"num_register_tokens": 3}, "reg_token of shape .1, 4, 48. instead of .1, 3, 48."),
        ("DINOv2", {"model_type": "dinov2_with_registers", "architectures": None}, "do not fit .*: no reg_token"),
        ("DINOv2", {"use_swiglu_ffn": True}, "no blocks.0.mlp.fc1_g"),
        ("DINOv2", {"num_attention_heads": 10**9}, "n_heads is 1000000000"),
        ("DINOv2", {"num_hidden_layers": 10**9}, "depth is 1000000000"),
        ("DINOv2", {"mlp_ratio": 10**9}, "mlp_ratio is"),
        ("DINOv2", {"hidden_size": 0}, "damaged"),
        ("DINOv2", {"attention_bias": True}, "attention_bias=True, which this tool does not know"),
        ("DINOv2", {"architectures": ["Dinov2Backbone"]}, "is a Dinov2Backbone of the kind dinov2, .* reads Dinov2For"),
        ("CLIP", {"vision_config": {"head_dim": 3}}, "the vision_config of .* says head_dim=3"),
        ("CLIP", {"vision_config": None}, "no blocks|blocks and its weights"),
        ("CLIP", {"problem_type": "regression"}, "trained for regression"),
        ("SigLIP", {"architectures": ["SiglipVisionModel"], "vision_config": {"vision_use_head": False}},
         "vision_use_head=false"),
        ("SigLIP 2", {"vision_config": NAFLEX | {"num_patches": 17}}, "num_patches=17, which is no square"),
        ("SigLIP 2", {"vision_config": NAFLEX | {"num_patches": 10**9}}, "no square|img_size is"),
    ],
)  # fmt: skip
def test_a_config_that_its_tensors_do_not_bear_out_is_refused(
    tmp_path: Path, kind: str, change: dict[str, Any], message: str
) -> None:
    make, config, processor = CLASSIFIERS[kind]
    save(tmp_path, make(config), processor)
    change_json(tmp_path / "config.json", change)
    with pytest.raises(ModelError, match=message):
        load_classifier(str(tmp_path))


@pytest.mark.parametrize("kind", ["DeiT", "DINOv2", "CLIP", "SigLIP"])
def test_tensors_of_a_newer_family_without_their_config_are_refused(
    tmp_path: Path, kind: str
) -> None:
    make, config, processor = CLASSIFIERS[kind]
    save(tmp_path, make(config), processor)
    with pytest.raises(ModelError, match=r"stands in its config.json; name the folder"):
        load_classifier(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("count", [30_000_000, 10**9, -1, True, "5"])
def test_so_many_classes_cost_nothing(tmp_path: Path, count: Any) -> None:
    config = ViTConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    values.pop("id2label", None)
    values.pop("label2id", None)
    path.write_text(json.dumps(values | {"num_labels": count}))
    started = time.monotonic()
    with pytest.raises(ModelError, match="num_labels"):
        load_classifier(str(tmp_path))
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("field", "value"), [("num_hidden_layers", True), ("id2label", {"0": "", "1": " "})]
)
def test_values_that_only_look_right_are_refused(tmp_path: Path, field: str, value: Any) -> None:
    config = ViTConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ModelError):
        load_classifier(str(tmp_path))
