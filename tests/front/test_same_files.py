"""What a run publishes does not depend on how it went, to the last byte, on whichever path the CPU's library takes."""

import contextlib
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from front.conftest import TASKS, read_rows, replicas, write_rows
from front.test_resume import SHARD_ROWS, kill, markers, start, wait_for_markers

from paliscribe.demo.collection import write_collection
from paliscribe.pool.address import TEMPORARY

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.full,
]
SCENES, SHARDS = 158, 40


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, and two rows whose images are not there, so that errors are published too."""
    path = write_collection(tmp_path_factory.mktemp("same"), SCENES, seed=8)
    rows = read_rows(path)
    rows[9:9] = [rows[number] | {"id": f"lost-{number}", "image": f"images/lost-{number}.jpg"} for number in (9, 30)]
    assert len(rows) == SHARDS * int(SHARD_ROWS)
    return write_rows(path, rows)


@contextlib.contextmanager
def under_way(manifest: Path, output: Path, done: int, setting: str | None) -> Iterator[subprocess.Popen[str]]:
    """A run with a Ray of its own that has committed so many shards, on a replica that has this setting of MKL_CBWR."""
    driver = start(manifest, output)
    try:
        wait_for_markers(driver, output, done)
        [replica] = replicas(TEMPORARY, psutil.Process(driver.pid))
        assert replica.environ().get("MKL_CBWR") == setting
        yield driver
    finally:
        if driver.poll() is None:
            kill(driver)


def finish(driver: subprocess.Popen[str]) -> None:
    _, err = driver.communicate(timeout=180)
    assert driver.returncode == 0, err


def visible(output: Path) -> dict[str, bytes]:
    """Every file but the run's own state."""
    files = {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    return {name: body for name, body in files.items() if not name.startswith("_run/")}


def differences(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """In words: names that only one of them has, and of files whose bytes differ, the values that do."""
    found = [f"only in one: {name}" for name in sorted(one.keys() ^ other.keys())]
    for name in sorted(one.keys() & other.keys()):
        if one[name] == other[name]:
            continue
        found.append(f"{name}: the bytes differ")
        if name.endswith(".parquet"):
            tables = [pq.read_table(io.BytesIO(files[name])).to_pylist() for files in (one, other)]
            for left, right in zip(*tables, strict=False):
                found += [
                    f"{left['id']}: {key}: {left[key]!r}, {right[key]!r}" for key in left if left[key] != right[key]
                ]
    return found


@pytest.mark.parametrize("setting", [None, "AVX2"])
def test_runs_publish_equal_files_undisturbed_or_killed(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str | None
) -> None:
    if setting is None:
        monkeypatch.delenv("MKL_CBWR", raising=False)
    else:
        monkeypatch.setenv("MKL_CBWR", setting)
    for name in ("one", "two"):  # each with a cache of its own, so that it tries sizes of products by itself
        monkeypatch.setenv("PALISCRIBE_CACHE", str(tmp_path / f"cache-{name}"))
        with under_way(manifest, tmp_path / name, 1, setting) as driver:
            finish(driver)

    monkeypatch.setenv("PALISCRIBE_CACHE", str(tmp_path / "cache-killed"))
    with under_way(manifest, tmp_path / "killed", 3, setting) as driver:
        kill(driver)
    before = markers(tmp_path / "killed")
    assert 3 <= len(before) < SHARDS, "the run was meant to be killed in its middle"
    assert not (tmp_path / "killed" / "annotations").exists()
    with under_way(manifest, tmp_path / "killed", len(before) + 1, setting) as driver:
        finish(driver)
    after = markers(tmp_path / "killed")
    assert len(after) == SHARDS and before.items() <= after.items()

    one, two, killed = (visible(tmp_path / name) for name in ("one", "two", "killed"))
    assert {"_SUCCESS", "_summary.json"} <= one.keys()
    assert {name.split("/")[0] for name in one if "/" in name} == {"annotations", "errors"}
    assert len([name for name in one if name.startswith("annotations/")]) == len(TASKS)
    assert not differences(one, two)
    assert not differences(one, killed)
