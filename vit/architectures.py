"""What timm's names of Vision Transformers stand for: the arguments its own classes are made with.

`vit_base_patch16_384` is ViT-B with 16-pixel patches for 384-pixel images. A name says what tensors
do not show (heads, activation, pooling, eps), so this table is the source of that, and the test of
it holds each name against timm's own entry. What the arguments mean for the network is
timm_arguments.py's; a ViTConfig is made of both in config.py.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

from .errors import ModelError

Arguments = dict[str, Any]
Kind = Literal["vit", "eva"]  # timm's VisionTransformer (with its distilled DeiT), or its Eva


@dataclass(frozen=True)
class Architecture:
    """A name's class in timm, and the arguments it is made with: its own ones, by timm's names."""

    kind: Kind
    arguments: Arguments


# size: embed_dim, depth, n_heads. B, L and H: Dosovitskiy et al. 2021 (arXiv:2010.11929), table 1.
# Ti and S: Touvron et al. 2021 (arXiv:2012.12877), table 1. Every one has mlp_ratio 4.
SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
PATCH_SIZES = (8, 14, 16, 32)

# Other sizes, with their mlp_ratio. giant and gigantic: Zhai et al. 2022 (arXiv:2106.04560),
# table 2; so400m: Alabdulmohsin et al. 2023 (arXiv:2305.13035); the others are timm's.
_OTHER_SIZES: dict[str, tuple[int, int, int, float]] = {
    "xsmall": (256, 10, 4, 4),
    "wee": (256, 14, 4, 5),
    "little": (320, 14, 5, 5.6),
    "medium": (512, 12, 8, 4),
    "mediumd": (512, 20, 8, 4),
    "betwixt": (640, 12, 10, 4),
    "so150m": (896, 18, 14, 2.572),
    "so150m2": (832, 21, 13, 34 / 13),
    "so400m": (1152, 27, 16, 3.7362),
    "intern300m": (1024, 24, 16, 4),
    "giant": (1408, 40, 16, 48 / 11),
    "giantopt": (1536, 40, 16, 4),
    "gigantic": (1664, 48, 16, 64 / 13),
    "small_plus": (384, 12, 6, 4),
    "huge_plus": (1280, 32, 20, 4),
    "7b": (4096, 40, 32, 2),
}

_GAP: Arguments = {"class_token": False, "global_pool": "avg"}
_SBB: Arguments = _GAP | {"init_values": 1e-5, "no_embed_class": True}
_RPN: Arguments = _GAP | {"qkv_bias": False, "init_values": 1e-5, "block_fn": "ResPostBlock"}
_CLIP: Arguments = {"pre_norm": True, "norm_eps": 1e-5}
_QUICK: Arguments = {"act_layer": "quick_gelu"}
_MAP: Arguments = {"class_token": False, "global_pool": "map"}
_SIGLIP_GAP: Arguments = _GAP | {"fc_norm": False}
_TANH: Arguments = {"act_layer": "gelu_tanh"}
_DINOV2: Arguments = {"init_values": 1e-5, "img_size": 518}
_DINOV2_GIANT: Arguments = {"embed_dim": 1536, "num_heads": 24, "mlp_ratio": 5.33334}
_PACKED: Arguments = {"mlp_layer": "swiglu_packed", "act_layer": "silu"}
_TIPS: Arguments = {"init_values": 1.0, "no_embed_class": True, "img_size": 448}
_RADIO: Arguments = {"no_embed_class": True, "final_norm": False, "img_size": 512}
_BEIT3: Arguments = {"scale_attn_norm": True, "scale_mlp_norm": True, "global_pool": "avg",
                     "norm_eps": 1e-5}  # fmt: skip
_EVA02: Arguments = {"mlp_ratio": 8 / 3, "swiglu_mlp": True, "use_rot_pos_emb": True,
                     "ref_feat_shape": 16}  # fmt: skip
_EVA02_NORMED: Arguments = _EVA02 | {"qkv_fused": False, "scale_mlp": True}
_SBB_ROPE: Arguments = {"init_values": 1e-5, "class_token": False, "use_rot_pos_emb": True,
                        "use_abs_pos_emb": False, "ref_feat_shape": 16}  # fmt: skip
_ROPE_VIT: Arguments = {
    "attn_type": "rope", "init_values": 1e-5, "global_pool": "token", "use_rot_pos_emb": True,
    "rope_grid_indexing": "xy", "use_abs_pos_emb": False, "rope_temperature": 100.0,
}  # fmt: skip
_APE: Arguments = {"use_abs_pos_emb": True, "no_embed_class": True}
_MIXED: Arguments = {"rope_type": "mixed", "rope_temperature": 10.0}
_DINOV3: Arguments = {
    "init_values": 1e-5, "use_rot_pos_emb": True, "use_abs_pos_emb": False, "rope_type": "dinov3",
    "rope_temperature": 100, "rope_rotate_half": True, "num_reg_tokens": 4, "use_fc_norm": False,
    "norm_eps": 1e-5, "qkv_bias": False, "img_size": 256,
}  # fmt: skip
_QKVB: Arguments = {"qkv_bias": True}
_ALIGNED: Arguments = {"swiglu_mlp": True, "swiglu_align_to": 8}
_LINGBOT: Arguments = _DINOV3 | {"global_pool": "token", "img_size": 512}

# A name's form, its class, and the arguments beyond size, patch and image size. The first group is
# the size, {p} a patch size, {i} an image size, and {r} how many registers.
_FAMILIES: list[tuple[str, Kind, Arguments]] = [
    ("(tiny|small|base|large|huge|giant|gigantic)_{p}_{i}", "vit", {}),
    ("(base)_{p}_{i}_miil", "vit", {"qkv_bias": False}),
    ("(base)_{p}_plus_{i}", "vit", {"embed_dim": 896, "num_heads": 14, "init_values": 1e-5}),
    ("(small)_{p}_36x1_{i}", "vit", {"depth": 36, "init_values": 1e-5}),
    ("(base)_{p}_rpn_{i}", "vit", _RPN),
    ("(medium|betwixt)_{p}_gap_{i}", "vit",
     _GAP | {"qkv_bias": False, "init_values": 1e-6, "fc_norm": False}),
    ("(base)_{p}_gap_{i}", "vit", _GAP | {"fc_norm": False, "num_heads": 16}),
    ("(huge|giant)_{p}_gap_{i}", "vit", _GAP | {"fc_norm": False}),
    ("(wee|little|medium|mediumd|betwixt)_{p}_{r}_gap_{i}", "vit", _SBB),
    ("(base)_{p}_{r}_gap_{i}", "vit", _GAP | {"no_embed_class": True}),
    ("(so150m)_{p}_{r}_gap_{i}", "vit", _GAP | {"fc_norm": False}),
    ("(so150m)_{p}_{r}_map_{i}", "vit", _MAP),
    ("(so150m2)_{p}_{r}_gap_{i}", "vit", _GAP | {"init_values": 1e-5, "qkv_bias": False}),
    ("(xsmall|medium|betwixt|base|large|huge|giant|gigantic)_{p}_clip_{i}", "vit", _CLIP),
    ("(base|large|huge|gigantic)_{p}_clip_quickgelu_{i}", "vit", _CLIP | _QUICK),
    ("(base)_{p}_plus_clip_{i}", "vit", _CLIP | {"embed_dim": 896, "num_heads": 14}),
    # SigLIP 2 alone, which has the tanh form; where a name is of both it has the exact one.
    ("(base)_{p32}_siglip_{i}", "vit", _MAP | _TANH),
    ("(base)_{p32}_siglip_gap_{i}", "vit", _SIGLIP_GAP | _TANH),
    ("(large)_{p}_siglip_{i512}", "vit", _MAP | _TANH),
    ("(large)_{p}_siglip_gap_{i512}", "vit", _SIGLIP_GAP | _TANH),
    ("(so400m|giantopt)_{p16}_siglip_{i}", "vit", _MAP | _TANH),
    ("(so400m|giantopt)_{p16}_siglip_gap_{i}", "vit", _SIGLIP_GAP | _TANH),
    ("(base|large|so400m)_{p}_siglip_{i}", "vit", _MAP),
    ("(base|large|so400m)_{p}_siglip_gap_{i}", "vit", _SIGLIP_GAP),
    ("(small|base|large)_{p}_dinov2", "vit", _DINOV2),
    ("(giant)_{p}_dinov2", "vit", _DINOV2 | _DINOV2_GIANT | _PACKED),
    ("(small|base|large)_{p}_{r}_dinov2", "vit", _DINOV2 | {"no_embed_class": True}),
    ("(giant)_{p}_{r}_dinov2", "vit", _DINOV2 | _DINOV2_GIANT | _PACKED | {"no_embed_class": True}),
    ("(base|large)_{p}_{r}_tipsv2", "vit", _TIPS),
    ("(so400m)_{p}_{r}_tipsv2", "vit", _TIPS | {"mlp_ratio": 4304 / 1152}),
    ("(giant)_{p}_{r}_tipsv2", "vit", _TIPS | _DINOV2_GIANT | _PACKED),
    ("(base|large)_{p}_radio_v3", "vit", _RADIO | {"reg_tokens": 7, "init_values": 1e-5}),
    ("(huge)_{p}_radio_v3", "vit", _RADIO | {"reg_tokens": 7}),
    ("(giant)_{p}_radio_v3", "vit",
     _RADIO | _DINOV2_GIANT | {"reg_tokens": 7, "mlp_ratio": 4}),
    ("(huge)_{p}_radio_v4", "vit", _RADIO | {"reg_tokens": 9}),
    ("(so400m)_{p}_radio_v4", "vit", _RADIO | {"reg_tokens": 9, "mlp_ratio": 4304 / 1152}),
    ("(intern300m)_{p}_{i}", "vit", {"init_values": 0.1, "final_norm": False}),
    ("(medium|base|betwixt)_{p}_rope_{r}_gap_{i}", "eva", _SBB_ROPE),
    ("(mediumd)_{p}_rope_{r}_gap_{i}", "eva", _SBB_ROPE | {"qkv_bias": False}),
    ("(small|base|large)_{p}_rope_{i}", "eva", _ROPE_VIT),
    ("(small|base|large)_{p}_rope_ape_{i}", "eva", _ROPE_VIT | _APE),
    ("(small|base|large)_{p}_rope_mixed_{i}", "eva", _ROPE_VIT | _MIXED),
    ("(small|base|large)_{p}_rope_mixed_ape_{i}", "eva", _ROPE_VIT | _MIXED | _APE),
    ("(small|base|large)_{p}_dinov3", "eva", _DINOV3),
    ("(tiny|small|base|large)_{p}_dinov3_qkvb", "eva", _DINOV3 | _QKVB),
    ("(small_plus|huge_plus)_{p}_dinov3", "eva", _DINOV3 | _ALIGNED),
    ("(small_plus|huge_plus)_{p}_dinov3_qkvb", "eva", _DINOV3 | _ALIGNED | _QKVB),
    ("(7b)_{p}_dinov3", "eva", _DINOV3 | {"swiglu_mlp": True, "swiglu_align_to": 64}),
    ("(small|base|large)_{p}_lingbot", "eva", _LINGBOT | _QKVB),
    ("(giant)_{p}_lingbot", "eva", _LINGBOT | _DINOV2_GIANT | _ALIGNED | {"mlp_ratio": 8 / 3}),
]  # fmt: skip
_FAMILIES = [("vit_" + form, kind, arguments) for form, kind, arguments in _FAMILIES] + [
    ("deit_(tiny|small|base|large|huge)_{p}_{i}", "vit", {}),
    ("deit_(tiny|small|base|large|huge)_distilled_{p}_{i}", "vit", {"distilled": True}),
    ("deit3_(small|medium|base|large|huge)_{p}_{i}", "vit",
     {"no_embed_class": True, "init_values": 1e-6}),
    ("beit3_(base|large)_{p}_{i}", "vit", _BEIT3),
    ("beit3_(giant)_{p}_{i}", "vit", _BEIT3 | {"mlp_ratio": 4.3637}),
    ("flexivit_(small|base|large)", "vit", {"no_embed_class": True, "img_size": 240}),
    ("eva_(large)_{p}_{i}", "vit", {"global_pool": "avg"}),
    ("eva_(giant)_{p}_{i}", "eva", {}),
    ("eva_(giant)_{p}_clip_{i}", "eva", {"global_pool": "token"}),
    ("eva02_(tiny|small)_{p}_{i}", "eva", _EVA02),
    ("eva02_(base|large)_{p}_{i}", "eva", _EVA02_NORMED),
    ("eva02_(base|large)_{p}_clip_{i}", "eva",
     _EVA02_NORMED | {"scale_attn_inner": True, "global_pool": "token"}),
    ("eva02_(enormous)_{p}_clip_{i}", "eva",
     {"embed_dim": 1792, "depth": 64, "num_heads": 16, "mlp_ratio": 15360 / 1792,
      "use_post_norm": True, "global_pool": "token"}),
]  # fmt: skip
_TESTS: dict[str, Arguments] = {  # timm's own small ones, trained for its tests
    "test_vit": {"embed_dim": 64, "depth": 6, "num_heads": 2, "mlp_ratio": 3},
    "test_vit2": _GAP | {"embed_dim": 64, "depth": 8, "num_heads": 2, "mlp_ratio": 3,
                         "reg_tokens": 1, "init_values": 1e-5},
    "test_vit3": _MAP | {"embed_dim": 96, "depth": 9, "num_heads": 3, "mlp_ratio": 2,
                         "reg_tokens": 1, "init_values": 1e-5, "pool_include_prefix": True},
}  # fmt: skip
_PLACES = {
    "{p}": f"patch(?P<patch>{'|'.join(map(str, PATCH_SIZES))})",
    "{p16}": "patch(?P<patch>16)",
    "{p32}": "patch(?P<patch>32)",
    "{i}": r"(?P<img>\d+)",
    "{i512}": "(?P<img>512)",
    "{r}": r"reg(?P<registers>\d)",
}

# Published families that this tool does not build, by timm's names, and what in them it does not
# build. The first that fits says it.
_OTHER_FAMILIES = [
    (r"beit|beitv2", "has relative positions"),
    (r"cait|xcit|vitamin", "has parts of its own"),
    (r".*sapiens2", "has fewer heads for keys than for queries, and oblong images"),
    (r"vit_pe_", "pools by attention with heads of its own, and has positions of its own"),
    (r"aimv2|test_vit4|.*_xp_", "has RMS norms"),
    (r".*_s?relpos", "has relative positions instead of an embedding"),
    (r"vit_(dlittle|dwee)_", "has differential attention"),
    (r"vit_(d?pwee)_|.*_\d+x2_", "has blocks that do attention and MLP side by side"),
    (r"vit_\w+_(r\d*_s\d+|resnet\d+)", "has a ResNet before its blocks"),
    (r"naflexvit|vit_naflex", "takes images of any shape"),
    (r"samvit|.*_mci_|hiera|vit_det", "has windows, or a stem of convolutions"),
    (r"vit_\w+_(dinov3|lingbot|radio|dinov2|tipsv2)", "is of a size this tool does not know"),
]


def architecture(name: str) -> Architecture:
    """What timm's class is made with for this name; a tag such as `.augreg_in21k` may follow it.

    Raises ModelError for a name that is not known, with the reason where it is published.
    """
    base = name.partition(".")[0]
    if base in _TESTS:
        return Architecture("vit", {"patch_size": 16, "img_size": 160} | _TESTS[base])
    for form, kind, arguments in _FAMILIES:
        for place, pattern in _PLACES.items():
            form = form.replace(place, pattern)
        if match := re.fullmatch(form, base):
            return Architecture(kind, _said(match, kind) | arguments)
    raise _unknown(name, base)


def _said(match: re.Match[str], kind: Kind) -> Arguments:
    """The arguments that a name says in words and numbers."""
    size, said = match[1], match.groupdict()
    if size in SIZES:
        embed_dim, depth, n_heads = SIZES[size]
        mlp_ratio = 4.0
    else:
        embed_dim, depth, n_heads, mlp_ratio = _OTHER_SIZES.get(size, (0, 0, 0, 0))
    arguments: Arguments = {
        "embed_dim": embed_dim, "depth": depth, "num_heads": n_heads, "mlp_ratio": mlp_ratio,
        "patch_size": int(said.get("patch") or 16),
    }  # fmt: skip
    if said.get("img"):
        arguments["img_size"] = int(said["img"])
    if said.get("registers"):
        arguments["reg_tokens" if kind == "vit" else "num_reg_tokens"] = int(said["registers"])
    return arguments


def _unknown(name: str, base: str) -> ModelError:
    for pattern, reason in _OTHER_FAMILIES:
        if re.match(pattern, base):
            return ModelError(
                f"{name!r} is a published Vision Transformer that is not supported: it {reason}; "
                "choose another one, such as vit_base_patch16_224"
            )
    if not base.startswith(("vit", "deit", "eva", "beit", "flexivit")):
        return ModelError(
            f"{name!r} is not a Vision Transformer this tool knows, and it labels with no other "
            "networks; choose one of timm's vit_* or deit_*, such as vit_base_patch16_224"
        )
    return ModelError(
        f"unknown architecture {name!r}; names look like vit_base_patch16_384: "
        f"vit_SIZE_patchP_PIXELS with SIZE one of {', '.join(SIZES)} and P one of "
        f"{', '.join(map(str, PATCH_SIZES))}, or deit_SIZE[_distilled]_patchP_PIXELS"
    )
