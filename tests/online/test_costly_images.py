"""Live calls with images that take long to decode: they keep their timeout, and others do not wait for them."""

import asyncio
import time
from typing import Any

import pytest
from images.files import empty_scans, encoded, photo
from online.conftest import Endpoint, EngineBackend

from paliscribe.config import ImagesConfig, ServeConfig
from paliscribe.errors import RequestError
from paliscribe.online.service import Served, Service


def service(endpoint: Endpoint, **options: Any) -> tuple[Service, Served]:
    served = Served("demo", "r", 224, EngineBackend(endpoint.engine))
    return Service(ServeConfig(**options), [served]), served


def test_the_timeout_of_a_call_includes_decoding(endpoint: Endpoint) -> None:
    made, served = service(endpoint, timeout=1.0)

    async def calls() -> list[float]:
        begun = time.monotonic()
        with pytest.raises(RequestError) as caught:
            await made.load(served, empty_scans(2000, 900))
        assert (caught.value.status, caught.value.code) == (504, "expired")
        loaded = await made.load(served, encoded(photo()))
        checked = made.check(loaded, "caption en")
        assert checked.request.timeout is not None and 0.5 < checked.request.timeout < 1.0
        return [time.monotonic() - begun]

    assert max(asyncio.run(calls())) < 2.5


def test_good_images_do_not_wait_for_costly_ones(endpoint: Endpoint) -> None:
    made, served = service(endpoint, timeout=30.0, images=ImagesConfig(decode_seconds=1.0))

    async def calls() -> float:
        costly = [asyncio.create_task(made.load(served, empty_scans(2000, 900 + n))) for n in range(5)]
        await asyncio.sleep(0.5)
        begun = time.monotonic()
        for form in ("PNG", "JPEG", "WEBP"):
            await made.load(served, encoded(photo(), form))
        taken = time.monotonic() - begun
        for found in await asyncio.gather(*costly, return_exceptions=True):
            assert isinstance(found, RequestError) and (found.status, found.code) == (413, "too_costly")
        return taken

    assert asyncio.run(calls()) < 2
