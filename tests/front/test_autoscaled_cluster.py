"""A cluster whose nodes come when they are asked for and go when they are idle, as Ray's own autoscaler keeps it.

The autoscaler and its nodes are real: what is fake is the provider, which starts nodes as processes of this machine.
`ray.cluster_utils.AutoscalingCluster` drives the same provider; it is not used, since it ends every Ray on the
machine before and after, and reads a file that Ray's wheels lack.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.dataset as ds
import pytest
import ray.util
from front.heads import PROGRAMS, TOKEN, running
from ports import free_ports
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

pytestmark = [pytest.mark.cluster, pytest.mark.long]
LIMIT = 150  # seconds for the job, and for the nodes to leave
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
STORE = 100 * 2**20  # bytes of a node's object store; by default each would take a third of the machine


@dataclass(frozen=True, slots=True)
class Autoscaled:
    """A head without CPUs, and the groups that its autoscaler adds nodes of."""

    address: str
    process: psutil.Process

    def nodes(self) -> int:
        """Nodes that are there beside the head: each has a raylet."""
        found = 0
        for child in self.process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found += child.name() == "raylet"
        return found - 1


def settings(address: str) -> dict[str, object]:
    """The autoscaler's configuration: a group that stands in for GPU nodes, and one of CPU nodes, both at zero."""
    groups = {"gpu": {"CPU": 1, "gpu_stand_in": 1}, "cpu": {"CPU": 2}}
    types = {
        name: {
            "resources": {**resources, "object_store_memory": STORE},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        }
        for name, resources in groups.items()
    }
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    provider = {"type": "external", "module": PROVIDER, "gcs_address": address, "head_node_id": FAKE_HEAD_NODE_ID}
    return {
        "cluster_name": "autoscaled",
        "max_workers": 4,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 10,
        "provider": provider | {"launch_multiple": True, "disable_node_updaters": True},
        "available_node_types": {FAKE_HEAD_NODE_TYPE: head, **types},
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        **{f"{when}_commands": [] for when in ("initialization", "setup", "head_setup", "worker_setup")},
        **{f"{who}_start_ray_commands": [] for who in ("head", "worker")},
    }


@pytest.fixture
def autoscaled(tmp_path: Path) -> Iterator[Autoscaled]:
    [port] = free_ports(1)
    address = f"{ray.util.get_node_ip_address()}:{port}"
    config = tmp_path / "autoscaling.json"
    config.write_text(json.dumps(settings(address)))
    command = [str(PROGRAMS / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=0"]
    command += [f"--autoscaling-config={config}", "--include-dashboard=false", "--disable-usage-stats"]
    command += [f"--object-store-memory={STORE}"]
    environment = {
        **os.environ,
        **TOKEN,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    log = tmp_path / "head.log"
    with running(command, environment, log) as process:
        cluster, until = Autoscaled(address, psutil.Process(process.pid)), time.monotonic() + 60
        while cluster.nodes() < 0:  # its own raylet comes last
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-2000:]
            time.sleep(0.2)
        yield cluster
        assert process.poll() is None, log.read_text()[-2000:]


def test_a_job_waits_for_nodes_and_they_leave_after_it(
    autoscaled: Autoscaled, collection: Path, tmp_path: Path
) -> None:
    job, log = tmp_path / "job.yaml", tmp_path / "job.log"
    job.write_text(
        json.dumps(
            {
                "manifest": str(collection),
                "tasks": ["ocr"],
                "output": str(tmp_path / "o"),
                "shard_rows": 8,
                "pool": {"resources": {"gpu_stand_in": 1}, "threads": 1},
                "fetch": {"workers": 1, "cpus_per_worker": 1},  # more than the replica leaves over of its node
            }
        )
    )
    assert autoscaled.nodes() == 0
    with log.open("w") as out:
        driver = subprocess.Popen(
            [sys.executable, "-m", "paliscribe", "annotate", str(job)],
            env=os.environ | TOKEN | {"RAY_ADDRESS": autoscaled.address},
            stdout=out,
            stderr=out,
        )
    most, until = 0, time.monotonic() + LIMIT
    try:
        while driver.poll() is None:
            most = max(most, autoscaled.nodes())
            assert time.monotonic() < until, log.read_text()[-2000:]
            time.sleep(0.2)
    finally:
        driver.kill()
        driver.wait(30)
    said = log.read_text()
    assert driver.returncode == 0, said
    assert "waiting for resources: a node with 0.5 CPU, 1 gpu_stand_in" in said, "nobody knew what it waited for"
    assert ds.dataset(tmp_path / "o", format="parquet").count_rows() == 24
    assert most == 2, "a node for the replica and one for the stage process"
    until = time.monotonic() + LIMIT
    while autoscaled.nodes():
        assert time.monotonic() < until, "idle nodes stay"
        time.sleep(0.5)
