"""How a command stands without its name: `label-images PATH...` is `label-images run PATH...`."""

import os
from difflib import get_close_matches
from typing import Any

import click
from click_default_group import DefaultGroup

from pipeline.console import shown

from .exit_codes import fail


class GroupWithDefault(DefaultGroup):
    """Shows the default command's options in the group's own help, where users look for them.

    With --log-json what click itself finds wrong is said as JSON, too.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.obj = "--log-json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            if not ctx.obj:
                raise
            with shown(log_json=True) as console:
                fail(console, error.format_message(), error.exit_code)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        word = args[0]
        is_no_path = not os.path.lexists(word) and "/" not in word
        if (
            word not in self.commands
            and is_no_path
            and (close := get_close_matches(word, self.commands, 1, 0.75))
        ):
            raise click.UsageError(
                f"{word} is neither a command nor a path here; did you mean {close[0]}?", ctx
            )
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        run_command = self.get_command(ctx, "run")
        assert run_command is not None
        click.Command.format_options(run_command, ctx, formatter)
        self.format_commands(ctx, formatter)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS] PATH... | COMMAND ..."]


class _Context(click.Context):
    """Calls the default command as users do: usage and advice say `label-images`, without its name."""

    @property
    def command_path(self) -> str:
        return self.parent.command_path if self.parent else super().command_path


class DefaultCommand(click.Command):
    """The command that needs no name."""

    context_class = _Context
