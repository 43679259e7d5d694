"""`paliscribe report`: a run in one file of HTML."""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from paliscribe.cli.options import Quiet
from paliscribe.errors import UsageError

MEMORY = 256  # MB, of DuckDB


def report(
    output: Annotated[str, typer.Argument(help="The output of a run: a folder or an s3:// prefix.")],
    to: Annotated[str, typer.Option("--output", "-o", help="File or s3:// address to write; `-`: stdout.")],
    samples: Annotated[int, typer.Option("--samples", min=0, max=1000, help="Rows in the sample of pictures.")] = 24,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the sample.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Write a report of a run into one file of HTML, to send to somebody.

    It has the summary, plots, a sample of pictures with their annotations, the lowest scores and examples of errors.
    """
    from paliscribe.published import open_tables
    from paliscribe.storage import StorageError, open_store, split
    from paliscribe.view.report import report as pieces

    tables = open_tables(output, memory=MEMORY)
    check_target(to)
    shown = 0

    def tell(pictures: int) -> None:
        nonlocal shown
        shown = pictures
        if not quiet and sys.stderr.isatty():
            print(f"\r{pictures:,} pictures", end="", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="paliscribe-") as folder:
        made = Path(folder) / "report.html"
        with made.open("w", encoding="utf-8", errors="replace") as file:
            for piece in pieces(tables, samples=samples, seed=seed, tell=tell):
                file.write(piece)
        if to == "-":
            with made.open("rb") as body:
                shutil.copyfileobj(body, sys.stdout.buffer)
        else:
            place, name = split(to)
            try:
                open_store(place).put_file(name, made)
            except StorageError as error:
                raise UsageError(f"--output {error}") from None
        size = made.stat().st_size
    if not quiet:
        words = f"{'the report' if to == '-' else to}: {shown:,} pictures, {size / 2**20:.1f} MiB"
        print(words, file=sys.stderr if to == "-" else sys.stdout)


def check_target(to: str) -> None:
    """Raise UsageError if no file can be written at this address. `-` is stdout."""
    import os

    from paliscribe.storage import StorageError, check_writable, is_local, local_path, open_store, split

    if to == "-":
        return
    try:
        if not is_local(to):
            check_writable(open_store(split(to)[0]))
            return
        path = local_path(to).expanduser().absolute()
    except StorageError as error:
        raise UsageError(f"--output {error}") from None
    if path.is_dir():
        raise UsageError(f"--output {to}: a folder where a file should be")
    if not path.parent.is_dir():
        raise UsageError(f"--output {to}: no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"--output {to}: no permission to write there")
