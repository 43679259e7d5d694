"""A resume with another `max_tokens`."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from batch.alone import Answered, alone, draw
from results.made import Crash, Crashing, published

from paliscribe.batch.run import run_batch
from paliscribe.config import JobConfig
from paliscribe.errors import UsageError
from paliscribe.records import Prediction, Request
from paliscribe.storage import open_store


class Counting:
    """Answers with as many tokens as the image's number says, or as the limit allows."""

    slots = 8

    def send(self, requests: Sequence[Request]) -> Answered:
        return Answered([self.answer(request) for request in requests])

    def answer(self, request: Request) -> Prediction:
        wanted = int(request.pixels[0, 0, 0])
        tokens = min(wanted, request.max_tokens)
        reason = "stop" if wanted < request.max_tokens else "length"
        return Prediction(request.id, "x" * tokens, (1,) * tokens, (-0.5,) * tokens, reason)  # type: ignore[arg-type]


@pytest.fixture
def job(tmp_path: Path) -> JobConfig:
    for number in range(1, 9):
        draw(tmp_path / "images" / f"{number}.png", number)
    return JobConfig(manifest=(str(tmp_path / "images"),), tasks=("ocr",), output=str(tmp_path / "out"), shard_rows=2)


def annotate(job: JobConfig, limit: int | None, monkeypatch: pytest.MonkeyPatch, *, crash_after: int = 0) -> None:
    """Annotate with a limit; crash once so many shards are committed."""
    store = Crashing(open_store(job.output))

    def look() -> None:
        if crash_after and len(list(store.list("_run/done/"))) == crash_after:
            raise Crash

    store.seen = look
    with alone(monkeypatch, store, Counting()):
        run_batch(job.model_copy(update={"max_tokens": limit}))


@pytest.mark.parametrize(("before", "after"), [(6, 20), (6, None), (20, 6), (None, 5), (20, 5)])
def test_it_goes_on_where_no_record_depends(
    job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int | None, after: int | None
) -> None:
    with pytest.raises(Crash):
        annotate(job, before, monkeypatch, crash_after=2)  # 1 to 4 tokens
    open_store(job.output).delete("_run/lease.json")
    annotate(job, after, monkeypatch)
    whole = job.model_copy(update={"output": str(tmp_path / "whole")})
    annotate(whole, after, monkeypatch)
    assert published(job.output) == published(whole.output)
    annotate(job, after, monkeypatch)  # it is finished with that limit now
    with pytest.raises(UsageError, match="max_tokens"):
        annotate(job, before, monkeypatch)


@pytest.mark.parametrize(
    ("before", "after", "dependent"), [(3, 20, 2), (20, 3, 2), (20, 4, 1), (4, 3, 2), (1, None, 4)]
)
def test_it_is_refused_where_records_depend(
    job: JobConfig, monkeypatch: pytest.MonkeyPatch, before: int, after: int | None, dependent: int
) -> None:
    with pytest.raises(Crash):
        annotate(job, before, monkeypatch, crash_after=2)
    open_store(job.output).delete("_run/lease.json")
    with pytest.raises(UsageError, match=f"{dependent} committed records depend"):
        annotate(job, after, monkeypatch)
    annotate(job, before, monkeypatch)


def test_other_changes_are_refused_with_it(job: JobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Crash):
        annotate(job, 9, monkeypatch, crash_after=1)
    open_store(job.output).delete("_run/lease.json")
    with pytest.raises(UsageError, match=r"tasks .* max_tokens \(9 then, 30 now\)"):
        annotate(job.model_copy(update={"tasks": ("caption en",)}), 30, monkeypatch)
