"""Show a table of labels with DuckDB: `python examples/show.py labels.parquet`."""

import sys

import duckdb

QUERY = """
SELECT path, label, round(probability, 3) AS p, list_transform(top_k[2:3], lambda x: x.label) AS runners_up
FROM read_parquet($table) ORDER BY path
"""

print(duckdb.sql(QUERY, params={"table": sys.argv[1]}))
