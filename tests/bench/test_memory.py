"""Memory of the commands over a published run, from ten thousand annotations to three hundred thousand."""

from pathlib import Path

import pytest

from bench.made_run import make
from bench.memory import commands, measured
from paliscribe.storage import open_store

SIZES = (5000, 150_000)  # rows of two annotations; the large run fills groups of rows of the Parquet files, and more
GROWTH = 1.25  # what a large run may take to what a small one takes; 1.03 to 1.17 were measured
NAMES = ("query, counts of labels", "query, all rows as CSV", "report", "export jsonl", "evaluate, captions and boxes")

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[str]]]:
    """The commands over a small run and over a large one."""
    found = []
    for rows in SIZES:
        folder: Path = tmp_path_factory.mktemp(f"run-{rows}")
        make(open_store(str(folder / "run")), rows, boxes=True)
        found.append(commands(folder / "run", folder))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_memory_does_not_grow_with_the_run(name: str, runs: list[dict[str, list[str]]]) -> None:
    small, large = (measured(words[name])[1] for words in runs)
    assert large < GROWTH * small, (small, large)
