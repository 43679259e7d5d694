"""Commands on a cluster of `ray start --head` that has made a token of its own, as Ray does for each user."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
import yaml
from front.heads import PLAIN, PROGRAMS, Head, ray_head

from paliscribe.demo.collection import write_collection

pytestmark = [pytest.mark.cluster, pytest.mark.long]
SERVE_CALL = "/ray.serve.ASGIService/HandleRequestWithRejection"  # unpickles what it is sent
WORKER_CALL = "/ray.rpc.CoreWorkerService/GetCoreWorkerStats"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with Ray's token, as `ray get-auth-token --generate` makes it, and a collection beside it."""
    folder = tmp_path_factory.mktemp("home")
    command = [str(PROGRAMS / "ray"), "get-auth-token", "--generate"]
    subprocess.run(command, env=PLAIN | {"HOME": str(folder)}, capture_output=True, timeout=60, check=True)
    write_collection(folder / "collection", 4, seed=0)
    return folder


@pytest.fixture(scope="module")
def head(home: Path) -> Iterator[Head]:
    with ray_head({"HOME": str(home)}, token={}) as found:
        yield found


def begin(head: Head, home: Path, *words: str) -> subprocess.Popen[str]:
    """A command of a user whose home this is, with the cluster's addresses and no other setting of Ray."""
    addresses = {"RAY_ADDRESS": head.gcs, "RAY_API_SERVER_ADDRESS": head.dashboard}
    return subprocess.Popen(
        [sys.executable, "-m", "paliscribe", *words],
        env=PLAIN | {"HOME": str(home)} | addresses,
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def commands(home: Path, collection: Path) -> dict[str, list[str]]:
    """Commands that need the cluster, by name."""
    job = {"manifest": str(collection), "tasks": ["ocr"], "output": str(collection.parent / "submitted")}
    (home / "job.yaml").write_text(yaml.safe_dump(job | {"pool": {"replicas": 1}}))
    flags = ["--manifest", str(collection), "--task", "ocr", "--replicas", "1", "--json", "--quiet"]
    return {
        "annotate": ["annotate", *flags, "--output", str(collection.parent / "annotated")],
        "preview": ["preview", *flags, "-n", "2"],
        "serve": ["serve", "demo", "--port", "0"],
        "submit": ["submit", "job.yaml", "--shared-paths", "--follow"],
        "jobs": ["jobs", "list"],
    }


@pytest.mark.parametrize(("token", "said"), [("", "it requires a token; copy its ~/.ray/auth_token here"),
                                             ("f" * 64, "it rejects the token of ~/.ray/auth_token")])  # fmt: skip
def test_without_the_token(head: Head, home: Path, tmp_path: Path, token: str, said: str) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(token)
    for name, words in commands(tmp_path, home / "collection").items():
        begun = time.monotonic()
        process = begin(head, tmp_path, *words)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        print(f"{time.monotonic() - begun:5.2f} s by the clock  {err.strip()}")
        assert process.returncode == 1 and not out, name
        [line] = err.splitlines()
        assert line.startswith("paliscribe: ") and said in line and "RAY_AUTH_TOKEN_PATH to a file" in line


def test_every_process_ends_after_its_refusal(head: Head, tmp_path: Path) -> None:
    """One in a hundred hung as it ended, with a thread of grpc."""
    code = "from paliscribe.pool.joining import check_cluster; check_cluster()"
    environment = PLAIN | {"HOME": str(tmp_path), "RAY_ADDRESS": head.gcs}

    def refused(_: int) -> str:
        command = [sys.executable, "-c", code]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        return process.stderr.splitlines()[-1]

    with ThreadPoolExecutor(6) as threads:
        assert all("it requires a token" in line for line in threads.map(refused, range(300)))


def test_with_the_token(head: Head, home: Path) -> None:
    words = commands(home, home / "collection")
    for name in ("annotate", "submit"):
        process = begin(head, home, *words[name])
        try:
            out, err = process.communicate(timeout=200)
        finally:
            process.kill()
        assert process.returncode == 0, err
        if name == "annotate":
            assert json.loads(out)["rows"] == 4
    assert (home / "submitted" / "_SUCCESS").exists()
    serving = begin(head, home, *words["serve"])
    try:
        assert serving.stdout is not None and serving.stderr is not None
        line = serving.stdout.readline()
        assert line.startswith("serving demo at http://127.0.0.1:"), serving.stderr.read()
        assert httpx.get(line.split()[3] + "/health", timeout=10).json() == {"status": "ok"}
        check_sockets(head, (home / ".ray" / "auth_token").read_text().strip())
    finally:
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(90) in (0, -signal.SIGKILL)


def check_sockets(head: Head, token: str) -> None:
    """Serve's sockets of gateway and replica, and Ray's of their processes, admit nobody without the token."""
    guarded = []
    for process in psutil.Process(head.process).children(recursive=True):
        if not " ".join(process.cmdline()).startswith("ray::ServeReplica:paliscribe:"):
            continue
        for socket in process.net_connections("tcp"):
            if socket.status != psutil.CONN_LISTEN:
                continue
            port = socket.laddr.port
            [call] = [each for each in (SERVE_CALL, WORKER_CALL) if said(port, each, token) != "UNIMPLEMENTED"]
            assert said(port, call, token) != "UNAUTHENTICATED"
            assert {said(port, call, wrong) for wrong in ("", "f" * 64)} == {"UNAUTHENTICATED"}
            guarded.append(call)
    assert sorted(guarded) == [WORKER_CALL] * 2 + [SERVE_CALL] * 2


def said(port: int, call: str, token: str) -> str:
    """Status of a raw gRPC call with an empty message."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(call)(b"", timeout=10, metadata=metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"
