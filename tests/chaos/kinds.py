"""Kinds of fault of which each costs some seconds: drivers that end, stores and disks that fail. One tally a trial."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from chaos.driver import MOMENTS, Point
from chaos.proxy import FAULTS, Proxy
from chaos.trial import PHASES, Tally, World
from seaweed import Seaweed

SHARE, MOST = 0.06, 25  # of the requests that get each fault of a store, and faults of a trial
DISK: Final = 8  # MiB


def at_points(world: World, phase: str, points: list[Point]) -> Tally:
    """End drivers at these points, one after the other, then resume. A point that is not reached is no fault."""
    tally, died = Tally(), None
    world.begin(phase)
    for point in points:
        code, said = world.run(world.order(phase, point=point))
        if code is None:
            tally.faults += 1
            died = time.monotonic()
        elif code != 0:
            tally.wrong.append(f"{phase}, {point}: ended with {code}: {said}")
    world.resume(phase, tally, died)
    return tally


def named_points(world: World, drawn: random.Random) -> Tally:
    """One to four ends at points that are drawn: each step of a phase is as likely, whatever its number of writes."""
    phase = drawn.choice(PHASES)
    steps = world.steps[phase]
    chosen = [drawn.choice(list(steps)) for _ in range(drawn.randint(1, 4))]
    points = [Point(step, drawn.randint(1, steps[step]), drawn.choice(MOMENTS)) for step in chosen]
    return at_points(world, phase, points)


def any_moment(world: World, drawn: random.Random) -> Tally:
    """`kill -9` at moments that are drawn, wherever the driver is."""
    phase, tally, died = drawn.choice(PHASES), Tally(), None
    world.begin(phase)
    for _ in range(drawn.randint(1, 4)):
        process = world.start(world.order(phase))
        process.join(drawn.uniform(0.1, 1.0) * world.seconds[phase])
        if process.exitcode is None:
            process.kill()
            process.join()
            died = time.monotonic()
            tally.faults += 1
        else:
            check_end(tally, *world.ended(process))
    world.resume(phase, tally, died)
    return tally


def store_faults(world: World, drawn: random.Random, proxy: Proxy) -> Tally:
    """Requests to the store that fail in every way. The run waits for it, or ends and is resumed."""
    phase, tally = drawn.choice(PHASES), Tally()
    world.begin(phase)
    proxy.disturb(drawn.random(), dict.fromkeys(FAULTS, SHARE), MOST)
    try:
        check_end(tally, *world.run(world.order(phase)))
    finally:
        tally.faults = proxy.given.total()
        since = proxy.last
        proxy.disturb(0, {}, 0)
    world.resume(phase, tally, since)
    return tally


def expired_credentials(world: World, drawn: random.Random, proxy: Proxy) -> Tally:
    """Credentials that end in the middle of a run: it ends with one line, and is resumed with new ones."""
    phase, tally = drawn.choice(PHASES), Tally()
    world.begin(phase)
    proxy.disturb(0, {}, 0)
    proxy.expires_in = drawn.randint(1, 80)
    try:
        code, said = world.run(world.order(phase))
    finally:
        is_expired, since = proxy.expired, proxy.last
        proxy.expires_in, proxy.expired = -1, False
    check_end(tally, code, said)
    if is_expired and not (code == 0 or "expired" in said or "access denied" in said):  # HEAD has no words
        tally.wrong.append(f"{phase}: ended with {code}: {said}")
    tally.faults = int(is_expired)
    world.resume(phase, tally, since if is_expired else None)
    return tally


def store_restart(world: World, drawn: random.Random, seaweed: Seaweed) -> Tally:
    """The store is killed, and comes back with what it has: the run waits."""
    phase, tally = drawn.choice(PHASES), Tally()
    world.begin(phase)
    process = world.start(world.order(phase, pause=0.1))
    process.join(drawn.uniform(0.1, 1.0) * world.seconds[phase])
    tally.faults = 1
    seaweed.kill()
    time.sleep(drawn.uniform(0, 2))
    seaweed.start()
    assert seaweed.is_up()
    since = time.monotonic()
    process.join(120)
    check_end(tally, *world.ended(process))
    world.resume(phase, tally, since)
    return tally


def full_disk(world: World, drawn: random.Random, disk: Path) -> Tally:
    """The disk is filled in the middle of a run: it ends with one line, and is resumed when there is space."""
    filler = disk / "filler"

    def fill() -> bool:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        return True

    return _disturbed_disk(world, drawn, fill, filler.unlink)


def read_only_disk(world: World, drawn: random.Random, disk: Path) -> Tally:
    """The disk becomes read-only in the middle of a run: it ends with one line, and is resumed when it is not."""

    def remount(mode: str) -> Callable[[], bool]:
        command = ["mount", "-o", f"remount,{mode}", str(disk)]
        return lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0

    return _disturbed_disk(world, drawn, remount("ro"), remount("rw"))


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A disk of some MiB, or None if this process may not mount one."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs"]
    if os.geteuid() or subprocess.run(["mount", *options, folder], capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _disturbed_disk(
    world: World, drawn: random.Random, break_it: Callable[[], bool], mend: Callable[[], object]
) -> Tally:
    """At a write that is drawn, before which the driver has stopped."""
    phase, tally = drawn.choice(PHASES), Tally()
    world.begin(phase)
    step = drawn.choice(list(world.steps[phase]))
    point = Point(step, drawn.randint(1, world.steps[phase][step]), "before", signal.SIGSTOP)
    process = world.started_and_stopped(world.order(phase, point=point))
    try:
        while process.exitcode is None and process.pid is not None:
            tally.faults = int(break_it())
            os.kill(process.pid, signal.SIGCONT)
            if tally.faults:
                break
            time.sleep(0.01)  # a thread of the driver had a file open
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.kill(process.pid, signal.SIGSTOP)
        process.join(60)
        code, said = world.ended(process)
    finally:
        mend()
    check_end(tally, code, said)
    world.resume(phase, tally, time.monotonic())
    return tally


def check_end(tally: Tally, code: int | None, said: str) -> None:
    """A driver that was not killed ends well, or with one line."""
    if code not in (0, 1, 2) or len(said.splitlines()) > 1 or len(said) > 500:
        tally.wrong.append(f"ended with {code}: {said}")
