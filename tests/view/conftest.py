"""Fixtures: the page over a run, behind a real HTTP server on loopback."""

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn
from demo_run import DemoRun
from online.browser import Page, chromium

from paliscribe.view.server import create_app, open_view

TOKEN = "a-token-for-the-tests"


@dataclass(frozen=True)
class Viewed:
    """A page that is served. `client`: has the token."""

    address: str
    output: Path
    client: httpx.Client


@contextlib.contextmanager
def viewed(output: str, other: str | None = None) -> Iterator[Viewed]:
    view = open_view(output, other)
    view.items.keep()
    server = uvicorn.Server(uvicorn.Config(create_app(view, TOKEN), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < until
        time.sleep(0.01)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        client.get(f"/?token={TOKEN}")
        yield Viewed(address, Path(output), client)
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="session")
def demo_view(demo_run: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewed]:
    """The page over a copy of the demo's run, compared with the run itself."""
    output = tmp_path_factory.mktemp("viewed") / "output"
    shutil.copytree(demo_run.output, output)
    with viewed(str(output), str(demo_run.output)) as found:
        yield found


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    yield from chromium(tmp_path_factory.mktemp("chromium"))
