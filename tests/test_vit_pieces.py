"""What came after the first Vision Transformer, each piece against timm's own classes."""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import ResPostBlock
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from tests.helpers import largest_difference, peaked_
from vit.checkpoints.weights import convert_state, resample_pos_embed
from vit.config import ViTConfig, mlp_ratio_of
from vit.errors import ModelError
from vit.head import Head
from vit.model import Backbone, VisionTransformer
from vit.summary import summarise

SMALL = ViTConfig(img_size=32, patch_size=8, n_classes=5, embed_dim=48, depth=2, n_heads=3)
_TIMM = {"img_size": 32, "patch_size": 8, "num_classes": 5, "embed_dim": 48, "depth": 2, "num_heads": 3}  # fmt: skip
_CLIP = {"norm_layer": partial(nn.LayerNorm, eps=1e-5), "pre_norm": True}
_GAP = {"class_token": False, "global_pool": "avg"}
_EVA_ROPE = {"use_rot_pos_emb": True, "ref_feat_shape": 16}
_DINOV3 = {"rope_type": "dinov3", "rope_temperature": 100, "rope_rotate_half": True, "use_rot_pos_emb": True,
           "use_abs_pos_emb": False, "num_reg_tokens": 4, "use_fc_norm": False, "init_values": 1e-5}  # fmt: skip
_ROPE_VIT = {"attn_type": "rope", "init_values": 1e-5, "global_pool": "token", "use_abs_pos_emb": False,
             "use_rot_pos_emb": True, "rope_grid_indexing": "xy"}  # fmt: skip

# timm's class, its arguments, and the fields of ours that say the same.
PIECES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "CLIP": (TimmViT, _CLIP, {"norm_pre": True, "norm_eps": 1e-5}),
    "CLIP, quick": (
        TimmViT, _CLIP | {"act_layer": "quick_gelu"}, {"norm_pre": True, "norm_eps": 1e-5, "mlp": "quick_gelu"},
    ),
    "DeiT-III": (
        TimmViT, {"no_embed_class": True, "init_values": 1e-6}, {"pos_embed": "patches", "layer_scale": True},
    ),
    "DINOv2": (TimmViT, {"init_values": 1e-5}, {"layer_scale": True}),
    "DINOv2, registers": (
        TimmViT, {"reg_tokens": 4, "no_embed_class": True}, {"reg_tokens": 4, "pos_embed": "patches"},
    ),
    "DINOv2, giant": (
        TimmViT, {"mlp_ratio": 5.33334, "mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU},
        {"mlp": "swiglu", "mlp_ratio": 128 / 48},
    ),
    "SBB": (
        TimmViT, _GAP | {"reg_tokens": 1, "no_embed_class": True, "init_values": 1e-5},
        {"class_token": False, "reg_tokens": 1, "pos_embed": "patches", "layer_scale": True, "pool": "avg",
         "final_norm": "pooled"},
    ),
    "so150m": (
        TimmViT, _GAP | {"reg_tokens": 4, "fc_norm": False, "mlp_ratio": 2.572},
        {"class_token": False, "reg_tokens": 4, "pool": "avg", "mlp_ratio": 2.572},
    ),
    "SigLIP": (TimmViT, {"class_token": False, "global_pool": "map"}, {"class_token": False, "pool": "map"}),
    "SigLIP 2": (
        TimmViT, {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"},
        {"class_token": False, "pool": "map", "mlp": "gelu_tanh"},
    ),
    "map over all": (
        TimmViT, {"class_token": False, "global_pool": "map", "reg_tokens": 1, "pool_include_prefix": True},
        {"class_token": False, "pool": "map_all", "reg_tokens": 1},
    ),
    "average of all": (
        TimmViT, {"global_pool": "avg", "pool_include_prefix": True}, {"pool": "avg_all", "final_norm": "pooled"},
    ),
    "BEiT-3": (
        TimmViT, {"global_pool": "avg", "scale_attn_norm": True, "scale_mlp_norm": True},
        {"pool": "avg", "attn_norm": True, "mlp_norm": True, "final_norm": "pooled"},
    ),
    "pixels left over": (TimmViT, {"img_size": 37}, {"img_size": 37}),
    "no norm at the end": (TimmViT, {"final_norm": False}, {"final_norm": "none"}),
    "norms of queries and keys": (TimmViT, {"qk_norm": True}, {"qk_norm": True}),
    "no positions": (TimmViT, {"pos_embed": "none"}, {"pos_embed": "none"}),
    "norms of the branches": (
        TimmViT, {"block_fn": ResPostBlock, "qkv_bias": False}, {"post_norm": True, "qkv_bias": False},
    ),
    "EVA": (Eva, {}, {"pool": "avg", "final_norm": "pooled"}),
    "EVA, post-norm": (Eva, {"use_post_norm": True, "global_pool": "token"}, {"post_norm": True}),
    "EVA-02, small": (
        Eva, _EVA_ROPE | {"swiglu_mlp": True, "mlp_ratio": 8 / 3},
        {"pool": "avg", "final_norm": "pooled", "mlp": "swiglu", "mlp_ratio": 8 / 3, "rope": "eva02", "rope_grid": 16},
    ),
    "EVA-02, large": (
        Eva, _EVA_ROPE | {"swiglu_mlp": True, "scale_mlp": True, "qkv_fused": False, "mlp_ratio": 8 / 3},
        {"pool": "avg", "final_norm": "pooled", "mlp": "swiglu", "mlp_norm": True, "mlp_ratio": 8 / 3,
         "rope": "eva02", "rope_grid": 16},
    ),
    "EVA-02 CLIP": (
        Eva, _EVA_ROPE | {"swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True, "qkv_fused": False,
                          "global_pool": "token"},
        {"mlp": "swiglu", "mlp_norm": True, "attn_norm": True, "rope": "eva02", "rope_grid": 16},
    ),
    "SBB, rotary": (
        Eva, _EVA_ROPE | {"class_token": False, "num_reg_tokens": 1, "use_abs_pos_emb": False, "qkv_bias": False,
                          "init_values": 1e-5},
        {"class_token": False, "reg_tokens": 1, "pos_embed": "none", "layer_scale": True, "pool": "avg",
         "final_norm": "pooled", "qkv_bias": False, "rope": "eva02", "rope_grid": 16},
    ),
    "RoPE-ViT": (
        Eva, _ROPE_VIT | {"rope_temperature": 100.0},
        {"pos_embed": "none", "layer_scale": True, "rope": "axial", "rope_temperature": 100.0},
    ),
    "RoPE-ViT, mixed": (
        Eva, _ROPE_VIT | {"rope_type": "mixed", "rope_temperature": 10.0, "use_abs_pos_emb": True,
                          "no_embed_class": True},
        {"pos_embed": "patches", "layer_scale": True, "rope": "mixed", "rope_temperature": 10.0},
    ),
    "DINOv3": (
        Eva, _DINOV3 | {"qkv_bias": False},
        {"pos_embed": "none", "layer_scale": True, "reg_tokens": 4, "pool": "avg", "qkv_bias": False,
         "rope": "dinov3", "rope_temperature": 100},
    ),
    "DINOv3, SwiGLU": (
        Eva, _DINOV3 | {"swiglu_mlp": True, "swiglu_align_to": 8, "mlp_ratio": 2.51, "global_pool": "token"},
        {"pos_embed": "none", "layer_scale": True, "reg_tokens": 4, "mlp": "swiglu", "mlp_ratio": 120 / 48,
         "rope": "dinov3", "rope_temperature": 100},
    ),
}  # fmt: skip


def _perturb_(model: nn.Module) -> None:
    """Random weights, also for what starts at zero or one: a piece left out then shows."""
    peaked_(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gamma" in name:
                parameter.uniform_(0.2, 1.5)
            elif parameter.ndim == 1:
                parameter.add_(torch.rand_like(parameter) * 0.3)


def _pair(piece: str) -> tuple[nn.Module, VisionTransformer]:
    their_class, arguments, fields = PIECES[piece]
    theirs = their_class(**_TIMM | arguments).eval()
    _perturb_(theirs)
    ours = VisionTransformer(SMALL, **fields).eval()
    ours.load_state_dict(convert_state(theirs.state_dict()))
    return theirs, ours


@pytest.mark.parametrize("piece", PIECES)
def test_a_piece_is_timm_s(piece: str) -> None:
    theirs, ours = _pair(piece)
    images = torch.randn(2, 3, ours.config.img_size, ours.config.img_size)
    with torch.inference_mode():
        expected = theirs.forward_features(images)  # type: ignore[operator]
        tokens = ours.forward_features(images)
        assert largest_difference(tokens, expected) < 1e-4
        features = ours.forward_head(tokens, pre_logits=True)
        assert features.shape == (2, ours.config.n_features)
        expected = theirs.forward_head(expected, pre_logits=True)  # type: ignore[operator]
        assert expected.std() > 0.01, "the comparison needs outputs that are not all alike"
        assert largest_difference(features, expected) < 1e-4
        assert largest_difference(ours(images), theirs(images)) < 1e-4
        assert torch.equal(Backbone(ours)(images), features)
        rough = Backbone(ours).on(torch.device("cpu"), torch.bfloat16)(images.bfloat16()).float()
    assert largest_difference(rough, features) < 0.1 * float(features.abs().max())
    head = Head.of(ours)
    expected = theirs(images).softmax(dim=-1)
    assert largest_difference(head.scores(features), expected) < 1e-4


@pytest.mark.parametrize("piece", PIECES)
def test_each_weight_of_a_piece_takes_part(piece: str) -> None:
    _, ours = _pair(piece)
    ours.requires_grad_(True)
    torch.manual_seed(1)
    size = ours.config.img_size
    ours(torch.randn(2, 3, size, size)).square().sum().backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("piece", PIECES)
def test_a_masked_patch_of_a_piece_changes_nothing(piece: str) -> None:
    _, ours = _pair(piece)
    images = torch.randn(2, 3, ours.config.img_size, ours.config.img_size)
    other = images.clone()
    other[:, :, :8, 8:16] += 5  # patch 1
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[:, 1] = False
    with torch.inference_mode():
        assert largest_difference(ours(images, mask), ours(other, mask)) < 1e-4
        assert largest_difference(ours(images), ours(other)) > 1e-3


@pytest.mark.parametrize("piece", PIECES)
def test_a_piece_is_summarised(piece: str) -> None:
    fields = PIECES[piece][2]
    layers = summarise(replace(SMALL, **fields))
    names = {layer.name for layer in layers}
    model = VisionTransformer(SMALL, **fields)
    assert layers[0].n_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert ("blocks.0.ls1" in names) == fields.get("layer_scale", False)
    assert ("attn_pool" in names) == fields.get("pool", "token").startswith("map")


def test_token_and_mean_are_side_by_side_in_dinov2_s_features() -> None:
    model = VisionTransformer(SMALL, pool="token_avg", reg_tokens=2, pos_embed="patches").eval()
    peaked_(model)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        tokens = model.forward_features(images)  # [2, 1 + 2 + 16, D]
        expected = torch.cat([tokens[:, 0], tokens[:, 3:].mean(dim=1)], dim=1)
        features = model.forward_head(tokens, pre_logits=True)
        assert torch.equal(features, expected)
        assert features.shape == (2, 96)
        assert model.head.weight.shape == (5, 96)
        logits = F.linear(features, model.head.weight, model.head.bias)
        assert largest_difference(model(images), logits) < 1e-5


def test_a_projection_is_a_linear_map_of_the_pooled_token() -> None:
    with pytest.raises(ModelError, match="proj_bias is true and there is no projection"):
        VisionTransformer(SMALL, proj_bias=True)
    model = VisionTransformer(SMALL, norm_pre=True, proj_dim=32, n_classes=0).eval()
    peaked_(model)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        tokens = model.forward_features(images)
        expected = tokens[:, 0] @ model.proj.weight.T
        assert largest_difference(model(images), expected) < 1e-5
        assert largest_difference(Backbone(model)(images), expected) < 1e-5
    assert model.config.n_features == 32
    assert model.patch_embed.proj.bias is None
    assert not any("head" in name for name in model.state_dict())
    with pytest.raises(ModelError, match="no head"):
        Head.of(model)


def test_linear_and_convolution_are_the_same_patch_embedding_without_a_bias_too() -> None:
    conv = VisionTransformer(SMALL, norm_pre=True).eval()
    linear = VisionTransformer(SMALL, norm_pre=True, patch_embed="linear", qkv="separate").eval()
    linear.load_state_dict(conv.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert largest_difference(conv(images), linear(images)) < 1e-5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_token": False}, "pool 'token' takes the class token"),
        ({"class_token": False, "pool": "token_avg"}, "choose avg, avg_all, map or map_all"),
        ({"class_token": "no"}, "class_token is 'no'; it is true or false"),
        ({"reg_tokens": 10**9}, "reg_tokens is 1000000000; .* at most 1,024"),
        ({"reg_tokens": -1}, "at least 0"),
        ({"depth": 10**6}, "depth is 1000000; .* at most 1,024"),
        ({"n_heads": 10**9}, "n_heads is 1000000000"),
        ({"mlp_ratio": 1e9}, "mlp_ratio is 1000000000.0; .* at most 64"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio is nan"),
        ({"pool": "prr"}, "pool is 'prr'; choose one of token, avg, avg_all, map"),
        ({"pool": ["token"]}, "choose one of"),
        ({"rope": "spiral"}, "rope is 'spiral'"),
        ({"rope": "axial", "n_heads": 24}, "heads of a multiple of 4"),
        ({"img_size": 16_384, "patch_size": 1}, r"268,435,456 patches of 1; at most 65,536"),
        ({"distilled": True, "pool": "avg"}, "distilled network"),
        ({"distilled": True, "reg_tokens": 1}, "distilled network"),
    ],
)
def test_a_config_that_lies_is_told_what_would_be_true(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        replace(SMALL, **fields)


@given(st.integers(1, 20_000), st.integers(1, 5_000))
@settings(max_examples=500, deadline=None)
def test_the_ratio_of_any_hidden_size_gives_it_back(hidden_dim: int, embed_dim: int) -> None:
    assert int(embed_dim * mlp_ratio_of(hidden_dim, embed_dim)) == hidden_dim


def test_a_record_leaves_out_what_a_plain_vision_transformer_has_not() -> None:
    assert not {"pool", "class_token"} & SMALL.record.keys()
    assert SMALL.record["drop_path"] == 0.0
    later = replace(SMALL, pool="avg", rope="axial")
    assert {"pool": "avg", "rope": "axial"}.items() <= later.record.items()
    assert "rope_temperature" not in later.record
    assert ViTConfig(**later.record) == later


def test_positions_are_resampled_as_dinov2_does_it() -> None:
    """Its own code scales by (g + 0.1) / M and has no antialiasing."""
    positions = torch.randn(1, 1 + 37**2, 8)
    grid = positions[:, 1:].reshape(1, 37, 37, 8).permute(0, 3, 1, 2)
    scale = float(16 + 0.1) / 37
    expected = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    expected = expected.permute(0, 2, 3, 1).reshape(1, 256, 8)
    ours = resample_pos_embed(positions, 16, 1, antialias=False, offset=0.1)
    assert torch.equal(ours[:, 1:], expected)
    assert torch.equal(ours[:, :1], positions[:, :1])
    assert not torch.allclose(ours, resample_pos_embed(positions, 16, 1), atol=1e-2)


def test_rotary_positions_take_all_patches() -> None:
    model = VisionTransformer(SMALL, rope="axial")
    tokens = model.embed(torch.randn(1, 3, 32, 32))[:, :5]
    with pytest.raises(AssertionError, match=re.escape("those of all patches")):
        model.encode(tokens)
