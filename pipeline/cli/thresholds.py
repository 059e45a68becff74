"""`label-images thresholds`: each label's scores, and a cut where they fall into two groups."""

from typing import Any

import click

from pipeline.path_names import printable

from .exit_codes import at_work
from .options import CONTEXT
from .param_types import PLACE


@click.command(
    context_settings=CONTEXT,
    short_help="Show how each label's scores are distributed, and suggest where to cut.",
)
@click.argument("table", type=PLACE)
@click.option("--json", "as_json", is_flag=True, help="For programs: a list with a record a label.")
def thresholds(table: Any, as_json: bool) -> None:
    """Show how each label's scores are distributed in a table of sigmoids, and suggest a cut.

    A cut is suggested where a label's scores fall into two groups. Nobody has said which labels are
    right, so look at some photos on both sides of it.

    \b
        label-images thresholds labels.parquet
        label-images thresholds labels.parquet --json > thresholds.json
    """
    with at_work():
        from pipeline.table.thresholds import read_thresholds

        from .no_table import refuse_what_is_no_table
        from .threshold_lines import threshold_lines, thresholds_json

        refuse_what_is_no_table(table, "thresholds")
        found = read_thresholds(table)
        if as_json:
            click.echo(thresholds_json(found))
        else:
            for line in threshold_lines(found, str(table)):
                click.echo(printable(line))
