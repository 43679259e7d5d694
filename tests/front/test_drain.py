"""A node that will be taken away, as a spot node is, is drained: who works there moves, and no call is lost."""

import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from front.heads import PLAIN, PROGRAMS, TOKEN, Head, deploy, ray_head, ray_node, wait_for
from front.test_operations import Callers
from ports import free_ports

from paliscribe.demo.collection import write_collection

pytestmark = [pytest.mark.cluster, pytest.mark.long]
ROOT = Path(__file__).parents[2]
BEARER = {"Authorization": f"Bearer {TOKEN['RAY_AUTH_TOKEN']}"}
DRAIN = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", "100"]


def running(head: Head) -> dict[str, str]:
    """Replica -> node, of every replica that runs."""
    reply = httpx.get(f"{head.dashboard}/api/serve/applications/", headers=BEARER, timeout=10).json()
    deployments = reply["applications"]["paliscribe"]["deployments"].values()
    found: list[Any] = [replica for deployment in deployments for replica in deployment["replicas"]]
    return {replica["replica_id"]: replica["node_id"] for replica in found if replica["state"] == "RUNNING"}


def until(reached: Any, what: str) -> None:
    end = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < end, what
        time.sleep(0.5)


def test_a_drained_node_loses_no_call(tmp_path: Path) -> None:
    settings, [port] = yaml.safe_load((ROOT / "infra/serve.yaml").read_text()), free_ports(1)
    settings["http_options"]["port"] = port
    settings["applications"][0]["args"]["models"] = [{"pool": {"threads": 1, "min_replicas": 1, "max_replicas": 2}}]
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(settings))
    write_collection(tmp_path / "collection", 1, seed=0)
    picture = (tmp_path / "collection/images/scene-00000.jpg").read_bytes()
    callers = Callers(f"http://127.0.0.1:{port}", picture)
    with ray_head(cpus=0) as head, ray_node(head):
        assert deploy(head.dashboard, tmp_path / "serve.yaml").returncode == 0
        wait_for(f"http://127.0.0.1:{port}/health")
        until(lambda: len(running(head)) == 3, "two gateways and a replica")
        before = running(head)
        [doomed] = set(before.values())
        with ray_node(head):
            callers.start()
            try:
                until(lambda: callers.outcomes["200"] > 10, "calls are answered")
                command = [str(PROGRAMS / "ray"), "drain-node", "--address", head.gcs, "--node-id", doomed, *DRAIN]
                done = subprocess.run(command, env=PLAIN | TOKEN, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr
                until(lambda: len(now := running(head)) == 3 and doomed not in now.values(), "all have moved")
                answered = callers.outcomes["200"]
                until(lambda: callers.outcomes["200"] > answered + 10, "calls go on")
            finally:
                callers.stop()
            assert not set(running(head)) & set(before)
    assert set(callers.outcomes) == {"200"}, callers.outcomes
