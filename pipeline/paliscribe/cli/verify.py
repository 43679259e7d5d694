"""`paliscribe verify`: proves a run whole, and repairs what can be derived."""

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from paliscribe.cli.options import Json, Quiet

if TYPE_CHECKING:
    from paliscribe.verify import Repaired, Report

SECONDS = 5.0  # between lines of progress


def verify(
    output: Annotated[str, typer.Argument(help="The output of a run: a folder or an s3:// prefix.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Write again what can be derived; withdraw parts that cannot be.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prove a run whole: every row under every task once, as the manifest, the markers and the hashes say.

    Exit code 1 if something is damaged. Of an unfinished run, what is committed and published so far is verified.
    """
    from paliscribe import verify as verification

    last = time.monotonic()

    def progress(done: int, of: int) -> None:
        nonlocal last
        if not quiet and time.monotonic() - last > SECONDS:
            last = time.monotonic()
            print(f"{done:,} of {of:,} records read", file=sys.stderr, flush=True)

    repaired = verification.repair(output, progress) if repair else None
    report = repaired.report if repaired is not None else verification.verify(output, progress)
    if as_json:
        more = {"repaired": repaired.done, "withdrawn": sorted(repaired.withdrawn)} if repaired is not None else {}
        print(json.dumps(report.as_dict() | more))
    else:
        print("\n".join([*(_repair_lines(repaired) if repaired is not None else ()), *_lines(report)]))
    raise typer.Exit(0 if report.good and not (repaired and repaired.withdrawn) else 1)


def _lines(report: "Report") -> list[str]:
    """A report as text."""
    from paliscribe.verify.findings import SHOWN

    found = report.as_dict()
    counts = ", ".join(f"{count:,} {name}" for name, count in found["checked"].items())
    state = {
        "unfinished": "; the run is not finished: what is committed and published so far was checked",
        "running": f"; a driver may be at work ({report.driver}): what is committed and published so far was checked",
    }.get(report.state, "")
    lines = [str(finding) for finding in report.findings[:SHOWN]]
    if more := len(report.findings) - len(lines):
        lines.append(f"... and {more:,} more")
    end = "whole" if report.good else f"damaged: {len(report.findings):,} findings"
    return [*lines, f"{report.output}: {end}; checked {counts}{state}"]


def _repair_lines(repaired: "Repaired") -> list[str]:
    """What a repair has done, as text."""
    from paliscribe.verify.findings import SHOWN

    lines = [f"repaired: {words}" for words in repaired.done[:SHOWN]] or ["nothing was repaired"]
    if more := len(repaired.done) - SHOWN:
        lines += [f"... and {more:,} more"] if more > 0 else []
    if repaired.withdrawn:
        parts = ", ".join(map(str, sorted(repaired.withdrawn)[:SHOWN]))
        lines.append(f"parts to annotate again: {parts}; run the command that began the run, `paliscribe annotate ...`")
    return lines
