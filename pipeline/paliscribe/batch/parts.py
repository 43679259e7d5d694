"""Publication of parts as their shards are committed."""

from typing import Any

import ray

from paliscribe import results
from paliscribe.batch.generation import Run
from paliscribe.pool.ray_cluster import translating
from paliscribe.results import Layout
from paliscribe.storage import open_store

PUBLISHING = 2  # parts published concurrently


class Parts:
    """Publishes parts as their shards are committed."""

    def __init__(self, run: Run, published: set[int], finished: set[int]) -> None:
        self._run = run
        self._left: dict[int, set[int]] = {
            part: set(run.shards(part)) - finished for part in range(run.layout.parts) if part not in published
        }
        self._under_way: dict[int, Any] = {}

    def committed(self, shard: int) -> None:
        """Mark a shard as committed; once its part is complete, publish it on the cluster."""
        part = self._run.layout.part_of(shard)
        self._left[part].discard(shard)
        if not self._left[part]:
            while len(self._under_way) >= PUBLISHING:
                self._next()
            uri, layout = self._run.store.uri, self._run.layout
            self._under_way[part] = _publish.remote(uri, layout, part, self._run.generation)

    def wait(self) -> None:
        """Wait until all publications on the cluster are done."""
        while self._under_way:
            self._next()

    def publish_rest(self) -> None:
        """Publish parts, in this process, that an earlier process left complete but unpublished."""
        for part in [part for part, shards in self._left.items() if not shards]:
            results.publish_part(self._run.store, self._run.layout, part, self._run.generation)

    def _next(self) -> None:
        ready, _ = ray.wait(list(self._under_way.values()), num_returns=1)
        with translating():
            ray.get(ready[0])
        part = next(part for part, reference in self._under_way.items() if reference == ready[0])
        del self._under_way[part], self._left[part]


@ray.remote(num_cpus=0.1, max_retries=2)  # type: ignore[untyped-decorator]
def _publish(uri: str, layout: Layout, part: int, generation: int) -> None:
    results.publish_part(open_store(uri), layout, part, generation)
