"""Publication of parts as their shards are committed."""

import threading
from concurrent.futures import FIRST_COMPLETED, Future, wait

import numpy as np
import numpy.typing as npt
import ray

from paliscribe import results
from paliscribe.batch.generation import Run
from paliscribe.pool.ray_cluster import started_here, translating
from paliscribe.results import Layout
from paliscribe.storage import open_store
from paliscribe.storage.parallel import in_order

PUBLISHING = 2  # parts published concurrently


class Parts:
    """Publishes parts as their shards are committed: on the cluster, or in threads if all of it is this machine."""

    def __init__(self, run: Run, published: set[int], todo: npt.NDArray[np.bool_]) -> None:
        """`todo` [shards]: whether each shard must be committed first."""
        layout = run.layout
        self._run, self._todo = run, todo.copy()
        starts = [layout.shards_of(part).start for part in range(layout.parts)]
        self._left = np.add.reduceat(todo.astype(np.int64), starts)  # [parts], of shards that are not committed
        self._published = np.isin(np.arange(layout.parts), list(published))
        self._published[layout.parts_in(run.generation) :] = True  # appended after this retry
        self._under_way: dict[Future[None], int] = {}

    def committed(self, shard: int) -> None:
        """Mark a shard as committed; once its part is complete, begin to publish it."""
        part = self._run.layout.part_of(shard)
        self._left[part] -= self._todo[shard]
        self._todo[shard] = False
        if not self._left[part]:
            while len(self._under_way) >= PUBLISHING:
                self._next()
            self._under_way[self._begin(part)] = part
            self._run.progress.publishing = len(self._under_way)

    def wait(self) -> None:
        """Wait until all publications that were begun are done."""
        while self._under_way:
            self._next()

    def _begin(self, part: int) -> Future[None]:
        store, layout, generation = self._run.store, self._run.layout, self._run.generation
        if not started_here():
            begun: Future[None] = _publish.remote(store.uri, layout, part, generation).future()
            return begun
        done: Future[None] = Future()

        def publish() -> None:
            try:
                results.publish_part(store, layout, part, generation)
                done.set_result(None)
            except BaseException as error:  # raised by `_next`
                done.set_exception(error)

        threading.Thread(target=publish, name=f"publish part {part}", daemon=True).start()  # not waited for on Stopped
        return done

    def publish_rest(self) -> None:
        """Publish parts, in this process, that an earlier process left complete but unpublished."""
        store, layout, generation = self._run.store, self._run.layout, self._run.generation
        parts = np.flatnonzero((self._left == 0) & ~self._published).tolist()
        for _ in in_order(lambda part: results.publish_part(store, layout, part, generation), parts, PUBLISHING):
            pass

    def _next(self) -> None:
        ready, _ = wait(self._under_way, return_when=FIRST_COMPLETED)
        for future in ready:
            with translating():
                future.result()
            self._published[self._under_way.pop(future)] = True
        self._run.progress.publishing = len(self._under_way)


@ray.remote(num_cpus=0.1, max_retries=2)  # type: ignore[untyped-decorator]
def _publish(uri: str, layout: Layout, part: int, generation: int) -> None:
    results.publish_part(open_store(uri), layout, part, generation)
