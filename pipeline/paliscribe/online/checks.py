"""What of an endpoint can be checked without a cluster, so that a mistake is reported before Ray is imported."""

import contextlib
import ipaddress
import random
import socket

from paliscribe.config import ServeConfig
from paliscribe.errors import RunError, UsageError
from paliscribe.images.allowed import AllowedAddresses
from paliscribe.model.weights import locate
from paliscribe.online.background.store import BackgroundStore
from paliscribe.online.key_file import adopt
from paliscribe.online.keys import KeySource, read_keys
from paliscribe.storage import StorageError, check_writable, is_local, local_path, open_store
from paliscribe.storage.parallel import in_order

FREE_PORTS = range(20_000, 32_768)  # above Ray's workers (10002 to 19999), below outgoing connections (from 32768)


def check(config: ServeConfig) -> KeySource:
    """Check all that needs no cluster; returns the API keys, by their hashes. Raises UsageError."""
    AllowedAddresses(config.images)
    keys = read_keys(config.keys)
    if not keys.found and not config.open and not is_loopback(config.host):
        words = "requires API keys (`keys`, PALISCRIBE_API_KEYS), or `open: true` to allow unauthenticated calls"
        raise UsageError(f"listening on {config.host} {words}")
    for served in config.models:
        locate(served.model.resolved(gpu=False))
    if config.mask_decoder is not None:
        from paliscribe.results.record import load_mask_decoder  # it imports pyarrow

        load_mask_decoder(config.mask_decoder)
    if config.files is not None:
        try:
            if is_local(config.files):  # others on this machine need not read what callers send
                local_path(config.files).expanduser().mkdir(mode=0o700, parents=True, exist_ok=True)
            check_writable(open_store(config.files))
            store = BackgroundStore(open_store(config.files))
            for _ in in_order(lambda entry: adopt(store, *entry), keys.found.items()):
                pass
        except StorageError as error:
            raise UsageError(f"files {error}") from None
        except OSError as error:
            raise UsageError(f"files {config.files}: {error.strerror}") from None
    return keys


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_port(host: str, port: int) -> int:
    """The port to listen on; for 0 a free one. Raises RunError if the endpoint cannot listen there.

    The endpoint listens there seconds later. So a free port is none of those that the system gives to outgoing
    connections, of which Ray makes many, nor one of Ray's workers.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        for candidate in [] if port else random.SystemRandom().sample(FREE_PORTS, 100):
            with contextlib.suppress(OSError):
                return _bound(family, host, candidate)
        return _bound(family, host, port)
    except OSError as error:
        raise RunError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


def _bound(family: socket.AddressFamily, host: str, port: int) -> int:
    """The port of a socket that was bound for a moment. Raises OSError if it cannot be."""
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return int(probe.getsockname()[1])
