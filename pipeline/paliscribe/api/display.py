"""Progress display: a live line in a terminal or notebook, otherwise periodic lines on stderr."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from paliscribe.batch.progress import Progress

ROWS = re.compile(r" · [\d,]+/[\d,]+ rows \(\d+%\)")  # as `line` formats rows
PLAIN_EVERY = 10.0  # seconds between lines without a terminal; a new stage is printed at once


@contextmanager
def progress_display(quiet: bool = False) -> Iterator[Callable[[Progress], None]]:
    """Yield a function that shows a run's progress; it may be called at any rate."""
    console = Console(stderr=True)
    if quiet:
        yield lambda progress: None
    elif console.is_jupyter:
        yield _notebook()
    elif console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            told = _notes(lambda words: live.console.print(words, markup=False, highlight=False))

            def show(progress: Progress) -> None:
                told(progress)
                live.update(Text(line(progress), overflow="ellipsis", no_wrap=True), refresh=True)

            yield show
    else:
        yield _plain()


def _notebook() -> Callable[[Progress], None]:
    from IPython.display import display

    shown = display({"text/plain": ""}, raw=True, display_id=True)
    told = _notes(print)

    def show(progress: Progress) -> None:
        told(progress)
        shown.update({"text/plain": line(progress)}, raw=True)

    return show


def _plain() -> Callable[[Progress], None]:
    last: list[object] = [None, 0.0]
    told = _notes(lambda words: print(words, file=sys.stderr, flush=True))

    def show(progress: Progress) -> None:
        told(progress)
        now = time.monotonic()
        if progress.stage == last[0] and now - float(str(last[1])) < PLAIN_EVERY:
            return
        last[:] = [progress.stage, now]
        print(line(progress), file=sys.stderr, flush=True)

    return show


def _notes(tell: Callable[[str], object]) -> Callable[[Progress], None]:
    """A function that tells each of a run's notes once."""
    shown = 0

    def show(progress: Progress) -> None:
        nonlocal shown
        for words in progress.notes[shown:]:
            shown += 1
            tell(f"note: {words}")

    return show


def line(progress: Progress) -> str:
    """Progress as one line: stage, rows, throughput, errors by kind, time left."""
    waits = progress.stalled or progress.waiting or progress.stages_wait
    parts = [words for words in (progress.stage, waits) if words]
    if progress.rows:
        done = progress.rows_before + progress.rows_done
        parts.append(f"{done:,}/{progress.rows:,} rows ({done / progress.rows:.0%})")
    if (rate := progress.images_per_second) is not None:
        parts.append(f"{rate:,.1f} images/s")
    if invalid := progress.statuses["invalid"]:
        parts.append(f"{invalid:,} invalid")
    if progress.error_kinds:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in progress.error_kinds.most_common())
        parts.append(f"errors: {kinds}")
    if (left := progress.seconds_left) is not None and progress.rows_done:
        parts.append(f"{duration(left)} left")
    return " · ".join(parts)


def last_line(log: str) -> str | None:
    """The last line of a driver's log with a row count or a message of paliscribe; otherwise its last line, or None."""
    lines = [text for written in log.splitlines() if (text := written.strip())]
    telling = [text for text in lines if text.startswith("paliscribe: ") or ROWS.search(text)]
    found = telling or lines
    return found[-1] if found else None


def duration(seconds: float) -> str:
    """Format a duration: `45 s`, `12 min`, `3 h 20 min`, `2 d 5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"
