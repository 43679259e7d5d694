"""`paliscribe evaluate`: a run's figures against truth, as a table or as JSON."""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from paliscribe.cli.options import Json, Quiet
from paliscribe.errors import UsageError

SHARES = ("rate", "exact", "exact_normalised", "vqa_accuracy", "precision", "recall", "agreement")  # shown in per cent
LABELS = 10  # lines of labels in the table
Figure = Mapping[str, Any]


def evaluate(
    output: Annotated[str, typer.Argument(help="The output of a run: a folder or an s3:// prefix.")],
    truth: Annotated[
        str,
        typer.Option(
            help="A manifest with true answers by id (JSONL, JSON, CSV, Parquet), a COCO file, `run` for the run's own "
            "columns, or `review` for its reviewers' marks."
        ),
    ] = "run",
    column: Annotated[
        list[str] | None,
        typer.Option(help="TASK=COLUMN: the column that is true for a task or a kind. Repeat for more."),
    ] = None,
    id_column: Annotated[str, typer.Option(help="The column of the truth that names rows as the run does.")] = "id",
    against: Annotated[
        str | None, typer.Option(help="Another run over the same rows, to compare with this one.")
    ] = None,
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="Precision and recall count boxes of this score or more.")
    ] = 0.0,
    fit: Annotated[
        bool, typer.Option("--fit", help="Keep a map from score to probability in _evaluation/calibration.json.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the intervals.")] = 0,
    memory: Annotated[
        int, typer.Option(min=1, help="MB of DuckDB's memory. It writes what needs more to a temporary folder.")
    ] = 24,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a run against true answers, with 95 % intervals. The figures are kept in _evaluation/latest.json."""
    chosen = {}
    for each in column or []:
        task, equals, name = each.rpartition("=")
        if not (task and equals and name):
            raise UsageError(f"--column {each!r}: write TASK=COLUMN, as in --column 'caption en=caption'")
        chosen[task] = name
    from paliscribe import evaluation

    options = evaluation.Options(truth, chosen, id_column, against, min_score, fit, seed, memory)
    say = (lambda words: None) if quiet else (lambda words: print(words, file=sys.stderr, flush=True))
    found = evaluation.evaluate(output, options, say)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    for line in lines_of(found):
        print(line)
    print(f"\nKept in {output}/_evaluation/: latest.json" + (", calibration.json" if fit else ""))


def lines_of(found: Mapping[str, Any]) -> Iterator[str]:
    """What `evaluation.evaluate` returned, as lines of text."""
    against = f", and {found['against']} against it" if found["against"] else ""
    yield f"{found['output']} against truth {found['truth']}{against}; 95 % intervals in brackets"
    if not found["finished"]:
        yield "the run is not finished; what is published so far is evaluated"
    yield from found["notes"]
    for each in found["tasks"]:
        yield ""
        yield from _task(each)
    if found["without_column"]:
        yield f"\nwithout truth: {', '.join(found['without_column'])}"


def _task(each: Mapping[str, Any]) -> Iterator[str]:
    rows = each["rows"]
    kind = "" if each["of"] == "text" else f", {each['of']}"
    counts = f"{rows['ok']:,} ok, {rows['invalid']:,} invalid, {rows['errors']:,} errors"
    yield f"{each['task']}{kind} (truth: {each['column']}): {rows['evaluated']:,} rows, {counts}"
    for name in ("without_truth", "without_record", "repeated_ids", "unreadable"):
        if rows[name]:
            yield f"  {LEFT_OUT[name]}: {rows[name]:,}"
    for note in each["notes"]:
        yield f"  {note}"
    for name, figure in each.get("figures", {}).items():
        if figure["value"] is not None:
            yield f"  {name:<18} {_number(name, figure['value']):>8}  {_ends(name, figure)}".rstrip()
    for label in each.get("labels", [])[:LABELS]:
        if label["true"]:
            counts = f"{label['true']:,} true, {label['found']:,} found"
            yield f"    {label['label'][:40]:<24} AP {label['AP']:.3f}, {counts}"
    if calibration := each.get("calibration"):
        after = "" if calibration["after_map"] is None else f"; {calibration['after_map']:.3f} with a map (held out)"
        yield f"  calibration error  {calibration['expected_error']:>8.3f}  of scores as {calibration['target']}{after}"
    if "against" in each:
        yield from _against(each["against"])


LEFT_OUT = {
    "without_truth": "rows without truth, not evaluated",
    "without_record": "ids of the truth that the run has not, not evaluated",
    "repeated_ids": "ids that the truth has several times; all their answers are true",
    "unreadable": "true answers that cannot be read, not evaluated",
}


def _against(found: Mapping[str, Any]) -> Iterator[str]:
    agreement = "" if found["agreement"] is None else f" ({found['agreement']:.1%} agree)"
    yield f"  the other run: {found['changed']:,} of {found['rows']:,} rows changed{agreement}"
    for name, figure in found["differences"].items():
        if figure["value"] is not None:
            p = "" if figure["p"] is None else f"  p {figure['p']:.3f}"
            yield f"    {name:<16} {_number(name, figure['value'], '+'):>8}  {_ends(name, figure, '+')}{p}".rstrip()
    if test := found.get("mcnemar"):
        words = f"{test['better']:,} rows better, {test['worse']:,} worse"
        yield f"    McNemar's exact test of {test['of']}: {words}, p {test['p']:.3f}"


def _number(name: str, value: float, sign: str = "") -> str:
    is_share = name in SHARES or name.endswith("_rate")
    return f"{value * 100:{sign}.1f} %" if is_share else f"{value:{sign}.3f}"


def _ends(name: str, figure: Figure, sign: str = "") -> str:
    if figure["low"] is None:
        return ""
    return f"[{_number(name, figure['low'], sign)}, {_number(name, figure['high'], sign)}]"
