"""A run with a model of the hub: the driver pins a commit, and its replicas load that one."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from front.conftest import published
from hub import BRANCHES

from paliscribe.batch import precision
from paliscribe.batch.generation import in_settled_precision
from paliscribe.batch.progress import Progress
from paliscribe.config import JobConfig, ModelSpec
from paliscribe.model.weights import Located
from paliscribe.results.run_file import RUN_FILE, Fingerprint, RunFile
from paliscribe.storage import open_store

pytestmark = [pytest.mark.cluster, pytest.mark.long]
MODEL = "google/paligemma-3b-demo"


def test_replicas_load_the_commit_that_the_driver_pinned(hub: str, collection: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = ["annotate", "--manifest", collection, "--output", output, "--task", "caption en"]
    words += ["--model", MODEL, "--precision", "bfloat16"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "paliscribe", *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    [name] = published(output)
    rows = pq.ParquetFile(output / name).read().to_pylist()
    assert {row["revision"] for row in rows} == {BRANCHES["bfloat16"]} and len(rows) == 24
    assert {row["status"] for row in rows} == {"ok"}
    run = json.loads((output / RUN_FILE).read_text())
    assert run["model"]["revision"] == run["fingerprint"]["revision"] == BRANCHES["bfloat16"]


@dataclass
class Begun:
    """What `_with_precision` looks at of a run."""

    job: JobConfig
    file: RunFile
    store: Any
    progress: Progress = field(default_factory=Progress)
    pool: None = None


def test_auto_precision_on_gpus_takes_their_branch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What no machine without a GPU can show in a run."""
    job = JobConfig.model_validate({"manifest": "m", "tasks": "ocr", "output": str(tmp_path), "model": MODEL})
    fingerprint = Fingerprint.of(job, manifest="d", rows=1, revision="commit-of-main", shard_rows=256)
    file = RunFile(fingerprint, job, job.model.model_copy(update={"revision": "commit-of-main"}), 224)

    def locate(spec: ModelSpec) -> Located:
        assert spec.revision is None
        return Located(spec.id, f"commit-of-{spec.precision}", 224, "gemma")

    monkeypatch.setattr(precision, "locate", locate)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"GPU": 1.0})
    monkeypatch.setattr(precision, "served_pool", lambda *_: None)
    monkeypatch.setattr(
        "paliscribe.pool.placement.started_here", lambda: False
    )  # the Ray of other tests, which has no GPU
    begun: Any = Begun(job, file, open_store(str(tmp_path)))
    settled = precision.settle_precision(begun)
    assert settled.fingerprint.revision == settled.model.revision == "commit-of-bfloat16"
    assert RunFile.read(begun.store) == settled
    begun.file = settled
    assert precision.settle_precision(begun) == settled, "a resume stays at what was settled"
    assert in_settled_precision(job.model, settled).precision == "bfloat16"
