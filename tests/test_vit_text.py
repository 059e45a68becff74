"""Heads from words: the same scores as the libraries whose text towers they are, made once and kept."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers import Command, largest_difference
from tests.text_models import CONTEXT, FAMILIES, SIZE, model_folder, their_logits, their_open_clip
from vit.backbone import load_backbone
from vit.checkpoints.locate import find_source
from vit.checkpoints.weights import read_checkpoint, sha256_file
from vit.errors import ModelError
from vit.head import Head
from vit.text import head_cache, words
from vit.text.head_cache import cache_folder
from vit.text.open_clip_tower import OpenClipTower
from vit.text.tokenizer_files import find_tokenizer
from vit.text.towers import open_tower, text_tower_of
from vit.text.transformers_tower import TransformersTower, canonical
from vit.text.words import Words, WordsHead, head_of_words

PROMPTS = ["a photo of a cat", "a scanned bill", "people dancing on the street"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each family."""
    base = tmp_path_factory.mktemp("text-models")
    return {family: model_folder(base / family, family) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def head(folder: Path, text: str, *templates: str, activation: Any = None) -> WordsHead:
    path = folder.parent / "words.txt"
    path.write_text(text)
    source = find_source(str(folder))
    files = text_tower_of(source)
    assert files is not None
    return head_of_words(files, Words(path, templates, activation), sha256_file(source.weights))


def one_prompt_each(prompts: Sequence[str]) -> str:
    return "".join(f"{number}: {prompt}\n" for number, prompt in enumerate(prompts))


def logits(head: Head, features: Tensor) -> Tensor:
    return F.linear(F.normalize(features, dim=-1), head.weight, head.bias)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each prompt that a text tower embeds."""
    prompts: list[str] = []
    for tower in (TransformersTower, OpenClipTower):
        really: Any = tower.embed

        def embed(self: Any, some: Sequence[str], really: Any = really) -> Tensor:
            prompts.extend(some)
            return really(self, some)  # type: ignore[no-any-return]

        monkeypatch.setattr(tower, "embed", embed)
    return prompts


def test_zero_shot_scores_are_the_library_s_own(folders: dict[str, Path], family: str) -> None:
    folder = folders[family]
    made = head(folder, one_prompt_each(PROMPTS)).head
    backbone = load_backbone(str(folder)).backbone
    images = torch.randn(4, 3, SIZE, SIZE)
    theirs = their_logits(folder, family, images, PROMPTS)
    assert theirs.std() > 0.2
    with torch.inference_mode():
        ours = backbone(images)
        assert largest_difference(logits(made, ours), theirs) < 1e-4
        expected = theirs.sigmoid() if "siglip" in family else theirs.softmax(dim=-1)
        assert largest_difference(made.scores(ours), expected) < 1e-4
    assert made.activation == ("sigmoid" if "siglip" in family else "softmax")


def test_prompts_are_averaged_as_open_clip_does(folders: dict[str, Path]) -> None:
    folder = folders["open_clip"]
    names, templates = ["cat", "red bus", "invoice"], ["a photo of a {}", "one {}.", "the {} there"]
    made = head(folder, "\n".join(names), *templates).head
    model = their_open_clip(folder)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    theirs = open_clip.build_zero_shot_classifier(model, tokenizer, names, templates)  # [F, K]
    assert largest_difference(made.weight, theirs.T * model.logit_scale.exp()) < 1e-4
    # Each word's prompts by themselves, however many it has.
    own = head(
        folder, "cat: a photo of a cat | one cat. | the cat there\nx: a photo of a red bus\n"
    )
    assert largest_difference(own.head.weight[0], made.weight[0]) < 1e-5


def test_a_prompt_is_embedded_once_and_the_head_is_kept(
    folders: dict[str, Path], family: str, counted: list[str]
) -> None:
    text = "cat: one cat | the cat\ndog\n"
    first = head(folders[family], text, "the {} there")
    assert counted == ["one cat", "the cat", "the dog there"]
    again = head(folders[family], text, "the {} there")
    assert len(counted) == 3
    assert again.sha256 == first.sha256
    assert torch.equal(again.head.weight, first.head.weight)
    assert torch.equal(again.head.bias, first.head.bias)
    assert (again.head.activation, again.head.normalise) == (first.head.activation, True)


@pytest.mark.parametrize(
    "change", ["prompts", "order", "template", "tokenizer", "weights", "config"]
)
def test_what_a_head_is_made_of_makes_another_head(
    tmp_path: Path, change: str, counted: list[str]
) -> None:
    folder = model_folder(tmp_path / "model", "clip")
    first = head(folder, "cat\ndog\n", "the {}")
    text, template, n = "cat\ndog\n", "the {}", len(counted)
    if change == "prompts":
        text = "cat\nred bus\n"
    elif change == "order":
        text = "dog\ncat\n"
    elif change == "template":
        template = "a {}"
    elif change == "weights":
        model_folder(tmp_path / "other", "clip", seed=1)
        (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    else:
        file = folder / ("tokenizer_config.json" if change == "tokenizer" else "config.json")
        file.write_text(file.read_text() + "\n")
    second = head(folder, text, template)
    assert second.sha256 != first.sha256
    assert len(counted) == 2 * n
    assert torch.equal(second.head.weight, first.head.weight) == (change in ("tokenizer", "config"))


def test_the_names_are_no_part_of_the_head(folders: dict[str, Path], counted: list[str]) -> None:
    first = head(folders["clip"], "cat: one cat\ndog: one dog\n")
    other = head(folders["clip"], "katze: one cat\nhund: one dog\n")
    assert (other.sha256, other.names) == (first.sha256, ("katze", "hund"))
    assert len(counted) == 2


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "other", "empty", "text", "of another recipe"]
)
def test_a_damaged_entry_is_made_again(
    folders: dict[str, Path], damage: str, counted: list[str]
) -> None:
    first = head(folders["clip"], "cat\ndog\n")
    path = cache_folder() / f"{first.sha256}.safetensors"
    data = path.read_bytes()
    if damage == "of another recipe":
        other = head(folders["clip"], "cat\nred bus\n")
        data = (cache_folder() / f"{other.sha256}.safetensors").read_bytes()
    counted.clear()
    path.write_bytes(
        {
            "cut": data[:-9],
            "flipped": data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
            "other": (folders["clip"] / "model.safetensors").read_bytes(),
            "empty": b"",
            "text": b"[" * 100,
            "of another recipe": data,
        }[damage]
    )
    again = head(folders["clip"], "cat\ndog\n")
    assert len(counted) == 2
    assert torch.equal(again.head.weight, first.head.weight)
    head(folders["clip"], "cat\ndog\n")
    assert len(counted) == 2  # and is whole again
    assert not list(cache_folder().glob("*.tmp"))


def test_a_cache_that_cannot_be_written_is_said_and_no_more(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    made = head(folders["clip"], "cat: one cat\ndog: one dog\n")
    (note,) = made.notes
    assert "could not be kept in" in note
    assert "Not a directory" in note


@pytest.mark.slow
def test_the_next_night_needs_neither_libraries_nor_network(
    folders: dict[str, Path], process: Command
) -> None:
    """Also none of open_clip's own tokenizer, which is in its package."""
    script = """
from pathlib import Path
for name in ("transformers", "open_clip", "tokenizers", "sentencepiece"):
    sys.modules[name] = None  # importing it fails
from vit.checkpoints.locate import find_source
from vit.checkpoints.weights import sha256_file
from vit.errors import ModelError
from vit.text.towers import text_tower_of
from vit.text.words import Words, head_of_words
for folder in sys.argv[2:]:
    source = find_source(folder)
    try:
        print(head_of_words(text_tower_of(source), Words(Path(sys.argv[1])), sha256_file(source.weights)).sha256)
    except ModelError as error:
        print(error)
sys.exit()
"""
    text = "cat: one cat\ndog: one dog\n"
    kept = [head(folders[family], text).sha256 for family in FAMILIES]
    path = folders["clip"].parent / "words.txt"

    def run() -> list[str]:
        words = [str(path), *(str(folders[family]) for family in FAMILIES)]
        ran = process(before=f"import sys\nsys.argv[1:] = {words!r}\n{script}")
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.splitlines()

    assert run() == kept
    path.write_text("cat: one cat\ndog: two dogs\n")
    for line, family in zip(run(), FAMILIES, strict=True):
        assert f"the text tower of {family}, which needs packages that are not installed" in line
        assert "pip install 'label-images[text]'" in line


# --- what is refused


def test_tokens_beyond_the_context_are_refused_with_the_word(
    folders: dict[str, Path], family: str
) -> None:
    # As many letters as fit, whatever a tokenizer makes of them, and then more.
    long = " ".join("qzxvkjwy" * 6)
    message = rf"'{long}' of 'dog' is \d+ tokens long, and {family} reads {CONTEXT}"
    with pytest.raises(ModelError, match=message):
        head(folders[family], f"cat: one cat\ndog: a dog | {long}\n")


def test_a_prompt_of_just_the_context_is_read(folders: dict[str, Path], family: str) -> None:
    files = text_tower_of(find_source(str(folders[family])))
    assert files is not None
    tower = open_tower(files, read_checkpoint(files.source.weights), find_tokenizer(files).folder)
    prompts = [" ".join("q" * n) for n in range(1, CONTEXT + 2)]
    n_fitting = sum(len(tower.tokens(prompt)) <= CONTEXT for prompt in prompts)
    assert 0 < n_fitting < len(prompts)
    fits, does_not = prompts[n_fitting - 1], prompts[n_fitting]
    assert head(folders[family], f"cat: one cat\nlong: {fits}\n").names == ("cat", "long")
    with pytest.raises(ModelError, match=rf"'long' is \d+ tokens long, and {family} reads"):
        head(folders[family], f"cat: one cat\nlong: {does_not}\n")


@pytest.mark.parametrize("family", ["siglip", "siglip2", "siglip2_fixed", "open_clip_siglip"])
def test_siglip_gets_lower_case_and_no_punctuation(folders: dict[str, Path], family: str) -> None:
    """SigLIP 2's tokenizer would let both pass, and the network never saw either."""
    plain = head(folders[family], "cat: a photo of a cat\ndog: red bus\n").head
    odd = head(folders[family], "cat: A  Photo, of a CAT!\ndog: red_bus.\n").head
    assert torch.equal(odd.weight, plain.weight)
    assert canonical(" It's_a\tCAT!  (2) ") == "its a cat 2"


@pytest.mark.parametrize("family", ["siglip", "siglip2", "siglip2_fixed", "open_clip_siglip"])
def test_a_prompt_of_which_nothing_is_left_is_refused(
    folders: dict[str, Path], family: str
) -> None:
    with pytest.raises(ModelError, match=r"sees nothing in the prompt '\?!' of 'why'"):
        head(folders[family], "cat: one cat\nwhy: ?!\n")


@pytest.mark.parametrize("family", ["siglip", "siglip2", "siglip2_fixed", "open_clip_siglip"])
def test_letters_that_a_tokenizer_does_not_know_are_refused(
    folders: dict[str, Path], family: str
) -> None:
    """All of them are one token to it: a word of such letters would be scored as any other."""
    with pytest.raises(
        ModelError, match="does not know all letters of the prompt 'a photo of a 猫'"
    ):
        head(folders[family], "cat\n猫\n")


@pytest.mark.parametrize("family", ["clip", "open_clip"])
def test_clip_knows_all_letters(folders: dict[str, Path], family: str) -> None:
    assert head(folders[family], "cat\n猫\n").names == ("cat", "猫")


@pytest.mark.parametrize("family", ["siglip2", "clip", "open_clip"])
def test_words_that_are_the_same_to_the_model_are_refused(
    folders: dict[str, Path], family: str
) -> None:
    with pytest.raises(ModelError, match="'cat' and 'Cat' are the same words to"):
        head(folders[family], "cat\nCat\n")


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_siglip_is_padded_to_its_full_length(
    folders: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The padding is what it was trained with: without it the same words are another embedding."""
    padded = head(folders[family], one_prompt_each(PROMPTS)).head
    monkeypatch.setattr(words, "read_head", lambda _: None)
    monkeypatch.setattr(words, "keep_head", lambda *_: None)
    really = TransformersTower.embed

    def short(self: TransformersTower, prompts: Sequence[str]) -> Tensor:
        self.context_length = max(len(self.tokens(prompt)) for prompt in prompts)
        return really(self, prompts)

    monkeypatch.setattr(TransformersTower, "embed", short)
    unpadded = head(folders[family], one_prompt_each(PROMPTS)).head
    assert largest_difference(unpadded.weight, padded.weight) > 0.01


def test_activation_is_the_family_s_or_the_user_s(folders: dict[str, Path]) -> None:
    text = one_prompt_each(PROMPTS)
    by_family = head(folders["siglip"], text)
    chosen = head(folders["siglip"], text, activation="softmax")
    assert (by_family.head.activation, chosen.head.activation) == ("sigmoid", "softmax")
    assert torch.equal(by_family.head.weight, chosen.head.weight)
    # Said or not, it is the same head.
    assert head(folders["siglip"], text, activation="sigmoid").sha256 == by_family.sha256
    assert head(folders["clip"], text, activation="softmax").sha256 == head(folders["clip"], text).sha256  # fmt: skip
    with pytest.raises(ModelError, match=r"--activation sigmoid does not go with clip: .*no bias"):
        head(folders["clip"], text, activation="sigmoid")


def test_a_single_word_is_for_a_sigmoid_alone(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"a single word, 'cat', .* 100% sure"):
        head(folders["clip"], "cat\n")
    with pytest.raises(ModelError, match="a single word, 'cat'"):
        head(folders["siglip"], "cat\n", activation="softmax")
    assert head(folders["siglip"], "cat\n").head.n_classes == 1


def test_open_clip_s_preprocessing_is_its_config_s(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """open_clip takes its usual one with a bare weight file, whatever the model was trained with."""
    ours = load_backbone(str(folders["open_clip"])).preprocess
    assert (ours.mean, ours.std) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    assert (ours.fit, ours.interpolation) == ("squash", "bilinear")
    bare = tmp_path / "open_clip_model.safetensors"
    bare.write_bytes((folders["open_clip"] / bare.name).read_bytes())
    assert text_tower_of(find_source(str(bare))) is None


def test_a_model_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "siglip")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has a text tower and no tokenizer beside it"):
        head(folder, "cat\ndog\n")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="the tokenizer of model cannot be loaded"):
        head(folder, "cat\ndog\n")


@pytest.mark.parametrize(
    ("family", "part", "change", "message"),
    [
        (
            "clip",
            "text_config",
            {"num_hidden_layers": 3},
            "do not fit its text tower: .* not there",
        ),
        ("clip", "text_config", {"num_hidden_layers": 1}, "which its config does not account for"),
        ("siglip", "text_config", {"vocab_size": 500}, "is of shape"),
        ("open_clip", "text_cfg", {"layers": 3}, "do not fit its text tower"),
        ("open_clip", "text_cfg", {"mystery": 3}, "cannot be loaded .*mystery"),
        (
            "open_clip",
            "text_cfg",
            {"hf_model_name": "xlm-roberta-base"},
            "is a xlm-roberta-base of",
        ),
        ("open_clip", "", {"multimodal_cfg": {"width": 8}}, "is a CoCa"),
        (
            "clip",
            "text_config",
            {"vocab_size": 600, "eos_token_id": 1, "hidden_act": "x"},
            "cannot be loaded",
        ),
        ("open_clip", "", {"init_logit_bias": -10}, "no logit_bias among its tensors"),
        ("open_clip_siglip", "", {"init_logit_bias": None}, "does not account for"),
    ],
)
def test_a_config_of_other_weights_is_refused(
    tmp_path: Path, family: str, part: str, change: dict[str, Any], message: str
) -> None:
    folder = model_folder(tmp_path / "model", family)
    file = folder / ("open_clip_config.json" if "open_clip" in family else "config.json")
    config = json.loads(file.read_text())
    inner = config.get("model_cfg", config)
    (inner[part] if part else inner).update(change)
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        head(folder, "cat\ndog\n")


@pytest.mark.parametrize(
    ("family", "setting"),
    [
        ("open_clip", "bpe_path"),
        ("open_clip", "reduction_mask"),
        ("open_clip_siglip", "trust_remote_code"),
    ],
)
def test_a_model_s_config_lets_no_code_of_its_own_run(
    tmp_path: Path, family: str, setting: str
) -> None:
    """open_clip hands the tokenizer's settings on, to what would then run code in the folder."""
    folder = model_folder(tmp_path / "model", family)
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {setting: True}
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"the tokenizer_kwargs of model says {setting}=True"):
        head(folder, "cat\ndog\n")


@pytest.mark.parametrize("family", ["siglip", "open_clip_siglip"])
def test_a_tokenizer_s_own_code_is_not_run(tmp_path: Path, family: str) -> None:
    folder = model_folder(tmp_path / "model", family)
    said = json.loads((folder / "tokenizer_config.json").read_text())
    said |= {"tokenizer_class": "Odd", "auto_map": {"AutoTokenizer": ["odd.Odd", "odd.Odd"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    (folder / "odd.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Odd: pass\n")
    with contextlib.suppress(ModelError):
        head(folder, "cat\ndog\n")
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """Where it shows: its tokens are more than the network knows."""
    folder = model_folder(tmp_path / "model", "clip")
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"]["cat</w>"] = 700
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="makes tokens that its text tower does not know"):
        head(folder, "cat\ndog\n")
    said = json.loads((folder / "tokenizer_config.json").read_text())
    del said["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(said | {"pad_token": None}))
    with pytest.raises(ModelError, match="names no padding token"):
        head(folder, "cat\ndog\n")
    file.write_text('{"version": "1.0", "model": {"type": "Odd"}}')
    with pytest.raises(ModelError, match="the tokenizer of model cannot be loaded"):
        head(folder, "cat\ndog\n")


def test_open_clip_s_quick_gelu_is_the_text_tower_s_too(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "open_clip")
    plain = head(folder, one_prompt_each(PROMPTS)).head
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["quick_gelu"] = True
    file.write_text(json.dumps(config))
    made = head(folder, one_prompt_each(PROMPTS)).head
    assert largest_difference(made.weight, plain.weight) > 1e-3
    images = torch.randn(2, 3, SIZE, SIZE)
    theirs = their_logits(folder, "open_clip", images, PROMPTS)
    ours = load_backbone(str(folder)).backbone(images)
    assert largest_difference(logits(made, ours), theirs) < 1e-4


def test_models_without_a_text_tower_have_none(folders: dict[str, Path], tmp_path: Path) -> None:
    assert text_tower_of(find_source("embedded")) is None
    file = folders["clip"] / "config.json"
    config = json.loads(file.read_text())
    source = find_source(str(folders["clip"]))
    for architecture in ("CLIPVisionModelWithProjection", "CLIPForImageClassification"):
        (tmp_path / "config.json").write_text(
            json.dumps(config | {"architectures": [architecture]})
        )
        assert text_tower_of(replace(source, config=tmp_path / "config.json")) is None


def test_the_cache_lies_below_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert head_cache.cache_folder() == tmp_path / "label-images" / "heads"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert head_cache.cache_folder() == tmp_path / ".cache" / "label-images" / "heads"
