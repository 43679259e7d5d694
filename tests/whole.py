"""The check that a run is whole, with which every test ends that finishes a run in its own process."""

from typing import Any

from paliscribe import results
from paliscribe.results.run_file import RUN_FILE
from paliscribe.storage import open_store
from paliscribe.verify import Report, verify

_finished: dict[str, None] = {}  # outputs, since the last check


def check_whole(output: str, state: str | None = None) -> Report:
    """Assert that `paliscribe verify` finds nothing, and that the run is in this state, if one is given."""
    report = verify(output)
    assert report.good, "\n".join(map(str, report.findings))
    assert state is None or report.state == state
    return report


def watch() -> None:
    """Note every output that is finished in this process from now on."""
    finish = results.finish

    def noting(store: Any, *arguments: Any, **more: Any) -> dict[str, Any]:
        summary = finish(store, *arguments, **more)
        _finished[store.uri] = None
        return summary

    results.finish = noting


def forget() -> None:
    """Forget the outputs that were noted."""
    _finished.clear()


def check_noted() -> None:
    """Check the outputs that were noted, and forget them; not those that are gone, or were made without a run."""
    noted = list(_finished)
    forget()
    for output in noted:
        if open_store(output).exists(RUN_FILE):
            check_whole(output)
