"""The command line: thin. Options become Settings, errors become messages and exit codes.

torch and pyarrow are imported inside the commands, so that --help answers at once.
"""

import io
import sys
from typing import Any

import click
from click_default_group import DefaultGroup

from .cli_models import models
from .exits import errors_as_exit_codes, fail
from .names import printable
from .options import with_options
from .params import PLACE
from .settings import Settings

EXIT_TOO_MANY_ERRORS = 3


class _Group(DefaultGroup):
    """Shows the default command's options in the group's own help, where users look for them."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        run_command = self.get_command(ctx, "run")
        assert run_command is not None
        click.Command.format_options(run_command, ctx, formatter)
        self.format_commands(ctx, formatter)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS] PATH... | COMMAND ..."]


@click.group(cls=_Group, default="run", default_if_no_args=False, context_settings={"max_content_width": 100})
@click.version_option(package_name="label-images")
def main() -> None:
    """Label folders of photos with a Vision Transformer, into a Parquet table.

    \b
        label-images /data/photos --out labels.parquet    every image found is a row
        label-images photo.jpg                            prints its labels

    The same command again brings the table up to date: only new, changed and formerly failed images
    are labelled. After a crash it goes on where it was.

    \b
    Exit codes: 0 done; 1 a fault of label-images; 2 wrong usage; 3 done, but more images failed
    than --max-errors; 4 another run is at work on the table; 5 --out cannot be used or continued;
    6 --max-runtime is over, the same command goes on;
    130 and 143 interrupted, the same command goes on.

    A folder that is called like a command is named ./plan.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever a name holds, printing it must not end the command
            stream.reconfigure(errors="backslashreplace")


@main.command(short_help="Label photos (the default command).")
@with_options
def run(**options: Any) -> None:
    """Label the images in folders, and write or bring up to date the table at --out.

    \b
        label-images /data/photos --out labels.parquet
        find /data -newer mark -print0 | label-images --files-from - --out new.parquet
    """
    with errors_as_exit_codes():
        settings = Settings(**options)
        from .progress import Console

        console = Console(settings.quiet, settings.log_json)
        if settings.out is None:
            from .look import look

            results = []
            for text, labelled in look(settings, console):
                click.echo(text)
                results.append(labelled)
            failed, found = results.count(False), len(results)
        else:
            from .run import run as run_job

            outcome = run_job(settings, console)
            if outcome.rates:
                console.info("stages", outcome.stage_line(), {"rates": outcome.rates, "slowest": outcome.slowest})
            click.echo(outcome.last_line(settings.out))
            failed, found = outcome.failed, outcome.counts["found"]
        if settings.max_errors.is_exceeded(failed, found):
            console.warn(
                "errors", f"{failed:,} of {found:,} images failed, more than --max-errors {settings.max_errors}"
            )
            sys.exit(EXIT_TOO_MANY_ERRORS)


@main.command(short_help="Say what a run would do, and why; write nothing.")
@with_options
def plan(**options: Any) -> None:
    """Say what a run with these options would do, and why; nothing is written.

    \b
        label-images plan /data/photos --out labels.parquet
    """
    with errors_as_exit_codes():
        from .explain import plan_lines

        for line in plan_lines(Settings(**options)):
            click.echo(printable(line))


@main.command(short_help="Show the job behind a table: done, pending, failed by reason.")
@click.argument("table", type=PLACE)
def status(table: Any) -> None:
    """Show the job behind a table: done, pending, failed by reason.

    \b
        label-images status labels.parquet
    """
    with errors_as_exit_codes():
        from .explain import status_lines

        for line in status_lines(table):
            click.echo(printable(line))


@main.command(short_help="Prove a table: rows, keys, fingerprint, counts.")
@click.argument("table", type=PLACE)
@click.option("--repair", is_flag=True, help="Make it sound again, of what it and its job folder still prove.")
def verify(table: Any, repair: bool) -> None:
    """Read a whole table and check rows, keys, fingerprint and counts. Exit code 5 if any is wrong.

    \b
        label-images verify labels.parquet
        label-images verify labels.parquet --repair
    """
    with errors_as_exit_codes():
        from jobs.job import Job

        from .verify import verify_table

        if repair:
            from .repair import repair as repair_table

            click.echo(repair_table(table))
        record, problems = verify_table(table)
        problems += Job(table).problems()
        for problem in problems:
            click.echo(printable(problem))
        if problems:
            fail(
                f"{table} is not as label-images left it; keep what can still be proven with `label-images verify "
                f"{table} --repair`, or write it again with --restart",
                5,
            )
        counts = record["counts"]
        click.echo(
            f"{table}: {counts['rows']:,} rows, {counts['ok']:,} labelled, all of one fingerprint, all checks passed"
        )


main.add_command(models)


if __name__ == "__main__":
    main()
