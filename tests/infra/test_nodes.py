"""A head and a worker, started like the RayService's pods, with its endpoint."""

import contextlib
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray.util
import yaml
from front.heads import PROGRAMS, TOKEN, deploy, wait_for
from infra.test_kuberay import environment, groups_of, of_the_service, rays
from online.conftest import data_url, encoded
from ports import free_ports

from paliscribe.demo.answers import scene_items
from paliscribe.demo.drawing import draw
from paliscribe.demo.sampling import sample_scene
from paliscribe.demo.scenes import TEST_SEEDS

pytestmark = [pytest.mark.cluster, pytest.mark.long]
KEY = "a-key-of-a-caller"


class Nodes:
    """Ray nodes on one machine, with separate ports."""

    def __init__(self) -> None:
        self.gcs, self.dashboard = free_ports(2)
        self.address = f"{ray.util.get_node_ip_address()}:{self.gcs}"
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, group: dict[str, Any], *more: str) -> tuple[int, int]:
        """Run `ray start` with a group's parameters and variables; returns the ports of agent and metrics exporter."""
        agent, metrics = free_ports(2)
        params = {"dashboard-agent-listen-port": agent, "metrics-export-port": metrics} | group["rayStartParams"]
        params["dashboard-host"] = "127.0.0.1"
        given = shlex.split(" ".join(f"--{name}={value}" for name, value in params.items()))  # a shell reads them
        words = ["--block", "--disable-usage-stats", *given, *more]
        variables = {v["name"]: v["value"] for v in environment(group["template"]["spec"]).values() if "value" in v}
        kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        command = [PROGRAMS / "ray", "start", *words]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._processes.append(subprocess.Popen(command, env=kept | variables | TOKEN, **silent))  # type: ignore[call-overload]
        wait_for(f"http://127.0.0.1:{agent}/api/healthz")
        return agent, metrics

    def stop(self) -> None:
        everyone = [child for p in self._processes for child in psutil.Process(p.pid).children(recursive=True)]
        running: list[subprocess.Popen[bytes] | psutil.Process] = [*self._processes, *everyone]
        for process in running:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for started in self._processes:
            started.wait(30)
        psutil.wait_procs(everyone, timeout=30)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    try:
        yield made
    finally:
        made.stop()


def status(address: str, **headers: str) -> int:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(address, timeout=5, headers=headers).status_code
    return 0


def test_probes_token_and_endpoint(nodes: Nodes, tmp_path: Path) -> None:
    """Probe paths work without the token, others do not, and no replica runs on the head."""
    groups = groups_of(rays("RayService"))
    agent, metrics = nodes.start(groups["head"], "--head", f"--port={nodes.gcs}", f"--dashboard-port={nodes.dashboard}")
    dashboard = f"http://127.0.0.1:{nodes.dashboard}"
    wait_for(f"{dashboard}/api/version")
    assert status(f"http://127.0.0.1:{agent}/api/healthz") == 200, "the probe of all pods that do not serve"
    bearer = {"Authorization": f"Bearer {TOKEN['RAY_AUTH_TOKEN']}"}
    assert status(f"{dashboard}/api/jobs/") == 401 and status(f"{dashboard}/api/jobs/", **bearer) == 200
    until = time.monotonic() + 60
    while status(f"http://127.0.0.1:{metrics}/metrics") != 200:  # scraped by Prometheus without a token
        assert time.monotonic() < until
        time.sleep(0.5)

    config, [port] = of_the_service(), free_ports(1)
    (tmp_path / "keys").write_text(f"{KEY}\n")
    config |= {"proxy_location": "HeadOnly"}  # two proxies on one machine would conflict
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    models = [{"name": "demo", "pool": {"gpus_per_replica": 0, "min_replicas": 1, "max_replicas": 1, "threads": 1}}]
    config["applications"][0]["args"] |= {"keys": str(tmp_path / "keys"), "models": models}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    assert deploy(dashboard, tmp_path / "serve.yaml").returncode == 0
    endpoint = f"http://127.0.0.1:{port}"

    nodes.start(groups["gpu"], f"--address={nodes.address}", "--num-cpus=2")
    until = time.monotonic() + 120
    while status(f"{endpoint}/-/healthz") != 200 or status(f"{endpoint}/health") != 200:
        assert time.monotonic() < until, "no endpoint"
        time.sleep(0.5)
    scene = sample_scene(TEST_SEEDS + 12)
    call = {"images": [data_url(encoded(draw(scene)))], "tasks": ["caption en"]}
    address = f"{endpoint}/v1/annotate"
    assert httpx.post(address, json=call, timeout=60).status_code == 401
    found = httpx.post(address, json=call, timeout=60, headers={"Authorization": f"Bearer {KEY}"})
    assert found.status_code == 200, found.text
    [record] = found.json()["annotations"]
    assert record["text"] == next(item.answer for item in scene_items(scene) if item.task == "caption")
    served = httpx.get(f"{dashboard}/api/serve/applications/", headers=bearer, timeout=10).json()["applications"]
    hosts = {r["node_id"] for d in served["paliscribe"]["deployments"].values() for r in d["replicas"]}
    known = httpx.get(f"{dashboard}/api/v0/nodes", headers=bearer, timeout=10).json()["data"]["result"]["result"]
    assert hosts == {node["node_id"] for node in known if not node["is_head_node"]}, "no replica on the head"
