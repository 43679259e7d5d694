"""The driver session of a run: lease, signals, progress reports."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from paliscribe import results
from paliscribe.batch.progress import Progress, Report
from paliscribe.errors import Stopped, TemporaryError
from paliscribe.signals import stop_on_signals
from paliscribe.storage import StorageError, Store
from paliscribe.storage.retry import waiting

TICK = 0.5  # seconds between progress reports


@contextlib.contextmanager
def session(store: Store, report: Report) -> Iterator[Progress]:
    """Hold the run's lease, report progress, and stop cleanly on SIGINT, SIGTERM or a lost lease.

    Raises TemporaryError if the lease is lost, the run stalls or storage fails, Stopped on a signal.
    """
    progress = Progress()
    main = threading.main_thread().ident or 0
    ended: list[str] = []  # why this process ends the run, in words

    def end(words: str) -> None:
        ended.append(words)
        if len(ended) == 1:
            signal.pthread_kill(main, signal.SIGINT)

    def on_lost() -> None:
        end(f"another driver took over {store.uri}; this one stopped")

    def watching(words: str) -> None:
        progress.stage = words

    def saying() -> str:
        return progress.stalled or progress.waiting or progress.stages_wait

    progress.end = end
    try:
        with (
            ticking(progress, report),
            stop_on_signals(),
            results.hold(store, on_lost=on_lost, waiting=watching, saying=saying),
        ):
            yield progress
    except Stopped as stopped:
        if ended:
            raise TemporaryError(ended[0]) from None
        kept = progress.rows_before + progress.rows_committed
        least = "At least " if kept < progress.rows else ""  # stage processes may have committed what is not told yet
        words = f"{stopped}: stopped. {least}{kept:,} of {progress.rows:,} rows are committed"
        stopped.args = (f"{words}; run the same command again to resume",)
        raise
    except StorageError as error:
        raise TemporaryError(f"storage failed at {error}; run the same command again to resume") from error


@contextlib.contextmanager
def ticking(progress: Progress, report: Report) -> Iterator[None]:
    """Report progress every `TICK` seconds from a thread, at each note, and once at the end."""
    lock = threading.Lock()

    def tell() -> None:
        with lock:
            progress.waiting = waiting()
            report(progress)

    progress.on_note = tell
    with repeating(tell):
        yield
    report(progress)


@contextlib.contextmanager
def repeating(action: Callable[[], None]) -> Iterator[None]:
    """Call `action` every `TICK` seconds from a thread."""
    done = threading.Event()

    def loop() -> None:
        while not done.wait(TICK):
            action()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
