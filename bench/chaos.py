"""Faults in runs, at random for a given time: `python -m bench.chaos --minutes 30 --seed 1 [--ray] [--into FILE]`.

Drivers of small runs are killed and stopped, and their disk and object store fail, all without Ray; with `--ray`, Ray's
own processes are killed and stopped in runs on several raylets, which write into an object store. After each trial
the run is resumed and compared with an undisturbed one: published files byte for byte, every record once, and
`paliscribe verify`. Prints a row for each kind of fault. `re-work`: requests that were sent to the pool, over those of
undisturbed runs. `recovery`: seconds from a fault, or from the moment when a store or a disk works again, to the next
step that is written: median and longest. `--into` adds the counts to those in a file. The machinery is that of
`tests/chaos/`.
"""

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from chaos import drivers, kinds, ray_kinds
from chaos.proxy import Proxy, proxied
from chaos.trial import HEAD, Tally, World
from seaweed import Seaweed, served

from bench.machine import machine

Trial = Callable[[random.Random], Tally]
WEIGHTS = {  # kind -> how often it is tried, beside the others
    "driver killed at a named point": 6,
    "driver killed at any moment": 4,
    "driver killed at a named point, S3": 2,
    "two drivers, the lease holder stopped": 2,
    "disk full": 1,
    "disk read-only": 1,
    "requests to S3 fail": 1,
    "credentials end": 1,
    "S3 server killed and started": 1,
}
RAY_WEIGHTS = {
    "driver on a cluster killed": 3,
    "stage process killed": 3,
    "replica killed": 3,
    "Serve controller killed": 2,
    "raylet killed": 2,
    "stage process stopped": 2,
    "replica stopped": 2,
    "raylet stopped": 2,
    "GCS killed": 1,
}


@contextlib.contextmanager
def store(folder: Path) -> Iterator[tuple[Seaweed, Proxy, dict[str, str]]]:
    """An S3 server with a bucket `chaos`, a proxy to it, and the settings that lead to the proxy."""
    with (
        served(lambda: Path(tempfile.mkdtemp(dir=folder))) as seaweed,
        proxied(seaweed.server.endpoint) as proxy,
    ):
        os.environ.update(seaweed.server.environment())
        seaweed.server.client().create_bucket(Bucket="chaos")
        yield seaweed, proxy, seaweed.server.environment() | {"AWS_ENDPOINT_URL": proxy.address}


@contextlib.contextmanager
def ray_trials(folder: Path) -> Iterator[dict[str, Trial]]:
    """The kinds of fault of Ray's processes."""
    with store(folder) as (_, proxy, environment):
        world = ray_kinds.ray_world(folder / "world").at("s3://chaos", environment)
        with ray_kinds.on_a_cluster(world, environment, proxy) as clustered:
            yield dict(ray_kinds.ray_trials(clustered))


@contextlib.contextmanager
def trials(folder: Path) -> Iterator[dict[str, Trial]]:
    """The kinds of fault without Ray that can be tried here."""
    with contextlib.ExitStack() as opened:
        (folder / "world").mkdir()
        local = World(folder / "world")
        found: dict[str, Trial] = {
            "driver killed at a named point": partial(kinds.named_points, local),
            "driver killed at any moment": partial(kinds.any_moment, local),
            "two drivers, the lease holder stopped": partial(drivers.two_drivers, local),
        }
        if (disk := opened.enter_context(kinds.small_disk(folder / "disk"))) is not None:
            small = local.at(str(disk / "disturbed"))
            found["disk full"] = partial(kinds.full_disk, small, disk=disk)
            found["disk read-only"] = partial(kinds.read_only_disk, small, disk=disk)
        else:
            print("no small disk: only root may mount one")
        seaweed, proxy, environment = opened.enter_context(store(folder))
        stored = local.at("s3://chaos", environment)
        found["driver killed at a named point, S3"] = partial(kinds.named_points, stored)
        found["requests to S3 fail"] = partial(kinds.store_faults, stored, proxy=proxy)
        found["credentials end"] = partial(kinds.expired_credentials, stored, proxy=proxy)
        found["S3 server killed and started"] = partial(kinds.store_restart, stored, seaweed=seaweed)
        yield found


def run(minutes: float, seed: int, wanted: Sequence[str], tallies: dict[str, Tally], *, with_ray: bool) -> None:
    """Try kinds of fault, drawn by their weights, until the time is over; adds to the tallies."""
    weights = RAY_WEIGHTS if with_ray else WEIGHTS
    drawn, until = random.Random(seed), time.monotonic() + 60 * minutes
    with (
        tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder,
        (ray_trials if with_ray else trials)(Path(folder)) as known,
    ):
        names = [name for name in weights if name in known and (not wanted or name in wanted)]
        while time.monotonic() < until:
            [name] = drawn.choices(names, [weights[name] for name in names])
            number = drawn.randrange(1 << 30)
            tally = known[name](random.Random(number))
            for words in tally.wrong:
                print(f"{name}, seed {number}: {words}", flush=True)
            for words in tally.ended:
                print(f"{name}, seed {number}, {tally.faults} faults: the driver: {words}", flush=True)
            tallies.setdefault(name, Tally()).add(tally)


def read(path: Path | None) -> dict[str, Tally]:
    """The counts in a file."""
    if path is None or not path.exists():
        return {}
    return {name: Tally(**counts) for name, counts in json.loads(path.read_text()).items()}


def table(tallies: dict[str, Tally]) -> str:
    """The counts as a Markdown table."""
    whole = Tally()
    for tally in tallies.values():
        whole.add(tally)
    known = WEIGHTS | RAY_WEIGHTS
    names = [*(name for name in known if name in tallies), *(name for name in tallies if name not in known)]
    return "\n".join([HEAD, *(tallies[name].row(name) for name in names), whole.row("all")])


def main(arguments: Sequence[str] | None = None) -> int:
    """Disturb, print, and return 1 if a run was not as it would have been undisturbed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(WEIGHTS | RAY_WEIGHTS), default=[])
    parser.add_argument("--ray", action="store_true", help="faults of Ray's own processes, instead of those without")
    parser.add_argument("--into", type=Path)
    options = parser.parse_args(arguments)
    about: dict[str, Any] = machine()
    print(f"{about['processor']}, {about['cores']} cores, commit {about['commit']}", flush=True)
    tallies = read(options.into)
    try:
        run(options.minutes, options.seed, options.kinds, tallies, with_ray=options.ray)
    finally:
        if options.into is not None:
            options.into.write_text(json.dumps({name: asdict(tally) for name, tally in tallies.items()}))
        print(table(tallies))
    return 0 if all(tally.good for tally in tallies.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
