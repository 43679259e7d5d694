"""What results say, in numbers and in words. Reads published files and state; needs neither torch nor Ray."""

import json
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from paliscribe import manifest, results
from paliscribe.demo.score import Labelled, Result, summarise
from paliscribe.errors import UsageError
from paliscribe.results.run_file import RunFile
from paliscribe.storage import StorageError, open_store


def run_status(output: str) -> dict[str, Any]:
    """Where the run of an output stands. Raises UsageError if there is none or it cannot be read."""
    try:
        store = open_store(output)
        file, frozen = RunFile.read(store), manifest.load(store)
        if frozen is None:
            raise UsageError(f"{output}: no run is here; `paliscribe annotate` begins one")
        holder = results.read_lease(store)
        summary = results.read_summary(store)
        done = results.done(store)
        finished = store.exists(results.SUCCESS)
        counts: dict[str, dict[str, int]] = {"statuses": {}, "error_kinds": {}}
        if summary is None:
            for shard in sorted(done):
                marker = results.read_marker(store, shard)
                for name, found in (("statuses", marker.statuses), ("error_kinds", marker.error_kinds)):
                    for key, value in found.items():
                        counts[name][key] = counts[name].get(key, 0) + value
    except StorageError as error:
        raise UsageError(str(error)) from None
    working = holder is not None and not holder.surely_gone
    found = summary or {
        "ok": counts["statuses"].get("ok", 0),
        "invalid": counts["statuses"].get("invalid", 0),
        "errors": counts["statuses"].get("error", 0),
        "error_kinds": counts["error_kinds"],
    }
    return {
        "output": output,
        "state": "finished" if finished else "running" if working else "interrupted",
        "driver": f"process {holder.pid} on {holder.host}" if holder is not None and working else None,
        "model": file.fingerprint.model if file else None,
        "tasks": list(file.fingerprint.tasks) if file else None,
        "rows": frozen.rows,
        "rows_done": sum(frozen.rows_of(shard) for shard in done),
        "shards": frozen.shards,
        "shards_done": len(done),
        **{key: found[key] for key in ("ok", "invalid", "errors", "error_kinds")},
        "retries": summary["retries"] if summary else 0,
    }


def status_words(status: dict[str, Any]) -> str:
    """A status for people, with what to do next."""
    lines = [
        f"{status['output']}: {status['state']}" + (f" ({status['driver']})" if status["driver"] else ""),
        f"  rows     {status['rows_done']:,} of {status['rows']:,} committed, "
        f"{status['shards_done']:,} of {status['shards']:,} shards",
        f"  records  {_counts(status)}",
    ]
    if status["state"] == "interrupted":
        lines.append("  next     run the same command again to go on from here")
    elif status["errors"] and status["state"] == "finished":
        lines.append(f"  next     mend the causes, then: paliscribe retry {status['output']}")
    return "\n".join(lines)


def summary_words(summary: dict[str, Any], output: str) -> str:
    """A finished run's summary for people."""
    again = "" if summary["shards_annotated"] else " (it was finished already)"
    lines = [
        f"{summary['rows']:,} images x {len(summary['tasks'])} tasks annotated with {summary['model']}{again}",
        f"  {summary['records']:,} records: {_counts(summary)}",
        f"  {len(summary['files'])} files below {output}",
    ]
    if summary["errors"]:
        lines.append(f"  mend the causes, then: paliscribe retry {output}")
    return "\n".join(lines)


def read_records(output: str) -> list[dict[str, Any]]:
    """Every published record of a local output, as plain values."""
    folder = Path(output)
    records: list[dict[str, Any]] = []
    for part in ("annotations", "errors"):
        if (folder / part).is_dir():
            records += ds.dataset(folder / part, format="parquet").to_table().to_pylist()
    return records


def _counts(counts: dict[str, Any]) -> str:
    words = f"{counts['ok']:,} ok, {counts['invalid']:,} invalid, {counts['errors']:,} errors"
    if counts["error_kinds"]:
        words += " (" + ", ".join(f"{kind} {number:,}" for kind, number in counts["error_kinds"].items()) + ")"
    return words


DEMO_TASKS = {"answer en {question}": "answer", "caption en": "caption", "ocr": "ocr", "detect {objects}": "detect"}
DEMO_FIGURES = {
    "answer_exact": "questions, exact",
    "caption_f1": "captions, item F1",
    "detect_f1": "boxes, F1 at IoU 0.5",
    "ocr_exact": "written text, exact",
    "ocr_none_exact": "no text, nothing said",
}


def demo_accuracy(output: str, collection: Path) -> dict[str, str]:
    """Score the demo's published records against `truth.jsonl`: figure -> value and count, in words."""
    truths = {row["id"]: row for row in map(json.loads, (collection / "truth.jsonl").read_text().splitlines())}
    found = []
    for record in read_records(output):
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
