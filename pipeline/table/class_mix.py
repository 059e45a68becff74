"""The class mix of a table, and of the parts that a run adds to it."""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.storage.arrow import read_parquet
from jobs.storage.object_store import REQUESTS_AT_ONCE, AnyPath, as_arrow
from pipeline.drift import ClassMix

from .record import damaged
from .table import files_of

_COLUMNS = ["class_id", "probability"]


def mix_of_table(path: AnyPath, n_classes: int) -> ClassMix:
    """The mix of all labelled rows, read some at a time. Raises TableError where it is damaged."""
    mix = ClassMix(np.zeros(n_classes, np.int64), 0.0)
    for file in files_of(path):
        try:
            with pq.ParquetFile(as_arrow(file)) as opened:
                for batch in opened.iter_batches(columns=_COLUMNS):
                    mix = _added(mix, pa.table(batch))
        except (pa.ArrowException, OSError) as error:
            raise damaged(file, error, path) from error
    return mix


def mix_of_parts(
    parts: Sequence[AnyPath],
    is_counted: NDArray[np.bool_],
    each: int,
    n_classes: int,
    run_ids: Collection[str],
) -> ClassMix:
    """The mix of some rows of a job's parts: `is_counted` says of each row by its index, of which
    each part but the last has `each`. Of those only what one of some runs has labelled.
    """
    mix = ClassMix(np.zeros(n_classes, np.int64), 0.0)
    wanted = [number for number in range(len(parts)) if is_counted[number * each :][:each].any()]

    def read(number: int) -> pa.Table:
        rows = read_parquet(parts[number], columns=[*_COLUMNS, "run_id"])
        is_of_runs = pc.is_in(rows["run_id"], value_set=pa.array(list(run_ids), pa.string()))
        return rows.filter(pc.and_(is_of_runs, pa.array(is_counted[number * each :][:each])))

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
        for rows in threads.map(read, wanted):
            mix = _added(mix, rows)
    return mix


def _added(mix: ClassMix, rows: pa.Table) -> ClassMix:
    class_ids = rows["class_id"].drop_null().to_numpy()
    probabilities = rows["probability"].drop_null().to_numpy()
    counts = np.bincount(class_ids, minlength=len(mix.rows))
    assert len(counts) == len(mix.rows), "a class_id that the model does not have"
    return ClassMix(mix.rows + counts, mix.probability_sum + float(probabilities.sum(dtype=float)))
