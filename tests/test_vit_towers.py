"""Backbones in the layouts of who trained them: CLIP's image towers (OpenAI, open_clip), DINOv2's
.pth files, torchvision's SWAG weights.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionViT
from torchvision.models import get_weight

from tests.helpers import largest_difference, peaked_, photo
from vit.backbone import load_backbone
from vit.checkpoints.from_dinov2 import _HEADS
from vit.classifier import load_classifier
from vit.errors import ModelError
from vit.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocess,
    fit_image,
    normalise,
)

State = dict[str, Tensor]


class QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ClipBlock(nn.Module):
    def __init__(self, width: int, heads: int, act: nn.Module) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential()
        for name, layer in (
            ("c_fc", nn.Linear(width, 4 * width)),
            ("gelu", act),
            ("c_proj", nn.Linear(4 * width, width)),
        ):
            self.mlp.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class ClipTower(nn.Module):
    """CLIP's image tower with torch's own layers, under OpenAI's names (Radford et al. 2021)."""

    def __init__(self, act: nn.Module, width: int, depth: int, img: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 16, 16, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((img // 16) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(
            ClipBlock(width, width // 64, act) for _ in range(depth)
        )
        self.proj = nn.Parameter(torch.zeros(width, 24))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = self.ln_pre(x + self.positional_embedding)
        for block in self.transformer.resblocks:
            x = block(x)
        return self.ln_post(x[:, 0]) @ self.proj


def clip(
    act: nn.Module, width: int = 128, depth: int = 2, img: int = 64
) -> tuple[ClipTower, State]:
    """A tower, and a whole model's tensors: its own, a text tower's and the temperature."""
    tower = ClipTower(act, width, depth, img).eval()
    peaked_(tower, 0.3)
    state = {f"visual.{name}": tensor.clone() for name, tensor in tower.state_dict().items()}
    return tower, state | {
        "transformer.resblocks.0.ln_1.weight": torch.ones(8), "token_embedding.weight": torch.ones(9, 8),
        "positional_embedding": torch.ones(7, 8), "text_projection": torch.ones(8, 24), "logit_scale": torch.ones([]),
    }  # fmt: skip


def agree(tower: Any, name: Path, arch: str | None = None, size: int = 64) -> None:
    ours = load_backbone(str(name), arch=arch)
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        expected = tower(images)
        assert expected.std() > 0.1
        assert largest_difference(ours.backbone(images), expected) < 1e-4
    assert ours.preprocess == Preprocess(size, size, "crop", "bicubic", CLIP_MEAN, CLIP_STD)
    with pytest.raises(ModelError, match="has no head"):
        load_classifier(str(name), arch=arch)


OPEN_CLIP: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 24, "text_cfg": {"context_length": 7, "width": 8},
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 128, "patch_size": 16},
    },
    "preprocess_cfg": {"mean": list(CLIP_MEAN), "std": list(CLIP_STD)},
}  # fmt: skip


def open_clip_folder(folder: Path, state: State, **model: Any) -> Path:
    config = OPEN_CLIP | {"model_cfg": OPEN_CLIP["model_cfg"] | model}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    return folder


@pytest.mark.parametrize("quick", [False, True])
def test_an_open_clip_folder_is_a_backbone(tmp_path: Path, quick: bool) -> None:
    tower, state = clip(QuickGelu() if quick else nn.GELU())
    folder = open_clip_folder(tmp_path, state, **({"quick_gelu": True} if quick else {}))
    agree(tower, folder)
    (folder / "open_clip_pytorch_model.bin").unlink()
    save_file(state, folder / "open_clip_model.safetensors")
    agree(tower, folder)


def test_openai_s_state_dict_is_a_backbone(tmp_path: Path) -> None:
    tower, state = clip(QuickGelu())
    numbers = {
        name: torch.tensor(64) for name in ("input_resolution", "context_length", "vocab_size")
    }
    torch.save(state | numbers, tmp_path / "ViT-B-32.pth")
    agree(tower, tmp_path / "ViT-B-32.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # torch.jit's own, of itself
def test_openai_s_archives_hold_code_and_are_told_how_to_be_without(tmp_path: Path) -> None:
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    with pytest.raises(
        ModelError, match=r"TorchScript archive, which holds code, .* save its tensors"
    ):
        load_backbone(str(path))


@pytest.mark.parametrize(
    ("act", "arch", "width", "depth"),
    [
        (nn.GELU(), "vit_xsmall_patch16_clip_224", 256, 10),
        pytest.param(
            QuickGelu(), "vit_base_patch16_clip_quickgelu_224", 768, 12, marks=pytest.mark.soak
        ),
    ],
)
def test_a_tower_that_does_not_show_its_activation_asks_for_it(
    tmp_path: Path, act: nn.Module, arch: str, width: int, depth: int
) -> None:
    tower, state = clip(act, width, depth, 224)
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(ModelError, match=r"do not show which activation .* say --arch vit_base_"):
        load_backbone(str(tmp_path / "clip.pt"))
    with pytest.raises(ModelError, match="is no image tower of CLIP"):
        load_backbone(str(tmp_path / "clip.pt"), arch="vit_base_patch16_224")
    agree(tower, tmp_path / "clip.pt", arch, 224)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"layers": [2, 2, 2, 2]}, "its image tower is a ResNet"),
        ({"attentional_pool": True}, "attentional_pool=True, which this tool does not know"),
        ({"qk_norm": True}, "qk_norm=True"),
        ({"pool_type": "none"}, "pool_type='none'"),
        ({"act_kwargs": {"x": 1}}, "act_kwargs={'x': 1}"),
        ({"norm_kwargs": {"bias": False}}, "norm_kwargs={'bias': False}"),
        ({"head_width": 0}, "incomplete or damaged"),
        ({"layers": 10**9}, "depth is 1000000000"),
        ({"ls_init_value": 1e-4}, "no blocks.0.ls1.gamma"),
        ({"mystery": 1}, "the vision_cfg in .* says mystery=1"),
        ({"timm_model_name": "vit_base_patch16_224", "timm_proj": "mlp"}, "timm_proj='mlp'"),
        ({"timm_model_name": "vit_base_patch16_224", "timm_pool": "abs_attn"}, "timm_pool='abs_attn'"),
        ({"timm_model_name": "vit_base_patch16_224", "image_size": 384}, "image_size=384, and a vit_base_patch16_224"),
    ],
)  # fmt: skip
def test_an_open_clip_tower_this_network_cannot_be_is_refused_by_name(
    tmp_path: Path, vision: dict[str, Any], message: str
) -> None:
    own = OPEN_CLIP["model_cfg"]["vision_cfg"]
    folder = open_clip_folder(tmp_path, clip(nn.GELU())[1], vision_cfg=own | vision)
    with pytest.raises(ModelError, match=message):
        load_backbone(str(folder))


@pytest.mark.parametrize(
    ("preprocess", "expected"),
    [
        ({"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash", "size": 999},
         Preprocess(64, 64, "squash", "bilinear", HALF, HALF)),
        ({"resize_mode": "longest"}, "resize_mode='longest', which gives photos a border"),
        ({"interpolation": "random"}, "interpolation='random'"),
        ({"crop": 3}, "the preprocess_cfg in .* says crop=3"),
    ],
)  # fmt: skip
def test_open_clip_s_preprocessing_is_obeyed_or_refused(
    tmp_path: Path, preprocess: dict[str, Any], expected: Preprocess | str
) -> None:
    folder = open_clip_folder(tmp_path, clip(nn.GELU())[1])
    config = OPEN_CLIP | {"preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if isinstance(expected, Preprocess):
        assert load_backbone(str(folder)).preprocess == expected
    else:
        with pytest.raises(ModelError, match=expected):
            load_backbone(str(folder))


# open_clip's own code, where it is installed: a key of vision_cfg, of model_cfg, of preprocess_cfg.
_TIMM = {
    "timm_model_name": "vit_tiny_patch16_224",
    "timm_model_pretrained": False,
    "image_size": 224,
}
OPEN_CLIP_KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "quick gelu": ({}, {"quick_gelu": True}),
    "wide heads": ({"head_width": 32, "mlp_ratio": 3.5}, {}),
    "CLIPA": ({"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True, "pos_embed_type": "sin_cos_2d"}, {}),
    "layer scale": ({"ls_init_value": 1e-4, "norm_kwargs": {"eps": 1e-3}, "act_kwargs": {"approximate": "tanh"}}, {}),
    "timm, token": (_TIMM | {"timm_pool": "token", "timm_proj": "linear"}, {}),
    "timm, avg": (_TIMM | {"timm_pool": "avg", "timm_proj": "linear"}, {}),
    "timm, avg, no projection": (_TIMM | {"timm_pool": "avg", "timm_proj": "none"}, {"embed_dim": 192}),
    "timm, its own": (_TIMM | {"timm_pool": "", "timm_proj": "linear"}, {}),
    "timm, a projection with a bias": (_TIMM | {"timm_proj": "linear", "timm_proj_bias": True}, {}),
    "timm, its head": (_TIMM | {"timm_pool": "token", "timm_proj": None}, {}),
    "timm, its head, avg": (_TIMM | {"timm_pool": "avg", "timm_proj": ""}, {}),
    "timm, map": (_TIMM | {"timm_pool": "map", "timm_proj": "none"}, {"embed_dim": 192}),
}  # fmt: skip


@pytest.mark.parametrize("kind", OPEN_CLIP_KINDS)
def test_features_are_open_clip_s_own(tmp_path: Path, kind: str) -> None:
    open_clip = pytest.importorskip("open_clip")
    vision, model = OPEN_CLIP_KINDS[kind]
    own = {} if "timm_model_name" in vision else OPEN_CLIP["model_cfg"]["vision_cfg"]
    config = {"embed_dim": 24, **model, "vision_cfg": own | vision,
              "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}}  # fmt: skip
    theirs = open_clip.CustomTextCLIP(**config).eval()
    peaked_(theirs.visual, 0.3)
    folder = open_clip_folder(tmp_path, theirs.state_dict(), **config)
    ours = load_backbone(str(folder))
    size = ours.preprocess.crop_size
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        expected = theirs.encode_image(images)
        assert expected.std() > 0.1
        assert largest_difference(ours.backbone(images), expected) < 1e-4


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_pixels_are_open_clip_s_own(mode: str, tmp_path: Path) -> None:
    transform = pytest.importorskip("open_clip.transform")
    folder = open_clip_folder(tmp_path, clip(nn.GELU())[1])
    config = OPEN_CLIP | {"preprocess_cfg": {"resize_mode": mode}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    ours = load_backbone(str(folder)).preprocess
    theirs = transform.image_transform_v2(
        transform.PreprocessCfg(size=64, resize_mode=mode), is_train=False
    )
    for seed, size in enumerate([(500, 375), (210, 330)]):
        difference = (
            theirs(photo(seed, *size))
            - normalise(fit_image(photo(seed, *size), ours)[None], ours)[0]
        )
        assert difference.abs().max() <= 2 / 255 / min(CLIP_STD) + 1e-5  # Pillow rounds on the way
        assert difference.abs().mean() <= 0.2 / 255 / min(CLIP_STD)


# --- DINOv2


@pytest.fixture(params=["tiny", pytest.param("small", marks=pytest.mark.soak)])
def dim(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The width of a DINOv2: of its smallest, or of one that is no size of its own."""
    monkeypatch.setitem(_HEADS, (48, 2), 3)
    return 48 if request.param == "tiny" else 384


def size_of(dim: int) -> dict[str, int]:
    return {"embed_dim": dim, "depth": 2, "num_heads": 3} if dim == 48 else {}


def dinov2(registers: int, dim: int = 48) -> tuple[Any, State, Tensor]:
    """timm's network at 224 pixels, DINOv2's file of 518 for it, and the head's weight [5, 2D]."""
    theirs = timm.create_model(
        "vit_small_patch14_dinov2", img_size=224, num_classes=0, reg_tokens=registers,
        no_embed_class=registers > 0, init_values=1e-5, **size_of(dim),
    ).eval()  # fmt: skip
    peaked_(theirs, 0.3)
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    large = torch.randn(1, 1 + 37 * 37, dim)  # [class token, patches of 518 pixels]
    state["pos_embed"], state["mask_token"] = large, torch.zeros(1, dim)
    grid = large[:, 1:].reshape(1, 37, 37, dim).permute(0, 3, 1, 2)
    if registers:  # resampled exactly and with antialiasing (hub/backbones.py, dinov2_vits14_reg)
        grid = F.interpolate(grid, size=(16, 16), mode="bicubic", antialias=True)
        state["register_tokens"] = state.pop("reg_token")
        state["cls_token"] = state["cls_token"] - large[:, :1]
    else:  # and by 0.1 of a patch more than that without
        grid = F.interpolate(grid, scale_factor=16.1 / 37, mode="bicubic")
    patches = grid.permute(0, 2, 3, 1).flatten(1, 2)
    positions = patches if registers else torch.cat([large[:, :1], patches], dim=1)
    theirs.pos_embed = nn.Parameter(positions)
    return theirs, state, torch.randn(5, 2 * dim) / dim**0.5


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("layout", ["backbone.", ""])
def test_dinov2_s_own_files(tmp_path: Path, layout: str, registers: int, dim: int) -> None:
    theirs, state, weight = dinov2(registers, dim)
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\nd\ne\n")
    head = {"linear_head.weight": weight, "linear_head.bias": torch.zeros(5)}
    path = tmp_path / "dinov2_vits14_lc.pth"
    torch.save({f"{layout}{name}": tensor for name, tensor in state.items()} | head, path)
    ours = load_classifier(str(path), labels)
    assert ours.preprocess == Preprocess(224, 256, "crop", "bicubic", IMAGENET_MEAN, IMAGENET_STD)
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        tokens = theirs.forward_features(images)
        mean = tokens[:, 1 + registers :].mean(dim=1)
        expected = torch.cat([tokens[:, 0], mean], dim=1) @ weight.T
        assert expected.std() > 0.1
        assert largest_difference(ours.model(images), expected) < 1e-4
        torch.save(state, tmp_path / "dinov2_vits14_pretrain.pth")
        backbone = load_backbone(str(tmp_path / "dinov2_vits14_pretrain.pth")).backbone
        assert largest_difference(backbone(images), tokens[:, 0]) < 1e-4
    with pytest.raises(ModelError, match="leave out --arch"):
        load_backbone(str(path), arch="vit_small_patch14_224")


def test_dinov2_s_giant_has_a_swiglu(tmp_path: Path, dim: int) -> None:
    """Its blocks alone, at a smaller size: w12 is gate and value, w3 leads back."""
    theirs = timm.create_model(
        "vit_giant_patch14_dinov2", img_size=224, num_classes=0, init_values=1.0,
        **{"embed_dim": 384, "depth": 12, "num_heads": 6} | size_of(dim),
    ).eval()  # fmt: skip
    peaked_(theirs, 0.3)
    state = {
        name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): tensor
        for name, tensor in theirs.state_dict().items()
    }
    assert "blocks.0.mlp.w12.weight" in state
    torch.save(state | {"mask_token": torch.zeros(1, dim)}, tmp_path / "giant.pth")
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = theirs.forward_features(images)[:, 0]
        ours = load_backbone(str(tmp_path / "giant.pth")).backbone
        assert largest_difference(ours(images), expected) < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"linear_head.weight": torch.zeros(5, 5 * 48), "linear_head.bias": torch.zeros(5)},
         "reads 240 features, which are of several layers"),
        ({"storage_tokens": torch.zeros(1, 4, 48)}, "a tensor 'storage_tokens'"),
        ({"blocks.2.ls1.gamma": torch.zeros(48)}, "width 48 and depth 3 are no size of DINOv2"),
    ],
)  # fmt: skip
def test_what_is_no_dinov2_is_refused(
    tmp_path: Path, change: State, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_HEADS, (48, 2), 3)
    torch.save(dinov2(0)[1] | change, tmp_path / "x.pth")
    with pytest.raises(ModelError, match=message):
        load_classifier(str(tmp_path / "x.pth"))


# --- torchvision


@pytest.mark.parametrize(
    ("entry", "img_size"),
    [
        ("ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1", 384),
        ("ViT_B_16_Weights.IMAGENET1K_SWAG_LINEAR_V1", 224),
    ],
)
def test_a_file_of_swag_weights_is_prepared_as_torchvision_does(
    tmp_path: Path, entry: str, img_size: int
) -> None:
    weights = get_weight(entry)
    theirs = TorchvisionViT(img_size, 16, 12, 3, 192, 768).eval()
    peaked_(theirs, 0.2)
    path = tmp_path / weights.url.rsplit("/", 1)[1]
    torch.save(theirs.state_dict(), path)
    ours = load_classifier(str(path))
    assert ours.notes == ()
    image = photo(1, 500, 375)
    pixels = normalise(fit_image(image, ours.preprocess)[None], ours.preprocess)
    difference = (weights.transforms()(image) - pixels[0]).abs()
    assert difference.max() <= 2 / 255 / min(IMAGENET_STD) + 1e-5
    with torch.inference_mode():
        assert largest_difference(ours.model(pixels), theirs(pixels)) < 1e-4


def test_swag_weights_under_another_name_are_asked_about(tmp_path: Path) -> None:
    theirs = TorchvisionViT(384, 16, 12, 3, 192, 768)
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    (note,) = load_classifier(str(tmp_path / "model.pth")).notes
    assert "say --preprocess swag" in note
    ours = load_classifier(str(tmp_path / "model.pth"), preprocess="swag")
    assert ours.preprocess == Preprocess(384, 384, "crop", "bicubic", IMAGENET_MEAN, IMAGENET_STD)
    assert ours.notes == ()
