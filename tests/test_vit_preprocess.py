"""From photo to input: against torchvision's and timm's own transforms, and odd shapes."""

import numpy as np
import pytest
import timm.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from tests.helpers import photo
from vit.errors import ModelError
from vit.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MODES,
    PRESETS,
    Preprocess,
    fit_image,
    normalise,
    preset,
)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("size", [(301, 200), (199, 333), (64, 64), (20, 31)])
def test_resize_and_crop_are_torchvision_s_to_the_bit(
    size: tuple[int, int], fit: str, interpolation: str
) -> None:
    image = photo(1, *size)
    target = [72] if fit == "crop" else [72, 72]
    expected = TF.resize(
        TF.pil_to_tensor(image),
        target,
        interpolation=InterpolationMode(interpolation),
        antialias=True,
    )
    expected = TF.center_crop(expected, [64, 64])
    assert torch.equal(fit_image(image, Preprocess(64, 72, fit, interpolation)), expected)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_the_whole_way_is_timm_s_within_two_levels(interpolation: str, crop_mode: str) -> None:
    transform = timm.data.create_transform(
        (3, 224, 224),
        interpolation=interpolation,
        crop_pct=0.9,
        crop_mode=crop_mode,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    fit = "crop" if crop_mode == "center" else crop_mode
    ours = Preprocess(224, 248, fit, interpolation, IMAGENET_MEAN, IMAGENET_STD)
    for seed, size in enumerate([(500, 375), (375, 500), (333, 500), (800, 251)]):
        image = photo(seed, *size)
        difference = transform(image) - normalise(fit_image(image, ours)[None], ours)[0]
        assert difference.abs().max() <= 2 / 255 / 0.224 + 1e-6
        assert difference.abs().mean() <= 0.1 / 255 / 0.224


@pytest.mark.parametrize("resize_size", [40, 64, 72])
def test_a_border_leaves_nothing_out_and_is_the_same_for_a_photo_on_its_side(
    resize_size: int,
) -> None:
    ours = Preprocess(64, resize_size, "border", "bilinear", (1.0, 0.0, 0.2), (1.0,) * 3)
    upright, wide = photo(2, 60, 91), photo(2, 60, 91).transpose(Image.Transpose.ROTATE_90)
    turned = fit_image(wide, ours, turn=Image.Transpose.ROTATE_270)
    difference = turned.float() - fit_image(upright, ours).float()
    assert difference.abs().max() <= 1  # rounded between rows and columns, or columns and rows
    narrow = fit_image(photo(2, 3000, 10), ours)
    assert narrow.shape == (3, 64, 64)
    assert narrow[:, 0, 0].tolist() == [255, 0, 51]


def test_normalise_maps_0_to_255_onto_minus_1_to_1() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    values = normalise(images, Preprocess(16, 16, mean=(0.5,), std=(0.5,)))
    assert values.dtype == torch.float32
    expected = np.arange(256).reshape(1, 1, 16, 16) / 127.5 - 1
    assert np.abs(values.numpy() - expected).max() < 1e-6


def test_normalise_rounds_once_to_bfloat16() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    preprocess = Preprocess(8, 8, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    exact = normalise(images, preprocess)
    assert torch.equal(normalise(images, preprocess, torch.bfloat16), exact.to(torch.bfloat16))


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 300), height=st.integers(1, 300), mode=st.sampled_from(["L", "RGB", "RGBA"]),
    fit=st.sampled_from(["crop", "squash"]), interpolation=st.sampled_from(["bicubic", "nearest", "lanczos"]),
)  # fmt: skip
def test_any_shape_gives_the_model_s_shape(
    width: int, height: int, mode: str, fit: str, interpolation: str
) -> None:
    pixels = fit_image(
        Image.new(mode, (width, height), "red"), Preprocess(32, 36, fit, interpolation)
    )
    channels = {mode: count for count, mode in MODES.items()}[mode]
    assert pixels.shape == (channels, 32, 32)
    assert pixels.dtype == torch.uint8
    assert (pixels == pixels[:, :1, :1]).all(), "one colour stays one colour"


def test_an_extreme_shape_is_seen_in_its_middle_and_costs_little_memory() -> None:
    pixels = np.zeros((10, 3_000_000, 3), np.uint8)
    pixels[:, 1_499_000:1_501_000] = 200  # resized as it is, it would take 5 GB
    assert (fit_image(Image.fromarray(pixels), Preprocess(224, 248)) == 200).all()
    tall = Image.fromarray(pixels[:, :30_000].transpose(1, 0, 2))
    assert fit_image(tall, Preprocess(224, 248)).shape == (3, 224, 224)


def test_presets_are_what_their_origins_do() -> None:
    assert preset("vit", 224) == Preprocess(224, 248, "crop", "bicubic")
    assert preset("vit", 384) == Preprocess(384, 384, "crop", "bicubic")
    assert preset("squash", 384) == Preprocess(384, 384, "squash", "bilinear")
    assert preset("deit", 224) == Preprocess(
        224, 256, "crop", "bicubic", IMAGENET_MEAN, IMAGENET_STD
    )
    assert preset("torchvision", 224) == Preprocess(
        224, 256, "crop", "bilinear", IMAGENET_MEAN, IMAGENET_STD
    )
    assert preset("vit", 224, in_chans=1).mean == (0.5,)
    for name in PRESETS:
        assert preset(name, 224).crop_size == 224
    with pytest.raises(ModelError, match="choose one of vit, squash"):
        preset("inception", 224)
    with pytest.raises(ModelError, match="3 channels and the model takes 1"):
        preset("deit", 224, in_chans=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fit": "stretch"}, "choose one of crop, squash, border"),
        ({"interpolation": "cubic"}, "choose one of bicubic, bilinear"),
        ({"crop_size": 300}, "does not fit an image resized to 248"),
        ({"std": (1.0,)}, "one value a channel"),
        ({"std": (1.0, 0.0, 1.0)}, "above 0"),
    ],
)
def test_impossible_preprocessing_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Preprocess(**{"crop_size": 224, "resize_size": 248, **values})
