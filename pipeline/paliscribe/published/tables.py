"""The tables of a published run in DuckDB, which reads the files where they lie, in a folder or in object storage."""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from paliscribe import manifest, results
from paliscribe.errors import RunError, UsageError
from paliscribe.manifest.frozen import shard_file_key
from paliscribe.published.files import OutputFiles
from paliscribe.published.marks import marks_table
from paliscribe.results.run_file import RunFile
from paliscribe.storage import StorageError, Store, open_store
from paliscribe.storage.arrow import filesystem, row_bytes

ANNOTATIONS, ERRORS = "annotations", "errors"
FOOTERS = 8  # of files that are read to know how large records are
VECTORS = 6 * 2048  # records that DuckDB may have in memory at once, whatever their size: some vectors
PER_THREAD = 200  # MB of the limit for each thread of DuckDB, which advises 125 at least
NAMES = (ANNOTATIONS, ERRORS, "rows", "runs", "review")


@dataclass(frozen=True)
class Tables:
    """A run's tables in a DuckDB connection.

    `annotations`: the answered records (ok and invalid). `errors`: the dead letters. `rows`: id, image and own columns
    of the frozen manifest. `runs`: one row about the run. `review`: the marks of its reviewers, see `marks.Mark`; as of
    the last `refresh`. `finished`: whether all parts are published; otherwise those that are there are read. `prefix`:
    before the names of the tables. A cursor of `connection` serves one thread; it lacks `rows`. `keys`: of the files of
    `annotations` and `errors`.
    """

    output: str
    store: Store
    connection: duckdb.DuckDBPyConnection
    schema: pa.Schema
    frozen: manifest.FrozenManifest | None
    finished: bool
    prefix: str = ""
    keys: tuple[str, ...] = ()

    def refresh(self) -> None:
        """Read the marks of the reviewers again. Raises StorageError."""
        _keep(self.connection, f"{self.prefix}review", marks_table(self.store))


def open_tables(
    output: str,
    connection: duckdb.DuckDBPyConnection | None = None,
    *,
    prefix: str = "",
    memory: int = 1000,
    rows: bool = True,
    whole: bool = True,
) -> Tables:
    """Open the tables of a run. Nothing but footers is read.

    `connection`: where to add them, with names that begin with `prefix`; None: a new one, which takes at most `memory`
    (MB) and otherwise writes to a temporary folder; it takes more if records are large and `whole` ones are read with
    it. `rows`: with the table of this name, whose reader takes half a second to import. Raises UsageError if nothing is
    published there, or it cannot be read, RunError if it is damaged.
    """
    try:
        store = open_store(output)
        files, summary = _published(store)
        base, folder = filesystem(store.uri)
        frozen = manifest.load(store)
        schema, size = _footers(files, base, folder)
        made = connection or database(max(memory, round(VECTORS * size / 1e6)) if whole else memory)
        protocol = f"{prefix or 'run'}output".replace("_", "")
        made.register_filesystem(OutputFiles(protocol, fs.SubTreeFileSystem(folder, base)))
        addresses = {
            name: tuple(f"{protocol}://{key}" for key in files if key.startswith(f"{name}/"))
            for name in (ANNOTATIONS, ERRORS)
        }
        for name, keys in addresses.items():
            if keys:
                made.execute(f"CREATE OR REPLACE VIEW {prefix}{name} AS SELECT * FROM read_parquet({literal(keys)})")
            else:
                _keep(made, f"{prefix}{name}", schema.empty_table())
        if rows:
            made.register(f"{prefix}rows", _rows(frozen, base, folder))
        _keep_run(made, f"{prefix}runs", _run(output, summary, RunFile.read(store)))
        tables = Tables(output, store, made, schema, frozen, summary is not None, prefix, tuple(files))
        tables.refresh()
    except StorageError as error:
        raise UsageError(str(error)) from None
    except (OSError, pa.ArrowException, duckdb.Error) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise RunError(f"{output}: its files cannot be read ({words}); see `paliscribe verify {output}`") from None
    return tables


def database(memory: int) -> duckdb.DuckDBPyConnection:
    """A database that takes so many MB. Each thread holds pages of all columns, so little memory means few threads."""
    threads = max(1, min(os.cpu_count() or 1, memory // PER_THREAD))
    limits: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory}MB",
        "threads": threads,
        "temp_directory": tempfile.gettempdir(),
    }
    return duckdb.connect(config=limits)


def _keep(connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
    """Copy a small table into the database, where cursors find it, as they do not find what is registered."""
    connection.register("arriving", table)
    connection.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM arriving")
    connection.unregister("arriving")


def _published(store: Store) -> tuple[list[str], dict[str, Any] | None]:
    """The published files, and the summary; None while the run goes on: the files that are there then."""
    summary = results.read_summary(store)
    if summary is not None and store.exists(results.SUCCESS):
        return list(summary["files"]), summary
    found = [item.key for name in (ANNOTATIONS, ERRORS) for item in store.list(f"{name}/")]
    files = [key for key in found if key.endswith(".parquet")]
    if not files:
        raise UsageError(f"{store.uri}: nothing is published here (see `paliscribe status`)")
    return files, None


def _footers(files: Sequence[str], base: Any, folder: str) -> tuple[pa.Schema, float]:
    """The schema of the files, and bytes of a large record in some of them."""
    found: list[float] = []
    for key in files[:: -(-len(files) // FOOTERS)]:
        footer = pq.read_metadata(f"{folder}/{key}", filesystem=base)
        found += [row_bytes(footer.row_group(number)) for number in range(footer.num_row_groups)]
    return pq.read_schema(f"{folder}/{files[0]}", filesystem=base), max(found, default=0.0)


def _rows(frozen: manifest.FrozenManifest | None, base: Any, folder: str) -> Any:
    """The rows of the frozen manifest, lazily."""
    import pyarrow.dataset as ds  # imports pandas

    schema = pa.schema([("id", pa.string()), ("image", pa.string())])
    if frozen is None:
        return schema.empty_table()
    for field in frozen.schema:
        schema = schema.append(field)
    legacy = frozen.shard_files
    keys = [shard_file_key(shard) for shard in range(legacy)]
    keys += [frozen.key_of(file) for file in range(bool(legacy), len(frozen.files))]
    return ds.dataset([f"{folder}/{key}" for key in keys], schema=schema, format="ipc", filesystem=base)


def _run(output: str, summary: dict[str, Any] | None, file: RunFile | None) -> dict[str, tuple[str, Any]]:
    """SQL types and values of the columns about a run; null where it is not known yet."""
    found = summary or {}
    then, model = (file.fingerprint, file.model) if file else (None, None)
    return {
        "output": ("VARCHAR", output),
        "finished": ("BOOLEAN", summary is not None),
        "rows": ("BIGINT", found.get("rows")),
        "tasks": ("VARCHAR[]", list(then.tasks) if then else found.get("tasks")),
        **{name: ("BIGINT", found.get(name)) for name in ("records", "ok", "invalid", "errors")},
        "error_kinds": ("VARCHAR", json.dumps(found.get("error_kinds", {}))),
        "tokens": ("BIGINT", found.get("tokens")),
        "retries": ("BIGINT", found.get("retries")),
        "appends": ("BIGINT", found.get("appends", 0) if found else None),
        "model": ("VARCHAR", then.model if then else found.get("model")),
        "revision": ("VARCHAR", then.revision if then else None),
        "precision": ("VARCHAR", model.precision if model else None),
        "quantization": ("VARCHAR", model.quantization if model else None),
    }


def _keep_run(connection: duckdb.DuckDBPyConnection, name: str, run: dict[str, tuple[str, Any]]) -> None:
    """Write the table of the run. By SQL: a table of pyarrow would import pandas, for half a second."""
    columns = ", ".join(f"?::{kind} AS {column}" for column, (kind, _) in run.items())
    values = [value for _, value in run.values()]
    connection.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT {columns}", values)


def literal(words: Sequence[str]) -> str:
    """A list of texts in SQL."""
    return "[" + ", ".join("'" + word.replace("'", "''") + "'" for word in words) + "]"
