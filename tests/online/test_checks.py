"""What is checked of an endpoint before there is a cluster."""

import socket

import pytest

from paliscribe.errors import RunError
from paliscribe.online.checks import FREE_PORTS, check_port


def test_a_free_port_is_none_that_outgoing_connections_get() -> None:
    found = {check_port("127.0.0.1", 0) for _ in range(10)}
    assert len(found) > 1 and all(port in FREE_PORTS for port in found)
    with socket.create_server(("127.0.0.1", found.pop())):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "203.0.113.77"])
def test_what_cannot_be_listened_on_is_one_line(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] if host == "127.0.0.1" else 0
        with pytest.raises(RunError, match=f"^cannot listen on {host}:{port}: .+$"):
            check_port(host, port)
