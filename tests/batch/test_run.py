"""Opening a run: what is read again when it is resumed."""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from paliscribe import manifest
from paliscribe.batch import run as run_module
from paliscribe.batch.progress import Progress
from paliscribe.config import JobConfig
from paliscribe.errors import TemporaryError, UsageError
from paliscribe.grammar.tasks import parse_tasks
from paliscribe.manifest.freezing import automatic_shard_rows
from paliscribe.results.run_file import RunFile
from paliscribe.storage import open_store, retry, s3_client


def write(path: Path, *ids: str, seconds: int = 1_700_000_000) -> Path:
    path.write_text("".join(f'{{"id": "{name}", "image": "a.png"}}\n' for name in ids))
    os.utime(path, (seconds, seconds))
    return path


def open_run(source: Path, output: Path, **settings: object) -> RunFile:
    values = {"manifest": str(source), "tasks": ["ocr"], "output": str(output)} | settings
    job, store = JobConfig.model_validate(values), open_store(str(output))
    file, _ = run_module.open_run(job, parse_tasks(["ocr"]), store, Progress())
    file.write(store)
    return file


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Manifests that are read to compare them."""
    read: list[str] = []
    scan = manifest.scan

    def counting(source: str, **settings: object) -> manifest.Scan:
        read.append(source)
        return scan(source, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(manifest, "scan", counting)
    return read


def test_an_unchanged_manifest_is_not_read_again(tmp_path: Path, scans: list[str]) -> None:
    source = write(tmp_path / "m.jsonl", "one", "two")
    first = open_run(source, tmp_path / "o")
    again = open_run(source, tmp_path / "o")
    assert not scans and again.fingerprint == first.fingerprint


def test_a_manifest_that_was_written_again_is_read_and_compared(tmp_path: Path, scans: list[str]) -> None:
    source = write(tmp_path / "m.jsonl", "one", "two")
    first = open_run(source, tmp_path / "o")
    write(source, "one", "two", seconds=1_700_000_001)
    assert open_run(source, tmp_path / "o").fingerprint == first.fingerprint and len(scans) == 1
    write(source, "one", "too", seconds=1_700_000_002)
    with pytest.raises(UsageError, match="differs in the manifest"):
        open_run(source, tmp_path / "o")


def test_a_run_of_an_older_version_goes_on(tmp_path: Path) -> None:
    source, output = write(tmp_path / "m.jsonl", "one", "two"), tmp_path / "o"
    open_run(source, output)
    digest = manifest.legacy_digest(str(source), image_column="image", id_column="id")
    for name, changes in (("run.json", {"manifest": digest}), ("manifest/manifest.json", {"identity": None})):
        path = output / "_run" / name
        found = json.loads(path.read_text())
        del found["check"]
        found.get("fingerprint", found).update(changes)
        path.write_text(json.dumps(found))
    assert open_run(source, output).fingerprint.manifest == digest
    write(source, "one", "too")
    with pytest.raises(UsageError, match="differs in the manifest"):
        open_run(source, output)


def test_an_equal_file_in_its_place_is_compared(tmp_path: Path, scans: list[str]) -> None:
    source = write(tmp_path / "m.jsonl", "one", "two")
    open_run(source, tmp_path / "o")
    write(tmp_path / "other", "one", "too").rename(source)  # same size and time
    with pytest.raises(UsageError, match="differs in the manifest"):
        open_run(source, tmp_path / "o")
    assert len(scans) == 1


def test_other_settings_are_refused_without_reading(tmp_path: Path, scans: list[str]) -> None:
    source = write(tmp_path / "m.jsonl", "one", "two")
    open_run(source, tmp_path / "o")
    with pytest.raises(UsageError, match="differs in tasks"):
        open_run(source, tmp_path / "o", tasks=["caption en"])
    assert not scans


def test_a_file_written_a_moment_ago_or_a_folder_is_read(tmp_path: Path, scans: list[str]) -> None:
    source = write(tmp_path / "m.jsonl", "one")
    os.utime(source, (int(time.time()), int(time.time())))  # by a clock of whole seconds
    open_run(source, tmp_path / "o")
    open_run(source, tmp_path / "o")
    assert len(scans) == 1
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").touch()
    assert manifest.identity(str(tmp_path / "pictures")) is None
    assert manifest.identity(str(tmp_path / "nothing.jsonl")) is None


@pytest.mark.parametrize(
    ("rows", "size"),
    [(0, 256), (1, 256), (1_000_000, 256), (1_048_576, 256), (1_048_577, 512), (10**7, 4096), (10**8, 8192)],
)
def test_automatic_shards_are_thousands(rows: int, size: int) -> None:
    assert automatic_shard_rows(rows) == size


def test_automatic_shards_are_settled_when_the_manifest_is_frozen(tmp_path: Path) -> None:
    source = write(tmp_path / "m.jsonl", "one", "two")
    assert open_run(source, tmp_path / "o").fingerprint.shard_rows == 256
    assert open_run(source, tmp_path / "o", shard_rows=256).fingerprint.shard_rows == 256
    with pytest.raises(UsageError, match=r"shard_rows \(256 then, 8 now\)"):
        open_run(source, tmp_path / "o", shard_rows=8)
    assert open_run(source, tmp_path / "eight", shard_rows=8).fingerprint.shard_rows == 8
    assert open_run(source, tmp_path / "eight").fingerprint.shard_rows == 8, "a resume without the setting goes on"


def test_an_output_that_does_not_answer_is_a_temporary_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Background jobs are taken up again then."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.001)
    for name, value in (
        ("ENDPOINT_URL", f"http://127.0.0.1:{port}"),
        ("ACCESS_KEY_ID", "a"),
        ("SECRET_ACCESS_KEY", "b"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(s3_client, "_clients", {})
    (tmp_path / "m.jsonl").write_text('{"image": "a.png"}\n')
    job = JobConfig(manifest=str(tmp_path / "m.jsonl"), tasks=("ocr",), output="s3://b/run")
    begins: list[Callable[[], object]] = [
        lambda: run_module.run_batch(job),
        lambda: run_module.run_append(job),
        lambda: run_module.run_retry(job.output),
    ]
    for begin in begins:
        with pytest.raises(TemporaryError, match=r"output s3://b/run.*cannot be reached"):
            begin()
