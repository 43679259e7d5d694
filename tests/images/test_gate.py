"""As many requests to a host at a time as it can take."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from paliscribe.images import gate as gate_module
from paliscribe.images.gate import Gate, Gates
from paliscribe.storage import StorageError


def failing(gate: Gate, kind: str = "throttled") -> None:
    with pytest.raises(StorageError), gate:
        raise StorageError(kind, "s3://b/k", "slow down")  # type: ignore[arg-type]


def test_no_more_than_the_limit_run_at_a_time() -> None:
    gate, lock, running, most = Gate(3), threading.Lock(), 0, 0

    def one(_: int) -> None:
        nonlocal running, most
        with gate:
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.01)
            with lock:
                running -= 1

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(one, range(30)))
    assert most == 3


def test_the_limit_halves_once_a_round_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(32)
    for _ in range(8):  # requests that ran together
        failing(gate)
    assert gate.limit == 16
    monkeypatch.setattr(gate_module, "PAUSE", -1.0)
    for _ in range(8):
        failing(gate, "unreachable")
    assert gate.limit == 1, "never less than one"
    for _ in range(600):
        with gate:
            pass
    assert gate.limit == 32, "and never more than at first"


def test_a_missing_object_says_nothing_of_the_host() -> None:
    gate = Gate(8)
    failing(gate, "missing")
    assert gate.limit == 8


def test_hosts_and_buckets_have_gates_of_their_own() -> None:
    gates = Gates(4)
    assert gates.of("s3://a/x") is gates.of("s3://a/y/z") is not gates.of("s3://b/x")
    assert gates.of("https://a/x") is not gates.of("s3://a/x")
    assert gates.of("/a/b.png") is gates.of("/c.png")
