"""Fixtures: the endpoint over an in-process engine, behind a real HTTP server on loopback."""

import base64
import hashlib
import io
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from models import demo_model
from online.browser import Page, chromium
from PIL import Image

from paliscribe.config import ImagesConfig, ServeConfig
from paliscribe.demo.drawing import draw
from paliscribe.demo.sampling import sample_scene
from paliscribe.demo.scenes import TEST_SEEDS, Scene
from paliscribe.engine import Engine, aio
from paliscribe.model.abilities import abilities
from paliscribe.online.app import create_app
from paliscribe.online.keys import Keys
from paliscribe.online.service import Served, Service
from paliscribe.records import Piece, Prediction, Request

KEY = "a-key-for-the-tests-0123456789"
CONFIG = ServeConfig(
    timeout=30, max_body=3_000_000, max_requests=12, images=ImagesConfig(max_bytes=1_000_000, max_pixels=4_000_000)
)


@dataclass
class EngineBackend:
    """A backend that calls the engine directly instead of a pool."""

    engine: Engine

    async def predict(self, requests: Sequence[Request]) -> list[Prediction]:
        return await aio.predict(self.engine, requests)

    async def stream(self, request: Request) -> AsyncIterator[Piece | Prediction]:
        async for part in aio.stream(self.engine, request):
            yield part


@dataclass(frozen=True)
class Endpoint:
    """Address of the endpoint, its engine and its keys."""

    address: str
    engine: Engine
    keys: Keys


def listen(service: Service, keys: Keys, **options: Any) -> tuple[uvicorn.Server, threading.Thread]:
    server = uvicorn.Server(uvicorn.Config(create_app(service, keys, **options), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < until
        time.sleep(0.01)
    return server, thread


@pytest.fixture(scope="session")
def endpoint() -> Iterator[Endpoint]:
    torch.set_num_threads(1)
    model = demo_model()
    engine = Engine(model)
    engine.start()
    served = Served("demo", model.located.revision, model.image_size, EngineBackend(engine), abilities(model.spec))
    keys = Keys({hashlib.sha256(KEY.encode()).hexdigest(): ""})
    server, thread = listen(Service(CONFIG, [served]), keys)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Endpoint(f"http://127.0.0.1:{port}", engine, keys)
    server.should_exit = True
    thread.join(10)
    engine.close()


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="session")
def scene() -> Scene:
    return sample_scene(TEST_SEEDS + 12)


@pytest.fixture(scope="session")
def picture(scene: Scene) -> bytes:
    return encoded(draw(scene))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    yield from chromium(tmp_path_factory.mktemp("chromium"))


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    """The browser page, reset to its default size afterwards."""
    yield browser
    browser.command("Emulation.clearDeviceMetricsOverride")
    browser.command("Emulation.setEmulatedMedia", features=[])
    browser.driver.get("about:blank")


@pytest.fixture
def file(picture: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    path.write_bytes(picture)
    return path
