"""A preview: a sample of the manifest, annotated as the run would, and an estimate that holds for known timelines."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch.alone import alone, draw

from paliscribe.api.results import load
from paliscribe.batch.estimate import estimate, rows_to_pace
from paliscribe.batch.preview import preview
from paliscribe.batch.progress import Timeline
from paliscribe.batch.run import run_batch, run_retry
from paliscribe.cli import preview as command
from paliscribe.config import JobConfig
from paliscribe.errors import UsageError
from paliscribe.manifest import Sample

ROWS = 60
COLUMNS = ["id", "image", "prompt", "status", "text", "boxes", "image_sha256", "classes"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    """A job over images with relative addresses, of which one is missing, lists in a column, and rows without ids."""
    folder = tmp_path_factory.mktemp("preview")
    for number in range(ROWS - 1):
        draw(folder / f"images/{number}.png", number)
    rows = [{"image": f"./images/{n}.png", "classes": ["cat", f"dog {n}"], "weight": n / 2} for n in range(ROWS)]
    (folder / "m.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tasks = ("caption en", "detect {classes}")
    return JobConfig(manifest=(str(folder / "m.jsonl"),), tasks=tasks, output=str(folder / "output"), shard_rows=16)


def records(output: str) -> dict[tuple[str, str], dict[str, Any]]:
    table = load(output).to_arrow(COLUMNS)
    return {(row["id"], row["prompt"]): row for row in table.to_pylist()}


def test_a_sample_gives_the_records_of_the_run(job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with alone(monkeypatch):
        found = preview(job, Sample(10, 3), str(tmp_path / "sample"))
        assert not Path(job.output).exists()
        run_batch(job)
        before = {path: path.stat().st_mtime_ns for path in Path(job.output).rglob("*")}
        again = preview(job, Sample(10, 3), str(tmp_path / "again"))
        other = preview(job, Sample(10, 4), str(tmp_path / "other"))
    assert before == {path: path.stat().st_mtime_ns for path in Path(job.output).rglob("*")}
    whole, part = records(job.output), records(str(tmp_path / "sample"))
    assert sorted(path.name for path in (tmp_path / "sample").iterdir() if path.name.startswith("_")) == [
        *("_SUCCESS", "_run", "_summary.json")
    ]
    assert len(part) == 20 and all(whole[key] == value for key, value in part.items())
    assert part == records(str(tmp_path / "again")) != records(str(tmp_path / "other"))
    assert {name for name, _ in part} != {f"./images/{n}.png" for n in range(10)}
    assert (found["rows"], found["sampled"]) == (ROWS, 10) == (again["rows"], other["sampled"])
    assert found["estimate"]["seconds"] > 0 and found["estimate"]["core_hours"] >= 0


def test_all_rows_are_a_sample_too_and_dead_letters_can_be_retried(
    job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(tmp_path / "sample")
    with alone(monkeypatch):
        found = preview(job, Sample(1000, 0), place)
        assert found["summary"]["error_kinds"] == {"missing": 2} and found["error_rate"] == pytest.approx(2 / 120)
        missing = Path(job.manifest[0]).parent / f"images/{ROWS - 1}.png"
        draw(missing, 1)
        try:
            assert run_retry(place)["errors"] == 0
        finally:
            missing.unlink()


def test_images_inside_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        draw(tmp_path / f"images/{number}.png", number)
    images = [{"bytes": (tmp_path / f"images/{n}.png").read_bytes(), "path": None} for n in range(30)]
    pq.write_table(pa.table({"image": images, "n": range(30)}), tmp_path / "m.parquet", row_group_size=7)
    job = JobConfig(manifest=(str(tmp_path / "m.parquet"),), tasks=("ocr",), output=str(tmp_path / "output"))
    with alone(monkeypatch):
        preview(job, Sample(8, 1), str(tmp_path / "sample"))
        run_batch(job)
    columns = ["id", "n", "text", "image_sha256"]
    part = load(str(tmp_path / "sample")).to_arrow(columns).to_pylist()
    whole = {row["id"]: row for row in load(job.output).to_arrow(columns).to_pylist()}
    assert len(part) == 8 and all(whole[row["id"]] == row for row in part)


def test_refusals_leave_nothing(job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = f"{job.output}/preview"
    with alone(monkeypatch), pytest.raises(UsageError, match="lies in the output of the job"):
        preview(job, Sample(5), inside)
    wrong = job.model_copy(update={"tasks": ("detect {absent}",)})
    with alone(monkeypatch), pytest.raises(UsageError, match="needs a column 'absent'"):
        preview(wrong, Sample(5), str(tmp_path / "sample"))
    assert not (tmp_path / "sample").exists()
    with alone(monkeypatch):
        preview(job, Sample(5), str(tmp_path / "sample"))
        with pytest.raises(UsageError, match="holds a run already"):
            preview(job, Sample(5), str(tmp_path / "sample"))


def test_the_command(
    job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with alone(monkeypatch):
        command.preview(manifest=list(job.manifest), task=["caption en"], rows=12, quiet=True, gpu_hour_price=2.0)
    said = capsys.readouterr().out
    place = said.rpartition("paliscribe view ")[2].strip()
    assert place.startswith(str(tmp_path)) and len(load(place).to_arrow(["id"])) == 12
    for words in ("12 of 60 rows, chosen by seed 0", "caption en", "tokens, score", "core hours", "does not apply"):
        assert words in said
    with alone(monkeypatch), pytest.raises(UsageError):
        command.preview(manifest=[str(tmp_path / "absent.csv")], task=["caption en"], quiet=True)
    assert [path for path in tmp_path.iterdir() if "preview" in path.name] == [Path(place).parent]


def timeline(
    rate: float, *, first: float, shards: int = 8, rows: int = 8, noise: float = 0.0, slots: int = 32
) -> Timeline:
    """Commits at a steady rate of rows a second, the first shard at `first` seconds."""
    rng = np.random.default_rng(1)
    steps = rows / rate * (1 + noise * rng.uniform(-1, 1, shards))
    return Timeline([(first + float(sum(steps[:n])), rows) for n in range(shards)], slots=slots)


def test_an_estimate_separates_the_start_from_the_rate() -> None:
    kept = timeline(5.0, first=12.0)
    found = estimate(kept, begun=0.0, ready=10.0, ended=kept.commits[-1][0] + 1.5, rows=2000, tasks=4)
    assert found.rate == pytest.approx(5.0) and found.startup == pytest.approx(13.5)
    assert found.total[0] == pytest.approx(13.5 + (2000 - 8) / 5)
    assert found.steady[1] == pytest.approx(0.9 * found.steady[0]) and not found.is_rough
    assert found.steady[2] == pytest.approx(1.1 * found.steady[0])


def test_noise_widens_the_range() -> None:
    kept = timeline(5.0, first=12.0, noise=0.8)
    found = estimate(kept, begun=0.0, ready=10.0, ended=30.0, rows=2000, tasks=4)
    _, low, high = found.steady
    assert low < 0.85 * found.steady[0] and high > 1.15 * found.steady[0]
    assert low < (2000 - 8) / 5 < high
    again = estimate(kept, begun=0.0, ready=10.0, ended=30.0, rows=2000, tasks=4)
    assert again == found


@pytest.mark.parametrize(
    "kept",
    [
        Timeline([(14.0, 8), (14.01, 8), (14.02, 8)], slots=248),  # one call
        Timeline([(14.0, 64)], slots=1),
        timeline(5.0, first=12.0, slots=2000),
    ],
)
def test_a_sample_that_does_not_fill_the_pool_is_called_rough(kept: Timeline) -> None:
    found = estimate(kept, begun=0.0, ready=10.0, ended=20.0, rows=2000, tasks=4)
    assert found.is_rough and found.steady[1] < found.steady[0] < found.steady[2] and found.rate > 0


def test_a_sample_that_is_soon_over_is_followed_by_one_that_tells_the_rate() -> None:
    first = timeline(40.0, first=11.0)  # 1.4 s of work, in a new process
    assert 200 < rows_to_pace(first, 10.0, 2000) < 400
    assert rows_to_pace(first, 10.0, 100) == 100 and rows_to_pace(first, 10.0, 64) == 0
    assert rows_to_pace(timeline(4.0, first=11.0), 10.0, 2000) == 0
    second = timeline(80.0, first=31.0, shards=30, rows=16)
    pace = (30.0, second)
    found = estimate(first, begun=0.0, ready=10.0, ended=13.0, rows=2000, tasks=4, pace=pace)
    assert found.rate == pytest.approx(80) and not found.is_rough
    assert found.startup == pytest.approx(11.0 + 13.0 - first.commits[-1][0])
    assert found.steady[0] == pytest.approx((2000 - 8) / 80)


def test_a_run_of_no_more_rows_than_the_sample_takes_its_time() -> None:
    kept = timeline(5.0, first=12.0)
    ended = kept.commits[-1][0] + 1
    found = estimate(kept, begun=0.0, ready=10.0, ended=ended, rows=64, tasks=1)
    assert found.total[0] == pytest.approx(ended)
