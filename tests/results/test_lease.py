"""The lease of a run: one driver at a time; leases of dead processes are replaced at once."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from results.made import Unreachable

from paliscribe import results
from paliscribe.errors import RunError
from paliscribe.results import Owner
from paliscribe.results.lease import KEY
from paliscribe.storage import Store, open_store, retry

HOLD = """
import sys, time
from paliscribe import results
from paliscribe.storage import open_store
with results.hold(open_store(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def foreign(store: Store, ttl: float, **changes: Any) -> Owner:
    """Write the lease of a process on another machine."""
    owner = replace(Owner.current(ttl), host="elsewhere", boot="another", pid=4711, since=time.time() - 5, **changes)
    store.put(KEY, json.dumps(asdict(owner)).encode())
    return owner


def check_one_holder(store: Store) -> None:
    with results.hold(store):
        holder = results.read_lease(store)
        assert holder is not None and holder.pid == os.getpid() and not holder.is_dead
        began = time.monotonic()
        with (
            pytest.raises(RunError, match=rf"the lease of .*: process {os.getpid()} on {socket.gethostname()}, since"),
            results.hold(store),
        ):
            raise AssertionError("held twice")
        assert time.monotonic() - began < 10, "no waiting for a living local process"
        assert results.read_lease(store) == holder
    assert results.read_lease(store) is None
    with results.hold(store):
        pass


def test_one_holder(store: Store) -> None:
    check_one_holder(store)


def test_one_holder_on_s3(bucket: str) -> None:
    check_one_holder(open_store(f"s3://{bucket}/output"))


def test_one_of_many_gets_the_lease(store: Store) -> None:
    ready, over = threading.Barrier(8), threading.Barrier(8)
    outcomes: list[str] = []

    def attempt() -> None:
        ready.wait()
        try:
            with results.hold(store):
                outcomes.append("acquired")
                over.wait()
        except RunError:
            outcomes.append("rejected")
            over.wait()

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["acquired"] + ["rejected"] * 7


def test_the_lease_is_released_when_the_run_fails(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), results.hold(store):
        raise ZeroDivisionError
    assert results.read_lease(store) is None


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_the_lease_of_a_killed_process_is_replaced_at_once(store: Store, reaped: bool) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, store.uri], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match=f"process {process.pid} on"), results.hold(store):
            raise AssertionError("its holder lives")
        process.send_signal(signal.SIGKILL)
        if reaped:
            process.wait()
        else:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        holder = results.read_lease(store)
        assert holder is not None and holder.is_dead

        def waiting(words: str) -> None:
            raise AssertionError("waited for a dead process")

        with results.hold(store, waiting=waiting) as lease:
            assert not lease.lost
    finally:
        process.kill()
        process.communicate()


def test_a_reused_pid_is_not_the_owner(store: Store) -> None:
    store.put(KEY, replace(Owner.current(60), process_start="1").as_json())
    with results.hold(store):
        pass


def test_a_stale_lease_of_another_machine_is_watched_and_replaced(store: Store) -> None:
    gone = foreign(store, ttl=1.0)
    assert not gone.is_dead
    messages: list[str] = []
    began = time.monotonic()
    with results.hold(store, waiting=messages.append):
        assert time.monotonic() - began >= 1.0
        assert results.read_lease(store).pid == os.getpid()  # type: ignore[union-attr]
    assert messages == ["waiting to see whether process 4711 on elsewhere still holds the lease of this run"]


def test_a_container_of_the_same_host_is_not_local(store: Store) -> None:
    mine = Owner.current(0.5)
    other = replace(mine, boot=f"{mine.boot.partition('/')[0]}/pid:[1]", process_start="1")
    assert mine.is_local and not other.is_local and not other.is_dead


def test_a_renewed_lease_of_another_machine_is_respected(store: Store) -> None:
    owner = foreign(store, ttl=5.0)
    renewing = threading.Timer(0.7, lambda: store.put(KEY, replace(owner, renewals=1).as_json()))
    renewing.start()
    began = time.monotonic()
    with (
        pytest.raises(RunError, match=r"another driver holds the lease of .*: process 4711 on elsewhere, since \d+ s"),
        results.hold(store),
    ):
        raise AssertionError("held by two")
    assert time.monotonic() - began < 5.0
    renewing.join()
    assert results.read_lease(store) == replace(owner, renewals=1)


def test_a_released_lease_is_acquired_at_once(store: Store) -> None:
    foreign(store, ttl=30.0)
    releasing = threading.Timer(0.3, lambda: store.delete(KEY))
    releasing.start()
    began = time.monotonic()
    with results.hold(store):
        assert time.monotonic() - began < 15.0
    releasing.join()


def test_the_lease_is_renewed(store: Store) -> None:
    with results.hold(store, ttl=0.4) as lease:
        first = results.read_lease(store)
        until = time.monotonic() + 10
        while (now := results.read_lease(store)) == first and time.monotonic() < until:
            time.sleep(0.02)
        assert now is not None and first is not None and now.renewals > 0
        assert replace(now, renewals=0) == replace(first, renewals=0)
        assert not lease.lost


def test_a_lost_lease_is_reported_and_not_deleted(store: Store) -> None:
    lost = threading.Event()
    with results.hold(store, ttl=0.4, on_lost=lost.set) as lease:
        taker = foreign(store, ttl=60)
        assert lost.wait(10)
        assert lease.lost
    assert results.read_lease(store) == taker, "only the own lease is released"


def test_a_lease_lost_just_before_the_end_is_not_deleted(store: Store) -> None:
    with results.hold(store):
        taker = foreign(store, ttl=60)
    assert results.read_lease(store) == taker


def test_a_deleted_lease_is_lost(store: Store) -> None:
    lost = threading.Event()
    with results.hold(store, ttl=0.4, on_lost=lost.set):
        store.delete(KEY)
        assert lost.wait(10)
    assert results.read_lease(store) is None


def test_a_short_outage_of_the_store_is_tolerated(store: Store) -> None:
    flaky = Unreachable(store)
    lost = threading.Event()
    with results.hold(flaky, ttl=2.0, on_lost=lost.set) as lease:
        flaky.down = True
        time.sleep(0.9)
        flaky.down = False
        before = results.read_lease(store)
        time.sleep(1.0)
        assert results.read_lease(store) != before, "renewed after the outage"
        assert not lost.is_set() and not lease.lost


def test_a_renewal_with_a_lost_response_does_not_lose_the_lease(store: Store) -> None:
    flaky = Unreachable(store)
    lost = threading.Event()
    with results.hold(flaky, ttl=1.0, on_lost=lost.set) as lease:
        flaky.lost_response = True
        time.sleep(1.2)
        assert not flaky.lost_response and not lost.is_set() and not lease.lost


def test_a_long_outage_of_the_store_does_not_lose_the_lease(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "TOLD_AFTER", 0.5)
    flaky = Unreachable(store)
    lost = threading.Event()
    with results.hold(flaky, ttl=0.4, on_lost=lost.set) as lease:
        flaky.down = True
        assert not lost.wait(1.5)
        assert "the network is down" in retry.waiting(), "it is said"
        flaky.down = False
        before = results.read_lease(store)
        time.sleep(0.4)
        assert results.read_lease(store) != before and not lease.lost
        assert not retry.waiting()


def test_a_lease_taken_during_an_outage_is_lost_after_it(store: Store) -> None:
    flaky = Unreachable(store)
    lost = threading.Event()
    with results.hold(flaky, ttl=0.4, on_lost=lost.set):
        flaky.down = True
        taker = foreign(store, ttl=60)
        flaky.down = False
        assert lost.wait(10)
    assert results.read_lease(store) == taker


def test_a_failed_release_masks_no_error(store: Store) -> None:
    flaky = Unreachable(store)
    with pytest.raises(ZeroDivisionError), results.hold(flaky, ttl=0.4):
        flaky.down = True
        raise ZeroDivisionError


class Interrupting(Unreachable):
    """A store in which a signal arrives after the `at`-th of its calls."""

    calls = 0

    def _write(self, action: Callable[[], Any]) -> Any:
        return self._after(super()._write(action))

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        return self._after(super().get_with_etag(key))

    def _after(self, found: Any) -> Any:
        self.calls += 1
        if self.calls == self._at:
            raise KeyboardInterrupt
        return found


def test_an_interrupted_driver_leaves_no_lease(store: Store) -> None:
    """This process goes on, as Ray's workers do, so what it left would keep all drivers of this machine out."""
    for at in range(1, 5):  # written, read; in releasing read, deleted
        with pytest.raises(KeyboardInterrupt), results.hold(Interrupting(store, at)):
            pass
        with results.hold(store):
            pass
    held = threading.active_count()
    store.put(KEY, replace(Owner.current(60.0)).as_json())  # left by this process in a way that nobody thought of
    with results.hold(store):
        pass
    assert threading.active_count() == held and not results.read_lease(store)
