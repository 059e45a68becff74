"""The convolutional stem: against timm's EfficientNet-Lite2, and as a part of a model like any other."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pipeline.label.graph import compile_graph as compiled
from pipeline.label.graph import export, how_far_off, made_up_images
from pipeline.label.runtime import gmacs
from vit.checkpoints.bundle import ModelSpec, write_bundle
from vit.classifier import Classifier, load_classifier
from vit.config import ViTConfig
from vit.errors import ModelError
from vit.model import VisionTransformer
from vit.preprocess import Preprocess
from vit.stem import Stem
from vit.summary import summarise

HYBRID = ViTConfig(
    img_size=64, patch_size=32, stem="efficientnet_lite2", n_classes=5, embed_dim=48, depth=2, n_heads=3
)  # fmt: skip
LABELS = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A hybrid with random weights, written as a bundle and loaded."""
    torch.manual_seed(0)
    model = VisionTransformer(HYBRID).eval()
    out = tmp_path_factory.mktemp("models") / "hybrid"
    write_bundle(ModelSpec(HYBRID, Preprocess(64, 64), LABELS, name="h"), model.state_dict(), out)
    return load_classifier(str(out))


def folded(conv: nn.Conv2d, norm: nn.Module) -> dict[str, torch.Tensor]:
    """One convolution that computes what the two do."""
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var,
        norm.eps, norm.weight, norm.bias,
    )  # fmt: skip
    return {"weight": weight.detach(), "bias": bias.detach()}


def test_the_stem_is_efficientnet_lite2s_at_the_size_it_was_trained_at() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("tf_efficientnet_lite2").double().eval()  # no rounding to speak of
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):  # as training leaves them: not 0 and 1
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    ours = Stem().double().eval()
    ours.first.load_state_dict(folded(theirs.conv_stem, theirs.bn1))
    blocks = [block for stage in theirs.blocks[:6] for block in stage]
    for mine, block in zip(ours.blocks, blocks, strict=True):
        first = mine.expand is None  # timm's block without a first convolution has other names
        if not first:
            mine.expand.load_state_dict(folded(block.conv_pw, block.bn1))
        mine.depthwise.load_state_dict(folded(block.conv_dw, block.bn1 if first else block.bn2))
        mine.project.load_state_dict(
            folded(block.conv_pw, block.bn2) if first else folded(block.conv_pwl, block.bn3)
        )
    images = torch.randn(2, 3, 260, 260).double()
    with torch.no_grad():
        x = theirs.bn1(theirs.conv_stem(images))
        for stage in theirs.blocks[:6]:
            x = stage(x)
        found = ours(images)
    assert found.shape == (2, 208, 9, 9)
    assert torch.allclose(found, x, rtol=1e-9, atol=1e-9 * x.abs().max().item())


def test_patches_are_cut_out_of_the_stems_map() -> None:
    model = VisionTransformer(HYBRID, img_size=128, patch_size=64).eval()
    assert model.patch_embed.proj.weight.shape == (48, 208, 2, 2)
    assert model.embed(torch.randn(3, 3, 128, 128)).shape == (3, 1 + 4, 48)


def test_linear_patches_of_the_map_are_the_same() -> None:
    images = torch.randn(2, 3, 64, 64)
    model = VisionTransformer(HYBRID).eval()
    linear = VisionTransformer(HYBRID, patch_embed="linear").eval()
    linear.load_state_dict(model.state_dict())
    assert torch.allclose(linear(images), model(images), atol=1e-5)


def test_in_bf16_the_features_are_nearly_the_same(classifier: Classifier) -> None:
    images = torch.randn(2, 3, 64, 64)
    right = classifier.backbone(images)
    rounded = classifier.backbone.on(torch.device("cpu"), torch.bfloat16)(images.bfloat16())
    assert (rounded.float() - right).norm() < 0.05 * right.norm()


@pytest.mark.parametrize(
    "wrong",
    [{"in_chans": 1}, {"patch_size": 16}, {"img_size": 96, "patch_size": 64}, {"stem": "no"}],
)
def test_what_a_stem_cannot_take_is_refused(wrong: dict[str, int | str]) -> None:
    with pytest.raises(ModelError, match="stem"):
        replace(HYBRID, **wrong)  # type: ignore[arg-type]


def test_a_mask_of_patches_is_refused_because_convolutions_look_around() -> None:
    model = VisionTransformer(HYBRID).eval()
    with pytest.raises(ValueError, match="stem"):
        model(torch.randn(1, 3, 64, 64), torch.ones(1, 4, dtype=torch.bool))


def test_a_bundle_keeps_the_stem_and_says_it(classifier: Classifier) -> None:
    assert classifier.model.config == HYBRID
    assert classifier.architecture["stem"] == "efficientnet_lite2"
    assert "stem" not in ViTConfig().record  # so no other model's fingerprint changed


def test_without_its_stem_the_weights_do_not_fit(tmp_path: Path) -> None:
    model = VisionTransformer(HYBRID)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("stem.")}
    write_bundle(ModelSpec(HYBRID, Preprocess(64, 64), LABELS), state, tmp_path / "m")
    with pytest.raises(ModelError, match=r"no stem\.first\.weight"):
        load_classifier(str(tmp_path / "m"))


def test_openvino_computes_what_torch_does(classifier: Classifier) -> None:
    images = made_up_images(classifier)
    graph = compiled(export(classifier, images, "fp32"), classifier, "fp32", 4)
    assert how_far_off(graph, classifier, images) < 1e-4


def test_the_stem_is_in_the_summary_and_in_the_count_of_multiply_adds(
    classifier: Classifier,
) -> None:
    layers = {layer.name: layer for layer in summarise(HYBRID)}
    assert layers["stem"].output_shape == (1, 208, 2, 2)
    assert layers["stem"].n_parameters == 3_617_224
    # EfficientNet-Lite2 takes 0.86 of them at 260 pixels, most of them in these stages.
    assert 0.02 < gmacs(classifier) < 0.86 * (64 / 260) ** 2
