"""`label-images diff`: what changed between two tables of the same photos."""

import json
from typing import Any

import click

from pipeline.path_names import printable

from .exit_codes import at_work
from .options import CONTEXT
from .param_types import PLACE, all_named


@click.command(
    context_settings=CONTEXT, short_help="Compare two tables of the same photos: what changed."
)
@click.argument("old", type=PLACE)
@click.argument("new", type=PLACE)
@click.option(
    "--map",
    "mapping",
    metavar="FILE|same",
    help="For tables with other classes: which old name is which new one, as lines OLD,NEW (CSV) or "
    "a JSON object; same: names that both have are the same.",
)
@click.option(
    "--out",
    metavar="FILE",
    type=PLACE,
    help="Write the rows that differ to this Parquet file.",
)
@click.option(
    "--report",
    metavar="DIR",
    type=PLACE,
    help="Make pages of it in this folder, with the photos and what both tables say of them.",
)
@click.option(
    "--photos-in",
    "places",
    metavar="URI",
    multiple=True,
    callback=all_named,
    help="For --report: a PATH of the run, where its address says how to connect to the photos' "
    "bucket (?region=..., ?endpoint_override=...); may be repeated.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="For programs: one JSON object (docs/report.md)."
)
def diff(
    old: Any,
    new: Any,
    mapping: str | None,
    out: Any,
    report: Any,
    places: tuple[Any, ...],
    as_json: bool,
) -> None:
    """Compare two tables of the same photos: another model's, or another night's.

    \b
        label-images diff last-week.parquet labels.parquet
        label-images diff old-model.parquet labels.parquet --map names.csv --report diff/

    Rows are compared where the file is the same; no photo is read. The exit code is 0 whatever
    changed.
    """
    with at_work():
        from pipeline.errors import UsageError
        from pipeline.report.diff import Side
        from pipeline.report.diff_lines import diff_lines
        from pipeline.report.diff_pages import check_diff_place, write_diff_pages
        from pipeline.report.differing_rows import differing_rows
        from pipeline.report.tally import compare_tables

        from .no_table import refuse_what_is_no_table

        if places and report is None:
            raise UsageError(
                "--photos-in is for the photos of --report; leave it out, or name that"
            )
        for table in (old, new):
            refuse_what_is_no_table(table, "diff")
        if report is not None:  # refused before anything is done
            check_diff_place(Side.read(old), Side.read(new), report)
        with differing_rows(out, old, new) as take:
            found = compare_tables(old, new, mapping, take)
        first_page = None if report is None else write_diff_pages(found, report, places)
        if as_json:
            click.echo(json.dumps(found.to_record(), indent=1))
            return
        for line in diff_lines(found):
            click.echo(printable(line))
        if out is not None:
            click.echo(f"differing rows -> {out}")
        if first_page is not None:
            click.echo(f"pages -> {first_page}")
