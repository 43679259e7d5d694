"""Shards on two nodes, one of which gets a spot notice and is then taken away."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from metadata import metadata
from ray.cluster_utils import Cluster

from paliscribe.batch.dataset import annotate_shards, shards_of
from paliscribe.batch.progress import Progress
from paliscribe.pool.draining import Draining, drain_at_notice
from paliscribe.results import Marker

pytestmark = [pytest.mark.cluster, pytest.mark.long]
SHARDS, SECONDS = 80, 0.5  # of a shard
NOTICE = 20.0  # seconds from the notice to the end of the node
QUIET: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}


def stage_of(log: Path) -> type:
    """A stage process that takes its time, and notes in a file each shard that it begins. Sent by value."""

    class Slow:
        def __init__(self, *_: object) -> None:
            self.draining = Draining()
            drain_at_notice()

        def __call__(self, block: pa.Table) -> Iterator[dict[str, Any]]:
            for shard in shards_of(block):
                if self.draining():
                    return
                with log.open("a") as file:
                    file.write(f"{shard} {ray.get_runtime_context().get_node_id()} {time.time()}\n")
                time.sleep(SECONDS)
                marker = Marker(shard, "", "", 0, 1, 1, {"ok": 1}, {}, 0)
                yield {"marker": np.array([marker.as_json().decode()], dtype=object)}

    return Slow


def test_a_notice_gives_back_what_is_not_begun(tmp_path: Path) -> None:
    log, done, plan = tmp_path / "begun", [], None
    log.touch()
    with metadata() as cloud:
        spot = {"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": cloud.address}
        few: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args=few | {"include_dashboard": False})
        try:
            node = cluster.add_node(**few, env_vars=os.environ | spot)
            ray.init(cluster.address, **QUIET)
            doomed = node.node_id

            def begun() -> list[list[str]]:
                return [line.split() for line in log.read_text().splitlines()]

            def take_away() -> None:
                while len({where for _, where, _ in begun()}) < 2 or not cloud.count("instance-action"):
                    time.sleep(0.2)
                cloud.announce(NOTICE)
                noticed.append(time.time())
                time.sleep(NOTICE)
                cluster.remove_node(node, allow_graceful=False)

            noticed: list[float] = []
            threading.Thread(target=take_away, daemon=True).start()
            found = annotate_shards(
                plan,  # type: ignore[arg-type]
                plan,  # type: ignore[arg-type]
                np.arange(SHARDS),
                cpus=1,
                workers=2,
                progress=Progress(),
                stage=stage_of(log),
            )
            done = [marker.shard for marker in found]
            of_doomed = [(int(shard), float(when)) for shard, where, when in begun() if where == doomed]
            counts = Counter(int(shard) for shard, _, _ in begun())
        finally:
            ray.shutdown()
            cluster.shutdown()
    assert sorted(done) == list(range(SHARDS)), "each is committed once"
    assert of_doomed and noticed, "both nodes worked"
    assert set(counts) == set(done) and counts.total() - SHARDS <= 1, "at most the shard in hand is repeated"
    late = [shard for shard, when in of_doomed if when > noticed[0] + NOTICE * 0.75]
    assert not late, f"begun on a node that is drained: {late}"
