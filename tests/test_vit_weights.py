"""Checkpoints of every origin, made by the origin's own library with random weights."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models import load_state_dict
from torchvision.models import VisionTransformer as TorchvisionViT
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    ViTForImageClassification,
)
from transformers import ViTConfig as TheirConfig

from tests.helpers import forbid, largest_difference, peaked_
from vit.checkpoints.weights import (
    convert_state,
    infer_config,
    origin_of,
    read_checkpoint,
    resample_pos_embed,
)
from vit.classifier import load_classifier
from vit.config import ViTConfig, variant
from vit.errors import ModelError
from vit.model import VisionTransformer

SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 192,
}


def ours_from(state: dict[str, torch.Tensor], config: ViTConfig) -> VisionTransformer:
    model = VisionTransformer(config).eval()
    model.load_state_dict(convert_state(state))
    return model


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize(("img_size", "patch"), [(224, 16), (384, 32)])
def test_parity_with_transformers(
    tmp_path: Path, img_size: int, patch: int, qkv_bias: bool
) -> None:
    config = TheirConfig(
        **SMALL, image_size=img_size, patch_size=patch, qkv_bias=qkv_bias, num_labels=7
    )
    theirs = ViTForImageClassification(config).eval()
    peaked_(theirs)
    theirs.save_pretrained(tmp_path)
    shape = {
        "img_size": img_size,
        "patch_size": patch,
        "n_classes": 7,
        "embed_dim": 48,
        "depth": 2,
        "n_heads": 3,
    }
    ours = VisionTransformer(**shape, qkv_bias=qkv_bias, norm_eps=1e-12)
    in_file = read_checkpoint(tmp_path / "model.safetensors")
    for state in (in_file, theirs.state_dict()):  # two sets of names for the same tensors
        assert origin_of(state) == "transformers"
        ours.load_state_dict(convert_state(state))
        images = torch.randn(2, 3, img_size, img_size)
        with torch.inference_mode():
            assert largest_difference(ours.eval()(images), theirs(images).logits) < 1e-5


_IN_CI = {("tiny", 224, 16), ("tiny", 384, 32), ("small", 224, 32), ("small", 384, 16)}
# On every run of CI these alone; all in the soak.
_FULL_SIZES = [
    pytest.param(
        size,
        img_size,
        patch,
        marks=pytest.mark.soak if (size, img_size, patch) not in _IN_CI else (),
    )
    for size in ("tiny", "small", "base")
    for img_size in (224, 384)
    for patch in (16, 32)
]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "img_size", "patch"), _FULL_SIZES)
def test_parity_with_transformers_at_full_size(size: str, img_size: int, patch: int) -> None:
    config = variant(f"vit_{size}_patch{patch}_{img_size}")
    theirs = ViTForImageClassification(
        TheirConfig(
            hidden_size=config.embed_dim, num_hidden_layers=12, num_attention_heads=config.n_heads,
            intermediate_size=4 * config.embed_dim, image_size=img_size, patch_size=patch, num_labels=1000,
            layer_norm_eps=1e-6,
        )
    ).eval()  # fmt: skip
    peaked_(theirs, 0.2)
    images = torch.randn(1, 3, img_size, img_size)
    with torch.inference_mode():
        assert (
            largest_difference(
                ours_from(theirs.state_dict(), config)(images), theirs(images).logits
            )
            < 1e-5
        )


def test_parity_with_transformers_distilled() -> None:
    theirs = DeiTForImageClassificationWithTeacher(
        DeiTConfig(**SMALL, image_size=64, num_labels=7)
    ).eval()
    peaked_(theirs)
    config = ViTConfig(64, 16, 3, 7, 48, 2, 3, distilled=True, norm_eps=1e-12)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert (
            largest_difference(
                ours_from(theirs.state_dict(), config)(images), theirs(images).logits
            )
            < 1e-5
        )


def torchvision_vit(config: ViTConfig) -> TorchvisionViT:
    model = TorchvisionViT(
        config.img_size, config.patch_size, config.depth, config.n_heads, config.embed_dim, 4 * config.embed_dim,
        num_classes=config.n_classes,
    ).eval()  # fmt: skip
    peaked_(model, 0.3)
    return model


@pytest.mark.parametrize("img_size", [224, 384])
def test_parity_with_torchvision(img_size: int) -> None:
    config = ViTConfig(img_size, 16, 3, 7, 48, 2, 3)
    theirs = torchvision_vit(config)
    images = torch.randn(2, 3, img_size, img_size)
    with torch.inference_mode():
        assert (
            largest_difference(ours_from(theirs.state_dict(), config)(images), theirs(images))
            < 1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize(("size", "img_size", "patch"), _FULL_SIZES)
def test_parity_with_torchvision_at_full_size(size: str, img_size: int, patch: int) -> None:
    config = variant(f"vit_{size}_patch{patch}_{img_size}")
    theirs = torchvision_vit(config)
    peaked_(theirs, 0.2)
    images = torch.randn(1, 3, img_size, img_size)
    with torch.inference_mode():
        assert (
            largest_difference(ours_from(theirs.state_dict(), config)(images), theirs(images))
            < 1e-5
        )


def save_as_google(model: timm.models.VisionTransformer, path: Path) -> None:
    """Write a timm model the way Google's JAX code does: kernels inputs first, heads apart."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    n_heads = model.blocks[0].attn.num_heads
    dim = state["cls_token"].shape[-1]
    arrays = {
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(len(model.blocks)):
        theirs, ours = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        for norm, number in (("LayerNorm_0", 1), ("LayerNorm_2", 2)):
            arrays[f"{theirs}{norm}/scale"] = state[f"{ours}norm{number}.weight"]
            arrays[f"{theirs}{norm}/bias"] = state[f"{ours}norm{number}.bias"]
        attention = theirs + "MultiHeadDotProductAttention_1/"
        for j, part in enumerate(("query", "key", "value")):
            weight, bias = (
                np.split(state[f"{ours}attn.qkv.{kind}"], 3)[j] for kind in ("weight", "bias")
            )
            arrays[f"{attention}{part}/kernel"] = weight.T.reshape(dim, n_heads, -1)
            arrays[f"{attention}{part}/bias"] = bias.reshape(n_heads, -1)
        arrays[attention + "out/kernel"] = state[f"{ours}attn.proj.weight"].T.reshape(
            n_heads, -1, dim
        )
        arrays[attention + "out/bias"] = state[f"{ours}attn.proj.bias"]
        for j in (0, 1):
            arrays[f"{theirs}MlpBlock_3/Dense_{j}/kernel"] = state[f"{ours}mlp.fc{j + 1}.weight"].T
            arrays[f"{theirs}MlpBlock_3/Dense_{j}/bias"] = state[f"{ours}mlp.fc{j + 1}.bias"]
    np.savez(path, **arrays)


def test_google_npz_loads_as_in_timm_s_own_loader(tmp_path: Path) -> None:
    source = timm.create_model("vit_tiny_patch16_224", num_classes=9).eval()
    peaked_(source, 0.2)
    save_as_google(source, tmp_path / "ti.npz")
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=9).eval()
    theirs.load_pretrained(str(tmp_path / "ti.npz"))
    state = read_checkpoint(tmp_path / "ti.npz")
    assert origin_of(state) == "google"
    ours = ours_from(state, variant("vit_tiny_patch16_224", n_classes=9))
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert largest_difference(theirs(images), source(images)) < 1e-5, (
            "the file is as Google writes it"
        )
        assert largest_difference(ours(images), source(images)) < 1e-5


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
def test_bare_timm_and_deit_checkpoints(tmp_path: Path, suffix: str, wrapper: str | None) -> None:
    source = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=4)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(source.state_dict(), path)
    else:
        torch.save(
            {wrapper: source.state_dict(), "epoch": 3} if wrapper else source.state_dict(), path
        )
    labels = tmp_path / "classes.txt"
    labels.write_text("a\nb\nc\nd\n")
    classifier = load_classifier(str(path), labels=labels)
    assert classifier.model.config == variant("deit_tiny_distilled_patch16_224", n_classes=4)
    assert classifier.preprocess.mean == (0.485, 0.456, 0.406)
    assert torch.equal(classifier.model.blocks[3].attn.qkv.weight, source.blocks[3].attn.qkv.weight)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "prefix",
    [
        "model.",
        "_orig_mod.",
        "module.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model._orig_mod.",
    ],
)
def test_what_wrappers_put_before_all_names_is_taken_off(
    tmp_path: Path, prefix: str, suffix: str
) -> None:
    state = {"head.weight": torch.ones(2), "cls_token": torch.zeros(1)}
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    path = tmp_path / f"weights{suffix}"
    save_file(wrapped, path) if suffix == ".safetensors" else torch.save(
        {"state_dict": wrapped, "epoch": 1}, path
    )
    assert read_checkpoint(path).keys() == state.keys()


def test_a_prefix_that_not_all_names_have_is_part_of_them(tmp_path: Path) -> None:
    state = {"model.head.weight": torch.ones(2), "loss.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth").keys() == state.keys()


@pytest.mark.parametrize(
    ("plain", "average"), [("state_dict", "state_dict_ema"), ("model", "model_ema")]
)
def test_of_a_training_s_checkpoint_it_is_the_average_as_in_timm(
    tmp_path: Path, plain: str, average: str
) -> None:
    path = tmp_path / "checkpoint.pth"
    for saved in ({average: {"module.a": torch.ones(2)}}, {average: None}, {}):
        torch.save({"epoch": 1, plain: {"a": torch.zeros(2)}, **saved}, path)
        ours, theirs = read_checkpoint(path), load_state_dict(str(path))
        assert ours.keys() == theirs.keys() == {"a"}
        assert torch.equal(ours["a"], theirs["a"])


def test_a_file_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suffixes = (".pth", ".safetensors", ".npz")
    for suffix in suffixes:
        (tmp_path / f"weights{suffix}").write_bytes(b"something")
    forbid(monkeypatch, "weights")
    for suffix in suffixes:
        with pytest.raises(
            ModelError, match=rf"weights{suffix} may not be read by this user .* chmod a\+r /"
        ):
            read_checkpoint(tmp_path / f"weights{suffix}")


def test_the_architecture_is_read_off_the_shapes() -> None:
    for name in (
        "vit_tiny_patch16_224",
        "vit_small_patch32_384",
        "vit_base_patch8_224",
        "vit_huge_patch14_224",
    ):
        with torch.device("meta"):
            state = VisionTransformer(variant(name, n_classes=3), qkv_bias=False).state_dict()
        assert infer_config(state) == ViTConfig(
            **{**vars(variant(name, n_classes=3)), "qkv_bias": False}
        )


def test_a_size_that_is_not_published_needs_a_bundle() -> None:
    state = VisionTransformer(ViTConfig(32, 8, 3, 5, 48, 2, 3)).state_dict()
    with pytest.raises(ModelError, match=r"width 48 and depth 2 .* bundle"):
        infer_config(state)


def test_resampling_a_position_embedding_to_its_own_grid_is_the_identity() -> None:
    pos_embed = torch.randn(1, 1 + 49, 8)
    assert torch.equal(resample_pos_embed(pos_embed, 7, 1), pos_embed)


@pytest.mark.parametrize("prefix", [1, 2])
@pytest.mark.parametrize("grid", [3, 12, 24])
def test_resampling_a_position_embedding_is_timm_s(prefix: int, grid: int) -> None:
    pos_embed = torch.randn(1, prefix + 49, 8)
    expected = resample_abs_pos_embed(pos_embed, [grid, grid], num_prefix_tokens=prefix)
    assert largest_difference(resample_pos_embed(pos_embed, grid, prefix), expected) < 1e-6


def test_a_checkpoint_at_another_image_size_is_resampled(tmp_path: Path) -> None:
    source = timm.create_model("vit_tiny_patch16_224", num_classes=4)
    peaked_(source, 0.2)
    torch.save(source.state_dict(), tmp_path / "ti.pth")
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    ours = load_classifier(
        str(tmp_path / "ti.pth"), tmp_path / "classes.txt", arch="vit_tiny_patch16_384"
    )
    theirs = timm.create_model("vit_tiny_patch16_384", num_classes=4).eval()
    checkpoint = timm.models.vision_transformer.checkpoint_filter_fn(source.state_dict(), theirs)
    theirs.load_state_dict(checkpoint)
    assert ours.preprocess.crop_size == 384
    images = torch.randn(1, 3, 384, 384)
    with torch.inference_mode():
        assert largest_difference(ours.model(images), theirs(images)) < 1e-5


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("exploded"),))


def test_a_pickled_module_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(torch.nn.Linear(2, 2), "module.pth")
    torch.save({"model": _Bomb()}, "bomb.pth")
    Path("plain.bin").write_bytes(pickle.dumps(_Bomb(), protocol=2))
    for name in ("module.pth", "bomb.pth", "plain.bin"):
        with pytest.raises(ModelError, match=r"torch\.save\(model\.state_dict\(\)"):
            read_checkpoint(Path(name))
    assert not Path("exploded").exists()
    np.savez("objects.npz", a=np.array([_Bomb()], dtype=object))
    with pytest.raises(ModelError, match="damaged or not a checkpoint"):
        read_checkpoint(Path("objects.npz"))
    assert not Path("exploded").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_a_damaged_checkpoint_says_so(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {"a": torch.randn(1000)}
    {".pth": lambda: torch.save(state, path), ".safetensors": lambda: save_file(state, path),
     ".npz": lambda: np.savez(path, a=state["a"].numpy())}[suffix]()  # fmt: skip
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ModelError, match=r"damaged|not loaded"):
        read_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match=r"damaged|not loaded"):
        read_checkpoint(path)
    with pytest.raises(ModelError, match="no checkpoint at"):
        read_checkpoint(tmp_path / f"other{suffix}")


def test_other_networks_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ModelError, match="not a Vision Transformer this tool knows"):
        load_classifier(str(tmp_path / "resnet.pth"))
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="not a state dict"):
        load_classifier(str(tmp_path / "list.pth"))


def test_weights_that_do_not_fit_the_architecture_are_named(tmp_path: Path) -> None:
    source = timm.create_model("vit_tiny_patch16_224", num_classes=4).state_dict()
    path, labels = tmp_path / "w.pth", tmp_path / "classes.txt"
    labels.write_text("a\nb\nc\nd\n")
    torch.save(source, path)
    with pytest.raises(
        ModelError, match=r"cls_token of shape \[1, 1, 192\] instead of \[1, 1, 384\]"
    ):
        load_classifier(str(path), labels, arch="vit_small_patch16_224")
    torch.save({**source, "blocks.0.ls1.gamma": torch.ones(192)}, path)
    with pytest.raises(ModelError, match=r"an unknown blocks\.0\.ls1\.gamma"):
        load_classifier(str(path), labels)
    torch.save(
        {name: tensor for name, tensor in source.items() if name != "blocks.5.norm1.weight"}, path
    )
    with pytest.raises(ModelError, match=r"no blocks\.5\.norm1\.weight"):
        load_classifier(str(path), labels)
    torch.save(
        {name: tensor for name, tensor in source.items() if not name.startswith("head")}, path
    )
    with pytest.raises(ModelError, match=r"no head\.weight"):
        load_classifier(str(path), labels)
