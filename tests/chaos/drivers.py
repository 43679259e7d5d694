"""Two drivers at once on one output: stopped and continued while they hold the lease, with clocks that jump."""

import contextlib
import json
import os
import random
import signal
import time
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from chaos.driver import Point
from chaos.trial import PHASES, RETRIES, Tally, World

TTL = 0.6  # seconds, of a lease
LOCKED = "a process holds its lock and does not go on"  # stopped while it renewed its lease
SECONDS = 60.0  # until a run that two drivers hinder is given up


def two_drivers(world: World, drawn: random.Random) -> Tally:
    """Two drivers, each started again when it is refused, until one has finished the run. Local outputs only.

    The holder of the lease is stopped for up to three times its `ttl` and continued, again and again; each stop is a
    fault. Each driver is as if on a machine of its own, with a clock of its own; the times of the lease's file jump.
    """
    phase, tally = drawn.choice(PHASES), Tally()
    world.begin(phase)
    running: dict[int, ForkServerProcess] = {}
    is_done = False
    until = time.monotonic() + SECONDS
    while not is_done and time.monotonic() < until:
        for number in (0, 1):
            process = running.get(number)
            if process is not None and process.exitcode is not None:
                is_done |= _checked(world, process, tally)
            if process is None or (process.exitcode is not None and not is_done):
                clock = drawn.randrange(1 << 30)
                settings = {"boot": f"machine {number}", "ttl": TTL, "clock": clock, "pause": drawn.uniform(0, 0.2)}
                running[number] = world.start(world.order(phase, **settings))
        time.sleep(drawn.uniform(0, 0.3))
        if (pid := _holder(Path(world.output))) is not None:
            tally.faults += _stopped(pid, drawn.uniform(0, 3 * TTL), Path(world.output), drawn)
    for process in running.values():
        process.join(SECONDS)
        _checked(world, process, tally)
    if not is_done:
        tally.wrong.append(f"{phase}: not finished after {SECONDS:.0f} s")
    world.resume(phase, tally, None, may_retry=phase in RETRIES, ttl=TTL)
    return tally


def overtaken(world: World, phase: str, point: Point) -> Tally:
    """A driver is stopped at a point until another one has taken its lease and finished the run; then it goes on."""
    tally = Tally()
    world.begin(phase)
    order = world.order(phase, boot="machine 0", ttl=TTL, point=replace(point, signal=signal.SIGSTOP))
    stopped = world.started_and_stopped(order)
    if stopped.exitcode is None and stopped.pid is not None:
        tally.faults = 1
        code, said = world.run(world.order(phase, boot="machine 1", ttl=TTL))
        if code != 0 and LOCKED not in said:
            tally.wrong.append(f"{phase}, {point}: the other driver ended with {code}: {said}")
        os.kill(stopped.pid, signal.SIGCONT)
        stopped.join(SECONDS)
    _checked(world, stopped, tally)
    world.resume(phase, tally, None, may_retry=phase in RETRIES, ttl=TTL)
    return tally


def _holder(output: Path) -> int | None:
    """The pid in the lease."""
    with contextlib.suppress(OSError, ValueError):
        return int(json.loads((output / "_run/lease.json").read_bytes())["pid"])
    return None


def _stopped(pid: int, seconds: float, output: Path, drawn: random.Random) -> int:
    """Stop a process for a time, in which the time of its lease's file jumps. The number of faults: 0 if it is gone."""
    try:
        os.kill(pid, signal.SIGSTOP)
    except ProcessLookupError:
        return 0
    try:
        moment = time.time() + drawn.uniform(-86_400, 86_400)
        with contextlib.suppress(OSError):
            os.utime(output / "_run/lease.json", (moment, moment))
        time.sleep(seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return 1


def _checked(world: World, process: ForkServerProcess, tally: Tally) -> bool:
    """Whether a driver has finished the run. It may also have ended with one line about the other one."""
    code, said = world.ended(process)
    is_other = (
        "another driver" in said
        or LOCKED in said
        or "retry was interrupted" in said
        or "append was interrupted" in said
    )
    if code != 0 and not (is_other and len(said.splitlines()) == 1):
        tally.wrong.append(f"a driver ended with {code}: {said}")
    return code == 0
