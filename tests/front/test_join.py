"""A run joins the cluster that RAY_ADDRESS names, and leaves it as it was."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import promql
import psutil
import pyarrow.dataset as ds
import pytest
import ray.util
from front.conftest import read_rows, replicas, write_rows
from front.heads import PROGRAMS, TOKEN, running
from infra.test_observation import named, of_runs
from ports import free_ports
from prometheus_client.parser import text_string_to_metric_families

pytestmark = [pytest.mark.cluster, pytest.mark.long]


@dataclass(frozen=True, slots=True)
class Head:
    """A Ray head: where it listens, and the process that its others descend from."""

    address: str
    process: int
    metrics: int  # port of the exporter


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """The address of a Ray head in processes of its own."""
    port, metrics = free_ports(2)
    command = [str(PROGRAMS / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
    command += ["--include-dashboard=false", "--disable-usage-stats", f"--metrics-export-port={metrics}"]
    with running(command, os.environ | TOKEN) as process:
        until = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex((ray.util.get_node_ip_address(), port)) == 0:
                    break
            assert process.poll() is None and time.monotonic() < until, "the head did not come up"
            time.sleep(0.2)
        yield Head(f"{ray.util.get_node_ip_address()}:{port}", process.pid, metrics)


def test_no_cluster_at_the_address(collection: Path, tmp_path: Path) -> None:
    command = ["annotate", "--manifest", str(collection), "--output", str(tmp_path / "o"), "--task", "ocr", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "paliscribe", *command],
        env=os.environ | {"RAY_ADDRESS": "127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("paliscribe: no Ray cluster at 127.0.0.1:9")
    assert "Traceback" not in done.stderr


def exported(head: Head, batch: int, live: int) -> None:
    """Wait until Ray's exporter shows what has been answered, by priority, and that nothing is left."""

    def total(name: str, **labels: str) -> float:
        found = [family for family in families if family.name in (name, f"ray_{name}")]
        assert len(found) == 1, (name, [family.name for family in families if "paliscribe" in family.name])
        return sum(s.value for s in found[0].samples if labels.items() <= s.labels.items())

    until = time.monotonic() + 60
    while True:
        text = httpx.get(f"http://127.0.0.1:{head.metrics}/metrics", timeout=10).text
        families = list(text_string_to_metric_families(text))
        with contextlib.suppress(AssertionError):
            calls = total("paliscribe_calls", path="/v1/annotate/upload", status="200")
            if min(calls, total("paliscribe_answers", priority="online", outcome="ok")) >= live:
                break  # gateway and replicas report each at its own times
        assert time.monotonic() < until, [line for line in text.splitlines() if "paliscribe" in line]
        time.sleep(1)
    assert total("paliscribe_calls", path="/v1/annotate/upload", status="200") == live
    assert total("paliscribe_answers", priority="online") == live
    assert total("paliscribe_answers", priority="batch", outcome="ok") == batch
    until = time.monotonic() + 30  # Ray's own come when each of its processes has reported
    while problems := promql.missing(named(), promql.shown(text)):
        assert time.monotonic() < until, f"the dashboard or the alerts name what is not exported: {problems}"
        time.sleep(1)
        text = httpx.get(f"http://127.0.0.1:{head.metrics}/metrics", timeout=10).text
    renamed = promql.uses("sum by (priority) (rate(ray_paliscribe_anwsers_total[5m]))")
    assert promql.missing(renamed, promql.shown(text)) == ["no metric ray_paliscribe_anwsers_total"]


def test_a_batch_and_live_calls_share_replicas(head: Head, collection: Path, tmp_path: Path) -> None:
    environment = os.environ | TOKEN | {"RAY_ADDRESS": head.address}
    [port] = free_ports(1)
    words = [sys.executable, "-m", "paliscribe"]
    (keys := tmp_path / "keys").write_text("a-key-of-the-test")
    command = [*words, "serve", "--port", str(port), "--keys", str(keys)]
    serving = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert serving.stdout is not None and "serving demo" in serving.stdout.readline()
        driver = psutil.Process(head.process)
        before = [replica.pid for replica in replicas("paliscribe:replica", driver)]
        rows = [row | {"id": f"{turn}-{row['id']}"} for turn in range(100) for row in read_rows(collection)]
        manifest = write_rows(collection.parent / "many.jsonl", rows)
        command = ["annotate", "--manifest", str(manifest), "--output", str(tmp_path / "o"), "--task", "ocr", "--quiet"]
        batch = subprocess.Popen([*words, *command], env=environment, stderr=subprocess.PIPE, text=True)
        picture = next((collection.parent / "images").iterdir()).read_bytes()
        bearer = {"Authorization": f"Bearer {keys.read_text()}"}
        live: list[dict[str, object]] = []
        while batch.poll() is None:
            form = {"files": {"image": picture}, "data": {"task": "caption en"}, "headers": bearer}
            found = httpx.post(f"http://127.0.0.1:{port}/v1/annotate/upload", timeout=60, **form)  # type: ignore[arg-type]
            assert found.status_code == 200, found.text
            live += found.json()["annotations"]
            assert not replicas("paliscribe-batch-", driver), "a second copy of the weights"
            time.sleep(0.05)
        assert batch.returncode == 0, batch.communicate()[1]
        shown = promql.shown(httpx.get(f"http://127.0.0.1:{head.metrics}/metrics", timeout=10).text)
        assert not promql.missing(of_runs(), shown), "the alerts on runs name what a driver does not export"
        assert [series["run"] for series in shown["ray_paliscribe_run_rows_left"]] == [str(tmp_path / "o")]
        assert len(live) > 20 and len({str(record["text"]) for record in live}) == 1
        assert ds.dataset(tmp_path / "o", format="parquet").count_rows() == len(rows) == 2400
        assert [replica.pid for replica in replicas("paliscribe:replica", driver)] == before and len(before) == 1
        markers = [json.loads(path.read_text()) for path in (tmp_path / "o/_run/done").iterdir()]
        assert {name for marker in markers for name in marker["replicas"]} == {record["replica"] for record in live}
        exported(head, len(rows), len(live))
        serving.terminate()
        assert serving.wait(60) == 0
    finally:
        serving.kill()
        serving.communicate()


def test_a_run_joins_and_leaves(head: Head, collection: Path, tmp_path: Path) -> None:
    command = ["annotate", "--manifest", str(collection), "--output", str(tmp_path / "o"), "--task", "ocr", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "paliscribe", *command],
        env=os.environ | TOKEN | {"RAY_ADDRESS": head.address},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert ds.dataset(tmp_path / "o", format="parquet").count_rows() == 24
    assert not replicas("paliscribe-batch-", psutil.Process(head.process)), "its pool is gone"
