"""Progress in words."""

import time

import nbformat
import pytest
from nbclient import NotebookClient

from paliscribe.api.display import duration, last_line, line, progress_display
from paliscribe.batch.progress import Progress
from paliscribe.batch.session import ticking


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (150, "2 min"), (3 * 3600 + 1200, "3 h 20 min"), (53 * 3600, "2 d 5 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_line_tells_rows_speed_errors_and_time_left() -> None:
    progress = Progress(stage="annotating", rows=1000, rows_before=200, rows_committed=300, rows_open=100)
    progress.annotating_since = time.monotonic() - 40
    progress.error_kinds.update({"missing": 3, "corrupt": 1})
    assert line(progress) == (
        "annotating · 600/1,000 rows (60%) · 10.0 images/s · errors: missing 3, corrupt 1 · 40 s left"
    )


def test_what_is_unknown_is_left_out() -> None:
    assert line(Progress(stage="starting")) == "starting"


def test_without_a_terminal_a_new_stage_gets_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_display() as show:
        for stage in ("freezing", "freezing", "annotating"):
            show(Progress(stage=stage))
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["freezing", "annotating"]
    assert captured.out == ""


def test_each_note_gets_a_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(stage="freezing")
    with progress_display() as show, ticking(progress, show):
        progress.note("left out: 1 .heic")
        assert capsys.readouterr().err.splitlines() == ["note: left out: 1 .heic", "freezing"], "at once"
        progress.note("left out: 1 .heic")
        progress.note("[brackets] stay")
    assert capsys.readouterr().err.splitlines() == ["note: [brackets] stay"]


def test_the_last_line_of_a_log() -> None:
    rows = line(Progress(stage="annotating", rows=1000, rows_before=200))
    assert last_line("") is None
    assert last_line("Running entrypoint\n\n") == "Running entrypoint"
    assert last_line(f"freezing\n{rows}\n2 warnings\n") == rows == "annotating · 200/1,000 rows (20%)"
    assert last_line(f"{rows}\npaliscribe: SIGTERM: stopped.\nmore\n") == "paliscribe: SIGTERM: stopped."


CELL = """
from paliscribe.api.display import progress_display
from paliscribe.batch.progress import Progress
with progress_display() as show:
    for stage in ("freezing", "annotating", "finished"):
        show(Progress(stage=stage))
"""


def test_a_notebook_shows_one_line_that_changes() -> None:
    """In a kernel of its own."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    [output] = notebook.cells[0].outputs
    assert output.output_type == "display_data" and output.data == {"text/plain": "finished"}
