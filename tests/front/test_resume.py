"""Drivers that die, are stopped, or meet one another."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pyarrow.dataset as ds
import pytest
import ray
from front.conftest import TASKS, Paliscribe, hostile, published, read_rows, task_flags, workers, write_rows

from paliscribe.errors import Stopped
from paliscribe.signals import stop_on_signals

pytestmark = pytest.mark.cluster
SHARD_ROWS = "4"


@pytest.fixture(scope="module")
def manifest(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 rows over the collection's images: enough to be interrupted in the middle."""
    rows = []
    for turn in range(4):
        for row in read_rows(collection):
            rows.append(row | {"id": f"{turn}-{row['id']}", "image": str(collection.parent / row["image"])})
    return write_rows(tmp_path_factory.mktemp("resume") / "manifest.jsonl", rows)


def command(manifest: Path, output: Path) -> list[str | Path]:
    return ["annotate", "--manifest", manifest, "--output", output, "--shard-rows", SHARD_ROWS, *task_flags(*TASKS)]


def start(manifest: Path, output: Path, *flags: str, ray_address: str = "") -> subprocess.Popen[str]:
    """The command in a process of its own, with a Ray of its own or as another driver of the one at this address."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"RAY_ADDRESS": ray_address} if ray_address else {}
    return subprocess.Popen(
        [sys.executable, "-m", "paliscribe", *map(str, command(manifest, output)), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=hostile(output.parent / "theirs"),
    )


def markers(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "_run" / "done").glob("*.json")}


def wait_for_markers(process: subprocess.Popen[str], output: Path, count: int) -> None:
    until = time.monotonic() + 180
    while len(markers(output)) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "no shard was committed"
        time.sleep(0.05)


def wait_for_lease(output: Path) -> None:
    until = time.monotonic() + 60
    while not (output / "_run" / "lease.json").exists():
        assert time.monotonic() < until, "no driver took the lease"
        time.sleep(0.05)


def wait_until_gone(processes: list[psutil.Process]) -> None:
    """Wait for the children of a process that a test has ended; Ray's agents may outlive its raylet by a minute."""
    _, alive = psutil.wait_procs(processes, timeout=5)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=30)


def kill(driver: subprocess.Popen[str]) -> None:
    """SIGKILL; returns once what it had started is gone too."""
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.communicate()
    wait_until_gone(children)


@pytest.fixture(scope="module")
def undisturbed(served: None, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    from paliscribe.batch.run import run_batch
    from paliscribe.config import JobConfig

    output = tmp_path_factory.mktemp("undisturbed") / "output"
    run_batch(JobConfig(manifest=(str(manifest),), tasks=TASKS, output=str(output), shard_rows=int(SHARD_ROWS)))
    return published(output)


@pytest.mark.long
def test_kill_9_in_mid_run(
    manifest: Path, undisturbed: dict[str, bytes], tmp_path: Path, paliscribe: Paliscribe
) -> None:
    output = tmp_path / "output"
    driver = start(manifest, output)
    wait_for_markers(driver, output, 3)
    kill(driver)
    before = markers(output)
    assert 3 <= len(before) < 24, "the run was meant to be killed in its middle"
    status = paliscribe("status", output, "--json")
    assert status.code == 0, status.err
    assert status.json["state"] == "interrupted"

    said = paliscribe(*command(manifest, output), "--json", "--quiet")
    assert said.code == 0, said.err
    assert said.json["shards_annotated"] == 24 - len(before)
    after = markers(output)
    assert len(after) == 24
    assert {name: after[name] for name in before} == before
    assert published(output) == undisturbed


@pytest.mark.long
def test_kill_9_in_mid_append(served: None, manifest: Path, tmp_path: Path, paliscribe: Paliscribe) -> None:
    output, begun = tmp_path / "output", write_rows(tmp_path / "begun.jsonl", read_rows(manifest)[:10])
    said = paliscribe(*command(begun, output), "--quiet")
    assert said.code == 0, said.err
    parts = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in output.rglob("*.parquet")}
    driver = start(manifest, output, "--append", ray_address=ray.get_runtime_context().gcs_address)
    wait_for_markers(driver, output, 6)
    stages = workers("MapWorker")
    kill(driver)
    wait_until_gone(stages)
    before = markers(output)
    assert 6 <= len(before) < 25, "the append was meant to be killed in its middle"
    said = paliscribe("retry", output)
    assert said.code == 2 and "an append was interrupted here" in said.err
    said = paliscribe(*command(manifest, output), "--append", "--json", "--quiet")
    assert said.code == 0, said.err
    assert (said.json["rows"], said.json["rows_appended"], said.json["shards_annotated"]) == (96, 86, 25 - len(before))
    after = markers(output)
    assert {name: after[name] for name in before} == before
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in parts} == parts
    found = sorted((r["row"], r["id"], r["task"]) for r in ds.dataset(output, format="parquet").to_table().to_pylist())
    expected = [(row, each["id"], task) for row, each in enumerate(read_rows(manifest)) for task in sorted(TASKS)]
    assert found == expected
    again = paliscribe(*command(manifest, output), "--append", "--quiet")
    assert again.code == 0 and "(nothing to append: every id is in the run already)" in again.out


def test_a_signal_in_a_wait_of_ray_ends_it(served: None) -> None:
    """Ray's waits swallow every exception of a signal handler but KeyboardInterrupt."""

    @ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
    def wait() -> None:
        time.sleep(30)

    begun, waited = time.monotonic(), wait.remote()
    with pytest.raises(Stopped), stop_on_signals():
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
        ray.get(waited)
    assert time.monotonic() - begun < 25
    ray.cancel(waited, force=True)


@pytest.mark.long
def test_a_second_driver_is_refused_and_the_first_told_to_stop(
    served: None, manifest: Path, tmp_path: Path, paliscribe: Paliscribe
) -> None:
    """By Ctrl-C; SIGTERM is what stops a submitted job (test_submission.py)."""
    number = signal.SIGINT
    output = tmp_path / "output"
    driver = start(manifest, output)
    try:
        wait_for_lease(output)
        said = paliscribe(*command(manifest, output), "--quiet")
        assert said.code == 1
        assert said.err.startswith(f"paliscribe: another driver holds the lease of {output}: process {driver.pid} on ")
        assert len(said.err.splitlines()) == 1
        wait_for_markers(driver, output, 2)
        children = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(number)
        _, err = driver.communicate(timeout=90)
    finally:
        if driver.poll() is None:
            kill(driver)
    assert driver.returncode == 128 + number
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"paliscribe: {number.name}: stopped. ")
    assert "run the same command again to resume" in last
    assert "Traceback" not in err
    assert not (output / "_run" / "lease.json").exists()
    wait_until_gone(children)
    found = paliscribe("status", output, "--json").json
    assert found["state"] == "interrupted" and 0 < found["shards_done"] < 24
