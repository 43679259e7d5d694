"""A finished run of the demo model over drawn scenes, made in this process and shared by the tests of a session."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SCENES = 24
TASKS = ("caption en", "answer en {question}", "ocr", "detect {objects}")


@dataclass(frozen=True, slots=True)
class DemoRun:
    """A finished run. Tests that write into an output copy it first.

    `output`: folder of the run: 4 tasks of each scene, and as dead letters those of a row whose image is missing.
    `collection`: folder with `manifest.jsonl`, `truth.jsonl` and `images/`. `summary`: of the run.
    """

    output: Path
    collection: Path
    summary: dict[str, Any]


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoRun]:
    """The demo's run over 24 scenes, and one row whose image is missing."""
    from batch.alone import DemoPool, alone

    from paliscribe.batch.run import run_batch
    from paliscribe.config import JobConfig
    from paliscribe.demo.collection import write_collection

    folder = tmp_path_factory.mktemp("demo-run")
    manifest = write_collection(folder / "collection", SCENES, 7)
    with manifest.open("a") as rows:
        rows.write('{"id": "gone", "image": "images/gone.png", "question": "what?", "objects": "star"}\n')
    job = JobConfig(manifest=(str(manifest),), tasks=TASKS, output=str(folder / "output"), shard_rows=8)
    with pytest.MonkeyPatch.context() as patch, alone(patch, pool=DemoPool()):
        summary = run_batch(job)
    yield DemoRun(folder / "output", manifest.parent, summary)
