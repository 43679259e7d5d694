"""Text output of the commands: a run's status, answers, the demo's accuracy."""

import json
from pathlib import Path
from typing import Any

from paliscribe.api.results import counts_words, load
from paliscribe.demo.score import Labelled, Result, summarise


def status_words(status: dict[str, Any]) -> str:
    """A run's status as text, with the next step."""
    lines = [
        f"{status['output']}: {status['state']}" + (f" ({status['driver']})" if status["driver"] else ""),
        f"  rows     {status['rows_done']:,} of {status['rows']:,} committed, "
        f"{status['shards_done']:,} of {status['shards']:,} shards",
        f"  records  {counts_words(status)}",
    ]
    if status["waits"]:
        lines.append(f"  waits    {status['waits']}")
    if status["state"] == "interrupted":
        lines.append("  next     run the same command again to resume")
    elif status["errors"] and status["state"] == "finished":
        lines.append(f"  next     fix the causes, then: paliscribe retry {status['output']}")
    return "\n".join(lines)


def answer_words(values: dict[str, Any]) -> str:
    """An answer as text, with one line per box."""
    lines = [values["text"]] if values["text"] and not values["boxes"] else []
    for box in values["boxes"]:
        corners = ", ".join(f"{box[side]:.0f}" for side in ("x_min", "y_min", "x_max", "y_max"))
        lines.append(f"{box['label']}: {corners}  (x_min, y_min, x_max, y_max in pixels)")
    if values["status"] == "invalid":
        lines.append(f"(the output violates the task's grammar: {values['error_message']})")
    return "\n".join(lines) or "(nothing found)"


DEMO_TASKS = {"answer en {question}": "answer", "caption en": "caption", "ocr": "ocr", "detect {objects}": "detect"}
DEMO_FIGURES = {
    "answer_exact": "questions, exact",
    "caption_f1": "captions, item F1",
    "detect_f1": "boxes, F1 at IoU 0.5",
    "ocr_exact": "written text, exact",
    "ocr_none_exact": "no text, nothing said",
}


def demo_accuracy(output: str, collection: Path) -> dict[str, str]:
    """Score the demo's published records against `truth.jsonl`: name of the figure -> value and count, as text."""
    truths = {row["id"]: row for row in map(json.loads, (collection / "truth.jsonl").read_text().splitlines())}
    found = []
    for record in load(output).to_arrow(["id", "task", "text", "boxes"]).to_pylist():
        task = DEMO_TASKS[record["task"]]
        expected = truths[record["id"]][task]
        found.append(
            Result(
                task=task,
                kind="none" if not expected else "some",
                expected="" if task == "detect" else expected,
                predicted=record["text"] or "",
                expected_boxes=[_labelled(box) for box in expected] if task == "detect" else (),
                predicted_boxes=[_labelled(box) for box in record["boxes"] or []],
            )
        )
    figures = summarise(found)
    return {
        words: f"{figures[name]:.1%} of {figures[name.rpartition('_')[0] + '_n']:,.0f}"
        if name.endswith("exact")
        else f"{figures[name]:.3f} over {figures[name.rpartition('_')[0] + '_n']:,.0f} images"
        for name, words in DEMO_FIGURES.items()
        if name in figures
    }


def _labelled(box: dict[str, Any]) -> Labelled:
    return box["label"], (box["x_min"], box["y_min"], box["x_max"], box["y_max"])
