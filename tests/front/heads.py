"""Ray heads in processes of their own, as a cluster has them: with a dashboard and token authentication."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from ports import free_ports

PROGRAMS = Path(sys.executable).parent
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"}
PLAIN = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
PLAIN["PATH"] = f"{PROGRAMS}{os.pathsep}{PLAIN['PATH']}"  # a job's `python` is the one that Ray runs with

STOP_WAIT = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}  # as in cluster.yaml; Ray kills a stopped job after 3 s otherwise


@dataclass(frozen=True, slots=True)
class Head:
    """A Ray head. `dashboard` and `gcs`: addresses; `process`: the pid that its other processes descend from."""

    dashboard: str
    gcs: str
    process: int

    @property
    def environment(self) -> dict[str, str]:
        """What a client of it has, the token included."""
        return PLAIN | TOKEN | {"RAY_API_SERVER_ADDRESS": self.dashboard}


def wait_for(address: str) -> None:
    """Wait until something answers there."""
    until = time.monotonic() + 120
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(address, timeout=5).status_code in (200, 401):  # 401: up, and it wants the token
                return
        assert time.monotonic() < until, f"no answer from {address}"
        time.sleep(0.5)


def deploy(dashboard: str, config: Path) -> subprocess.CompletedProcess[str]:
    """`serve deploy`."""
    command = [str(PROGRAMS / "serve"), "deploy", "-a", dashboard, str(config)]
    return subprocess.run(command, env=PLAIN | TOKEN, capture_output=True, text=True, timeout=120, check=False)


@contextlib.contextmanager
def ray_head(
    environment: Mapping[str, str] | None = None, cpus: int = 2, token: Mapping[str, str] = TOKEN
) -> Iterator[Head]:
    """A head with a dashboard; `token` and `environment` are laid over this process's. It ends with the block."""
    gcs, web, agent = free_ports(3)
    command = [str(PROGRAMS / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
    command += [
        f"--num-cpus={cpus}",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={web}",
    ]
    command += [f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats"]
    with running(command, PLAIN | STOP_WAIT | dict(token) | dict(environment or {})) as process:
        wait_for(f"http://127.0.0.1:{web}/api/version")
        yield Head(f"http://127.0.0.1:{web}", f"127.0.0.1:{gcs}", process.pid)


@contextlib.contextmanager
def ray_node(
    head: Head, cpus: int = 2, words: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Another node of a head's cluster, as far as Ray can tell; the pid that its other processes descend from.

    `words`: further options of `ray start`.
    """
    [agent] = free_ports(1)
    command = [str(PROGRAMS / "ray"), "start", "--block", "--node-ip-address=127.0.0.1", f"--address={head.gcs}"]
    command += [f"--num-cpus={cpus}", f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats", *words]
    with running(command, PLAIN | TOKEN | dict(environment or {})) as process:
        wait_for(f"http://127.0.0.1:{agent}/api/healthz")
        yield process.pid


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], log: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block, with all that descend from it. `log`: where its output goes."""
    with (log or Path(os.devnull)).open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        yield process
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait(30)
        psutil.wait_procs(children, timeout=30)
