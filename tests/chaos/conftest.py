"""A run in an object store behind a proxy that disturbs it."""

from collections.abc import Iterator

import pytest
from chaos.proxy import Proxy, proxied
from chaos.trial import World
from seaweed import S3Server


@pytest.fixture(scope="session")
def proxy(s3_server: S3Server) -> Iterator[Proxy]:
    with proxied(s3_server.endpoint) as server:
        yield server


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def stored(world: World, proxy: Proxy, s3_server: S3Server, bucket: str) -> World:
    """Disturbed runs in an object store; this process reaches it without the proxy, by the settings of `bucket`."""
    return world.at(f"s3://{bucket}", s3_server.environment() | {"AWS_ENDPOINT_URL": proxy.address})
