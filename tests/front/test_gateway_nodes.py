"""Gateways are on different nodes without GPUs, and the endpoint outlives one of these nodes."""

import contextlib
import json
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from front.heads import Head, deploy, ray_head, ray_node, wait_for
from front.test_drain import BEARER, ROOT, until
from front.test_operations import Callers
from ports import free_ports

from paliscribe.demo.collection import write_collection

pytestmark = [pytest.mark.cluster, pytest.mark.long]
GPU = ["--num-gpus=1", f"--resources={json.dumps({'model': 1})}"]
LABELS = {"RAY_OVERRIDE_LABELS": json.dumps({"ray.io/accelerator-type": "L4"})}


def nodes(head: Head, deployment: str, among: list[int]) -> list[int]:
    """The nodes of a deployment's running replicas, as pids of `among`."""
    reply = httpx.get(f"{head.dashboard}/api/serve/applications/", headers=BEARER, timeout=10).json()
    found = []
    for name, each in reply["applications"]["paliscribe"]["deployments"].items():
        for replica in each["replicas"]:
            if name.startswith(deployment) and replica["state"] == "RUNNING":
                with contextlib.suppress(psutil.NoSuchProcess):
                    parents = {parent.pid for parent in psutil.Process(replica["pid"]).parents()}
                    found += [pid for pid in among if pid in parents]
    return found


def test_a_lost_node_loses_no_endpoint(tmp_path: Path) -> None:
    settings, [port] = yaml.safe_load((ROOT / "infra/serve.yaml").read_text()), free_ports(1)
    settings["http_options"]["port"] = port
    pool = {"threads": 1, "replicas": 1, "gpus_per_replica": 0, "resources": {"model": 1}}
    settings["applications"][0]["args"] |= {"rate": 1000, "models": [{"pool": pool}]}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(settings))
    write_collection(tmp_path / "collection", 1, seed=0)
    picture = (tmp_path / "collection/images/scene-00000.jpg").read_bytes()
    callers = Callers(f"http://127.0.0.1:{port}", picture)
    with (
        ray_head(cpus=0) as head,
        ray_node(head, words=GPU, environment=LABELS) as gpu,
        ray_node(head) as first,
        ray_node(head) as second,
    ):
        assert deploy(head.dashboard, tmp_path / "serve.yaml").returncode == 0
        wait_for(f"http://127.0.0.1:{port}/health")
        until(lambda: nodes(head, "replica-", [gpu, first, second]) == [gpu], "a replica")
        until(lambda: sorted(nodes(head, "gateway", [gpu, first, second])) == sorted([first, second]), "two gateways")
        callers.start()
        try:
            until(lambda: callers.outcomes["200"] > 20, "calls are answered")
            lost = psutil.Process(second)
            for process in [lost, *lost.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            answered = callers.outcomes["200"]
            until(lambda: callers.outcomes["200"] > answered + 50, "calls go on")
        finally:
            callers.stop()
    failed = sum(count for outcome, count in callers.outcomes.items() if outcome != "200")
    assert failed <= 20, callers.outcomes
