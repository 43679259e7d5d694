"""Property-based test of the OpenAPI document: no valid or invalid request gives a 5xx status."""

import os
import tempfile
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from models import demo_model
from online.conftest import CONFIG, EngineBackend

from paliscribe.engine import Engine
from paliscribe.online.app import create_app
from paliscribe.online.background.store import BackgroundStore
from paliscribe.online.keys import Keys
from paliscribe.online.service import Served, Service
from paliscribe.storage import open_store

MODEL = demo_model()
ENGINE = Engine(MODEL)
SERVED = Served("demo", MODEL.located.revision, MODEL.image_size, EngineBackend(ENGINE))
FOLDER = tempfile.TemporaryDirectory()
STORING = CONFIG.model_copy(
    update={"files": FOLDER.name, "outputs": (FOLDER.name,), "max_file": 1_000_000, "open": True}
)
APP = create_app(Service(STORING, [SERVED]), Keys({}), store=BackgroundStore(open_store(FOLDER.name)))
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)


def setup_module() -> None:
    ENGINE.start()


def teardown_module() -> None:
    ENGINE.close()
    FOLDER.cleanup()


@SCHEMA.parametrize()
@settings(
    max_examples=500 if os.environ.get("FULL") else 50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_no_request_gives_5xx(case: schemathesis.Case[Any]) -> None:
    reply = case.call()
    assert reply.status_code < 500, reply.text
    if reply.status_code >= 400:
        assert reply.json()["error"]["message"] and "x-request-id" in reply.headers
