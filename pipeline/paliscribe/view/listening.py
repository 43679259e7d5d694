"""Serves the page over a run until it is stopped."""

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Callable

import psutil
import uvicorn

from paliscribe.errors import RunError, Stopped
from paliscribe.signals import stop_on_signals
from paliscribe.view.server import View, create_app

START = 30.0  # seconds
KEEP = 3.0  # seconds after the start: the first items are shown before


def serve_view(view: View, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. `port`: 0 for a free one. `ready`: called with the address, token included, once
    it answers. Raises RunError if nothing can listen there."""
    token = secrets.token_urlsafe(24)
    with contextlib.suppress(Stopped), stop_on_signals(), _listening(host, port) as listener:
        port = int(listener.getsockname()[1])
        app = create_app(view, token, host, _names(host))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="view", daemon=True)
        keeping = threading.Timer(KEEP, view.items.keep)
        keeping.daemon = True
        keeping.start()
        thread.start()
        try:
            until = time.monotonic() + START
            while not server.started:
                if not thread.is_alive() or time.monotonic() > until:
                    raise RunError("the page cannot be served")
                time.sleep(0.01)
            ready(f"http://{_called(host)}:{port}/?token={token}")
            while thread.is_alive():
                thread.join(1)
        finally:
            keeping.cancel()
            server.should_exit = True
            thread.join(5)


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
        with contextlib.ExitStack() as stack:
            stack.callback(listener.close)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
            stack.pop_all()
        return listener
    except OSError as error:
        raise RunError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; --port 0 takes a free one"
        ) from None


def _called(host: str) -> str:
    """The host in an address to open."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _names(host: str) -> tuple[str, ...]:
    """The names of this machine, if it listens at all of its addresses."""
    if host not in ("0.0.0.0", "::"):
        return ()
    found = [address.address for each in psutil.net_if_addrs().values() for address in each]
    return (socket.gethostname(), socket.getfqdn(), *(address.partition("%")[0] for address in found))
