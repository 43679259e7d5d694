"""Free ports of loopback for servers that start later."""

import contextlib
import random
import socket

RANGE = range(20_000, 32_768)  # between the ports of Ray's workers and those that systems give to outgoing connections


def free_ports(count: int) -> list[int]:
    """Different ports that nothing listens on. Outgoing connections do not take them until a server does."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.SystemRandom().sample(RANGE, len(RANGE)):
            if len(found) == count:
                break
            with contextlib.suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
    assert len(found) == count
    return found
