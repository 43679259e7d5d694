"""Reading of a run's summary, which is published and so has no hash: its counts must add up."""

from typing import Any

from paliscribe.results import state
from paliscribe.results.publish import SUMMARY
from paliscribe.results.retrying import retry_begun
from paliscribe.storage import Store


def read_summary(store: Store) -> dict[str, Any] | None:
    """The summary of a finished run, or None. Raises Damaged, also if its counts do not add up."""
    summary = state.read(store, SUMMARY, _checked)
    if summary is not None:
        retries = summary["retries"]
        if (retries and not retry_begun(store, retries)) or retry_begun(store, retries + 2):
            raise state.Damaged(store.uri, SUMMARY, f"the run was not retried {retries:,} times")
    return summary


def _checked(summary: dict[str, Any]) -> dict[str, Any]:
    counts = {name: summary[name] for name in ("rows", "records", "ok", "invalid", "errors", "tokens", "retries")}
    for name, value in (*counts.items(), *summary["error_kinds"].items()):
        if type(value) is not int or value < 0:
            raise ValueError(f"{name} is no count")
    files = summary["files"]
    if not all(isinstance(facts["records"], int) and isinstance(facts["sha256"], str) for facts in files.values()):
        raise ValueError("files have no facts")
    if not (
        counts["records"]
        == counts["rows"] * len(summary["tasks"])
        == counts["ok"] + counts["invalid"] + counts["errors"]
        == sum(facts["records"] for facts in files.values())
        and counts["errors"] == sum(summary["error_kinds"].values())
    ):
        raise ValueError("its counts do not add up")
    return summary
