"""The front door: the command line in this process, on one Ray, with the demo model served once for all tests."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ports import free_ports
from ray import serve

from paliscribe.cli import main as cli
from paliscribe.config import ModelSpec, PoolConfig
from paliscribe.demo.collection import write_collection
from paliscribe.model.weights import locate
from paliscribe.pool.deploy import start_pool
from paliscribe.pool.ray_cluster import cluster

TASKS = ("caption en", "answer en {question}", "ocr", "detect {objects}")


@dataclass(frozen=True, slots=True)
class Said:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The JSON on stdout."""
        return json.loads(self.out)


Paliscribe = Callable[..., Said]


@pytest.fixture(scope="session")
def served(s3_server: Any) -> Iterator[str]:
    """Ray with two CPUs, and a served pool of the demo model that every batch of the session attaches to.

    The address of Serve's HTTP proxy, for endpoints that a test adds.
    """
    before = dict(os.environ)
    os.environ.update(s3_server.environment())
    [port] = free_ports(1)
    with cluster(num_cpus=2):
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        spec = ModelSpec().resolved(gpu=False)
        start_pool(locate(spec).pin(spec), PoolConfig(threads=1), "served-demo")
        yield f"http://127.0.0.1:{port}"
    os.environ.clear()
    os.environ.update(before)
    assert not ray.is_initialized()


@pytest.fixture
def paliscribe() -> Paliscribe:
    """Run a command in this process."""

    def run(*arguments: str | Path) -> Said:
        out, err = io.StringIO(), io.StringIO()
        code = 0
        given, sys.argv = sys.argv, ["paliscribe", *map(str, arguments)]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                cli.main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        finally:
            sys.argv = given
        return Said(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of 24 held-out scenes."""
    return write_collection(tmp_path_factory.mktemp("collection"), 24, seed=7)


HOSTILE = ("pipeline.py", "jobs/__init__.py", "config.py", "results.py", "utils.py", "cli.py", "model/__init__.py")


def hostile(folder: Path) -> Path:
    """A folder of a user whose own modules have names that must not get in the way: importing one of them raises."""
    for name in HOSTILE:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"raise RuntimeError('the user's {name} was imported')\n")
    return folder


def workers(title: str, parent: psutil.Process | None = None) -> list[psutil.Process]:
    """Ray's worker processes whose actors have this prefix, below this process (or `parent`)."""
    found = []
    for process in (parent or psutil.Process()).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if " ".join(process.cmdline()).startswith(f"ray::{title}"):
                found.append(process)
    return found


def replicas(application: str, parent: psutil.Process | None = None) -> list[psutil.Process]:
    """The replica processes of applications with this prefix."""
    return workers(f"ServeReplica:{application}", parent)


def task_flags(*tasks: str) -> list[str]:
    """--task for each."""
    return [word for task in tasks for word in ("--task", task)]


def read_rows(manifest: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines manifest."""
    return [json.loads(line) for line in manifest.read_text().splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write a JSON Lines manifest."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def published(output: Path) -> dict[str, bytes]:
    """Every file that readers see, with its bytes."""
    found = {}
    for path in sorted(output.rglob("*.parquet")):
        found[path.relative_to(output).as_posix()] = path.read_bytes()
    return found
