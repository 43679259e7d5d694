"""One model in two pools of one endpoint, and runs that say which of them answers."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from front.conftest import Paliscribe
from online.conftest import data_url, encoded
from ray import serve

from paliscribe.config import ModelSpec, parse_serve
from paliscribe.demo.drawing import draw
from paliscribe.demo.sampling import sample_scene
from paliscribe.demo.scenes import TEST_SEEDS
from paliscribe.model.weights import locate
from paliscribe.online.application import application
from paliscribe.pool.client import PoolClient
from paliscribe.pool.deploy import run_application, served_pool

pytestmark = [pytest.mark.cluster, pytest.mark.long]
SPEC = locate(ModelSpec()).pin(ModelSpec().resolved(gpu=False))
SMALL = {"threads": 1, "cpus_per_replica": 0.1, "slots": 8}
MODELS = [{"pool": SMALL | {"name": "big"}}, {"name": "little one", "pool": SMALL | {"name": "small"}}]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint of two pools of the demo model, and the replica of each."""

    address: str
    big: str
    small: str


@pytest.fixture(scope="module")
def endpoint(served: str) -> Iterator[Endpoint]:
    run_application(application(parse_serve({"models": MODELS})), "two-pools", "/")
    names = []
    for name in ("big", "small"):
        pool = served_pool(SPEC, name)
        assert pool is not None and pool.application == "two-pools"
        names.append(PoolClient(pool).facts().replica)
    yield Endpoint(served, *names)
    serve.delete("two-pools")


@pytest.fixture
def job(collection: Path, tmp_path: Path) -> Path:
    file = tmp_path / "job.yaml"
    settings = {"manifest": str(collection), "tasks": ["ocr"], "output": str(tmp_path / "o"), "shard_rows": 8}
    file.write_text(json.dumps(settings))
    return file


def asking(job: Path, **settings: object) -> Path:
    job.write_text(json.dumps(json.loads(job.read_text()) | settings))
    return job


@pytest.mark.parametrize("name", ["big", "small"])
def test_a_run_is_answered_by_the_pool_that_it_names(
    endpoint: Endpoint, job: Path, tmp_path: Path, paliscribe: Paliscribe, name: str
) -> None:
    said = paliscribe("annotate", asking(job, pool={"name": name}), "--json")
    assert said.code == 0 and said.json["ok"] == 24, said.err
    markers = [json.loads(path.read_text()) for path in (tmp_path / "o/_run/done").iterdir()]
    assert len(markers) == 3
    assert {replica for marker in markers for replica in marker["replicas"]} == {getattr(endpoint, name)}


def test_a_run_without_a_name_takes_any(endpoint: Endpoint, job: Path, tmp_path: Path, paliscribe: Paliscribe) -> None:
    assert paliscribe("annotate", job, "--quiet").code == 0
    assert not [name for name in serve.status().applications if name.startswith("paliscribe-batch-")]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pool": {"name": "huge"}}, ["no pool 'huge' of demo in float32", "pools of this model", "'big', 'small'"]),
        (
            {"pool": {"name": "big"}, "model": {"id": "demo", "precision": "bfloat16"}},
            ["no pool 'big' of demo in bfloat16", "no pool of this model is served", "precisions", "'big', 'small'"],
        ),
        ({"pool": {"name": "big", "replicas": 2}}, ["that pool exists already", "remove replicas"]),
    ],
)
def test_a_pool_that_nobody_serves_is_refused(
    endpoint: Endpoint, job: Path, tmp_path: Path, paliscribe: Paliscribe, settings: dict[str, object], words: list[str]
) -> None:
    before = set(serve.status().applications)
    said = paliscribe("annotate", asking(job, **settings), "--quiet")
    assert said.code == 2 and len(said.err.strip().splitlines()) == 1, said.err
    assert all(word in said.err for word in words), said.err
    assert set(serve.status().applications) == before and not (tmp_path / "o/_run/run.json").exists()


def test_clients_call_pools_by_the_names_of_models(endpoint: Endpoint) -> None:
    scene = sample_scene(TEST_SEEDS + 12)
    call = {"images": [data_url(encoded(draw(scene)))] * 3, "tasks": ["caption en"]}
    for model, answers in (("demo:big", endpoint.big), ("little one", endpoint.small), (None, endpoint.big)):
        found = httpx.post(f"{endpoint.address}/v1/annotate", json=call | {"model": model}, timeout=60)
        assert found.status_code == 200, found.text
        assert {record["replica"] for record in found.json()["annotations"]} == {answers}, model
