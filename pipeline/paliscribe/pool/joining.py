"""Checks the cluster at RAY_ADDRESS without Ray, which takes a second to import and minutes to give up."""

import contextlib
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from paliscribe.errors import RunError, UsageError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
DEFAULT_PATH = "~/.ray/auth_token"  # where Ray writes a token that it makes
PING = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # a call of the GCS that all releases have
OTHERS = ("RAY_USE_TLS", "RAY_ENABLE_K8S_TOKEN_AUTH")  # other ways to be admitted
HOST_PORT = re.compile(r"[^/@\s]+:\d{1,5}")
# The preface of HTTP/2 and an empty SETTINGS frame (RFC 9113, sections 3.4 and 6.5): a server answers with its own.
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
CONNECT, ANSWER = 0.8, 5.0  # seconds until something that speaks gRPC is there, and until it answers the call


def destination() -> str:
    """Where the Ray of this process will be, in words."""
    address = os.environ.get("RAY_ADDRESS")
    return f"joining the Ray cluster at {address}" if address else "starting Ray on this machine"


def check_cluster() -> None:
    """Raise unless a Ray cluster answers at RAY_ADDRESS: UsageError for what is no address, RunError if none answers.

    RunError also if it rejects the token. No check if none is set. If the cluster requires a token, RAY_AUTH_MODE is
    set, which Ray reads when it is imported: with an address it does not look for a token by itself. Of `auto` the
    cluster that `ray start` has started last is tried. Not checked: clusters with TLS or with tokens of Kubernetes. Nor
    is anything if Ray runs in this process already.
    """
    address, mode = os.environ.get("RAY_ADDRESS", ""), auth_mode()
    has_ray = (ray := sys.modules.get("ray")) is not None and ray.is_initialized()
    if has_ray or not address or address == "local":
        return
    if is_found := address == "auto":
        address = _started_last()
    if not HOST_PORT.fullmatch(address):
        if is_found:
            return
        raise UsageError(
            f"RAY_ADDRESS {address.rpartition('@')[2][:100]!r}: expected HOST:PORT of the cluster itself, such as "
            "10.0.0.1:6379; `paliscribe submit` takes a dashboard's http://, and Ray's ray:// is not supported"
        )
    if _set(*OTHERS):
        return
    token, place = find_token() if mode != "disabled" else ("", "")
    try:
        refusal = _refusal(address, token if mode == "token" else "")
    except RunError:
        if is_found:  # Ray may find another
            return
        raise
    if refusal is None:
        return
    if token and mode != "token" and (refusal := _refusal(address, token)) is None:
        os.environ[MODE] = "token"
        return
    raise RunError(f"Ray cluster at {address}: {remedy(mode, place)}")


@contextlib.contextmanager
def answering(address: str) -> Iterator[Callable[[], bool]]:
    """Says whether the control plane of a Ray cluster answers, if only that it wants a token; within `ANSWER` seconds.

    Not one that speaks TLS.
    """
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(PING)

        def answers() -> bool:
            try:
                call(b"", timeout=ANSWER)
            except grpc.RpcError as error:
                return error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            return True

        yield answers


def _started_last() -> str:
    """The address that `ray start` has written down on this machine; empty if there is none."""
    try:
        return (Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def auth_mode() -> str:
    """RAY_AUTH_MODE: `token`, `disabled`, or empty. Raises UsageError for another value, at which Ray would hang."""
    mode = os.environ.get(MODE, "").lower()
    if mode not in ("", "token", "disabled"):
        raise UsageError(f"{MODE} {mode[:40]!r}: expected 'token' or 'disabled'")
    return mode


def _set(*names: str) -> bool:
    return any(os.environ.get(name, "").lower() not in ("", "0", "false") for name in names)


def remedy(mode: str, place: str) -> str:
    """What to do where a token is required. `place`: where the token was found that is rejected; empty: none was."""
    if mode == "disabled":
        return f"it requires a token; unset {MODE}"
    if place:
        return f"it rejects the token of {place}; set {TOKEN_PATH} to a file with that cluster's"
    return f"it requires a token; copy its {DEFAULT_PATH} here, or set {TOKEN_PATH} to a file that holds it"


def find_token() -> tuple[str, str]:
    """The token that Ray would find, and where; both empty if there is none."""
    if token := os.environ.get(TOKEN, "").strip():
        return token, TOKEN
    path = os.environ.get(TOKEN_PATH) or DEFAULT_PATH
    try:
        token = Path(path).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError):
        return "", ""
    return token, path if token else ""


def _refusal(address: str, token: str) -> str | None:
    """What a cluster says to a call without a right token; None if it admits it. Raises RunError if none answers."""
    import grpc

    if _is_mute(address):
        raise RunError(f"no Ray cluster at {address}: no answer within {CONNECT:g} s")
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(PING)(b"", timeout=ANSWER, metadata=metadata)
        except grpc.RpcError as error:
            code, details = error.code(), str(error.details())
            if code == grpc.StatusCode.UNAUTHENTICATED:
                return details
            raise RunError(f"no Ray cluster at {address}: {_reason(code.name, details)}") from None
    return None


def _is_mute(address: str) -> bool:
    """Whether nothing is said at an address within `CONNECT` seconds to what begins HTTP/2.

    grpc can tell too, by a thread of its own, with which some processes hung when they ended.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT) as probe:
            probe.sendall(HTTP2)
            probe.recv(1)
    except TimeoutError:
        return True
    except (OSError, ValueError):  # grpc says why
        pass
    return False


def _reason(code: str, details: str) -> str:
    if "http1.x" in details or "parsing HTTP/2" in details:
        return "a web server answers there, such as Ray's dashboard; the cluster's own port is 6379 by default"
    if code == "DEADLINE_EXCEEDED":
        return f"no answer within {ANSWER:g} s"
    if code == "UNIMPLEMENTED":
        return "another service answers there; the cluster's own port is 6379 by default"
    return details.rpartition(": ")[2].rstrip("]")[:200] or code
