"""One driver a run: the living are respected, the dead are not waited for."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from made import Unreachable

from paliscribe import results
from paliscribe.errors import RunError
from paliscribe.results import Owner
from paliscribe.results.lease import KEY
from paliscribe.storage import Store, open_store

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
    """Leave the lease of a process elsewhere."""
    owner = replace(Owner.me(ttl), host="elsewhere", boot="another", pid=4711, since=time.time() - 5, **changes)
    store.put(KEY, json.dumps(asdict(owner)).encode())
    return owner


def check_one_holder(store: Store) -> None:
    with results.hold(store):
        holder = results.read_lease(store)
        assert holder is not None and holder.pid == os.getpid() and not holder.surely_gone
        began = time.monotonic()
        with (
            pytest.raises(RunError, match=rf"at work on .*: process {os.getpid()} on {socket.gethostname()}, since"),
            results.hold(store),
        ):
            raise AssertionError("held twice")
        assert time.monotonic() - began < 10, "a living neighbour is not watched first"
        assert results.read_lease(store) == holder
    assert results.read_lease(store) is None
    with results.hold(store):
        pass


def test_one_holder(store: Store) -> None:
    check_one_holder(store)


def test_one_holder_on_s3(bucket: str) -> None:
    check_one_holder(open_store(f"s3://{bucket}/output"))


def test_one_of_many_takes_it(store: Store) -> None:
    ready, over = threading.Barrier(8), threading.Barrier(8)
    outcomes: list[str] = []

    def attempt() -> None:
        ready.wait()
        try:
            with results.hold(store):
                outcomes.append("held")
                over.wait()
        except RunError:
            outcomes.append("refused")
            over.wait()

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held"] + ["refused"] * 7


def test_it_is_given_back_when_the_run_fails(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), results.hold(store):
        raise ZeroDivisionError
    assert results.read_lease(store) is None


@pytest.mark.parametrize("reaped", [True, False], ids=["gone", "zombie"])
def test_a_killed_process_is_not_waited_for(store: Store, reaped: bool) -> None:
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
        assert holder is not None and holder.surely_gone

        def waiting(words: str) -> None:
            raise AssertionError("the dead were watched")

        with results.hold(store, waiting=waiting) as lease:
            assert not lease.lost
    finally:
        process.kill()
        process.communicate()


def test_a_namesake_of_a_dead_process_does_not_count(store: Store) -> None:
    store.put(KEY, replace(Owner.me(60), process_start="1").as_json())
    with results.hold(store):
        pass


def test_a_silent_stranger_is_watched_and_replaced(store: Store) -> None:
    gone = foreign(store, ttl=1.0)
    assert not gone.surely_gone
    told: list[str] = []
    began = time.monotonic()
    with results.hold(store, waiting=told.append):
        assert time.monotonic() - began >= 1.0
        assert results.read_lease(store).pid == os.getpid()  # type: ignore[union-attr]
    assert told == ["watching whether process 4711 on elsewhere still works on this run"]


def test_a_container_of_the_same_host_is_a_stranger(store: Store) -> None:
    mine = Owner.me(0.5)
    other = replace(mine, boot=f"{mine.boot.partition('/')[0]}/pid:[1]", process_start="1")
    assert mine.here and not other.here and not other.surely_gone


def test_a_stranger_who_renews_is_left_alone(store: Store) -> None:
    owner = foreign(store, ttl=5.0)
    renewing = threading.Timer(0.7, lambda: store.put(KEY, replace(owner, renewals=1).as_json()))
    renewing.start()
    began = time.monotonic()
    with (
        pytest.raises(RunError, match=r"another driver is at work .*: process 4711 on elsewhere, since \d+ s"),
        results.hold(store),
    ):
        raise AssertionError("held by two")
    assert time.monotonic() - began < 5.0
    renewing.join()
    assert results.read_lease(store) == replace(owner, renewals=1)


def test_a_stranger_who_gives_it_back_is_followed_at_once(store: Store) -> None:
    foreign(store, ttl=30.0)
    leaving = threading.Timer(0.3, lambda: store.delete(KEY))
    leaving.start()
    began = time.monotonic()
    with results.hold(store):
        assert time.monotonic() - began < 15.0
    leaving.join()


def test_it_is_renewed(store: Store) -> None:
    with results.hold(store, ttl=0.4) as lease:
        first = results.read_lease(store)
        until = time.monotonic() + 10
        while (now := results.read_lease(store)) == first and time.monotonic() < until:
            time.sleep(0.02)
        assert now is not None and first is not None and now.renewals > 0
        assert replace(now, renewals=0) == replace(first, renewals=0)
        assert not lease.lost


def test_a_lease_that_was_taken_is_told_and_left(store: Store) -> None:
    lost = threading.Event()
    with results.hold(store, ttl=0.4, on_lost=lost.set) as lease:
        taker = foreign(store, ttl=60)
        assert lost.wait(10)
        assert lease.lost
    assert results.read_lease(store) == taker, "only one's own is given back"


def test_a_lease_taken_just_before_the_end_is_left(store: Store) -> None:
    with results.hold(store):
        taker = foreign(store, ttl=60)
    assert results.read_lease(store) == taker


def test_a_lease_that_vanished_is_lost(store: Store) -> None:
    lost = threading.Event()
    with results.hold(store, ttl=0.4, on_lost=lost.set):
        store.delete(KEY)
        assert lost.wait(10)
    assert results.read_lease(store) is None


def test_a_short_breakdown_of_the_store_is_borne(store: Store) -> None:
    flaky = Unreachable(store)
    lost = threading.Event()
    with results.hold(flaky, ttl=2.0, on_lost=lost.set) as lease:
        flaky.down = True
        time.sleep(0.9)
        flaky.down = False
        before = results.read_lease(store)
        time.sleep(1.0)
        assert results.read_lease(store) != before, "it is renewed again"
        assert not lost.is_set() and not lease.lost


def test_a_renewal_whose_answer_was_lost_is_no_loss(store: Store) -> None:
    flaky = Unreachable(store)
    lost = threading.Event()
    with results.hold(flaky, ttl=1.0, on_lost=lost.set) as lease:
        flaky.unheard = True
        time.sleep(1.2)
        assert not flaky.unheard and not lost.is_set() and not lease.lost


def test_a_long_breakdown_of_the_store_ends_the_run(store: Store) -> None:
    flaky = Unreachable(store)
    lost = threading.Event()
    with pytest.raises(ZeroDivisionError), results.hold(flaky, ttl=0.4, on_lost=lost.set):
        flaky.down = True
        assert lost.wait(10)
        raise ZeroDivisionError  # what ends the run is heard of, not that the lease could not be given back
