"""`paliscribe annotate`, `serve`, `submit`, `serve deploy` and stops on one cluster, in any order."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from front.heads import PROGRAMS, TOKEN, Head, deploy, ray_head
from ports import free_ports

from paliscribe.demo.collection import write_collection

pytestmark = [pytest.mark.cluster, pytest.mark.long]
ROOT = Path(__file__).parents[2]
KEY = "a-key-for-the-orders"
BEARER = {"Authorization": f"Bearer {TOKEN['RAY_AUTH_TOKEN']}"}


@dataclass(frozen=True, slots=True)
class Cluster:
    """A head, a folder, and a manifest of four images in it."""

    head: Head
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return self.head.environment | {"RAY_ADDRESS": self.head.gcs, "PALISCRIBE_API_KEYS": KEY}

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "paliscribe", *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )

    def shut_down(self) -> None:
        command = [str(PROGRAMS / "serve"), "shutdown", "-y", "-a", self.head.dashboard]
        subprocess.run(command, env=self.environment, capture_output=True, timeout=120, check=True)

    def annotated(self, name: str) -> None:
        words = ["--manifest", str(self.folder / "collection"), "--output", str(self.folder / name), "--task", "ocr"]
        done = self.run("annotate", *words, "--replicas", "1", "--json", "--quiet")
        assert done.returncode == 0 and json.loads(done.stdout)["rows"] == 4, done.stderr

    @contextlib.contextmanager
    def serving(self, port: int) -> Iterator[subprocess.Popen[str]]:
        """`paliscribe serve`, once it has said its address, where it must answer."""
        process = subprocess.Popen(
            self.command("serve", "demo", "--port", str(port)),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stderr is not None
        try:
            line = process.stdout.readline()
            assert line == f"serving demo at http://127.0.0.1:{port} (Ctrl-C stops)\n", process.stderr.read()
            answers(port)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(90) in (0, -signal.SIGKILL)

    def refused(self, port: int) -> str:
        """What `paliscribe serve` says when it cannot."""
        done = self.run("serve", "demo", "--port", str(port))
        [_, said] = done.stderr.splitlines()  # the first says what is starting
        assert done.returncode == 2 and not done.stdout and len(said) < 400
        return said

    def deployed(self, port: int) -> dict[str, Any]:
        """`serve deploy infra/serve.yaml` on a port; the application once it runs or has failed."""
        settings = yaml.safe_load((ROOT / "infra/serve.yaml").read_text())
        settings["http_options"]["port"] = settings["applications"][0]["args"]["port"] = port
        settings["applications"][0]["args"] |= {"models": [{"model": "demo"}], "keys": str(self.folder / "keys")}
        (self.folder / "serve.yaml").write_text(yaml.safe_dump(settings))
        assert deploy(self.head.dashboard, self.folder / "serve.yaml").returncode == 0
        until = time.monotonic() + 180
        while True:
            application: dict[str, Any] = self.served()["paliscribe"]
            if application["status"] in ("RUNNING", "DEPLOY_FAILED"):
                return application
            assert time.monotonic() < until, application
            time.sleep(0.5)

    def served(self) -> dict[str, Any]:
        """Serve's applications."""
        found = httpx.get(f"{self.head.dashboard}/api/serve/applications/", headers=BEARER, timeout=10).json()
        return dict(found["applications"])


def answers(port: int) -> None:
    """The endpoint answers at once, through a proxy that has our middleware."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/v1/models").status_code == 401
        assert client.get("/-/routes").status_code == 401


def eventually(reached: Callable[[], Any], what: str) -> None:
    until = time.monotonic() + 120
    while True:
        with contextlib.suppress(httpx.TransportError, AssertionError):
            if reached() in (None, True):
                return
        assert time.monotonic() < until, what
        time.sleep(0.5)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("orders")
    write_collection(folder / "collection", 4, seed=0)
    (folder / "keys").write_text(KEY)
    with ray_head(cpus=4) as head:
        yield Cluster(head, folder)


@pytest.mark.full
def test_annotate_then_serve(cluster: Cluster) -> None:
    cluster.annotated("first")
    [port] = free_ports(1)
    with cluster.serving(port):
        answers(port)


def test_serve_beside_serve_annotate_and_a_kill(cluster: Cluster) -> None:
    first, second = free_ports(2)
    with cluster.serving(first) as process:
        assert "serves an endpoint already" in cluster.refused(second)
        assert "`paliscribe serve` runs on this cluster" in cluster.deployed(second)["message"]
        cluster.annotated("attached")  # to the served pool
        answers(first)
        process.kill()
    eventually(lambda: not cluster.served(), "the endpoint ends with its process")
    time.sleep(15)  # the reaper ends
    with cluster.serving(second):  # Serve took HTTP at the first address
        answers(second)


def test_submit_then_deploy_then_annotate_then_serve(cluster: Cluster) -> None:
    first, second = free_ports(2)
    job = cluster.folder / "job.yaml"
    settings = {"manifest": str(cluster.folder / "collection"), "output": str(cluster.folder / "submitted")}
    job.write_text(yaml.safe_dump(settings | {"tasks": ["ocr"], "pool": {"replicas": 1}}))
    done = cluster.run("submit", str(job), "--shared-paths", "--follow")
    assert done.returncode == 0, done.stderr
    assert cluster.deployed(first)["status"] == "RUNNING"  # Serve was started by the run
    eventually(lambda: answers(first), "a deployed endpoint answers")
    cluster.annotated("beside")
    assert "serves an endpoint already" in cluster.refused(second)
    cluster.shut_down()
    with cluster.serving(second):
        answers(second)


@pytest.mark.full
def test_serve_while_a_run_goes_on(cluster: Cluster) -> None:
    [port] = free_ports(1)
    write_collection(cluster.folder / "many", 600, seed=1)
    words = ["--manifest", str(cluster.folder / "many"), "--output", str(cluster.folder / "o"), "--task", "caption en"]
    run = subprocess.Popen(cluster.command("annotate", *words, "--replicas", "1", "-q"), env=cluster.environment)
    try:
        eventually(lambda: bool(cluster.served()), "the run has a pool")
        with cluster.serving(port):
            assert run.wait(600) == 0
            answers(port)
    finally:
        run.kill()


@pytest.mark.full
def test_a_serve_of_another_program(cluster: Cluster) -> None:
    first, second = free_ports(2)
    start = [str(PROGRAMS / "serve"), "start", "-a", cluster.head.gcs, "--http-port", str(first)]
    subprocess.run(start, env=cluster.environment, capture_output=True, timeout=120, check=True)
    with cluster.serving(second):  # it had nothing to serve
        answers(second)
    subprocess.run(start, env=cluster.environment, capture_output=True, timeout=120, check=True)
    code = "import ray; from ray import serve; ray.init(); serve.run(serve.deployment(lambda: 1).bind(), name='theirs')"
    subprocess.run([sys.executable, "-c", code], env=cluster.environment, capture_output=True, timeout=120, check=True)
    said = cluster.refused(second)
    assert f"takes HTTP at 127.0.0.1:{first} and serves theirs" in said and "serve shutdown" in said
    cluster.shut_down()
