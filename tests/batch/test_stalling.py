"""What a run without progress says, and how it ends, over a cluster that is described in words."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from paliscribe import results
from paliscribe.api.display import line
from paliscribe.batch import stage_notes, stalling
from paliscribe.batch.progress import Doing, Progress
from paliscribe.batch.session import repeating, session
from paliscribe.batch.stalling import Stall
from paliscribe.errors import RunError, Stopped, TemporaryError
from paliscribe.results import lease
from paliscribe.storage import open_store


def ends(stall: Stall, ended: list[str]) -> bool:
    stall.look()
    return bool(ended)


def until(reached: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_run_without_progress_ends_with_what_it_waits_for(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    begun = time.monotonic()
    with pytest.raises(TemporaryError) as raised, session(store, lambda progress: None) as progress:
        stall = Stall(progress, 1.0, lambda: "0 of 4 replicas of m are ready")
        with repeating(stall.look):
            time.sleep(20)
    assert time.monotonic() - begun < 10
    words = str(raised.value)
    assert words.startswith("no progress for ") and "\n" not in words
    assert "0 of 4 replicas of m are ready; ended by stall_timeout, run the same command again to resume" in words
    assert raised.value.exit_code == 1 and results.read_lease(store) is None


def test_a_signal_is_still_a_stop(tmp_path: Path) -> None:
    with pytest.raises(Stopped), session(open_store(str(tmp_path)), lambda progress: None):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        time.sleep(10)


@pytest.mark.parametrize("what", ["committed", "open", "published", "ready"])
def test_each_step_forward_counts(what: str) -> None:
    progress, ended = Progress(), list[str]()
    progress.end = ended.append
    stall, end = Stall(progress, 0.4, lambda: "nothing"), time.monotonic() + 1.2
    while time.monotonic() < end:
        if what == "committed":
            progress.committed(1, 1, {"ok": 1}, {})
        elif what == "open":
            progress.rows_open += 1
        elif what == "published":
            progress.publishing = 1 - progress.publishing
        else:
            progress.annotating_since = None if progress.annotating_since else time.monotonic()
        stall.look()
        time.sleep(0.05)
    assert not ended and not progress.stalled
    until(lambda: ends(stall, ended))
    assert progress.stalled.endswith("nothing") and progress.stalled in line(progress)


def test_a_long_call_is_no_stall_while_engines_work() -> None:
    progress, ended, steps = Progress(), list[str](), iter(range(10**9))
    progress.end = ended.append
    working = [True]
    stall = Stall(progress, 0.8, lambda: "answers", lambda: float(next(steps)) if working[0] else 7.0)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        stall.look()
        time.sleep(0.02)
    assert not ended
    working[0] = False
    until(lambda: ends(stall, ended))


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalling, "ANSWER", 0.1)
    progress, ended, hung = Progress(), list[str](), threading.Event()
    progress.end = ended.append
    stall = Stall(progress, 0.6, lambda: str(hung.wait(30)))
    until(lambda: ends(stall, ended))
    hung.set()
    assert "the Ray cluster does not answer" in ended[0]


def test_without_a_timeout_a_run_says_what_it_waits_for_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalling, "TOLD_AFTER", 0.1)
    progress, ended = Progress(stage="annotating"), list[str]()
    progress.end = ended.append
    stall, end = Stall(progress, None, lambda: "a node with 1 GPU"), time.monotonic() + 0.6
    while time.monotonic() < end:
        stall.look()
        time.sleep(0.02)
    assert not ended and line(progress).startswith("annotating · no progress for ")
    assert progress.stalled.endswith(" s: a node with 1 GPU")
    progress.rows_open = 5
    stall.look()
    assert progress.stalled == "", "it goes on"


def test_a_stage_process_that_is_stopped_is_told_from_one_that_waits() -> None:
    at = [
        stage_notes._Report("stage process 1 on a", Doing(7, "shard 7 waits for the answers to 64 requests"), 10, 699),
        stage_notes._Report("stage process 2 on b", Doing(9, "shard 9 is written"), 90, 100),
        stage_notes._Report("stage process 3 on c", Doing(), 5, 5),
    ]
    assert stage_notes._longest(at, 700) == (
        "stage process 2 on b has said nothing for 600 s (stopped, lost or cut off); it was at: shard 9 is written"
    )
    assert stage_notes._longest(at[:1], 700) == (
        "stage process 1 on a has been at this for 690 s: shard 7 waits for the answers to 64 requests"
    )
    assert stage_notes._longest(at[2:], 700) == ""


def test_the_lease_says_what_a_run_waits_for(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    words = [""]
    with results.hold(store, ttl=0.4, saying=lambda: words[0]):
        assert b"waits" not in store.get(lease.KEY), "older versions refuse fields that they do not know"
        words[0] = "no progress for 3 min: a node with 1 GPU"
        until(lambda: (found := results.read_lease(store)) and found.waits == words[0])
        words[0] = ""
        until(lambda: (found := results.read_lease(store)) and not found.waits)


def test_a_failure_is_no_stall(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="other"), session(open_store(str(tmp_path)), lambda progress: None):
        raise RunError("other")
