"""`paliscribe query`: SQL over a run."""

import sys
from typing import Annotated, Literal

import typer

MEMORY = 256  # MB, of DuckDB
HELP = """SQL (DuckDB's) over a run, read where it lies. Without SQL: the tables and their columns.

\b
Tables: annotations (ok and invalid), errors (dead letters), rows (the
frozen manifest), runs (the run), review (marks of reviewers).

\b
Ten useful queries:
  SELECT task, status, count(*), avg(score) FROM annotations GROUP BY ALL
  SELECT id, text, score FROM annotations ORDER BY score LIMIT 20
  SELECT error_kind, count(*), any_value(error_message) FROM errors
    GROUP BY 1 ORDER BY 2 DESC
  SELECT text, count(*) FROM annotations WHERE task = 'ocr'
    GROUP BY 1 ORDER BY 2 DESC LIMIT 20
  SELECT b.label, count(*), avg(b.score) FROM
    (SELECT unnest(boxes) b FROM annotations) GROUP BY 1
  SELECT id, len(boxes) FROM annotations ORDER BY 2 DESC LIMIT 20
  SELECT id, b.* FROM (SELECT id, unnest(boxes) b FROM annotations)
    WHERE b.label = 'cat' AND b.score > 0.9
  SELECT id, image FROM rows ANTI JOIN annotations USING (id)
  SELECT image_sha256, list(DISTINCT id) FROM annotations
    GROUP BY 1 HAVING count(DISTINCT id) > 1
  SELECT width_bucket, count(DISTINCT id) FROM (SELECT id,
    width // 256 * 256 AS width_bucket FROM annotations) GROUP BY 1
"""


def query(
    output: Annotated[str, typer.Argument(help="The output of a run: a folder or an s3:// prefix.")],
    sql: Annotated[str | None, typer.Argument(help="One SQL statement.")] = None,
    form: Annotated[
        Literal["table", "csv", "json", "jsonl"], typer.Option("--format", "-f", help="How the result is printed.")
    ] = "table",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most rows of a table.")] = 200,
    memory: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"MB of DuckDB's memory, {MEMORY} or as many as large records need. It writes what needs more to a "
            "temporary folder.",
        ),
    ] = None,
) -> None:
    """Run SQL over a run."""
    from paliscribe.published import open_tables
    from paliscribe.published.query import columns, lines_of
    from paliscribe.published.query import query as run

    tables = open_tables(output, memory=memory or MEMORY, whole=memory is None)
    if sql is None:
        for name, found in columns(tables):
            print(name)
            for column, kind in found:
                print(f"  {column:<16} {kind}")
        return
    if not tables.finished:
        print(f"{output}: the run is not finished; what is published so far is read", file=sys.stderr)
    for line in lines_of(run(tables, sql), form, limit if form == "table" else None):
        print(line)
