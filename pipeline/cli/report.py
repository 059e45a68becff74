"""`label-images report`: a table as pages to look at."""

from typing import Any

import click

from pipeline.settings import DEFAULT_REPORT_PHOTOS

from .exit_codes import at_work
from .options import CONTEXT
from .param_types import PLACE, all_named


@click.command(context_settings=CONTEXT, short_help="Make pages of a table, to look at.")
@click.argument("table", type=PLACE)
@click.option(
    "-o",
    "--out",
    metavar="DIR",
    required=True,
    type=PLACE,
    help="The folder of the pages; a report that is there is brought up to date.",
)
@click.option(
    "--photos",
    metavar="N",
    type=click.IntRange(min=1),
    default=DEFAULT_REPORT_PHOTOS,
    show_default=True,
    help="About how many photos the pages show, in all; each has a thumbnail of some 15 KB. Of very "
    "many labels they are more: two of each is the least. The numbers are of all rows.",
)
@click.option(
    "--photos-in",
    "places",
    metavar="URI",
    multiple=True,
    callback=all_named,
    help="A PATH of the run, where its address says how to connect to the photos' bucket "
    "(?region=..., ?endpoint_override=...); may be repeated.",
)
def report(table: Any, out: Any, photos: int, places: tuple[Any, ...]) -> None:
    """Make pages of a table: what is in the photos, how sure the model was, what failed and why.

    Open DIR/index.html. The pages ask nothing of any other host: they work from a disk, a bucket or
    an attachment. The same command again brings them up to date, and keeps the thumbnails.

    \b
        label-images report labels.parquet --out report/
    """
    with at_work() as console:
        from pipeline.report.write import write_report

        from .no_table import refuse_what_is_no_table

        refuse_what_is_no_table(table, "report")
        written = write_report(table, out, places, photos)
        console.result("report", written.line())
