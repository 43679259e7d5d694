"""Commands that move annotations to other tools and back: `paliscribe export` and `import-review`."""

import json
import sys
from typing import Annotated, Any

import typer

from paliscribe.cli.options import Json

FORMATS = "coco, yolo, voc, jsonl, csv, hf, webdataset, label-studio, fiftyone"


def export(
    output: Annotated[str, typer.Argument(help="The output of a run: a folder or an s3:// prefix.")],
    form: Annotated[str, typer.Option("--format", "-f", help=f"One of {FORMATS}.")],
    to: Annotated[str, typer.Option("--to", help="An empty folder or s3:// prefix.")],
    task: Annotated[list[str] | None, typer.Option("--task", help="Only this task or kind. Repeat for more.")] = None,
    min_score: Annotated[
        float | None, typer.Option("--min-score", help="Leave out boxes, and other answers, of a lower score.")
    ] = None,
    where: Annotated[
        str | None, typer.Option("--where", help="Only annotations that meet this condition in DuckDB's SQL.")
    ] = None,
    reviewed: Annotated[bool, typer.Option("--reviewed", help="Only what a reviewer accepted or corrected.")] = False,
    invalid: Annotated[bool, typer.Option("--invalid", help="Answers that are malformed, too.")] = False,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Scores as probabilities, by the maps of `evaluate --fit`.")
    ] = False,
    images: Annotated[bool, typer.Option("--images", help="Copy the images too.")] = False,
    as_json: Json = False,
) -> None:
    """Write annotations in the format of another tool.

    Corrections of reviewers replace the model's answers; what they rejected is left out.
    """
    from paliscribe.export import Filters
    from paliscribe.export import export as run

    filters = Filters(tuple(task or ()), min_score, where, reviewed, invalid, calibrated)
    made = run(output, form, to, filters, images=images)
    if as_json:
        print(json.dumps(made))
        return
    if not made["finished"]:
        print(f"{output}: the run is not finished; what is published so far was exported", file=sys.stderr)
    for words, count in made["left_out"].items():
        print(f"left out: {count:,} {words}", file=sys.stderr)
    if made["failed_images"]:
        print(
            f"left out: {made['failed_images']:,} pictures that cannot be read, see failed-images.jsonl:",
            file=sys.stderr,
        )
        for words in made["named"]:
            print(f"  {words}", file=sys.stderr)
    print(f"{made['pictures']:,} pictures, {made['answers']:,} answers, {made['boxes']:,} boxes: {made['to']}")


def import_review(
    output: Annotated[str, typer.Argument(help="The output of the run that was exported.")],
    file: Annotated[str, typer.Argument(help="Label Studio's export as JSON, or COCO's JSON.")],
    as_json: Json = False,
) -> None:
    """Read what a reviewer left of exported annotations, as marks: accept, fix or reject."""
    from paliscribe.export import import_review as run

    made: dict[str, Any] = run(output, file)
    if as_json:
        print(json.dumps(made))
        return
    if made["unknown"]:
        names = "; ".join(made["named"])
        print(f"passed over: {made['unknown']:,} answers that this run does not have ({names})", file=sys.stderr)
    print(f"{made['accept']:,} accepted, {made['fix']:,} corrected, {made['reject']:,} rejected: {output}/_review/")
