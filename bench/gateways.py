"""Live calls through one, two and four gateways over a scripted backend, which answers at once without a model.

    python -m bench.gateways [--gateways 1 2 4] [--calls 600] [--together 32] [--images 64] [--rounds 3] [--rate 1e6]
                             [--json]

For each number of gateways in turn, and again in each round: chat completions with a picture, `--together` at a time,
from another process; then the same calls one after another while a run of `--images` images under four tasks goes
through a real replica on the same machine. CPU time is that of the gateways and of Serve's proxy, for each call of the
first phase. `--rate`: a rate limit that is never reached, so that its cost is measured too.
"""

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import psutil

from bench.machine import machine
from bench.serve import APPLICATION, finish, run, run_rate, show, start
from paliscribe.records import Prediction, Request

TITLES = {"gateways": f"ray::ServeReplica:{APPLICATION}:gateway", "proxy": "ray::ProxyActor"}


class Scripted:
    """A backend that answers at once."""

    async def predict(self, requests: Sequence[Request]) -> list[Prediction]:
        """The same answer for each request."""
        return [Prediction(request.id, "fine", (1,), (-0.1,), "stop", ends=(4,)) for request in requests]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gateways", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--calls", type=int, default=600)
    parser.add_argument("--together", type=int, default=32)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options)
    for count, found in figures.items():
        print(
            f"{count} gateways:", ", ".join(f"{name} {statistics.median(values):.4g}" for name, values in found.items())
        )
    described = machine()
    print(f"\n{described['processor']}, {described['cores']} cores, commit {described['commit']}; medians of rounds")
    if options.json:
        print(json.dumps({"machine": described, "figures": figures}))


def measure(options: argparse.Namespace) -> dict[int, dict[str, list[float]]]:
    """Figures of every round by number of gateways."""
    from ray import serve

    from paliscribe.config import ModelSpec, PoolConfig
    from paliscribe.demo.collection import write_collection
    from paliscribe.model.weights import locate
    from paliscribe.online.checks import check_port
    from paliscribe.pool.deploy import start_pool
    from paliscribe.pool.ray_cluster import cluster

    port = check_port("127.0.0.1", 0)
    found: dict[int, dict[str, list[float]]] = {count: defaultdict(list) for count in options.gateways}
    with tempfile.TemporaryDirectory() as name, cluster():
        manifest = write_collection(Path(name) / "collection", options.images, seed=1)
        http = {"host": "127.0.0.1", "port": port, "request_timeout_s": None}
        serve.start(proxy_location="HeadOnly", http_options=http, logging_config={"log_level": "WARNING"})
        spec = ModelSpec().resolved(gpu=False)
        start_pool(locate(spec).pin(spec), PoolConfig(replicas=1, threads=1), "served-demo")
        for number in range(options.rounds):
            for count in options.gateways:
                deploy(count, options.rate)
                output = Path(name) / f"{number}-{count}"
                for figure, value in phases(f"http://127.0.0.1:{port}", options, manifest, output).items():
                    found[count][figure].append(value)
                serve.delete(APPLICATION)
    return found


def deploy(count: int, rate: float | None) -> None:
    """The gateways in front of the scripted backend."""
    from ray import serve

    from paliscribe.config import ServeConfig
    from paliscribe.model.abilities import Abilities
    from paliscribe.online.application import counts, gateways
    from paliscribe.online.gateway import ModelInfo
    from paliscribe.online.keys import KeySource
    from paliscribe.pool.deploy import run_application

    config = ServeConfig(gateways=count, rate=rate)
    options = {"max_ongoing_requests": 1000, "ray_actor_options": {"num_cpus": 0}}
    model = serve.deployment(name="scripted", logging_config={"enable_access_log": False}, **options)(Scripted).bind()
    infos = [ModelInfo("demo", "1", 112, Abilities())]
    bound = gateways(config, gpus=False).bind(config, infos, KeySource(), None, counts(config), model)
    run_application(bound, APPLICATION, "/")


def phases(address: str, options: argparse.Namespace, manifest: Path, output: Path) -> dict[str, float]:
    """Figures of calls together, and of calls one after another beside a run."""
    run(address, 2 * options.together, options.together)  # warm-up
    before = {name: cpu_seconds(title) for name, title in TITLES.items()}
    together = show("together", run(address, options.calls, options.together))
    cpu = {
        f"{name}_cpu_ms": (cpu_seconds(title) - before[name]) / options.calls * 1e3 for name, title in TITLES.items()
    }
    process = start(address, 0, 1)
    rate = run_rate(manifest, output)
    assert process.stdin is not None
    process.stdin.close()  # the process ends when its input ends
    beside = show("beside a run", json.loads(finish(process)))
    figures = {"calls_per_second": together["per_second"], "p99_ms": together["p99_ms"]} | cpu
    return figures | {"p50_beside_ms": beside["p50_ms"], "p99_beside_ms": beside["p99_ms"], "run_per_second": rate}


def cpu_seconds(title: str) -> float:
    """CPU time of this process's descendants whose title begins so."""
    found = psutil.Process().children(recursive=True)
    times = [each.cpu_times() for each in found if "".join(each.cmdline()[:1]).startswith(title)]
    return sum(each.user + each.system for each in times)


if __name__ == "__main__":
    main()
