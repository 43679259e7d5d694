"""A run without Ray with a retry, an append and another retry, of which each test gets a copy."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from batch.alone import alone, draw
from batch.test_append import job, rows
from whole import check_whole

from paliscribe import results
from paliscribe.batch.run import run_append, run_batch, run_retry
from paliscribe.config import JobConfig


@dataclass(frozen=True, slots=True)
class History:
    """`output`: of the run, not to be written to. `job`: with which it began, into a copy. `folder`: of its images."""

    output: Path
    job: JobConfig
    folder: Path

    def copy(self, to: Path) -> JobConfig:
        """A job whose output is a copy of the run."""
        shutil.copytree(self.output, to)
        return self.job.model_copy(update={"output": str(to)})


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    """The run: 14 rows under two tasks in parts of two shards of two rows; 4 dead letters are left, in two parts."""
    folder = tmp_path_factory.mktemp("history")
    with pytest.MonkeyPatch.context() as patch, alone(patch):
        patch.setattr(results.layout, "PART_RECORDS", 8)
        given = rows(folder, range(14), lost=(1, 4, 9, 12))
        first = job(folder, given[:7], name="first")
        run_batch(first)
        draw(folder / "images/1.png", 1)
        given[4]["ask"] = "something else"
        job(folder, given[:7], name="first")
        run_retry(first.output)
        run_append(job(folder, given, name="second"))
        draw(folder / "images/9.png", 9)
        assert run_retry(first.output)["errors"] == 4
        job(folder, rows(folder, range(7), lost=(4,)), name="first")
        check_whole(first.output, "finished")
        yield History(Path(first.output), first, folder)
