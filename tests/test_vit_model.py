"""The network: each part against its definition, and the whole against timm, transformers and
torchvision.
"""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import largest_difference, peaked_
from vit.config import ViTConfig, variant
from vit.encoder import Attention, Block, DropPath, Mlp
from vit.errors import ModelError
from vit.model import Backbone, VisionTransformer
from vit.patch_embed import LinearPatchEmbed, PatchEmbed

SMALL = ViTConfig(img_size=32, patch_size=8, n_classes=5, embed_dim=48, depth=2, n_heads=3)


def test_patch_embedding_by_convolution_and_by_linear_layer_are_the_same() -> None:
    conv, linear = PatchEmbed(SMALL), LinearPatchEmbed(SMALL)
    linear.load_state_dict(conv.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert conv(images).shape == (2, 16, 48)
    assert largest_difference(conv(images), linear(images)) < 1e-5


def test_patch_embedding_is_unfold_and_matmul() -> None:
    conv = PatchEmbed(SMALL)
    images = torch.randn(2, 3, 32, 32)
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8)  # [B, C, 4, 4, 8, 8]
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(2, 16, 3 * 64)
    expected = patches @ conv.proj.weight.flatten(1).T + conv.proj.bias
    assert largest_difference(conv(images), expected) < 1e-5


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("n_heads", [1, 3, 6])
def test_attention_fused_separate_torch_and_by_hand_agree(qkv_bias: bool, n_heads: int) -> None:
    config = replace(SMALL, n_heads=n_heads, qkv_bias=qkv_bias)
    fused, separate = Attention(config), Attention(replace(config, qkv="separate"))
    peaked_(fused)
    separate.load_state_dict(fused.state_dict())
    x = torch.randn(2, 7, 48)
    assert largest_difference(fused(x), separate(x)) < 1e-5

    theirs = nn.MultiheadAttention(48, n_heads, bias=True, batch_first=True)
    theirs.in_proj_weight.data.copy_(fused.qkv.weight)
    theirs.in_proj_bias.data.copy_(fused.qkv.bias if qkv_bias else torch.zeros(144))
    theirs.out_proj.load_state_dict(fused.proj.state_dict())
    assert largest_difference(fused(x), theirs(x, x, x)[0]) < 1e-5

    q, k, v = (
        part.view(2, 7, n_heads, -1).transpose(1, 2) for part in fused.qkv(x).chunk(3, dim=-1)
    )
    weights = (q @ k.transpose(-2, -1) * (48 / n_heads) ** -0.5).softmax(
        dim=-1
    )  # scaled before the softmax
    expected = fused.proj((weights @ v).transpose(1, 2).reshape(2, 7, 48))
    assert largest_difference(fused(x), expected) < 1e-5


def test_attention_drops_as_much_in_either_form() -> None:
    config = replace(SMALL, attn_drop=0.25)
    for qkv in ("fused", "separate"):
        attention = Attention(replace(config, qkv=qkv))
        x = torch.randn(4, 64, 48)
        with torch.no_grad():
            # Every value is 1, so that what comes out of a head is the sum of its weights.
            attention.load_state_dict(
                {
                    "qkv.weight": torch.zeros(144, 48),
                    "qkv.bias": torch.cat([torch.zeros(96), torch.ones(48)]),
                    "proj.weight": torch.eye(48),
                    "proj.bias": torch.zeros(48),
                }
            )
            dropped = attention.train()(x)
            assert largest_difference(attention.eval()(x), torch.ones(4, 64, 48)) < 1e-5
        assert abs(float(dropped.mean()) - 1) < 0.05
        assert float(dropped.std()) == pytest.approx((1 / 3 / 64) ** 0.5, rel=0.2)


@pytest.mark.parametrize(
    "fields",
    [
        {"qk_norm": True, "qkv_bias": False},
        {"rope": "dinov3", "pos_embed": "none", "reg_tokens": 2},
        {"rope": "mixed", "pool": "map", "mlp": "swiglu"},
        {"distilled": True, "patch_embed": "linear"},
        {"n_classes": 0, "proj_dim": 7},
    ],
)
def test_a_backbone_in_steps_has_the_same_weights_and_features(fields: dict[str, Any]) -> None:
    model = VisionTransformer(SMALL, **fields).eval()
    peaked_(model)
    backbone = Backbone(model)
    in_steps = backbone.in_steps()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert largest_difference(in_steps(images), backbone(images)) < 1e-5
    block, theirs = in_steps.model.blocks[0], model.blocks[0]
    assert block.attn.v.weight.data_ptr() == theirs.attn.qkv.weight[96:].data_ptr()
    assert block.mlp.fc2.weight.data_ptr() == theirs.mlp.fc2.weight.data_ptr()
    assert not any(module.training for module in in_steps.modules())


@pytest.mark.parametrize("qkv", ["fused", "separate"])
def test_a_masked_token_changes_nothing(qkv: Literal["fused", "separate"]) -> None:
    attention = Attention(replace(SMALL, qkv=qkv))
    with torch.no_grad():  # where nothing is attended to, the projection of nothing is left
        nothing = attention(torch.randn(1, 3, 48), torch.zeros(1, 3, dtype=torch.bool))
        assert largest_difference(nothing, attention.proj.bias.expand(1, 3, 48)) < 1e-6
    peaked_(attention)
    x = torch.randn(2, 7, 48)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[:, 3] = False
    other = x.clone()
    other[:, 3] = torch.randn(2, 48) * 100
    seen = [0, 1, 2, 4, 5, 6]
    assert largest_difference(attention(x, mask)[:, seen], attention(other, mask)[:, seen]) < 1e-5
    assert largest_difference(attention(x)[:, seen], attention(other)[:, seen]) > 1e-2
    assert largest_difference(attention(x, mask)[:, seen], attention(x[:, seen])) < 1e-5


def test_a_masked_patch_does_not_change_the_logits() -> None:
    model = VisionTransformer(SMALL).eval()
    peaked_(model)
    images = torch.randn(2, 3, 32, 32)
    other = images.clone()
    other[:, :, :8, 8:16] += 5  # patch 1
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[:, 1] = False
    assert largest_difference(model(images, mask), model(other, mask)) < 1e-5
    assert largest_difference(model(images), model(other)) > 1e-3


def test_mlp_is_two_linear_layers_with_gelu() -> None:
    mlp = Mlp(SMALL)
    x = torch.randn(2, 7, 48)
    hidden = F.gelu(x @ mlp.fc1.weight.T + mlp.fc1.bias)
    assert hidden.shape == (2, 7, 192)
    assert largest_difference(mlp(x), hidden @ mlp.fc2.weight.T + mlp.fc2.bias) < 1e-5


def test_block_is_timms_block() -> None:
    norm_layer = partial(nn.LayerNorm, eps=1e-6)
    theirs = timm.models.vision_transformer.Block(48, 3, qkv_bias=True, norm_layer=norm_layer)
    peaked_(theirs)
    ours = Block(SMALL)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 7, 48)
    assert ours.norm1.eps == 1e-6
    assert largest_difference(ours(x), theirs(x)) < 1e-5


@pytest.mark.parametrize("rate", ["pos_drop", "proj_drop", "attn_drop", "drop_path"])
def test_each_dropout_acts_in_training_and_only_there(rate: str) -> None:
    model = VisionTransformer(SMALL, **{rate: 0.5})
    peaked_(model)
    images = torch.randn(4, 3, 32, 32)
    model.train()
    assert largest_difference(model(images), model(images)) > 1e-4
    model.eval()
    plain = VisionTransformer(SMALL).eval()
    plain.load_state_dict(model.state_dict())
    assert largest_difference(model(images), plain(images)) == 0


def test_drop_path_keeps_the_expected_value_and_drops_whole_images() -> None:
    layer = DropPath(0.25).train()
    out = layer(torch.ones(20_000, 1, 2))
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(out[:, 0, 0], out[:, 0, 1])
    assert out.mean().item() == pytest.approx(1, abs=0.02)


def test_the_write_ups_network_has_its_shapes_and_parameters() -> None:
    with torch.device("meta"):
        model = VisionTransformer(
            img_size=384,
            patch_size=16,
            in_chans=3,
            n_classes=1000,
            embed_dim=768,
            depth=12,
            n_heads=12,
            mlp_ratio=4,
        )
        assert model(torch.empty(2, 3, 384, 384)).shape == (2, 1000)
        assert model.embed(torch.empty(2, 3, 384, 384)).shape == (2, 1 + 576, 768)
    assert sum(parameter.numel() for parameter in model.parameters()) == 86_859_496
    assert model.cls_token.shape == (1, 1, 768)
    assert model.pos_embed.shape == (1, 577, 768)


def test_the_class_token_and_the_position_embedding_take_part() -> None:
    model = VisionTransformer(SMALL).eval()
    peaked_(model)
    images = torch.randn(1, 3, 32, 32)
    before = model(images)
    for parameter in (model.cls_token, model.pos_embed):
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter))
        after = model(images)
        assert largest_difference(before, after) > 1e-3
        before = after


@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_any_number_of_channels(in_chans: int) -> None:
    model = VisionTransformer(SMALL, in_chans=in_chans).eval()
    assert model(torch.randn(2, in_chans, 32, 32)).shape == (2, 5)


def test_an_image_s_logits_do_not_depend_on_its_batch() -> None:
    model = VisionTransformer(SMALL).eval()
    peaked_(model)
    images = torch.randn(6, 3, 32, 32)
    alone = torch.cat([model(image[None]) for image in images])
    assert largest_difference(model(images), alone) < 1e-5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"img_size": 7}, "multiple of the patch size"),
        ({"n_heads": 5}, "multiple of n_heads"),
        ({"depth": 0}, "at least 1"),
        ({"qkv": "twisted"}, "fused, separate"),
    ],
)
def test_impossible_configurations_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        replace(SMALL, **fields)


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "vit_small_patch32_384", "vit_base_patch8_224", "vit_base_patch32_224",
     "vit_large_patch14_224", "vit_large_patch16_384", "vit_huge_patch14_224", "deit_tiny_distilled_patch16_224",
     "deit_base_distilled_patch16_384"],
)  # fmt: skip
def test_a_variant_is_what_timm_means_by_the_name(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = VisionTransformer(variant(name)), timm.create_model(name, num_classes=1000)
    shapes = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == shapes
    assert ours.config.n_heads == theirs.blocks[0].attn.num_heads


@pytest.mark.parametrize("name", ["vit_base_patch15_224", "vit_base_distilled_patch16_224"])
def test_an_unknown_variant_is_refused_with_the_form_of_the_names(name: str) -> None:
    with pytest.raises(ModelError, match="vit_SIZE_patchP_PIXELS"):
        variant(name)


def _parity_with_timm(size: str, img_size: int, patch: int, qkv_bias: bool) -> None:
    name = f"vit_{size}_patch{patch}_{img_size}"
    # Neither draws weights of its own, which takes most of the time: both get the same ones.
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=img_size, patch_size=patch, qkv_bias=qkv_bias,
                               embed_dim=variant(name).embed_dim, num_heads=variant(name).n_heads,
                               weight_init="skip").eval()  # fmt: skip
    peaked_(theirs, 0.2)
    with torch.device("meta"):
        ours = VisionTransformer(variant(name), qkv_bias=qkv_bias).eval()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    images = torch.randn(1, 3, img_size, img_size)
    with torch.inference_mode():
        expected = theirs(images)
        assert expected.std() > 0.01, "the comparison needs outputs that are not all alike"
        assert largest_difference(ours(images), expected) < 1e-5


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("patch", [16, 32])
@pytest.mark.parametrize("img_size", [224, 384])
def test_parity_with_timm_tiny(img_size: int, patch: int, qkv_bias: bool) -> None:
    _parity_with_timm("tiny", img_size, patch, qkv_bias)


_IN_CI = {("small", 384, 16, False), ("small", 224, 32, True)}
# Of the larger ones these alone on every run of CI; all in the soak.
_LARGER = [
    pytest.param(
        size,
        img_size,
        patch,
        qkv_bias,
        marks=() if (size, img_size, patch, qkv_bias) in _IN_CI else pytest.mark.soak,
    )
    for size in ("small", "base")
    for img_size in (224, 384)
    for patch in (16, 32)
    for qkv_bias in (True, False)
]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "img_size", "patch", "qkv_bias"), _LARGER)
def test_parity_with_timm(size: str, img_size: int, patch: int, qkv_bias: bool) -> None:
    _parity_with_timm(size, img_size, patch, qkv_bias)


@pytest.mark.parametrize(
    "name", ["deit_tiny_distilled_patch16_224", "deit_small_distilled_patch16_224"]
)
def test_parity_with_timm_distilled(name: str) -> None:
    theirs = timm.create_model(name).eval()
    peaked_(theirs, 0.2)
    ours = VisionTransformer(variant(name)).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert largest_difference(ours(images), theirs(images)) < 1e-5
        tokens = ours.forward_features(images)  # [2, 198, D]
        assert largest_difference(tokens, theirs.forward_features(images)) < 1e-4
        features = ours.forward_head(tokens, pre_logits=True)
        assert torch.equal(features, torch.cat([tokens[:, 0], tokens[:, 1]], dim=1)), (
            "both tokens, where timm has their mean: each has a head of its own"
        )
        assert features.shape == (2, ours.config.n_features)
        assert torch.equal(ours.forward_head(tokens), ours(images))


def test_features_are_timm_s() -> None:
    theirs = timm.create_model("vit_tiny_patch16_224").eval()
    peaked_(theirs, 0.2)
    ours = VisionTransformer(variant("vit_tiny_patch16_224")).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        tokens, expected = ours.forward_features(images), theirs.forward_features(images)
        assert tokens.shape == (2, 197, 192)
        assert largest_difference(tokens, expected) < 1e-4
        features = ours.forward_head(tokens, pre_logits=True)
        assert features.shape == (2, ours.config.n_features)
        assert largest_difference(features, theirs.forward_head(expected, pre_logits=True)) < 1e-4
        assert torch.equal(ours.forward_head(tokens), ours(images))
        assert torch.equal(Backbone(ours)(images), features)


def test_a_backbone_elsewhere_is_a_copy_without_the_head() -> None:
    model = VisionTransformer(SMALL, distilled=True).eval()
    cpu, backbone = torch.device("cpu"), Backbone(model)
    assert backbone.on(cpu, torch.float32) is backbone
    copied = backbone.on(cpu, torch.bfloat16)
    assert {parameter.dtype for parameter in copied.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any("head" in name for name, _ in copied.named_parameters())
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        rough = copied(images.to(torch.bfloat16)).float()
        assert rough.shape == (2, 2 * 48)
        assert largest_difference(backbone(images), rough) < 0.1


def test_bfloat16_stays_near_float32() -> None:
    model = VisionTransformer(variant("vit_tiny_patch16_224", n_classes=10)).eval()
    peaked_(model, 0.2)
    images = torch.randn(4, 3, 224, 224)
    with torch.inference_mode():
        exact = model(images)
        rough = model.to(torch.bfloat16)(images.to(torch.bfloat16)).float()
    assert largest_difference(exact, rough) / float(exact.abs().max()) < 0.05
