"""`serve deploy infra/serve.yaml`, as an operator would on a running cluster."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from gateway.conftest import data_url, encoded

from pipeline.demo.scenes import TEST_SEEDS, sample_scene

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"}
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | TOKEN


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture
def dashboard() -> Iterator[str]:
    """The address of the dashboard of a Ray head in processes of its own."""
    gcs, web, agent = free_ports(3)
    command = [str(PROGRAMS / "ray"), "start", "--head", "--block", f"--port={gcs}", "--num-cpus=2"]
    command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={web}"]
    command += [f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{web}/api/version")
        yield f"http://127.0.0.1:{web}"
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait(30)
        psutil.wait_procs(children, timeout=30)


def wait_for(address: str) -> None:
    until = time.monotonic() + 120
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(address, timeout=5).status_code in (200, 401):  # the dashboard is up: it wants the token
                return
        assert time.monotonic() < until, f"no answer from {address}"
        time.sleep(0.5)


def deploy(dashboard: str, config: Path) -> subprocess.CompletedProcess[str]:
    command = [str(PROGRAMS / "serve"), "deploy", "-a", dashboard, str(config)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)


def test_the_endpoint_from_a_config_file(dashboard: str, tmp_path: Path) -> None:
    settings = yaml.safe_load((ROOT / "infra/serve.yaml").read_text())
    [port] = free_ports(1)
    settings["http_options"]["port"] = port
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump(settings))
    done = deploy(dashboard, config)
    assert done.returncode == 0, done.stderr
    address = f"http://127.0.0.1:{port}"
    wait_for(f"{address}/health")
    scene = sample_scene(TEST_SEEDS + 12)
    call = {"images": [data_url(encoded(scene.render()))], "tasks": ["caption en"]}
    found = httpx.post(f"{address}/v1/annotate", json=call, timeout=60)
    assert found.status_code == 200, found.text
    [record] = found.json()["annotations"]
    assert record["text"] == next(item.answer for item in scene.items() if item.task == "caption")
