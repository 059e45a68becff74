"""The command line: thin. Options become Settings, errors become messages and exit codes.

torch and pyarrow are imported inside the commands, so that --help answers at once.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click_default_group import DefaultGroup

from jobs.errors import JobError, JobLocked
from vit.errors import ModelError

from .errors import Interrupted, LabelImagesError
from .options import PREPROCESS, with_options
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


@contextmanager
def _errors_as_exit_codes() -> Iterator[None]:
    """Turn what a user can cause into a message and an exit code, and signals into Interrupted."""

    def interrupt(signal_number: int, frame: object) -> None:
        # A second signal must not find the way out blocked by the first.
        signal.signal(signal_number, signal.SIG_DFL)
        # Workers that the same signal ended are no news; torch's handler would raise for each.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise Interrupted(signal_number)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Interrupted as interrupted:
        click.echo("interrupted; finished shards are kept, run the same command to go on", err=True)
        sys.exit(interrupted.exit_code)
    except LabelImagesError as error:
        _fail(str(error), error.exit_code)
    except ModelError as error:
        _fail(str(error), 2)
    except JobLocked as error:
        _fail(str(error), 4)
    except JobError as error:
        _fail(str(error), 5)
    except BrokenPipeError:  # `label-images ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ImportError, MemoryError) as error:
        reason = str(error) or "out of memory"
        _fail(f"this machine cannot do it ({reason}): too little memory (ulimit -v), or a broken installation", 1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _fail(f"{error.strerror or error}{where}; what was finished is kept: mend it, then the same command again", 5)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(message: str, exit_code: int) -> None:
    click.echo(f"label-images: {message}", err=True)
    sys.exit(exit_code)


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


@main.command(short_help="Label photos (the default command).")
@with_options
def run(**options: Any) -> None:
    """Label the images in folders, and write or bring up to date the table at --out.

    \b
        label-images /data/photos --out labels.parquet
        find /data -newer mark -print0 | label-images --files-from - --out new.parquet
    """
    with _errors_as_exit_codes():
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
    with _errors_as_exit_codes():
        from .explain import plan_lines

        for line in plan_lines(Settings(**options)):
            click.echo(line)


@main.command(short_help="Show the job behind a table: done, pending, failed by reason.")
@click.argument("table", type=click.Path(path_type=Path))
def status(table: Path) -> None:
    """Show the job behind a table: done, pending, failed by reason.

    \b
        label-images status labels.parquet
    """
    with _errors_as_exit_codes():
        from .explain import status_lines

        for line in status_lines(table):
            click.echo(line)


@main.command(short_help="Prove a table: rows, keys, fingerprint, counts.")
@click.argument("table", type=click.Path(path_type=Path))
def verify(table: Path) -> None:
    """Read a whole table and check rows, keys, fingerprint and counts. Exit code 5 if any is wrong.

    \b
        label-images verify labels.parquet
    """
    with _errors_as_exit_codes():
        from .verify import verify_table

        record, problems = verify_table(table)
        for problem in problems:
            click.echo(problem)
        if problems:
            _fail(f"{table} is not as label-images left it; write it again with --restart", 5)
        counts = record["counts"]
        click.echo(
            f"{table}: {counts['rows']:,} rows, {counts['ok']:,} labelled, all of one fingerprint, all checks passed"
        )


@main.group(short_help="List, show and convert models.")
def models() -> None:
    """List, show and convert models."""


@models.command("list", short_help="What can be loaded.")
def list_models() -> None:
    """List the forms of --model, and the architectures by name.

    \b
        label-images models list
    """
    with _errors_as_exit_codes():
        from .models import list_lines

        for line in list_lines():
            click.echo(line)


@models.command("show", short_help="Layers, shapes and parameters.")
@click.argument("model")
@click.option("--labels", type=click.Path(path_type=Path), help="Class names, where the model has none.")
@click.option("--arch", metavar="NAME", help="For a bare checkpoint: its architecture.")
@click.option("--classes", is_flag=True, help="List the class names instead.")
def show_model(model: str, labels: Path | None, arch: str | None, classes: bool) -> None:
    """Show a model layer by layer, with output shapes and parameter counts.

    MODEL is anything --model takes, or an architecture's name.

    \b
        label-images models show embedded
        label-images models show vit_base_patch16_384
    """
    with _errors_as_exit_codes():
        from .models import class_lines, show_lines

        for line in class_lines(model, labels, arch) if classes else show_lines(model, labels, arch):
            click.echo(line)


@models.command("convert", short_help="A bare checkpoint becomes a bundle.")
@click.argument("checkpoint")
@click.option("--arch", metavar="NAME", help="Its architecture, as timm names it; another image size resamples the "
              "position embedding. Found from the weights if left out.")  # fmt: skip
@click.option("--labels", type=click.Path(path_type=Path), help="Class names in class order, one a line, or JSON.")
@click.option("--preprocess", type=PREPROCESS, help="How its photos were "
              "prepared. By default as its origin does.")  # fmt: skip
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="A folder, or a file ending in .safetensors."
)
def convert_model(checkpoint: str, arch: str | None, labels: Path | None, preprocess: str | None, out: Path) -> None:
    """Write CHECKPOINT as a bundle: weights, architecture, preprocessing and class names in one.

    \b
        label-images models convert vit.pth --arch vit_base_patch16_384 --labels classes.txt --out my-vit
    """
    with _errors_as_exit_codes():
        from .models import convert

        click.echo(convert(checkpoint, arch, labels, preprocess, out))


if __name__ == "__main__":
    main()
