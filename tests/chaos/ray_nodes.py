"""A Ray cluster of several raylets on loopback, with a scripted pool; in a process of its own, as it may take it along.

`python -m chaos.ray_nodes LOG PAUSE` starts a head and two nodes, deploys the pool, and takes commands, a line each:
`node` starts one more, `ready` waits until all replicas run. It answers a line of JSON each, and ends all with stdin.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import IO, Any, Final

import psutil

NODES: Final = 2  # beside the head, which has no CPU for a stage or a replica
READY: Final = 240.0  # seconds for a cluster to be whole again
SETTINGS: Final = {  # of the cluster; a node that is silent for some 6 s is lost. Ray's own: 60 s without its GCS
    "gcs_rpc_server_reconnect_timeout_s": 16,
    "health_check_initial_delay_ms": 2000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 6,
}


class Nodes:
    """A cluster. `gcs`, `head`, `raylets`: the processes of its control plane, its head's raylet and its nodes."""

    def __init__(self, log: str, pause: float, environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "chaos.ray_nodes", log, str(pause)]
        quiet = {"RAY_AUTH_MODE": "disabled", "RAY_BACKEND_LOG_LEVEL": "fatal", "OMP_NUM_THREADS": "1"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self._process = subprocess.Popen(
            command,
            env=kept | quiet | dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._seen: set[psutil.Process] = set()
        try:
            facts = self._answer()
        except BaseException:
            self.end()
            raise
        self.address: str = facts["address"]
        self.gcs, self.head = psutil.Process(facts["gcs"]), psutil.Process(facts["head"])
        self.raylets = [psutil.Process(pid) for pid in facts["nodes"]]

    def whole(self) -> bool:
        """Start nodes in the place of lost ones, and wait until all replicas run; False if that fails."""
        if not (is_alive(self.gcs) and is_alive(self.head)):
            return False
        try:
            self.raylets = [each for each in self.raylets if is_alive(each)]
            while len(self.raylets) < NODES:
                self.raylets.append(psutil.Process(self._ask("node")["node"]))
            return bool(self._ask("ready")["ready"])
        except (OSError, ValueError, psutil.Error):
            return False

    def workers(self, title: str) -> list[psutil.Process]:
        """The cluster's worker processes that have this title, in the order of their start."""
        found = []
        for raylet in (self.head, *self.raylets):
            with contextlib.suppress(psutil.Error):
                for process in raylet.children():
                    with contextlib.suppress(psutil.Error):
                        if " ".join(process.cmdline()).startswith(f"ray::{title}"):
                            found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def end(self) -> None:
        """End all processes that descend from this cluster, also where its own process has ended."""
        self._note_processes()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self._process.kill()
        self._process.wait(10)
        for process in self._seen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(list(self._seen), timeout=20)

    def _note_processes(self) -> None:
        for parent in (self._process.pid, *(process.pid for process in self._seen)):
            with contextlib.suppress(psutil.Error):
                self._seen.update(psutil.Process(parent).children(recursive=True))

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        """The next answer. Raises ValueError if the process has ended, OSError if it says nothing."""
        out = self._process.stdout
        assert out is not None
        ready, _, _ = select.select([out], [], [], READY + 30)
        if not ready:
            raise TimeoutError("the cluster does not answer")
        answer: dict[str, Any] = json.loads(out.readline())
        self._note_processes()
        return answer


def is_alive(process: psutil.Process) -> bool:
    """Whether a process exists and is no zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _pid(node: Any, name: str) -> int:
    """The pid of a service of one of Ray's nodes."""
    return int(node.all_processes[name][0].process.pid)


def _deploy(log: str, pause: float) -> None:
    from chaos.ray_pool import Scripted
    from ray import serve

    from paliscribe.config import ModelSpec
    from paliscribe.model.weights import locate
    from paliscribe.pool.deploy import deployment_name, run_application
    from paliscribe.pool.serving import start_serve

    spec = ModelSpec().resolved(gpu=False)
    deployment = serve.deployment(
        name=deployment_name(locate(spec).pin(spec)),
        num_replicas=NODES,
        max_replicas_per_node=1,
        max_ongoing_requests=1024,
        ray_actor_options={"num_cpus": 0.3},
        health_check_period_s=1,
        health_check_timeout_s=3,
        graceful_shutdown_timeout_s=2,
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )(Scripted)
    start_serve()
    run_application(deployment.bind(log, pause), "chaos")


def _are_ready() -> bool:
    """Wait until all replicas run."""
    from ray import serve

    until = time.monotonic() + READY
    while time.monotonic() < until:
        with contextlib.suppress(Exception):  # the controller is being restarted; the exception types are private
            states = [found.replica_states for found in serve.status().applications["chaos"].deployments.values()]
            if states and all(dict(state) == {"RUNNING": NODES} for state in states):
                return True
        time.sleep(0.3)
    return False


def main(log: str, pause: float, commands: IO[str], answers: IO[str]) -> None:
    """Start a cluster, and do what is asked until the end of the commands."""
    import ray
    from ray.cluster_utils import Cluster

    from paliscribe.pool.ray_cluster import _on_loopback

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    here = {"node_ip_address": "127.0.0.1", "include_log_monitor": False}
    with _on_loopback(True):
        head = here | {"num_cpus": 0, "include_dashboard": False, "_system_config": SETTINGS}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        nodes = [cluster.add_node(num_cpus=1, **here) for _ in range(NODES)]
        ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
        _deploy(log, pause)
        control = {"gcs": _pid(cluster.head_node, "gcs_server"), "head": _pid(cluster.head_node, "raylet")}
        answer(address=cluster.address, nodes=[_pid(node, "raylet") for node in nodes], **control)
        for command in map(str.strip, commands):
            if command == "node":
                answer(node=_pid(cluster.add_node(num_cpus=1, **here), "raylet"))
            else:
                answer(ready=_are_ready())
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    said, sys.stdout = sys.stdout, sys.stderr  # Ray prints too
    main(sys.argv[1], float(sys.argv[2]), sys.stdin, said)
