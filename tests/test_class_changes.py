"""What is said of class names that changed: which, a few of them, and nothing that is not known."""

from dataclasses import replace
from typing import Any

import pytest

from jobs.manifest import ModelIdentity
from pipeline.plan.class_changes import name_changes, prompt_changes
from tests.test_jobs_plan import FINGERPRINT


def classes(names: str, ids: str = "", prompts: tuple[tuple[str, ...], ...] = ()) -> Any:
    labels = tuple(names.split())
    identity = ModelIdentity("m", "/m", labels, tuple(ids.split()), 32, FINGERPRINT)
    return replace(identity, prompts=prompts).classes()


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (classes("a b c"), classes("a b c"), None),
        (classes("a b c"), classes("a d b e"), "2 added: d, e; 1 removed: c"),
        (classes("a b"), classes("a b c"), "1 added: c"),
        (classes("a b c"), classes("c"), "2 removed: a, b"),
        (classes("a b c"), classes("c a b"), "the same in another order"),
        (classes("a b c d e f"), classes("a"), "5 removed: b, c, d and 2 more"),
        (classes("a b c d e"), classes("f g"), "others: 5 before, 2 now"),
        (classes("a b", "n1 n2"), classes("a c", "n1 n2"), "1 renamed: c was b"),
        (classes("a b", "n1 n2"), classes("b c", "n2 n3"), "1 added: c; 1 removed: a"),
        (classes("a a b"), classes("a b"), "1 removed: a"),
        (classes("a a", "n1 n2"), classes("b c", "n1 n2"), "2 renamed: b was a, c was a"),
        (classes("a"), classes("a " + "x" * 60), f"1 added: {'x' * 37}..."),
    ],
)
def test_names_that_were_added_removed_or_renamed_are_said(
    before: Any, after: Any, expected: str | None
) -> None:
    assert name_changes(before, after) == expected


def test_a_name_rules_no_terminal() -> None:
    before, after = classes("a"), classes("a")
    after[0]["label"] = "\x1b[31mred"
    assert name_changes(before, after) == "1 added: \\x1b[31mred; 1 removed: a"


def test_words_with_other_prompts_are_said_where_both_tables_know_them() -> None:
    before = classes("a b", prompts=(("an a",), ("a b", "the b")))
    after = classes("a b", prompts=(("an a",), ("a b", "one b")))
    assert prompt_changes(before, after) == "1 with other prompts: b"
    assert prompt_changes(before, before) is None
    assert prompt_changes(classes("a b"), after) is None, "a table of an earlier version"
    assert prompt_changes(before, classes("a b")) is None, "a bundle keeps no prompts"
    assert prompt_changes(classes("c", prompts=(("c",),)), after) is None
