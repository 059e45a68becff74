"""The command line, from the click commands themselves: what `--help` says, as a page."""

import inspect
import textwrap
from collections.abc import Iterator

import click

from docs.generate.regions import cell, prose, table
from pipeline.cli.commands import main

_COMMAND = "label-images"


def commands() -> str:
    return "\n".join(_group(main, _COMMAND))


def _group(group: click.Group, name: str) -> Iterator[str]:
    """A group's own text, then its commands. `run`, the default one, is `label-images` itself."""
    run = group.commands.get("run")
    yield from _command(group, name, run.params if run else ())
    for word, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _group(command, f"{name} {word}")
        elif command is not run:
            # `plan` takes what a run takes: not all of it twice.
            same = run is not None and _names(command.params) == _names(run.params)
            yield from _command(command, f"{name} {word}", () if same else command.params)
            if same:
                yield f"It takes the options of [{_COMMAND}](#{_COMMAND}).\n"


def _names(parameters: list[click.Parameter]) -> list[str | None]:
    return [parameter.name for parameter in parameters]


def _command(command: click.Command, name: str, parameters: object) -> Iterator[str]:
    assert command.help
    context = click.Context(command, info_name=name, **main.context_settings)
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"## {name}\n"
    yield f"```text\n{name} {usage}\n```\n"
    yield from _paragraphs(command.help)
    options = [each for each in parameters if isinstance(each, click.Option)]  # type: ignore[attr-defined]
    if options:
        yield table(("option", "default", ""), [_option(each, context) for each in options])


def _paragraphs(text: str) -> Iterator[str]:
    """The help's paragraphs; those after \\b are laid out already: examples, or lines to be kept."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        lines = paragraph.splitlines()
        if lines[0].strip() != "\b":
            yield prose(" ".join(line.strip() for line in lines)) + "\n"
        elif all(line.startswith("    ") for line in lines[1:]):  # examples
            shown = textwrap.dedent("\n".join(lines[1:]))
            yield f"```text\n{shown}\n```\n"
        else:
            yield prose(" ".join(line.strip() for line in lines[1:])) + "\n"


def _option(option: click.Option, context: click.Context) -> tuple[str, str, str]:
    names = ", ".join([*option.opts, *option.secondary_opts])
    takes = "" if option.is_flag else option.make_metavar(context)
    says = prose(option.help or "") + (" (required)" if option.required else "")
    if takes.count("|") > 1:  # choices: beside the name there is no room for them
        says, takes = f"`{takes.strip('[]')}`: {says}", ""
    default = "" if option.is_flag or option.multiple else option.default
    has_default = isinstance(default, str | int | float) and default != ""
    default = f"{default:g}" if isinstance(default, float) else default
    return (
        f"`{cell(f'{names} {takes}'.strip())}`",
        f"`{default}`" if has_default else "",
        cell(says),
    )
