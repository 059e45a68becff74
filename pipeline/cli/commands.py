"""The command line: thin. Options become Settings, errors become messages and exit codes.

torch and pyarrow are imported inside the commands, so that --help answers at once.
"""

import io
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from pipeline.console import Console
from pipeline.errors import EXIT_TOO_MANY_ERRORS
from pipeline.path_names import printable
from pipeline.settings import Settings
from pipeline.so_many import so_many

from .default_command import DefaultCommand, GroupWithDefault
from .diff import diff
from .exit_codes import at_work, fail
from .model_commands import models
from .options import CONTEXT, settings_of, with_options
from .param_types import PLACE
from .report import report
from .thresholds import thresholds

if TYPE_CHECKING:  # numpy's import would keep --help waiting
    from pipeline.drift import Drift


@click.group(
    cls=GroupWithDefault, default="run", default_if_no_args=False, context_settings=CONTEXT
)
@click.version_option(package_name="label-images")
def main() -> None:
    """Label folders of photos with a Vision Transformer, into a Parquet table.

    \b
        label-images /data/photos --out labels.parquet    every image found is a row
        label-images photo.jpg                            prints its labels

    The same command again brings the table up to date: only images that are new, changed, or failed
    for a reason that may have passed are labelled. After a crash it goes on where it was.

    \b
    Exit codes: 0 done; 1 a fault of label-images; 2 wrong usage; 3 done, but more of the images
    labelled now failed than --max-errors; 4 another run is at work on the table; 5 --out cannot be
    used or continued, or labels would be lost; 6 --max-runtime is over, the same command goes on;
    7 done, but something could not be looked at, and its rows were kept;
    130 and 143 interrupted, the same command goes on.

    A folder that is called like a command is named ./plan.
    """
    for stream in (sys.stdout, sys.stderr):
        # Whatever a name holds, printing it must not end the command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@main.command(
    cls=DefaultCommand, context_settings=CONTEXT, short_help="Label photos (the default command)."
)
@with_options
def run(**options: Any) -> None:
    """Label the images in folders, and write or bring up to date the table at --out.

    \b
        label-images /data/photos --out labels.parquet
        find /data -newer mark -print0 | label-images --files-from - --out new.parquet
    """
    with at_work(options["quiet"], options["log_json"], options["debug"]) as console:
        settings = settings_of(options)
        code = (
            _label(settings, console)
            if settings.out is not None
            else _print_labels(settings, console)
        )
    sys.exit(code)


def _label(settings: Settings, console: Console) -> int:
    """Bring the table up to date, say what was done and return the exit code."""
    from jobs.storage.arrow import spare_pandas
    from pipeline.outcome import failure_lines
    from pipeline.run import run as run_job

    spare_pandas()
    outcome = run_job(settings, console)
    code = outcome.exit_code(settings.max_errors)
    if outcome.rates:
        console.info(
            "stages", outcome.stage_line(), {"rates": outcome.rates, "slowest": outcome.slowest}
        )
    if outcome.drift:
        _say_drift(outcome.drift, settings.max_drift, console)
    exceeded = outcome.exceeds(settings.max_errors)
    for line, facts in failure_lines(outcome, settings.table):
        (console.warn if exceeded else console.info)("failed", line, facts)
    if code or not settings.quiet:
        facts = outcome.to_record() | {"table": str(settings.table), "exit_code": code}
        console.result("result", outcome.last_line(settings.table), facts)
    if exceeded:
        failed = outcome.failures.new
        of = so_many(outcome.labelled + outcome.reused + failed, "image")
        warn_of_errors(console, failed, f"{of} labelled now", settings)
    return code


def _say_drift(drift: "Drift", limit: float | None, console: Console) -> None:
    if drift.exceeds(limit):
        console.warn("drift", f"{drift}; more than --max-drift {limit:g}", drift.to_record())
    else:
        console.info("drift", str(drift), drift.to_record())


def _print_labels(settings: Settings, console: Console) -> int:
    """Print the labels of some photos, and return the exit code."""
    from .preview import look

    found = failed = 0
    for seen in look(settings, console):
        console.result("labels", seen.text, seen.to_record())
        found += 1
        failed += not seen.is_labelled
    if settings.max_errors.is_exceeded(failed, found):
        warn_of_errors(console, failed, so_many(found, "image"), settings)
        return EXIT_TOO_MANY_ERRORS
    return 0


def warn_of_errors(console: Console, failed: int, of: str, settings: Settings) -> None:
    console.warn(
        "errors", f"{failed:,} of {of} failed, more than --max-errors {settings.max_errors}"
    )


@main.command(
    context_settings=CONTEXT, short_help="Say what a run would do, and why; write nothing."
)
@with_options
def plan(**options: Any) -> None:
    """Say what a run with these options would do, and why; nothing is written.

    \b
        label-images plan /data/photos --out labels.parquet
    """
    with at_work(options["quiet"], options["log_json"], options["debug"]) as console:
        from jobs.storage.arrow import spare_pandas

        from .explain import explain_plan

        spare_pandas()
        explained = explain_plan(settings_of(options), console)
        console.result("plan", "\n".join(explained.lines), explained.facts)
        if explained.refusal:
            fail(console, explained.refusal, 5)


@main.command(
    context_settings=CONTEXT,
    short_help="Show the job behind a table: done, pending, failed by reason.",
)
@click.argument("table", type=PLACE)
@click.option(
    "--json", "as_json", is_flag=True, help="For programs: one JSON object (docs/programs.md)."
)
def status(table: Any, as_json: bool) -> None:
    """Show the job behind a table: done, pending, failed by reason, and how the last runs ended.

    \b
        label-images status labels.parquet
        label-images status labels.parquet --json
    """
    with at_work():
        from .no_table import refuse_what_is_no_table
        from .status import read_status, status_lines

        refuse_what_is_no_table(table, "status")
        found = read_status(table)
        if as_json:
            click.echo(json.dumps(found, indent=1))
        else:
            for line in status_lines(found):
                click.echo(printable(line))


@main.command(
    context_settings=CONTEXT, short_help="Prove a table: rows, keys, fingerprint, counts."
)
@click.argument("table", type=PLACE)
@click.option(
    "--repair", is_flag=True, help="Make it sound again, of what it and its job folder still prove."
)
def verify(table: Any, repair: bool) -> None:
    """Read a whole table and check rows, keys, fingerprint and counts. Exit code 5 if any is wrong.

    Embeddings are also compared with the table of labels that they lie beside.

    \b
        label-images verify labels.parquet
        label-images verify labels.parquet --repair
    """
    with at_work() as console:
        from jobs.inspect import problems as job_problems
        from jobs.job import Job
        from pipeline.table.beside import compare_with_labels
        from pipeline.table.verify import verify_table

        from .no_table import refuse_what_is_no_table

        refuse_what_is_no_table(table, "verify")
        if repair:
            from pipeline.table.repair import repair as repair_table

            click.echo(repair_table(table))
        record, problems = verify_table(table)
        problems += job_problems(Job(table))
        for problem in problems:
            click.echo(printable(problem))
        if record is None:
            fail(console, f"there is no table at {table}; the command that labels writes it", 5)
        if problems:
            fail(
                console,
                f"{table} is not as label-images left it; keep what can still be proven with "
                f"`label-images verify {table} --repair`, or write it again with --restart",
                5,
            )
        beside = compare_with_labels(table, record)
        for line in beside.problems + beside.notices:
            click.echo(printable(line))
        if beside.problems:
            fail(
                console,
                f"{table} is not what a run left beside its table; remove it, and the next run with "
                f"--{record.product_name} {table} makes it anew",
                5,
            )
        counts = record.counts
        click.echo(
            f"{table}: {so_many(counts['rows'], 'row')}, {counts['ok']:,} labelled, all of one "
            "fingerprint, all checks passed"
        )


main.add_command(diff)
main.add_command(models)
main.add_command(report)
main.add_command(thresholds)


if __name__ == "__main__":
    main()
