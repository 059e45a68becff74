"""The table of published models: what it says is what timm and torchvision say."""

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg
from torchvision.models import get_weight

from vit.checkpoints.published import Published, best_for_their_cost, published_models
from vit.config import variant
from vit.model import VisionTransformer

BY_NAME = {model.name: model for model in published_models()}


def test_each_model_is_one_that_timm_or_torchvision_publishes() -> None:
    for model in BY_NAME.values():
        if model.name.startswith("torchvision:"):
            meta = get_weight(model.name.removeprefix("torchvision:")).meta
            assert (model.parameters, model.image_size) == (meta["num_params"], meta["min_size"][0])
            assert model.top1 == meta["_metrics"]["ImageNet-1K"]["acc@1"]
        else:
            cfg = get_pretrained_cfg(model.name)
            assert cfg is not None, model.name
            assert f"hf-hub:{cfg.hf_hub_id}" == model.address
            assert (cfg.input_size[1], cfg.num_classes) == (model.image_size, model.n_classes)
        assert model.top1 is None or (model.n_classes == 1000 and 72 < model.top1 < 91), model
        assert 1 < model.gmacs < 2000


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224.augreg_in21k",
        "deit_tiny_distilled_patch16_224.fb_in1k",
        "deit3_small_patch16_224.fb_in1k",
        "eva02_tiny_patch14_336.mim_in22k_ft_in1k",
        "vit_wee_patch16_reg1_gap_256.sbb_in1k",
    ],
)
def test_parameters_are_those_of_timms_model(name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name)
    count = sum(parameter.numel() for parameter in theirs.parameters())
    assert BY_NAME[name].parameters == count
    assert BY_NAME[name].size_mb == count * 4 / 1e6


@pytest.mark.parametrize(
    ("name", "gmacs"),
    [
        # timm's results/benchmark-infer-fp32-nchw-pt240-cpu-i7_12700h-dynamo.csv, infer_gmacs
        ("deit_tiny_patch16_224.fb_in1k", 1.26),
        ("deit_tiny_distilled_patch16_224.fb_in1k", 1.27),
        ("vit_small_patch32_224.augreg_in21k_ft_in1k", 1.15),
        # torchvision's _ops for the same network
        ("vit_base_patch16_224.augreg_in21k_ft_in1k", 17.564),
        ("vit_base_patch16_384.augreg_in21k_ft_in1k", 55.484),
        ("vit_large_patch16_224.augreg_in21k_ft_in1k", 61.555),
    ],
)
def test_gmacs_are_what_others_count(name: str, gmacs: float) -> None:
    assert BY_NAME[name].gmacs == pytest.approx(gmacs, abs=0.011)


def test_a_name_finds_one_model_and_an_architecture_all_of_its_own() -> None:
    name = "deit3_base_patch16_384.fb_in1k"
    assert published_models(name) == published_models(f"hf-hub:timm/{name}") == [BY_NAME[name]]
    assert [model.name for model in published_models("deit3_base_patch16_384")] == [
        name,
        "deit3_base_patch16_384.fb_in22k_ft_in1k",
    ]
    assert published_models("deit3_base") == []


def test_best_for_their_cost_are_beaten_by_nothing_cheaper() -> None:
    def model(name: str, gmacs: float, top1: float | None) -> Published:
        return Published(name, 224, 1000, 1, gmacs, top1)

    models = [
        model("dear and worse", 3, 79.0),
        model("best", 4, 85.0),
        model("cheap", 1, 75.0),
        model("as cheap and worse", 1, 74.0),
        model("unknown", 0.5, None),
        model("good", 2, 80.0),
    ]
    assert best_for_their_cost(models) == {"cheap", "good", "best"}


def test_a_model_is_supported_where_its_architecture_is() -> None:
    assert BY_NAME["vit_base_patch16_384.augreg_in21k_ft_in1k"].unsupported is None
    assert BY_NAME["torchvision:ViT_B_32_Weights.IMAGENET1K_V1"].unsupported is None
    unknown = Published("vit_enormous_patch3_224.x", 224, 1000, 1, 1.0, None)
    assert "'vit_enormous_patch3_224.x'" in str(unknown.unsupported)


def test_what_is_supported_is_built_with_as_many_parameters() -> None:
    """One model of each small architecture; names and sizes of two tables must mean the same."""
    small = [
        model
        for model in BY_NAME.values()
        if model.parameters < 45e6 and not model.unsupported and model.n_classes == 1000
    ]
    for model in {model.name.split(".")[0]: model for model in small}.values():
        with torch.device("meta"):
            ours = VisionTransformer(variant(model.name))
        count = sum(parameter.numel() for parameter in ours.parameters())
        # timm keeps the keys' bias of EVA and rotary models, which is zero, outside its parameters.
        keys_bias = ours.config.depth * ours.config.embed_dim
        assert count - model.parameters in (0, keys_bias), model.name
        assert ours.config.img_size == model.image_size
    assert len(small) > 10
