"""The metric of a run: its driver exports it through Ray, as replicas and gateways export theirs."""

import contextlib
from collections.abc import Iterator

from ray.util.metrics import Gauge

from paliscribe.batch.generation import Run
from paliscribe.batch.session import repeating


@contextlib.contextmanager
def exported(run: Run) -> Iterator[None]:
    """Export the rows that are still to commit while the block runs: 0 once it ends well or is stopped on purpose.

    Ray shows the last value of a process that ends for 20 seconds. So after an error, or if this process is killed, the
    metric vanishes above 0, by which an alert tells a lost run.
    """
    gauge = Gauge("paliscribe_run_rows_left", "Rows of a run that are not committed yet", ("run",))
    progress, labels = run.progress, {"run": run.store.uri}
    end = progress.rows_committed + progress.rows - progress.rows_before

    def update() -> None:
        gauge.set(max(0, end - progress.rows_committed), labels)

    update()
    with repeating(update):
        try:
            yield
        except KeyboardInterrupt:
            end = 0
            raise
        finally:
            update()
