"""Ray's own processes are killed and stopped in runs on several raylets; each run is resumed and compared."""

import random
import time
from collections.abc import Iterator

import pytest
from chaos.proxy import Proxy
from chaos.ray_kinds import Clustered, Run, on_a_cluster, ray_trials, ray_world
from seaweed import S3Server

from paliscribe.config import ModelSpec
from paliscribe.model.weights import locate
from paliscribe.pool.deploy import served_pool
from paliscribe.pool.ray_cluster import cluster
from paliscribe.storage import s3_client

pytestmark = [pytest.mark.cluster, pytest.mark.full]
KINDS = (  # the last one ends the cluster
    "driver on a cluster killed",
    "stage process killed",
    "replica killed",
    "Serve controller killed",
    "stage process stopped",
    "replica stopped",
    "raylet killed",
    "raylet stopped",
    "GCS killed",
)
SECONDS = 120


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server, proxy: Proxy) -> Iterator[Clustered]:
    s3_server.client().create_bucket(Bucket="ray-faults")
    environment = s3_server.environment() | {"AWS_ENDPOINT_URL": proxy.address}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment().items():
            patch.setenv(name, value)
        s3_client._clients.clear()
        world = ray_world(tmp_path_factory.mktemp("ray") / "world").at("s3://ray-faults", environment)
        with on_a_cluster(world, environment, proxy) as found:
            yield found
    s3_client._clients.clear()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_survives_or_is_resumed(clustered: Clustered, kind: str) -> None:
    trials = ray_trials(clustered)
    assert set(trials) == set(KINDS)
    for seed in range(3):  # the moment is drawn; a run may have ended before
        tally = trials[kind](random.Random(f"{kind} {seed}"))
        assert tally.good, tally.wrong
        if tally.faults:
            break
    assert tally.faults


def test_a_pool_is_found_while_serves_controller_is_restarted(
    clustered: Clustered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a run would start a pool of its own beside it, for which there may be no room."""
    nodes, spec = clustered.nodes, ModelSpec().resolved(gpu=False)
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    with cluster():
        for _ in range(2):
            [controller] = nodes.workers("ServeController")
            controller.kill()
            until = time.monotonic() + 8
            while time.monotonic() < until:
                found = served_pool(locate(spec).pin(spec))
                assert found is not None and found.application == "chaos"


def test_a_driver_that_has_lost_the_head_says_what_to_do(clustered: Clustered) -> None:
    """Ray's core ends it from native code."""
    clustered.world.begin("annotate")
    run = Run(clustered, "annotate", clustered.nodes)
    assert run.reaches(1)
    run.nodes.gcs.kill()
    run.driver.join(SECONDS)
    assert run.driver.exitcode == 1
    assert "has not answered for 10 s" in run.told() and "Run the same command again to resume" in run.told()
