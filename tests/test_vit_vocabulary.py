"""Files of the user's own words: what they may hold, and what is refused by its line."""

from pathlib import Path

import pytest

from tests.helpers import forbid
from vit.errors import ModelError
from vit.text.vocabulary import Vocabulary, read_vocabulary


def read(folder: Path, text: str | bytes, *templates: str, name: str = "words.txt") -> Vocabulary:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_vocabulary(path, templates)


def test_a_line_is_a_name_or_a_name_and_its_prompts(tmp_path: Path) -> None:
    text = (
        "\ufeffcat\r\n\n  invoice:  a photo of an invoice |a scanned bill  \n12:30 clock\nça va\n"
    )
    found = read(tmp_path, text)
    assert found.names == ("cat", "invoice", "12:30 clock", "ça va")
    assert found.prompts == (
        ("a photo of a cat",),
        ("a photo of an invoice", "a scanned bill"),
        ("a photo of a 12:30 clock",),
        ("a photo of a ça va",),
    )
    assert found.used_default


def test_templates_are_for_names_without_prompts(tmp_path: Path) -> None:
    found = read(tmp_path, "cat\ninvoice: a bill\n", "a {}", "no {}, not {}")
    assert found.prompts == (("a cat", "no cat, not cat"), ("a bill",))
    assert not found.used_default
    assert not read(tmp_path, "invoice: a bill\n").used_default


def test_json(tmp_path: Path) -> None:
    text = '{"invoice": ["a bill", " an invoice "], "cat": [], "a: b": []}'
    found = read(tmp_path, text, "a {}", name="words.json")
    assert found.names == ("invoice", "cat", "a: b")
    assert found.prompts == (("a bill", "an invoice"), ("a cat",), ("a a: b",))
    assert read(tmp_path, '["cat", "dog"]', name="words.json").names == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no words"),
        ("\n \n", "holds no words"),
        ("cat\ndog\n\ncat\n", "'cat' twice, at line 1 and line 4"),
        ("cat\ncat: a photo\n", "'cat' twice, at line 1 and line 2"),
        ("cat: a | | b\n", "line 1: a prompt is empty"),
        ("dog\ncat:\n", "line 2: a prompt is empty"),
        (": a photo\n", "line 1: there is no name"),
        (b"caf\xe9\n", r"not UTF-8 \(byte 3\).*iconv"),
    ],
)
def test_what_is_no_list_of_words_is_refused_by_its_line(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "holds no words"),
        ("[]", "holds no words"),
        ("3", "nor a list of names"),
        ("{", "is not a JSON object of lists"),
        ('{"cat": [], "cat": ["a"]}', "'cat' twice, at entry 1 and entry 2"),
        # Class names by their number, which are no words with prompts.
        ('{"0": "cat", "1": "dog"}', "entry 1: the prompts of '0' are not a list"),
        ('{"cat": {"a": 1}}', "the prompts of 'cat' are not a list"),
        ('{"cat": [1]}', "the prompts of 'cat' are not a list"),
        ('{"cat": [" "]}', "entry 1: a prompt is empty"),
        ("[1]", "entry 1: 1 is no name"),
        ('[""]', "entry 1: there is no name"),
    ],
)
def test_json_that_is_no_vocabulary_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(tmp_path, text, name="words.json")


def test_a_template_without_a_place_for_the_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"--template 'a photo' has no \{\}"):
        read(tmp_path, "cat\ndog\n", "a {}", "a photo")


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"the words in .* cannot be read: .*No such file"):
        read_vocabulary(tmp_path / "none.txt")
    forbid(monkeypatch, "words")
    (tmp_path / "words.txt").touch()
    with pytest.raises(ModelError, match="may not be read by this user"):
        read_vocabulary(tmp_path / "words.txt")
