"""Publication of parts as their shards are committed."""

import threading
from concurrent.futures import FIRST_COMPLETED, Future, wait

import ray

from paliscribe import results
from paliscribe.batch.generation import Run
from paliscribe.pool.ray_cluster import started_here, translating
from paliscribe.results import Layout
from paliscribe.storage import open_store

PUBLISHING = 2  # parts published concurrently


class Parts:
    """Publishes parts as their shards are committed: on the cluster, or in threads if all of it is this machine."""

    def __init__(self, run: Run, published: set[int], finished: set[int]) -> None:
        self._run = run
        self._left: dict[int, set[int]] = {
            part: set(run.shards(part)) - finished for part in range(run.layout.parts) if part not in published
        }
        self._under_way: dict[Future[None], int] = {}

    def committed(self, shard: int) -> None:
        """Mark a shard as committed; once its part is complete, begin to publish it."""
        part = self._run.layout.part_of(shard)
        self._left[part].discard(shard)
        if not self._left[part]:
            while len(self._under_way) >= PUBLISHING:
                self._next()
            self._under_way[self._begin(part)] = part

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
        for part in [part for part, shards in self._left.items() if not shards]:
            results.publish_part(self._run.store, self._run.layout, part, self._run.generation)

    def _next(self) -> None:
        ready, _ = wait(self._under_way, return_when=FIRST_COMPLETED)
        for future in ready:
            with translating():
                future.result()
            del self._left[self._under_way.pop(future)]


@ray.remote(num_cpus=0.1, max_retries=2)  # type: ignore[untyped-decorator]
def _publish(uri: str, layout: Layout, part: int, generation: int) -> None:
    results.publish_part(open_store(uri), layout, part, generation)
