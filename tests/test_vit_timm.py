"""timm's published Vision Transformers: the table of their names against timm's own entries, and
their numbers through timm's own save format.
"""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.models.deit
import timm.models.eva
import timm.models.vision_transformer
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timm.models import is_model_in_modules, model_entrypoint, save_for_hf
from torch import nn

from benchmarks.coverage import compare, heads, is_classifier, make, one_network, randomise_
from tests.helpers import largest_difference
from vit.architectures import Architecture, architecture
from vit.backbone import load_backbone
from vit.checkpoints import from_timm
from vit.classifier import load_classifier
from vit.config import variant
from vit.errors import ModelError
from vit.timm_arguments import fields_of

_FILES = ("vision_transformer", "deit", "eva")


class _Made(Exception):
    """What an entry of timm's would have made, instead of making it."""


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(kind: str) -> Any:
        def make(name: str, pretrained: bool = False, **arguments: Any) -> None:
            raise _Made(kind, arguments)

        return make

    monkeypatch.setattr(timm.models.vision_transformer, "_create_vision_transformer", stop("vit"))
    monkeypatch.setattr(timm.models.deit, "_create_deit", stop("vit"))
    monkeypatch.setattr(timm.models.eva, "_create_eva", stop("eva"))


def timm_entry(name: str) -> Architecture:
    """What timm makes for a name, with words for the classes in it."""
    with pytest.raises(_Made) as made:
        model_entrypoint(name)()
    kind, arguments = made.value.args
    norm = arguments.get("norm_layer")
    if isinstance(norm, partial) and norm.func.__name__ == "LayerNorm":
        arguments["norm_eps"] = norm.keywords["eps"]
        del arguments["norm_layer"]
    if isinstance(arguments.get("mlp_layer"), partial):
        arguments["mlp_layer"] = "swiglu_packed"
    if isinstance(arguments.get("act_layer"), type):
        arguments["act_layer"] = arguments["act_layer"].__name__.lower()
    if "block_fn" in arguments:
        arguments["block_fn"] = arguments["block_fn"].__name__
    arguments.pop("pretrained_strict", None)
    return Architecture(kind, arguments)


def known_or_refused(name: str) -> Architecture | None:
    try:
        return architecture(name)
    except ModelError as error:
        if "is a published Vision Transformer that is not supported: it" not in str(error):
            raise
        return None


def test_the_table_of_names_is_timm_s(entries: None) -> None:
    names = [name for name in timm.list_models() if is_model_in_modules(name, _FILES)]
    known = 0
    for name in names:
        if not (ours := known_or_refused(name)):
            continue
        known += 1
        theirs = timm_entry(name)
        assert ours.kind == theirs.kind, name
        # An image size comes from the file (timm's entries often have none); checked below.
        size = {"img_size": 224}
        expected = fields_of(theirs.kind, theirs.arguments | size)
        assert fields_of(ours.kind, ours.arguments | size) == expected, name
    assert known >= 200


def test_a_name_s_image_size_is_that_of_its_published_weights() -> None:
    for name in timm.list_models():
        if not is_model_in_modules(name, _FILES):
            continue
        if known_or_refused(name):
            expected = timm.models.get_pretrained_cfg(name).input_size[1]
            assert variant(name).img_size == expected, name


def test_every_vit_of_timm_is_built_or_said_to_be_published() -> None:
    families = ["vit*", "deit*", "eva*", "beit*", "flexivit*", "cait*", "xcit*", "aimv2*",
                "naflexvit*", "samvit*", "test_vit*"]  # fmt: skip
    names = timm.list_models(families)
    assert len(names) > 250
    for name in names:
        assert known_or_refused(name) is None or variant(name)


# --- numbers

_SAMPLE = [
    "test_vit.r160_in1k", "test_vit2.r160_in1k", "test_vit3.r160_in1k",
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "vit_wee_patch16_reg1_gap_256.sbb_in1k",
    "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m", "deit_tiny_distilled_patch16_224.fb_in1k",
    "deit3_small_patch16_224.fb_in1k", "eva02_tiny_patch14_336.mim_in22k_ft_in1k",
    "vit_small_patch16_rope_mixed_ape_224.naver_in1k",
]  # fmt: skip


@pytest.mark.parametrize("name", _SAMPLE)
def test_a_published_model_gives_timm_s_numbers(name: str) -> None:
    outcome = next(compare([name]))
    assert outcome.verdict == "agrees", outcome


def test_a_model_that_is_built_otherwise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_a_norm(name: str) -> Architecture:
        known = architecture(name)
        return Architecture(known.kind, known.arguments | {"fc_norm": False, "final_norm": False})

    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    monkeypatch.setattr(from_timm, "architecture", without_a_norm)
    assert next(compare([name])).verdict == "refused"  # the file has a norm

    def other_activation(name: str) -> Architecture:
        known = architecture(name)
        return Architecture(known.kind, known.arguments | {"act_layer": "quick_gelu"})

    monkeypatch.setattr(from_timm, "architecture", other_activation)
    assert next(compare([name])).verdict == "WRONG"  # the file does not show it


def test_classifiers_are_told_from_clip_towers() -> None:
    names = heads()
    assert {
        "vit_base_patch16_clip_224.openai_ft_in1k",
        "vit_wee_patch16_reg1_gap_256.sbb_in1k",
    } <= {name for name in names if is_classifier(name)}
    assert not is_classifier("vit_base_patch16_clip_224.openai")
    assert one_network("deit3_small_patch16_224.fb_in1k") == one_network(
        "deit3_small_patch16_224.fb_in22k_ft_in1k"
    )


# Of those that differ most CI has all two blocks deep and one in its real size, whose positions are
# each block's own; the soak has the others in theirs.
_TWO_BLOCKS_IN_CI = [
    "vit_base_patch32_clip_quickgelu_224.openai", "deit3_base_patch16_224.fb_in22k_ft_in1k",
    "vit_medium_patch16_gap_256.sw_in12k_ft_in1k", "eva02_base_patch16_clip_224.merged2b",
    "vit_base_patch16_rope_mixed_224.naver_in1k",
]  # fmt: skip
_IN_CI = {"vit_base_patch16_rope_mixed_224.naver_in1k"}
_REAL_SIZES = [
    "vit_base_patch16_224.augreg_in21k", "vit_base_patch16_clip_224.laion2b_ft_in12k_in1k",
    "vit_base_patch32_clip_quickgelu_224.openai", "deit_base_distilled_patch16_384.fb_in1k",
    "deit3_base_patch16_224.fb_in22k_ft_in1k", "beit3_base_patch16_224.in22k_ft_in1k",
    "flexivit_base.1200ep_in1k", "vit_betwixt_patch16_reg4_gap_256.sbb2_e200_in12k_ft_in1k",
    "vit_mediumd_patch16_reg4_gap_256.sbb2_e200_in12k_ft_in1k",
    "vit_medium_patch16_gap_256.sw_in12k_ft_in1k", "vit_base_patch16_rpn_224.sw_in1k",
    "eva02_base_patch14_448.mim_in22k_ft_in22k_in1k", "eva02_base_patch16_clip_224.merged2b",
    "vit_base_patch16_rope_reg1_gap_256.sbb_in1k", "vit_base_patch16_rope_ape_224.naver_in1k",
    "vit_base_patch16_rope_mixed_224.naver_in1k",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in _IN_CI else pytest.mark.soak) for n in _REAL_SIZES],
)
def test_a_published_model_of_its_real_size_gives_timm_s_numbers(name: str) -> None:
    outcome = next(compare([name], depth=None))
    assert outcome.verdict == "agrees", outcome


@pytest.mark.parametrize("name", _TWO_BLOCKS_IN_CI)
def test_two_blocks_of_a_published_model_give_timm_s_numbers(name: str) -> None:
    outcome = next(compare([name]))
    assert outcome.verdict == "agrees", outcome


@pytest.mark.slow
@pytest.mark.parametrize(
    "blocks",
    [pytest.param(2, id="two_blocks"), pytest.param(None, id="all", marks=pytest.mark.soak)],
)
@pytest.mark.parametrize(
    "name",
    ["vit_base_patch14_dinov2", "vit_base_patch14_reg4_dinov2", "vit_base_patch16_siglip_224",
     "vit_base_patch32_siglip_256", "vit_so400m_patch14_siglip_384",
     "vit_base_patch16_siglip_gap_224", "vit_base_patch16_dinov3",
     "vit_base_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3", "vit_giant_patch14_dinov2"],
)  # fmt: skip
def test_a_head_of_one_s_own_on_a_published_backbone(
    name: str, blocks: int | None, tmp_path: Path
) -> None:
    """What a user makes of a backbone that is published without a head. CI has two blocks of each,
    the soak all, but for the largest.
    """
    torch.manual_seed(0)
    depth = 2 if "giant" in name or "so400m" in name else blocks
    with torch.no_grad():
        theirs = make(name, depth, num_classes=7)
    _same_numbers(theirs, tmp_path)


def _same_numbers(theirs: nn.Module, folder: Path) -> None:
    with torch.inference_mode():
        randomise_(theirs)
        save_for_hf(theirs, str(folder), safe_serialization=True)
        labels = folder / "labels.txt"
        labels.write_text("".join(f"class {i}\n" for i in range(7)))
        ours = load_classifier(str(folder), labels)
        images = torch.randn(1, 3, *theirs.patch_embed.img_size)  # type: ignore[misc, union-attr]
        assert largest_difference(ours.model(images), theirs(images)) < 1e-4


@pytest.mark.parametrize(
    "arguments",
    [
        {"act_layer": "quick_gelu"},
        {"act_layer": "gelu_tanh", "global_pool": "avg"},
        {"reg_tokens": 2, "no_embed_class": True, "init_values": 1e-5},
        {"class_token": False, "global_pool": "map", "qk_norm": True},
        {"global_pool": "avg", "fc_norm": False, "pool_include_prefix": True},
        {"norm_layer": "layernorm", "pre_norm": True},
        {"pos_embed": "none", "scale_mlp_norm": True, "scale_attn_norm": True},
        {"patch_size": 32, "mlp_ratio": 2.7, "final_norm": False},
    ],
)
def test_what_a_timm_model_was_made_with_is_obeyed(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    theirs = timm.create_model("test_vit", num_classes=7, depth=2, **arguments).eval()
    _same_numbers(theirs, tmp_path)


def test_clip_s_norms_are_those_of_the_name_unless_the_file_has_others(tmp_path: Path) -> None:
    name = "vit_xsmall_patch16_clip_224"
    theirs = timm.create_model(name, num_classes=7, depth=2, norm_layer="layernorm").eval()
    assert theirs.norm.eps == 1e-6
    _same_numbers(theirs, tmp_path)
    assert variant(name).norm_eps == 1e-5


def test_a_bare_checkpoint_of_another_family_takes_its_name_and_its_preprocessing(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    name = "test_vit2"
    with torch.inference_mode():
        theirs = timm.create_model(name, num_classes=7).eval()
        randomise_(theirs)
        torch.save(theirs.state_dict(), tmp_path / "vit.pth")
        labels = tmp_path / "labels.txt"
        labels.write_text("".join(f"class {i}\n" for i in range(7)))
        with pytest.raises(ModelError, match=r"no cls_token: .* name it with --arch"):
            load_classifier(str(tmp_path / "vit.pth"), labels)
        with pytest.raises(ModelError, match=r"photos were prepared for test_vit2.* --preprocess"):
            load_classifier(str(tmp_path / "vit.pth"), labels, name)
        ours = load_classifier(str(tmp_path / "vit.pth"), labels, name, "deit")
        images = torch.randn(1, 3, 160, 160)
        assert largest_difference(ours.model(images), theirs(images)) < 1e-4


# --- configs that lie


@pytest.mark.parametrize(
    ("promised", "stored", "message"),
    [(1, 0, "no reg_token"), (0, 1, "an unknown reg_token"), (4, 1, "reg_token of shape")],
)
def test_registers_that_are_promised_are_there_and_none_that_are_not(
    promised: int, stored: int, message: str, tmp_path: Path
) -> None:
    theirs = timm.create_model("test_vit2", num_classes=7, depth=2, reg_tokens=stored)
    theirs._model_args["reg_tokens"] = promised
    with pytest.raises(ModelError, match=message):
        _same_numbers(theirs, tmp_path)


def test_images_that_timm_pads_are_refused(tmp_path: Path) -> None:
    made_with = {"img_size": 170, "dynamic_img_size": True, "dynamic_img_pad": True}
    theirs = timm.create_model("test_vit", num_classes=7, **made_with)
    theirs.pretrained_cfg["input_size"] = (3, 170, 170)
    named = {"label_names": [f"class {i}" for i in range(7)]}
    save_for_hf(theirs, str(tmp_path), model_config=named, model_args=made_with, safe_serialization=True)  # fmt: skip
    with pytest.raises(ModelError, match="dynamic_img_pad=True"):
        load_classifier(str(tmp_path))


@pytest.mark.parametrize(
    ("arch", "mean"), [("deit_tiny_patch16_224", 0.485), ("vit_tiny_patch16_224", 0.5)]
)
def test_a_bare_deit_s_name_says_how_its_photos_were_prepared(
    tmp_path: Path, arch: str, mean: float
) -> None:
    theirs = timm.create_model(arch, num_classes=1000)
    torch.save(theirs.state_dict(), tmp_path / "bare.pth")
    ours = load_classifier(str(tmp_path / "bare.pth"), arch=arch)
    assert ours.preprocess.mean[0] == mean
    with pytest.raises(
        ModelError, match=r"how photos were prepared for vit_base_patch16_224\.bamboo"
    ):
        load_classifier(str(tmp_path / "bare.pth"), arch="vit_base_patch16_224.bamboo")


def test_a_clip_tower_scores_no_classes_whatever_names_one_gives_it(tmp_path: Path) -> None:
    """Its last layer has as many outputs as some list of names may have lines."""
    theirs = timm.create_model("vit_base_patch32_clip_224.openai", depth=1)
    save_for_hf(theirs, str(tmp_path), safe_serialization=True)
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"class {i}\n" for i in range(512)))
    with pytest.raises(ModelError, match="is the image tower of a CLIP"):
        load_classifier(str(tmp_path), labels)
    assert load_backbone(str(tmp_path)).model.config.n_classes == 0


@pytest.mark.parametrize(
    ("name", "n_features"),
    [("vit_base_patch32_clip_224.openai", 512), ("eva02_base_patch16_clip_224.merged2b", 512),
     ("vit_xsmall_patch16_clip_224.tinyclip_yfcc15m", 512)],
)  # fmt: skip
def test_a_clip_tower_s_features_are_the_embedding_that_its_last_layer_gives(
    name: str, n_features: int, tmp_path: Path
) -> None:
    theirs = timm.create_model(name, depth=1).eval()
    with torch.inference_mode():
        randomise_(theirs)
        assert float(theirs.head.bias.abs().min()) > 0, "a bias that is left out would show"
        save_for_hf(theirs, str(tmp_path), safe_serialization=True)
        ours = load_backbone(str(tmp_path))
        images = torch.randn(2, 3, 224, 224)
        features = ours.backbone(images)
        assert features.shape == (2, n_features)
        assert largest_difference(features, theirs(images)) < 1e-4
    assert ours.model.config.n_features == n_features
    assert ours.architecture["proj_dim"] == n_features


def test_a_tower_that_was_fine_tuned_for_classes_has_no_projection(tmp_path: Path) -> None:
    theirs = timm.create_model("vit_base_patch32_clip_224.laion2b_ft_in12k_in1k", depth=1)
    save_for_hf(theirs, str(tmp_path), safe_serialization=True)
    ours = load_backbone(str(tmp_path))
    assert (ours.model.config.proj_dim, ours.model.config.n_features) == (0, 768)


def test_a_backbone_without_a_head_is_told_that_it_scores_nothing(tmp_path: Path) -> None:
    theirs = timm.create_model("test_vit2", num_classes=0, depth=2)
    with pytest.raises(ModelError, match="has no head: it gives features"):
        _same_numbers(theirs, tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timm")
    save_for_hf(
        timm.create_model("test_vit2", num_classes=2, depth=2), str(folder), safe_serialization=True
    )
    (folder / "labels.txt").write_text("a\nb\n")
    (folder / "true.json").write_bytes((folder / "config.json").read_bytes())
    return folder


_ARGUMENTS = [
    "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth",
    "num_heads", "mlp_ratio", "qkv_bias", "qk_norm", "class_token", "pos_embed", "no_embed_class",
    "reg_tokens", "pre_norm", "final_norm", "fc_norm", "pool_include_prefix", "init_values",
    "act_layer", "norm_layer", "scale_mlp_norm", "num_reg_tokens", "swiglu_mlp",
    "swiglu_align_to", "rope_type", "use_rot_pos_emb", "ref_feat_shape", "use_fc_norm", "nonsense",
]  # fmt: skip
_ANYTHING = st.one_of(
    st.booleans(), st.none(), st.integers(-2, 2), st.sampled_from([10**9, 10**30, 224, 64]),
    st.floats(allow_nan=True), st.sampled_from(["avg", "token", "map", "prr", "", "x" * 1000]),
    st.lists(st.integers(0, 300), max_size=3), st.dictionaries(st.just("a"), st.integers(), max_size=1),
)  # fmt: skip
_NAMES = st.sampled_from(
    ["test_vit2", "test_vit", "test_vit3", "deit3_base_patch16_224", "eva02_base_patch14_448",
     "vit_base_patch16_rope_mixed_224", "vit_giant_patch14_dinov2", "vit_7b_patch16_dinov3",
     "vit_wee_patch16_reg9_gap_256", "vit_base_patch16_99999999999", "resnet50", "beit_x"]
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(_ARGUMENTS), _ANYTHING, max_size=4), _NAMES)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_lie_costs_neither_time_nor_memory(
    folder: Path, arguments: dict[str, Any], name: str
) -> None:
    config = json.loads((folder / "true.json").read_text())
    config |= {"architecture": name, "model_args": {"depth": 2, **arguments}}
    (folder / "config.json").write_text(json.dumps(config))
    started = time.perf_counter()
    try:
        load_classifier(str(folder), folder / "labels.txt")
    except ModelError as error:
        message = str(error)
    else:
        message = ""
    assert len(message) < 3000
    assert time.perf_counter() - started < 5
