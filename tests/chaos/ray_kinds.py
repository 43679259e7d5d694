"""Faults of Ray's own processes in runs on a cluster: they are killed, or stopped for a while."""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Final

import psutil
from chaos.kinds import check_end
from chaos.notes import read
from chaos.proxy import FAULTS, Proxy
from chaos.ray_nodes import Nodes, is_alive
from chaos.trial import PHASES, Tally, World

from paliscribe.storage import Store, open_store

PAUSE: Final = 1.0  # seconds that a replica takes for a call of two rows
SHARE, MOST = 0.005, 4  # of the requests to the store that get each fault of it meanwhile, and faults of a trial
SECONDS: Final = 300.0  # a driver that has not ended by then hangs
START: Final = 12.0  # seconds within which a driver on a cluster begins to annotate
STOPPED: Final = 15.0  # seconds for which a process is stopped at most
SETTINGS: Final = {  # of the jobs
    "fetch": {"workers": 2, "cpus_per_worker": 0.6},  # a stage process a node, beside a replica and a part
    "stall_timeout": 150,
}
KILLED: Final = {  # kind -> how processes that are killed are named
    "stage process killed": "MapWorker",
    "replica killed": "ServeReplica",
    "Serve controller killed": "ServeController",
    "raylet killed": "raylet",
}
HUNG: Final = {"stage process stopped": "MapWorker", "replica stopped": "ServeReplica", "raylet stopped": "raylet"}


class Clustered:
    """Disturbed runs in an object store, on a cluster that trials share until a fault ends it.

    `world`: with `SETTINGS`, and disturbed runs in the store. `environment`: settings of its processes.
    """

    def __init__(self, world: World, environment: Mapping[str, str], proxy: Proxy) -> None:
        self.world, self.proxy = world, proxy
        self._environment = dict(environment)
        self._nodes: Nodes | None = None

    @property
    def nodes(self) -> Nodes:
        """The cluster: whole, or a new one."""
        if self._nodes is not None and not self._nodes.whole():
            self.end()
        if self._nodes is None:
            self._nodes = Nodes(str(self.world.log), PAUSE, self._environment)
        return self._nodes

    def end(self) -> None:
        """End the cluster."""
        if self._nodes is not None:
            self._nodes.end()
            self._nodes = None


class Run:
    """A driver on the cluster, and what its run has written so far."""

    def __init__(self, clustered: Clustered, phase: str, nodes: Nodes) -> None:
        self.world, self.phase, self.nodes = clustered.world, phase, nodes
        self.store: Store = open_store(self.world.output)
        self._before = self.written()
        self.driver: ForkServerProcess = self.world.start(self.world.order(phase, ray=nodes.address))

    def written(self) -> set[str]:
        """What is committed and published, by its markers and its end."""
        found = {each.key for each in self.store.list("_run/") if "/done/" in each.key or "/parts/" in each.key}
        return found | {name for name in ("_SUCCESS", "_summary.json") if self.store.exists(name)}

    def reaches(self, committed: int) -> bool:
        """Wait until so many shards are committed; False if the driver has ended."""
        until = time.monotonic() + SECONDS
        while self.driver.exitcode is None and time.monotonic() < until:
            if len([key for key in self.written() - self._before if "/done/" in key]) >= committed:
                return True
            time.sleep(0.1)
        return False

    def ends(self, since: float | None, known: set[str]) -> float | None:
        """Wait for the driver's end, `SECONDS` at most; seconds from a fault until something more is written."""
        until, found = time.monotonic() + SECONDS, None
        while self.driver.exitcode is None and time.monotonic() < until:
            if since is not None and found is None and self.written() - known:
                found = time.monotonic() - since
            time.sleep(0.1)
        if since is not None and found is None and self.written() - known:
            found = time.monotonic() - since
        return found

    def told(self) -> str:
        """What the driver told the user beside its progress."""
        return " / ".join(note["told"] for note in read(self.world.log) if "told" in note)

    def markers(self) -> dict[str, bytes]:
        """The markers of shards that are committed."""
        return {key: self.store.get(key) for key in self.written() if "/done/" in key}


Fault = Callable[[Run, random.Random], int]  # returns how many processes it has hit


def trial(clustered: Clustered, drawn: random.Random, fault: Fault, phase: str = "") -> Tally:
    """A fault at a moment that is drawn; then the run is resumed if it has ended, and compared."""
    tally, world = Tally(), clustered.world
    phase = phase or drawn.choice(PHASES)
    world.begin(phase)
    run = Run(clustered, phase, clustered.nodes)
    clustered.proxy.disturb(drawn.random(), dict.fromkeys(FAULTS, SHARE), MOST)
    try:
        shards = world.steps[phase]["the commit of a shard"]
        if drawn.random() < 0.25:
            run.driver.join(drawn.uniform(0, START))
        elif run.reaches(drawn.randrange(shards)):
            run.driver.join(drawn.uniform(0, 2 * PAUSE))
        known, since = run.written(), None
        if run.driver.exitcode is None:
            tally.faults = fault(run, drawn)
            since = time.monotonic() if tally.faults else None
        recovered = run.ends(since, known)
    finally:
        clustered.proxy.disturb(0, {}, 0)
    code, said = world.ended(run.driver)
    tally.ended.append(said or ("finished" if code == 0 else f"exit code {run.driver.exitcode}; {run.told()}"))
    if code is not None:
        check_end(tally, code, said)
    elif fault not in MAY_END:
        tally.wrong.append(f"{phase}: the driver ended without a word, with exit code {run.driver.exitcode}")
    before = run.markers()
    if code != 0:
        again = _resume(clustered, phase, tally, since, known)
        recovered = again if recovered is None else recovered
    if recovered is not None:
        tally.recovered.append(recovered)
    changed = sorted(key for key, body in before.items() if run.store.get(key) != body)
    if changed:
        tally.wrong.append(f"{phase}: committed again: {changed}")
    world.check(phase, tally)
    return tally


def _resume(clustered: Clustered, phase: str, tally: Tally, since: float | None, known: set[str]) -> float | None:
    """Resume a run, on another cluster if a fault has ended this one; see `Run.ends`."""
    run = Run(clustered, phase, clustered.nodes)
    recovered = run.ends(since, known)
    code, said = clustered.world.ended(run.driver)
    tally.resumed += 1
    if code != 0:
        tally.wrong.append(f"{phase}: the resumed driver ended with {code}: {said}")
    return recovered


def driver_killed(run: Run, drawn: random.Random) -> int:
    """The driver; what it had on the cluster ends with it."""
    del drawn
    run.driver.kill()
    run.driver.join()
    return 1


def gcs_killed(run: Run, drawn: random.Random) -> int:
    """The control plane, with which this cluster ends."""
    del drawn
    run.nodes.gcs.kill()
    return 1


MAY_END: Final = (driver_killed, gcs_killed)  # Ray's core ends a driver that has lost its control plane


def killed(run: Run, drawn: random.Random, title: str, most: int) -> int:
    """Processes of a kind, one to `most`, one after the other."""
    count = 0
    for _ in range(drawn.randint(1, most)):
        if (process := _victim(run, drawn, title)) is not None:
            process.kill()
            count += 1
            run.driver.join(drawn.uniform(0.5, 4))
    return count


def stopped(run: Run, drawn: random.Random, title: str) -> int:
    """A process of a kind, for a while: a hang, not a death."""
    process = _victim(run, drawn, title)
    if process is None:
        return 0
    process.suspend()
    try:
        time.sleep(drawn.uniform(1, STOPPED))
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
    return 1


def _victim(run: Run, drawn: random.Random, title: str) -> psutil.Process | None:
    """A process of a kind, as soon as there is one; None if the driver ends before."""
    while run.driver.exitcode is None:
        raylets = [each for each in run.nodes.raylets if is_alive(each)]
        if found := raylets if title == "raylet" else run.nodes.workers(title):
            return drawn.choice(found)
        time.sleep(0.1)
    return None


def ray_trials(clustered: Clustered) -> Mapping[str, Callable[[random.Random], Tally]]:
    """The kinds of fault of Ray's processes."""
    faults: dict[str, Fault] = {"driver on a cluster killed": driver_killed, "GCS killed": gcs_killed}
    for name, title in KILLED.items():
        faults[name] = partial(killed, title=title, most=1 if title == "raylet" else 3)
    for name, title in HUNG.items():
        faults[name] = partial(stopped, title=title)
    return {name: partial(_trial, clustered, fault=fault) for name, fault in faults.items()}


def _trial(clustered: Clustered, drawn: random.Random, *, fault: Fault) -> Tally:
    return trial(clustered, drawn, fault)


@contextlib.contextmanager
def on_a_cluster(world: World, environment: Mapping[str, str], proxy: Proxy) -> Iterator[Clustered]:
    """Trials on a cluster that ends with the block. See `Clustered`."""
    clustered = Clustered(world, environment, proxy)
    try:
        yield clustered
    finally:
        clustered.end()


def ray_world(folder: Path) -> World:
    """A world whose jobs fit the cluster."""
    folder.mkdir()
    return World(folder, SETTINGS)
