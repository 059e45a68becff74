"""Training: it learns, from a teacher too; it resumes to the bit; and what it writes labels photos."""

import hashlib
import importlib.util
import json
import re
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import ROOT, Command, largest_difference, photo, rows
from vit.classifier import load_classifier
from vit.config import ViTConfig
from vit.errors import ModelError
from vit.model import VisionTransformer
from vit.preprocess import Preprocess, normalise
from vit.train import main
from vit.training.augment import augment, mix
from vit.training.evaluate import (
    accuracy,
    calibration_error,
    calibration_error_of,
    fit_temperature,
    judge,
    predict_logits,
)
from vit.training.labelled_images import Classes, LabelledImages, read_classes, read_images
from vit.training.muon import Muon, orthogonal
from vit.training.recipe import Recipe, learning_rate
from vit.training.soft_targets import read_soft_targets, write_soft_targets
from vit.training.trainer import Training, keep_patches, loss_of
from vit.training.whiten import whiten_patches_

CONFIG = ViTConfig(
    img_size=16, patch_size=4, n_classes=3, embed_dim=24, depth=2, n_heads=2, drop_path=0.1
)
PREPROCESS = Preprocess(16, 16)
RECIPE = Recipe(epochs=3, batch_size=8, average=0.9)


def colours(n: int, size: int = 16) -> LabelledImages:
    """Noise with a red, green or blue cast: a task small enough to be learned in seconds."""
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 120, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    targets = torch.arange(n) % 3
    images[torch.arange(n), targets] += 100
    return LabelledImages(images, targets)


def write_table(path: Path, n: int) -> Path:
    data = colours(n, 20)
    encoded = []
    for index in range(n):
        file = path.with_suffix(".png")
        Image.fromarray(data.images[index].permute(1, 2, 0).numpy()).save(file)
        encoded.append(file.read_bytes())
    pq.write_table(pa.table({"image": encoded, "label": data.targets.tolist()}), path)
    return path


def run(recipe: Recipe, n_steps: int, training: Training | None = None) -> Training:
    data = colours(40)
    training = training or Training(CONFIG, recipe, len(data), torch.device("cpu"), bf16=False)
    for _ in range(n_steps):
        training.run_step(data, PREPROCESS)
    return training


def test_training_learns_and_its_average_too() -> None:
    recipe = Recipe(epochs=40, batch_size=20, lr=3e-3, average=0.9, mix=0.2, crop_area=0.5)
    data = colours(60)
    training = Training(CONFIG, recipe, len(data), torch.device("cpu"), bf16=False)
    for _ in range(training.n_steps):
        loss = training.run_step(data, PREPROCESS)
    assert loss < 0.6
    model = training.averaged_model().eval()
    unseen = colours(90)
    assert accuracy(predict_logits(model, unseen, PREPROCESS), unseen.targets) > 0.95


def test_a_resumed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = run(RECIPE, 15)
    run(RECIPE, 7).save(tmp_path / "checkpoint")
    resumed = Training(CONFIG, RECIPE, 40, torch.device("cpu"), bf16=False)
    torch.randn(5)  # the state of the random generator plays no part
    resumed.load(tmp_path / "checkpoint")
    assert resumed.step == 7
    run(RECIPE, 8, resumed)
    for name, weight in whole.average.state_dict().items():
        assert torch.equal(weight, resumed.average.state_dict()[name]), name
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_a_checkpoint_of_before_a_field_of_the_architecture_came_goes_on(tmp_path: Path) -> None:
    training = run(RECIPE, 1)
    del training.settings["stem"]
    training.save(tmp_path / "checkpoint")
    resumed = Training(CONFIG, RECIPE, 40, torch.device("cpu"), bf16=False)
    resumed.load(tmp_path / "checkpoint")
    assert resumed.step == 1


def test_a_stem_is_not_trained() -> None:
    config = replace(CONFIG, img_size=32, patch_size=32, stem="efficientnet_lite2")
    with pytest.raises(ModelError, match=r"examples/hybrid\.py"):
        Training(config, RECIPE, 40, torch.device("cpu"), bf16=False)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    run(RECIPE, 1).save(tmp_path / "checkpoint")
    other = Training(CONFIG, replace(RECIPE, lr=0.5), 40, torch.device("cpu"), bf16=False)
    with pytest.raises(ModelError, match=r"lr was 0.002 and is 0.5"):
        other.load(tmp_path / "checkpoint")


def test_a_checkpoint_is_never_unpickled(tmp_path: Path) -> None:
    bomb = tmp_path / "checkpoint"
    torch.save({"settings": subprocess.Popen}, bomb)
    training = Training(CONFIG, RECIPE, 40, torch.device("cpu"), bf16=False)
    with pytest.raises(ModelError, match="not a checkpoint"):
        training.load(bomb)


def test_every_image_is_seen_once_an_epoch_and_in_another_order_the_next() -> None:
    training = Training(CONFIG, RECIPE, 40, torch.device("cpu"), bf16=False)
    orders = []
    for epoch in range(2):
        seen = []
        for place in range(5):
            training.step = epoch * 5 + place
            seen += training.chosen(40).tolist()
        assert sorted(seen) == list(range(40))
        orders.append(seen)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("embed_dim", [24, 60])
def test_a_whitened_patch_embedding_gives_uncorrelated_features(embed_dim: int) -> None:
    model = VisionTransformer(replace(CONFIG, embed_dim=embed_dim))
    images = torch.rand(200, 1, 16, 16).cumsum(dim=3).expand(-1, 3, -1, -1) + 0.3 * torch.randn(
        200, 3, 16, 16
    )
    before = model.patch_embed.proj.weight.clone()
    whiten_patches_(model, images)
    n = min(embed_dim, 48)  # a patch has 3 * 4 * 4 numbers
    features = model.patch_embed(images).flatten(0, 1)[:, :n]
    correlation = torch.corrcoef(features.T)
    assert largest_difference(correlation, torch.eye(n)) < 0.05
    assert features.mean(dim=0).abs().max() < 0.05
    assert torch.equal(model.patch_embed.proj.weight[n:], before[n:])


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = Recipe(lr=1.0, warmup=0.1)
    rates = [learning_rate(step / 100, recipe) for step in range(101)]
    assert rates[0] == 0
    assert rates[5] == pytest.approx(0.5)
    assert max(rates) == rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0, abs=1e-12)


def test_the_learning_rate_stays_at_the_top_before_a_late_fall() -> None:
    late = Recipe(lr=1.0, warmup=0.1, decay=0.5)  # of the nine tenths after the warm-up
    rates = [learning_rate(step / 100, late) for step in range(101)]
    assert rates[10:55] == [1.0] * 45
    assert rates[56:] == sorted(rates[56:], reverse=True)
    assert rates[78] == pytest.approx(0.5, abs=0.05)
    assert rates[100] == pytest.approx(0, abs=1e-12)
    never = Recipe(lr=1.0, warmup=0.1, decay=0.0)
    assert [learning_rate(step / 100, never) for step in range(10, 101)] == [1.0] * 91
    at_once = Recipe(lr=1.0, warmup=0.0)
    assert learning_rate(0.0, at_once) == 1
    assert learning_rate(0.5, at_once) == pytest.approx(0.5)


def test_weight_decay_is_for_matrices_only() -> None:
    training = Training(
        replace(CONFIG, distilled=True), RECIPE, 40, torch.device("cpu"), bf16=False
    )
    names = {id(parameter): name for name, parameter in training.model.named_parameters()}
    decayed, free = set(), set()
    for optimiser in training.optimisers:
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                (decayed if group["weight_decay"] else free).add(names.pop(id(parameter)))
    assert not names  # each parameter is in one group
    assert decayed >= {
        "patch_embed.proj.weight",
        "head.weight",
        "head_dist.weight",
        "blocks.0.attn.qkv.weight",
    }
    assert free >= {
        "cls_token",
        "dist_token",
        "pos_embed",
        "norm.weight",
        "blocks.1.norm1.weight",
        "blocks.0.mlp.fc1.bias",
    }
    assert not any(
        name.endswith(("bias", "token", "pos_embed")) or "norm" in name for name in decayed
    )


def test_keeping_all_patches_is_the_plain_forward_pass_and_keeping_some_keeps_the_prefix() -> None:
    model = VisionTransformer(CONFIG).eval()
    torch.nn.init.normal_(model.pos_embed)
    tokens = model.embed(torch.randn(2, 3, 16, 16))  # [2, 17, 24]
    kept = keep_patches(tokens, 0.25, 1)
    assert kept.shape == (2, 5, 24)
    assert torch.equal(kept[:, 0], tokens[:, 0])
    for image in range(2):
        places = [(tokens[image] == token).all(dim=1).nonzero().item() for token in kept[image]]
        assert len(set(places)) == 5
    # Order means nothing to a transformer: all patches, shuffled, give the same logits.
    assert torch.allclose(
        model.encode(keep_patches(tokens, 1.0, 1)), model.encode(tokens), atol=1e-5
    )


def test_muon_makes_steps_orthogonal_and_equal_for_matrices_of_one_shape() -> None:
    matrices = torch.randn(3, 24, 72)
    singular = torch.linalg.svdvals(orthogonal(matrices))
    assert singular.min() > 0.6
    assert singular.max() < 1.3
    tall = orthogonal(matrices.mT)
    assert torch.allclose(tall, orthogonal(matrices).mT, atol=1e-5)
    assert torch.allclose(orthogonal(matrices[1:2])[0], orthogonal(matrices)[1], atol=1e-5)


def test_muon_agrees_with_torchs() -> None:
    start = torch.randn(24, 72)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimisers = [
        Muon([ours], lr=0.1, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(3):
        gradient = torch.randn(24, 72)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimiser in optimisers:
            optimiser.step()
    assert (ours - start).norm() > 1
    assert (ours - theirs).norm() / (
        ours - start
    ).norm() < 0.05  # both may round to bfloat16 on the way, in another order


def test_augmentation_keeps_shape_and_range_and_draws_for_each_image() -> None:
    images = torch.rand(1, 3, 16, 16).expand(8, -1, -1, -1) * 2 - 1
    out = augment(images, crop_area=0.5, strength=0.0)
    assert out.shape == images.shape
    assert out.min() >= -1.001
    assert out.max() <= 1.001
    assert len({tuple(image.flatten().tolist()) for image in out}) == 8
    strong = augment(images, crop_area=0.25, strength=1.0, erase=1.0)
    assert strong.isfinite().all()
    assert ((strong == 0).all(dim=1).sum(dim=(1, 2)) >= 1).all()  # each image has its erased box


def test_no_augmentation_is_the_image_or_its_mirror() -> None:
    images = torch.rand(16, 3, 16, 16)
    out = augment(images, crop_area=1.0)
    is_same = (out - images).abs().amax(
        dim=(1, 2, 3)
    ) < 0.35  # aspect may still cut a tenth of one side
    assert out.shape == images.shape
    assert is_same.sum() < 16


def test_a_crop_is_the_box_it_is_given_or_its_mirror_image() -> None:
    """So that a teacher and its student see the same part of an image."""
    columns = torch.arange(16.0).expand(32, 1, 16, 16)  # the pixel's value is its place
    boxes = torch.tensor([[0.25, 0.0, 0.5, 1.0]]).repeat(32, 1)  # columns 4 to 11
    out = augment(columns, boxes=boxes)[:, 0, 8]  # [32, 16]
    is_mirrored = out[:, 0] > out[:, -1]
    assert 0 < is_mirrored.sum() < 32
    expected = torch.linspace(3.75, 11.25, 16)
    assert torch.allclose(out[~is_mirrored], expected.expand(32, -1)[~is_mirrored], atol=1e-4)
    assert torch.allclose(out[is_mirrored], expected.flip(0).expand(32, -1)[is_mirrored], atol=1e-4)
    rows = augment(columns.mT, boxes=boxes[:, [1, 0, 3, 2]])[:, 0, :, 8]  # columns are not rows
    assert torch.allclose(rows, expected.expand(32, -1), atol=1e-4)


@pytest.mark.parametrize("how", ["mixup", "cutmix", "none"])
def test_mixed_targets_are_what_the_images_are_made_of(how: str) -> None:
    targets = torch.arange(8) % 3
    images = (
        F.one_hot(targets, 3).float()[:, :, None, None].expand(-1, -1, 16, 16)
    )  # channel k is 1 for class k
    mixed, soft = mix(images, F.one_hot(targets, 3).float(), how)
    assert torch.allclose(soft.sum(dim=1), torch.ones(8))
    assert torch.allclose(mixed.mean(dim=(2, 3)), soft, atol=1e-5)
    assert (how == "none") == bool((soft.max(dim=1).values == 1).all())


def test_the_calibration_error_by_hand_and_the_temperature_that_made_the_logits() -> None:
    confidence = torch.tensor([0.95, 0.95, 0.55, 0.55])
    right = torch.tensor([True, False, True, True])
    assert calibration_error(confidence, right) == pytest.approx(0.5 * 0.45 + 0.5 * 0.45)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 5, generator=generator) * 2
    targets = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]
    assert fit_temperature(logits * 1.5, targets) == pytest.approx(1.5, abs=0.05)
    measured = judge(logits * 1.5, targets)
    assert measured["calibration_error"] < 0.02 < measured["raw_calibration_error"]
    assert measured["top1"] < measured["top5"] == 1


def test_a_temperature_that_makes_calibration_worse_is_not_kept() -> None:
    """Images that fit the temperature are all wrong and sure of it; those that judge it are right,
    and sure of it.
    """
    logits = torch.tensor([[4.0, 0.0]]).repeat(200, 1)
    targets = torch.arange(200) % 2 == 0
    measured = judge(logits, targets.long())
    assert measured["fitted_temperature"] == 4
    assert (
        measured["fitted_calibration_error"]
        > measured["raw_calibration_error"]
        == measured["calibration_error"]
    )
    assert measured["temperature"] == 1
    assert measured["calibration_error"] == calibration_error_of(
        logits[1::2], targets[1::2].long(), 1.0
    )


def taught(n: int, teacher: Tensor, path: Path) -> LabelledImages:
    """Images with soft targets of two views, of which `teacher` [n, 2, 3] are the logits."""
    data = colours(n)
    boxes = torch.tensor([[0, 0, 1, 1], [0.25, 0.25, 0.5, 0.75]]).expand(n, 2, 4)
    write_soft_targets(path, data.images, boxes, teacher)
    return replace(data, soft=read_soft_targets(path, data.images, 3))


def test_a_student_learns_what_its_teacher_says_and_not_the_labels(tmp_path: Path) -> None:
    data = colours(60)
    said = 6.0 * F.one_hot((data.targets + 1) % 3, 3)[:, None].expand(-1, 2, -1)  # [60, 2, 3]
    data = taught(60, said, tmp_path / "soft")
    assert data.soft
    recipe = Recipe(
        epochs=40, batch_size=20, lr=3e-3, average=0.9, mix=0.2, distil=1.0, distil_temperature=2.0
    )
    training = Training(CONFIG, recipe, 60, torch.device("cpu"), False, data.soft.sha256)
    for _ in range(training.n_steps):
        training.run_step(data, PREPROCESS)
    unseen = colours(90)
    predicted = predict_logits(training.averaged_model(), unseen, PREPROCESS)
    assert accuracy(predicted, (unseen.targets + 1) % 3) > 0.95


def test_the_loss_is_the_labels_and_the_teachers_by_their_shares() -> None:
    logits, labels = torch.randn(5, 3), F.one_hot(torch.arange(5) % 3, 3).float()
    recipe = Recipe(distil=0.25, distil_temperature=2.0, label_smoothing=0.0)
    teacher = torch.randn(5, 3)
    both = torch.cat([labels, (teacher / 2).softmax(dim=-1)], dim=1)
    one, two = (teacher / 2).log_softmax(dim=-1), (logits / 2).log_softmax(dim=-1)
    divergence = (one.exp() * (one - two)).sum(dim=1).mean()
    hard = -(labels * logits.log_softmax(dim=-1)).sum(dim=1).mean()
    assert loss_of(logits, both, recipe).item() == pytest.approx(
        (0.75 * hard + 0.25 * 4 * divergence).item(), rel=1e-5
    )
    assert loss_of(logits, labels, recipe).item() == pytest.approx(hard.item(), rel=1e-5)


def test_each_image_gets_the_targets_of_its_own_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits that name image and view, found again beside the boxes in the step."""
    said = torch.zeros(40, 2, 3)
    said[:, 0, 0], said[:, 1, 1] = torch.arange(40) / 10, torch.arange(40) / 10
    data = taught(40, said, tmp_path / "soft")
    assert data.soft
    seen = {}

    def mixed(images: Tensor, targets: Tensor, how: str) -> tuple[Tensor, Tensor]:
        seen["targets"] = targets
        return images, targets

    def augmented(images: Tensor, *rest: Any) -> Tensor:
        seen["boxes"] = rest[-1]
        return images

    monkeypatch.setattr("vit.training.trainer.mix", mixed)
    monkeypatch.setattr("vit.training.trainer.augment", augmented)
    recipe = replace(RECIPE, distil=0.5)
    training = Training(CONFIG, recipe, 40, torch.device("cpu"), False, data.soft.sha256)
    chosen = training.chosen(40)
    training.run_step(data, PREPROCESS)
    views = (seen["boxes"][:, 2] == 0.5).long()  # [8], which of the two
    assert 0 < views.sum() < 8
    expected = said.half().float()[chosen, views].softmax(dim=-1)
    assert torch.allclose(seen["targets"][:, 3:], expected, atol=1e-6)
    assert torch.equal(seen["targets"][:, :3].argmax(dim=1), data.targets[chosen])


def test_a_training_with_a_teacher_resumes_to_the_same_weights_and_with_another_is_refused(
    tmp_path: Path,
) -> None:
    data = taught(40, torch.randn(40, 2, 3), tmp_path / "soft")
    assert data.soft
    recipe = replace(RECIPE, distil=0.5)

    def steps(n: int, resume: Path | None = None) -> Training:
        training = Training(CONFIG, recipe, 40, torch.device("cpu"), False, data.soft.sha256)
        if resume:
            training.load(resume)
        for _ in range(n):
            training.run_step(data, PREPROCESS)
        return training

    steps(4).save(tmp_path / "checkpoint")
    whole, resumed = steps(9), steps(5, tmp_path / "checkpoint")
    for name, weight in whole.average.state_dict().items():
        assert torch.equal(weight, resumed.average.state_dict()[name]), name
    other = Training(CONFIG, recipe, 40, torch.device("cpu"), False, "another")
    with pytest.raises(ModelError, match=r"soft_targets was .* and is another"):
        other.load(tmp_path / "checkpoint")


def test_soft_targets_of_other_images_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    data, file = colours(6), tmp_path / "soft"
    boxes, logits = torch.tensor([[[0, 0, 1, 1.0]]]).expand(6, 1, 4), torch.zeros(6, 1, 3)
    write_soft_targets(file, data.images.flip(0), boxes, logits)
    with pytest.raises(ModelError, match="is of other images than those to train on"):
        read_soft_targets(file, data.images, 3)
    write_soft_targets(file, data.images, boxes, logits)
    assert read_soft_targets(file, data.images, 3).n_views == 1
    with pytest.raises(ModelError, match=r"logits \[6, 1, 3\]; 6 images of 4 classes take"):
        read_soft_targets(file, data.images, 4)
    for wrong_boxes, wrong_logits in ((boxes + 0.1, logits), (boxes, logits * torch.nan)):
        write_soft_targets(file, data.images, wrong_boxes, wrong_logits)
        with pytest.raises(ModelError, match="outside of the image or logits that are no numbers"):
            read_soft_targets(file, data.images, 3)
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ModelError, match="is not a file of soft targets"):
        read_soft_targets(file, data.images, 3)
    save_file({"boxes": boxes.contiguous()}, file)
    with pytest.raises(ModelError, match="is not a file of soft targets"):
        read_soft_targets(file, data.images, 3)


def test_a_training_begins_with_anothers_weights_and_says_so(tmp_path: Path) -> None:
    before = run(RECIPE, 7)
    before.save(tmp_path / "checkpoint")
    recipe = Recipe(epochs=2, batch_size=4, lr=1e-3, warmup=0.0, full=1.0)
    end = Training(CONFIG, recipe, 40, torch.device("cpu"), bf16=False)
    end.begin_from(tmp_path / "checkpoint")
    assert end.step == 0
    assert end.start == {"step": 7, "settings": before.settings, "start": None}
    for name, weight in before.average.state_dict().items():
        assert torch.equal(weight, end.average.state_dict()[name]), name
    momentum = [state["momentum"] for state in before.optimisers[0].state.values()]
    theirs = [state["momentum"] for state in end.optimisers[0].state.values()]
    assert all(torch.equal(one, two) for one, two in zip(momentum, theirs, strict=True))
    run(recipe, 3, end).save(tmp_path / "end")
    again = Training(CONFIG, recipe, 40, torch.device("cpu"), bf16=False)
    again.load(tmp_path / "end")
    assert again.start == end.start
    other = Training(replace(CONFIG, depth=1), recipe, 40, torch.device("cpu"), bf16=False)
    with pytest.raises(ModelError, match=r"another architecture .*depth was 2 and is 1"):
        other.begin_from(tmp_path / "checkpoint")


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_a_training_begins_with_a_shallower_bundle_and_the_same_answers(depth: int) -> None:
    trained = run(RECIPE, 7).averaged_model().eval()
    recipe = Recipe(epochs=2, batch_size=4, lr=1e-2, warmup=0.0, full=1.0)
    config = replace(CONFIG, depth=depth, drop_path=0.1)
    grown = Training(config, recipe, 40, torch.device("cpu"), bf16=False)
    grown.begin_with(trained.state_dict(), trained.config, "colours")
    assert grown.start == {"model": "colours", "architecture": asdict(trained.config)}
    images = torch.randn(3, 3, CONFIG.img_size, CONFIG.img_size)
    with torch.no_grad():
        expected = trained(images)
        for model in (grown.model.eval(), grown.averaged_model().eval()):
            torch.testing.assert_close(model(images), expected)
    before = {name: weight.clone() for name, weight in grown.model.named_parameters()}
    run(recipe, 3, grown)
    still = [
        name for name, weight in grown.model.named_parameters() if torch.equal(weight, before[name])
    ]
    assert not still  # the new blocks learn too


def test_a_bundle_of_another_architecture_is_no_start() -> None:
    trained = run(RECIPE, 1).averaged_model()
    for config, message in [
        (replace(CONFIG, depth=1), "depth is 2 there and 1 here"),
        (replace(CONFIG, embed_dim=2 * CONFIG.embed_dim), "embed_dim is"),
    ]:
        other = Training(config, RECIPE, 40, torch.device("cpu"), bf16=False)
        with pytest.raises(ModelError, match=message):
            other.begin_with(trained.state_dict(), trained.config, "colours")


def test_tables_and_folders_give_the_same_images(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", 6)
    for index, row in enumerate(pq.read_table(table).to_pylist()):
        folder = tmp_path / "folders" / "abc"[row["label"]]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(row["image"])
    classes = read_classes(None, tmp_path / "folders")
    assert classes.labels == ("a", "b", "c")
    from_table = read_images([table], PREPROCESS, classes)
    from_folders = read_images([tmp_path / "folders"], PREPROCESS, classes)
    order = from_table.targets.argsort(stable=True)
    assert torch.equal(from_table.images[order], from_folders.images)
    assert torch.equal(from_table.targets[order], from_folders.targets)
    assert from_table.images.shape == (6, 3, 16, 16)


def test_wrong_data_is_a_clear_error(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", 6)
    with pytest.raises(ModelError, match="labels up to 2 but 2 class names"):
        read_images([table], PREPROCESS, Classes(("a", "b")))
    with pytest.raises(ModelError, match="give their names with --classes"):
        read_classes(None, table)
    (tmp_path / "not.parquet").write_text("text")
    with pytest.raises(ModelError, match="not a table of images"):
        read_images([tmp_path / "not.parquet"], PREPROCESS, Classes(("a",)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no images in"):
        read_images([tmp_path / "empty"], PREPROCESS, Classes(("a",)))


def damage(table: Path, rows: list[int]) -> None:
    """Cut the images of some rows of a table in half; -1 is the last one, emptied to null."""
    whole = pq.read_table(table)
    images = whole["image"].to_pylist()
    for row in rows:
        images[row] = images[row][: len(images[row]) // 2] if row >= 0 else None
    pq.write_table(whole.set_column(0, "image", pa.array(images, pa.binary())), table)


def test_an_image_that_cannot_be_read_is_named_and_left_out(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", 300)
    whole = read_images([table], PREPROCESS, Classes(("a", "b", "c")))
    damage(table, [7, 120, -1])
    found = read_images([table], PREPROCESS, Classes(("a", "b", "c")))
    assert len(found) == len(found.images) == 297
    left = [row for row in range(299) if row not in (7, 120)]
    assert torch.equal(found.images, whole.images[left])
    assert torch.equal(found.targets, whole.targets[left])
    assert [text.split(":")[0] for text in found.unreadable] == [
        f"{table} row {row}" for row in (7, 120, 299)
    ]
    assert "OSError" in found.unreadable[0]
    assert whole.unreadable == ()


def test_more_than_one_in_a_hundred_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / "photos" / "abc"[number]
        folder.mkdir(parents=True)
        photo(number).save(folder / "fine.png")
    (tmp_path / "photos" / "b" / "broken.png").write_bytes(b"no image")
    with pytest.raises(
        ModelError, match=r"1 of 4 images cannot be read: .*b/broken\.png: UnidentifiedImageError"
    ):
        read_images([tmp_path / "photos"], PREPROCESS, Classes(("a", "b", "c")))


def test_a_row_without_a_label_is_named(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", 6)
    whole = pq.read_table(table)
    pq.write_table(whole.set_column(1, "label", pa.array([0, 1, None, 0, 1, 2])), table)
    with pytest.raises(ModelError, match="the label of row 2 is None"):
        read_images([table], PREPROCESS, Classes(("a", "b", "c")))


def test_class_names_come_with_their_ids(tmp_path: Path) -> None:
    file = tmp_path / "classes.json"
    file.write_text(
        json.dumps([{"wnid": "n1", "name": "tench, Tinca tinca"}, {"wnid": "n2", "name": "goose"}])
    )
    assert read_classes(file, tmp_path) == Classes(("tench", "goose"), ("n1", "n2"))


ARGUMENTS = (
    "--img-size 16 --patch-size 4 --embed-dim 24 --depth 1 --n-heads 2 --epochs 4 --batch-size 12 "
    "--device cpu --precision fp32"
)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A whole command line: 48 images of three colours, and 30 to judge by."""
    data, val = (
        write_table(tmp_path / "train.parquet", 48),
        write_table(tmp_path / "val.parquet", 30),
    )
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    files = [
        "--val",
        str(val),
        "--classes",
        str(tmp_path / "classes.txt"),
        "--out",
        str(tmp_path / "colours"),
    ]
    return [str(data), *files, *ARGUMENTS.split()]


def test_the_command_writes_a_bundle_that_labels_photos(
    arguments: list[str], tmp_path: Path, command: Command
) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    bundle = tmp_path / "colours"
    report = json.loads((bundle / "training.json").read_text())
    assert report["recipe"] == asdict(Recipe(epochs=4, batch_size=12))
    assert set(report["measured"]) >= {
        "top1",
        "top5",
        "temperature",
        "calibration_error",
        "raw_calibration_error",
    }
    classifier = load_classifier(str(bundle))
    assert classifier.labels == ("red", "green", "blue")
    assert classifier.temperature == report["measured"]["temperature"]
    card = (bundle / "README.md").read_text()
    assert f"{report['measured']['top1']:.2%}" in card
    assert "48 images to train on, 30 to validate" in card
    folder = tmp_path / "photos"
    folder.mkdir()
    photo(1).save(folder / "a.jpg")
    assert command(folder, "--out", tmp_path / "l.parquet", "--model", bundle).returncode == 0
    assert rows(tmp_path / "l.parquet")[0]["label"] in ("red", "green", "blue")


def test_the_card_says_what_was_left_out_and_what_became_of_the_temperature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    write_table(tmp_path / "train.parquet", 101)
    damage(tmp_path / "train.parquet", [50])
    monkeypatch.setattr(
        "vit.training.evaluate.fit_temperature", lambda logits, targets: 4.0
    )  # which spoils any calibration
    monkeypatch.setattr(
        "vit.training.evaluate.calibration_error_of",
        lambda logits, targets, temperature: temperature / 100,
    )
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert re.search(
        r"left out, since it cannot be read: .*train\.parquet row 50: OSError", result.output
    )
    bundle = tmp_path / "colours"
    report = json.loads((bundle / "training.json").read_text())
    assert list(report["data"].values()) == [100, 30, 1, 0, None]
    assert load_classifier(str(bundle)).temperature == report["measured"]["temperature"] == 1
    card = " ".join((bundle / "README.md").read_text().split())
    assert (
        "100 images to train on, 30 to validate; 1 more could not be read and were left out."
        in card
    )
    assert (
        "1.0, that is, none: the one fitted on every other validation image, 4.0, made the "
        "calibration error" in card
    )
    assert "0.0400 instead of 0.0100" in card


def test_one_image_to_validate_is_too_few(tmp_path: Path, arguments: list[str]) -> None:
    write_table(tmp_path / "val.parquet", 1)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "has a single image; half of them fit the temperature" in result.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code"), [("SIGKILL", -9), ("SIGINT", 130)], ids=["killed", "interrupted"]
)
def test_a_training_that_was_ended_goes_on_to_the_same_bundle(
    arguments: list[str], tmp_path: Path, process: Command, sent: str, code: int
) -> None:
    arguments += ["--epochs", "6"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    expected = (tmp_path / "colours" / "model.safetensors").read_bytes()

    arguments[arguments.index("--out") + 1] = str(tmp_path / "again")
    arguments += ["--save-every", "0"] if sent == "SIGKILL" else []
    script = (
        "import os, signal, sys\n"
        "from vit import train\nfrom vit.training import trainer as training\n"
        "run_step = training.Training.run_step\n"
        "def ended(self, *arguments):\n"
        f"    if self.step == 9: os.kill(os.getpid(), signal.{sent})\n"
        "    return run_step(self, *arguments)\n"
        "training.Training.run_step = ended\n"
        "train.main()"
    )
    ran = process(*arguments, before=script)
    assert ran.returncode == code, ran.stderr
    assert not (tmp_path / "again").exists()
    if sent == "SIGINT":
        assert ran.stderr.endswith("interrupted; the same command goes on from here\n")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    # A step that an interruption came in is ended and saved; one that a kill came in is lost.
    done = 9 if sent == "SIGKILL" else 10
    assert re.search(rf"going on from .*again\.checkpoint, step {done} of 24\b", result.output)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == expected


def test_the_command_distils_and_ends_a_copy_of_a_training(
    arguments: list[str], tmp_path: Path
) -> None:
    classes = Classes(("red", "green", "blue"))
    data = read_images([tmp_path / "train.parquet"], PREPROCESS, classes)
    boxes = torch.tensor([[[0, 0, 1, 1.0]]]).expand(48, 1, 4)
    soft = tmp_path / "soft.safetensors"
    write_soft_targets(soft, data.images, boxes, torch.zeros(48, 1, 3))
    taught = [*arguments, "--soft-targets", str(soft), "--distil", "0.5"]
    result = CliRunner().invoke(main, [*taught, "--decay", "0"])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "colours" / "training.json").read_text())
    sha256 = hashlib.sha256(soft.read_bytes()).hexdigest()
    assert report["data"]["soft_targets"] == sha256
    assert report["start"] is None

    taught[taught.index("--out") + 1] = str(tmp_path / "ended")
    ending = [*taught, "--warmup", "0", "--full", "1", "--epochs", "2"]
    start = ["--start", str(tmp_path / "colours.checkpoint")]
    result = CliRunner().invoke(main, [*ending, *start])
    assert result.exit_code == 0, result.output
    assert re.search(
        r"beginning with the weights of .*colours\.checkpoint, its step 16", result.output
    )
    report = json.loads((tmp_path / "ended" / "training.json").read_text())
    assert report["start"]["step"] == 16
    assert report["start"]["settings"]["decay"] == 0
    assert report["start"]["settings"]["soft_targets"] == sha256
    result = CliRunner().invoke(main, ending)
    assert result.exit_code == 1
    assert "it began with the weights of a third one; give --start as then" in result.output

    deeper = [*ending, "--depth", "3", "--start", str(tmp_path / "colours")]
    deeper[deeper.index("--out") + 1] = str(tmp_path / "deeper")
    result = CliRunner().invoke(main, deeper)
    assert result.exit_code == 0, result.output
    assert re.search(r"beginning with the weights of colours, \d blocks deep", result.output)
    report = json.loads((tmp_path / "deeper" / "training.json").read_text())
    assert report["start"]["model"] == "colours"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--distil", "0.5"], "--distil and --soft-targets go together"),
        (["--decay", "1.5"], "decay is 1.5; it must be a share, 0 to 1"),
        (["--distil-temperature", "0"], "distil_temperature is 0.0; it must be above 0"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(
    arguments: list[str], wrong: list[str], message: str
) -> None:
    result = CliRunner().invoke(main, [*arguments, *wrong])
    assert result.exit_code == 1
    assert message in result.output


def test_the_help_explains_itself() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for name in asdict(Recipe()):
        assert "--" + name.replace("_", "-") in result.output
    assert "image (JPEG or PNG bytes) and label" in " ".join(result.output.split())


def test_the_example_of_a_teacher_sees_the_views_that_its_student_sees() -> None:
    pytest.importorskip("openvino")
    spec = importlib.util.spec_from_file_location("teacher", ROOT / "examples" / "teacher.py")
    assert spec
    assert spec.loader
    teacher = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(teacher)
    boxes = teacher.random_boxes(8, 0.35, seed=0)
    left_top, size = boxes.split(2, dim=1)
    assert (left_top >= 0).all()
    assert (left_top + size <= 1).all()
    assert (size.prod(dim=1) > 0.3).all()
    # A smooth picture, so that the two ways of enlarging differ little.
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(8, 3, 4, 4, generator=generator)
    images = F.interpolate(coarse, (64, 64), mode="bicubic").clamp(0, 1).mul(255).byte()
    theirs = F.interpolate(teacher.crops(images, boxes), (64, 64), mode="area")
    ours = augment(normalise(images, Preprocess(64, 64)), boxes=boxes)
    mirrored = (ours - theirs).abs().mean(dim=(1, 2, 3)) > (ours.flip(3) - theirs).abs().mean(
        dim=(1, 2, 3)
    )
    upright = torch.where(mirrored[:, None, None, None], ours.flip(3), ours)
    assert (upright - theirs).abs().mean() < 0.02
