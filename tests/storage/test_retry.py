"""How long a failing store is waited for."""

import threading
import time
from collections.abc import Callable

import pytest

from paliscribe.storage import StorageError, retry
from paliscribe.storage.retry import hurried, waiting, with_retries


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (
        ("FIRST_WAIT", 0.001),
        ("MAX_WAIT", 0.01),
        ("PATIENCE", 1.5),
        ("HOST_PATIENCE", 1.0),
        ("TOLD_AFTER", 0.05),
    ):
        monkeypatch.setattr(retry, name, seconds)
    monkeypatch.setattr(retry, "_answered", {})


def failing(times: float, kind: str = "unreachable") -> tuple[Callable[[], str], list[int]]:
    """A call that fails so many times, and its attempts."""
    attempts: list[int] = []

    def attempt() -> str:
        attempts.append(1)
        if len(attempts) <= times:
            raise StorageError(kind, "s3://b/k", "no answer")  # type: ignore[arg-type]
        return "found"

    return attempt, attempts


def test_a_store_that_never_answered_fails_soon() -> None:
    attempt, attempts = failing(float("inf"))
    with pytest.raises(StorageError):
        with_retries(attempt, 3, "store")
    assert len(attempts) == 4


@pytest.mark.parametrize("kind", ["unreachable", "throttled"])
def test_a_store_that_has_answered_is_waited_for(kind: str) -> None:
    with_retries(lambda: "", 3, "store")
    attempt, attempts = failing(20, kind)
    assert with_retries(attempt, 3, "store") == "found" and len(attempts) == 21
    for name in ("another", ""):  # strangers' hosts have no name
        attempt, attempts = failing(20, kind)
        with pytest.raises(StorageError):
            with_retries(attempt, 3, name)
        assert len(attempts) == 4


def test_not_for_ever_and_not_in_a_hurry() -> None:
    with_retries(lambda: "", 3, "store")
    attempt, attempts = failing(float("inf"))
    begun = time.monotonic()
    with pytest.raises(StorageError):
        with_retries(attempt, 3, "store")
    assert time.monotonic() - begun >= 1.5 and len(attempts) > 4
    attempt, attempts = failing(float("inf"))
    with pytest.raises(StorageError), hurried():
        with_retries(attempt, 3, "store")
    assert len(attempts) == 4


def test_an_object_that_fails_while_others_are_read_is_given_up() -> None:
    with_retries(lambda: "", 3, "store")
    attempts: list[int] = []

    def attempt() -> str:
        attempts.append(1)
        with_retries(lambda: "", 3, "store")  # another object
        raise StorageError("unreachable", "s3://b/k", "internal error")

    with pytest.raises(StorageError):
        with_retries(attempt, 3, "store")
    assert len(attempts) == 4


def test_a_web_server_is_waited_for_once_until_it_answers_again() -> None:
    with_retries(lambda: "", 3, host="web")
    attempt, attempts = failing(20)
    assert with_retries(attempt, 3, host="web") == "found"
    for given_up in (False, True, True):
        attempt, attempts = failing(float("inf"), "throttled")
        with pytest.raises(StorageError):
            with_retries(attempt, 3, host="web")
        assert (len(attempts) == 4) == given_up, "busy machines make few attempts in a second"
    attempt, attempts = failing(2)
    with_retries(attempt, 3, host="web")
    attempt, attempts = failing(20)
    assert with_retries(attempt, 3, host="web") == "found", "it has answered"


def test_an_object_that_a_web_server_throttles_while_others_are_read_is_given_up() -> None:
    with_retries(lambda: "", 3, host="web")
    attempts: list[int] = []

    def attempt() -> str:
        attempts.append(1)
        with_retries(lambda: "", 3, host="web")
        raise StorageError("throttled", "http://web/k", "HTTP 503")

    with pytest.raises(StorageError):
        with_retries(attempt, 3, host="web")
    assert len(attempts) == 4


def test_what_is_waited_for_is_said() -> None:
    with_retries(lambda: "", 3, "store")
    go = threading.Event()

    def attempt() -> str:
        if not go.is_set():
            raise StorageError("throttled", "s3://b/k", "the store asks to slow down")
        return "found"

    thread = threading.Thread(target=with_retries, args=(attempt, 3, "store"))
    assert waiting() == ""
    thread.start()
    time.sleep(0.2)
    assert waiting() == "retrying for 0 s: s3://b/k: the store asks to slow down"
    go.set()
    thread.join()
    assert waiting() == ""
