"""`paliscribe view`: a page over a run."""

import contextlib
import sys
import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from paliscribe.errors import UsageError


def view(
    output: Annotated[str | None, typer.Argument(help="The output of a run: a folder or an s3:// prefix.")] = None,
    other: Annotated[str | None, typer.Argument(help="Another output, to compare with.")] = None,
    example: Annotated[bool, typer.Option("--example", help="Look at a small example run.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on. Anyone with the printed address can look.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on. 0: a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """Look at the annotations of a run in the browser, and mark them: accept, reject or fix."""
    if (output is None) != example:
        raise UsageError("view needs the output of a run, or --example alone")
    from paliscribe.cli.drawing import has_display
    from paliscribe.view.listening import serve_view
    from paliscribe.view.server import open_view

    with contextlib.ExitStack() as stack:
        note = ""
        if output is None:
            from paliscribe.view.example import NOTE, write_example

            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="paliscribe-example-"))
            output, note = write_example(Path(folder)), NOTE

        def ready(address: str) -> None:
            print(address, flush=True)
            print("Ctrl-C stops; anyone with this address can look and mark", file=sys.stderr, flush=True)
            if browser and has_display():
                webbrowser.open(address)

        serve_view(open_view(output, other, note), host, port, ready)
