"""`serve deploy infra/serve.yaml`, as an operator would on a running cluster."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from front.heads import Head, deploy, free_ports, ray_head, wait_for
from online.conftest import data_url, encoded

from paliscribe.demo.answers import scene_items
from paliscribe.demo.drawing import draw
from paliscribe.demo.sampling import sample_scene
from paliscribe.demo.scenes import TEST_SEEDS

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]


@pytest.fixture
def head() -> Iterator[Head]:
    """A Ray head in processes of its own."""
    with ray_head() as found:
        yield found


def test_the_endpoint_from_a_config_file(head: Head, tmp_path: Path) -> None:
    settings = yaml.safe_load((ROOT / "infra/serve.yaml").read_text())
    [port] = free_ports(1)
    settings["http_options"]["port"] = port
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump(settings))
    done = deploy(head.dashboard, config)
    assert done.returncode == 0, done.stderr
    address = f"http://127.0.0.1:{port}"
    wait_for(f"{address}/health")
    scene = sample_scene(TEST_SEEDS + 12)
    call = {"images": [data_url(encoded(draw(scene)))], "tasks": ["caption en"]}
    found = httpx.post(f"{address}/v1/annotate", json=call, timeout=60)
    assert found.status_code == 200, found.text
    [record] = found.json()["annotations"]
    assert record["text"] == next(item.answer for item in scene_items(scene) if item.task == "caption")
