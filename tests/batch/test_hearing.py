"""A driver that has lost the head of its cluster says what to do, before Ray ends it."""

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from paliscribe.batch import hearing
from paliscribe.batch.hearing import Hearing
from paliscribe.batch.progress import Progress
from paliscribe.pool.joining import PING, answering


def head(*, refuses: bool = False) -> tuple[grpc.Server, str]:
    """A server that answers the call of Ray's control plane, or refuses it as one does that wants a token."""

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        if refuses:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        return b""

    server = grpc.server(ThreadPoolExecutor(1))
    service, method = PING.strip("/").split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "PERIOD", 0.0)


@pytest.mark.parametrize("refuses", [False, True])
def test_a_head_that_is_gone_is_named_once(monkeypatch: pytest.MonkeyPatch, refuses: bool) -> None:
    progress, (server, address) = Progress(), head(refuses=refuses)
    with answering(address) as answers:
        watch = Hearing(progress, address, answers)
        watch.look()
        server.stop(0).wait()
        monkeypatch.setattr(hearing, "SILENT", 0.2)
        end = time.monotonic() + 30
        while not progress.notes:
            watch.look()
            assert time.monotonic() < end
        watch.look()
    [words] = progress.notes
    assert address in words and "Run the same command again to resume" in words and "\n" not in words


def test_nothing_is_said_of_a_head_that_has_never_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "SILENT", 0.0)
    progress, (server, address) = Progress(), head()
    server.stop(0).wait()
    with answering(address) as answers:
        Hearing(progress, address, answers).look()
    assert not progress.notes


def test_looks_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "PERIOD", 60.0)
    asked: list[bool] = []

    def answers() -> bool:
        asked.append(True)
        return True

    watch = Hearing(Progress(), "127.0.0.1:1", answers)
    for _ in range(3):
        watch.look()
    assert len(asked) == 1
