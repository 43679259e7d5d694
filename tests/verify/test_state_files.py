"""State files with a flipped byte, or cut: a command that reads one says so in one line, and nothing is lost."""

import contextlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from batch.alone import alone
from verify.history import History, history
from whole import check_whole

import paliscribe
from paliscribe.api.status import run_status
from paliscribe.batch.run import run_batch, run_retry
from paliscribe.errors import PaliscribeError
from paliscribe.published import open_tables
from paliscribe.results import Owner
from paliscribe.verify import verify

__all__ = ["history"]

STATE = (
    "_summary.json",
    "_run/run.json",
    "_run/lease.json",
    "_run/manifest/manifest.json",
    "_run/parts/part-00001.json",
    "_run/retry-002/parts/part-00001.json",
    "_run/retry-001/rows/shard-00000.json",
    "_run/retry-001/begun.json",
    "_run/done/shard-00002.json",
    "_run/retry-002/done/shard-00002.json",
)
SAMPLE = 1  # damaged versions of each file; each byte with FULL=1


def damaged(body: bytes, seed: str) -> Iterator[bytes]:
    """Versions of a file: cut, or with a bit flipped; with FULL=1 at each byte."""
    chance = random.Random(seed)
    places = range(len(body)) if os.environ.get("FULL") else chance.sample(range(len(body)), min(SAMPLE, len(body)))
    for at in places:
        flipped = body[:at] + bytes([body[at] ^ 1 << chance.randrange(8)]) + body[at + 1 :]
        yield body[:at] if chance.random() < 1 / 3 else flipped


def published_files(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*.parquet")}


@pytest.mark.parametrize("key", STATE)
def test_a_damaged_state_file(key: str, history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "o"
    job = history.copy(output)
    (output / "_run/lease.json").write_bytes(dead_owner().as_json())
    body, good = (output / key).read_bytes(), published_files(output)
    kept = tmp_path / "kept"
    shutil.copytree(output, kept)
    actions: list[Callable[[], object]] = [
        lambda: run_status(str(output)),
        lambda: verify(str(output)),
        lambda: paliscribe.load(str(output)),
        lambda: open_tables(str(output)),
        lambda: run_batch(job),
        lambda: run_retry(str(output)),
    ]
    with alone(monkeypatch):
        for version in damaged(body, key):
            for action in actions:
                (output / key).write_bytes(version)
                try:
                    action()
                except PaliscribeError as error:
                    assert "\n" not in str(error) and len(str(error)) < 600, str(error)
                now = published_files(output)
                answered = {name: data for name, data in good.items() if name.startswith("annotations/")}
                assert {name: now.get(name) for name in answered} == answered, "annotations are lost"
                if now != good or action is actions[-1]:  # a retry was made or begun
                    shutil.rmtree(output)
                    shutil.copytree(kept, output)
            (output / key).write_bytes(body)
            (output / "_run/lease.json").unlink(missing_ok=True)
            check_whole(str(output), "finished")
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(kept / "_run/lease.json", output / "_run/lease.json")


def dead_owner() -> Owner:
    """The owner of a lease that was a process of this machine, and is gone."""
    from dataclasses import replace

    return replace(Owner.current(60), pid=2**22 + 1)
