"""What an interrupted run holds of Ray is dropped before its Ray ends."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.cluster

INTERRUPTED = """
import gc
import time
import ray
from paliscribe.pool.ray_cluster import cluster

def work():
    import ray.data
    rows = ray.data.range(400, override_num_blocks=400).map(lambda row: row)
    held = iter(rows.iter_rows())  # as Ray's own frames hold it when a signal comes
    next(held)
    raise KeyboardInterrupt

try:
    with cluster(num_cpus=1):
        work()
except KeyboardInterrupt as error:
    print("ended", ray.is_initialized())
    time.sleep(1.5)  # Ray Data asks once a second
gc.collect()
print("dropped", ray.is_initialized())
"""


def test_no_ray_is_started_by_what_is_dropped_later() -> None:
    """An iterator of Ray Data asks the cluster for its resources when it is dropped, and Ray starts one for that."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines() == ["ended False", "dropped False"], done.stderr
    assert done.returncode == 0 and "Traceback" not in done.stderr
