"""Drives one OpenAI batch: validates its input lines, runs them, writes the output and error files."""

import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from paliscribe import manifest, results
from paliscribe.batch.run import run_batch
from paliscribe.config import JobConfig
from paliscribe.images.untrusted import UntrustedImages
from paliscribe.online.background import lines
from paliscribe.online.background.store import BackgroundStore, FileInfo
from paliscribe.online.background.work import Work
from paliscribe.storage import Store, open_store
from paliscribe.storage.parallel import in_order

SHARD_LINES = 64  # lines in a shard: the most that a cancelled batch loses for each stage process


def drive_batch(work: Work) -> None:
    """Take a batch through its statuses: validating -> in_progress -> finalizing -> completed, expired or cancelled.

    Invalid input ends in failed. Raises RunError, StorageError.
    """
    if work.state.get("status", "validating") == "validating":
        if (stop_status := work.stop_status) is not None:
            work.set_status(stop_status)
            return
        work.set_status("validating")
        found = _validate(work)
        if found.problems:
            work.set_status("failed", problems=found.problems)
            return
        counts = {"total": len(found.rows), "completed": 0, "failed": 0}
        work.set_status("in_progress", counts=counts, model=found.model)
    if work.state["status"] == "in_progress":
        if work.stop_status is None:
            spec, pool = work.model(work.state["model"])
            work.committed = _committed(open_store(work.output))
            job = JobConfig(
                manifest=(f"{work.store.objects.uri}/{BackgroundStore.key(work.job, 'lines.parquet')}",),
                tasks=("{ask}",),
                output=work.output,
                model=spec,
                options_column="options",
                partition_by=(),
                shard_rows=SHARD_LINES,
                max_error_rate=1.0,
            )
            run_batch(job, work.progress, work.config.images, pool)
        work.set_status("finalizing")
    finalize(work)


def _committed(run: Store) -> Counter[str]:
    """Statuses of the records that a run has committed."""
    statuses: Counter[str] = Counter()
    for marker in in_order(lambda shard: results.read_marker(run, shard), results.committed(run)):
        statuses.update(marker.statuses)
    return statuses


def _validate(work: Work) -> lines.Lines:
    """Check the input lines and, if all are valid, write them as a manifest."""
    owner, name = work.job.owner, work.job.asked["input_file_id"]
    if work.store.file(owner, name) is None:
        problem = {
            "code": "file_not_found",
            "message": "the input file does not exist any more",
            "param": None,
            "line": None,
        }
        return lines.Lines(problems=[problem])
    with work.store.open_file(owner, name) as file:
        config = work.config
        found = lines.read_lines(file, list(work.models), UntrustedImages(config.images), config.max_prompt)
    if found.problems:
        return found
    columns = {"id": "id", "image": "image", "ask": "ask", "options": "options"}
    table = {column: [getattr(row, part) for row in found.rows] for column, part in columns.items()}
    with tempfile.NamedTemporaryFile(prefix="paliscribe-") as copy:
        pq.write_table(pa.table(table), copy.name, compression="zstd")
        work.store.objects.put_file(BackgroundStore.key(work.job, "lines.parquet"), Path(copy.name))
    return found


def finalize(work: Work, failed: str | None = None) -> None:
    """Write the output and error files from the committed records, then set the final status.

    `failed`: why the run cannot be resumed. Records committed before that are kept.
    """
    try:
        names = _finalized(work, failed)
    except BaseException:  # interrupted, or another driver has taken over, which stores files of its own
        state = work.store.state(work.job)
        for number in range(2):
            name = _output_id(work, number)
            if name not in (state.get("output_file_id"), state.get("error_file_id")):
                work.store.delete_file(work.job.owner, name)
        raise
    for name in work.store.files_of(work.job):  # those of drivers that were lost
        if name not in names:
            work.store.delete_file(work.job.owner, name)
    work.delete_run()


def _finalized(work: Work, failed: str | None) -> list[str | None]:
    """Store the files and set the final status; returns the ids of the files."""
    run = open_store(work.output)
    now = work.state.setdefault("finalizing_at", int(time.time()))
    counts, seen = Counter[str](), set[int]()
    ended = "completed" if results.read_summary(run) is not None else None if failed else work.stop_status
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="paliscribe-")) for _ in range(2)]
        for record in _records(run):
            answered, line = lines.reply_line(work.job.id, record, work.state["model"], now)
            files[0 if answered else 1].write(f"{line}\n")
            counts["completed" if answered else "failed"] += 1
            seen.add(record["row"])
        if ended == "expired":
            for line in lines.expired_lines(work.job.id, _unanswered(work, seen)):
                files[1].write(f"{line}\n")
                counts["failed"] += 1
        names = [
            _store_file(work, file, kind, number) if counts[kind] else None
            for number, (kind, file) in enumerate(zip(("completed", "failed"), files, strict=True))
        ]
    done = {name: counts[name] for name in ("completed", "failed")}
    made = {"counts": work.state["counts"] | done, "output_file_id": names[0], "error_file_id": names[1]}
    if ended is not None:
        work.set_status(ended, **made)
    else:
        work.fail(failed or "the run ended but is neither finished, expired nor cancelled", **made)
    return names


def _records(run: Store) -> Iterator[dict[str, Any]]:
    """Records of a run: the published files of a finished one, else those that its shards have committed."""
    summary = results.read_summary(run)
    if summary is not None:
        for key in summary["files"]:
            with run.open(key) as file:
                for batch in pq.ParquetFile(file).iter_batches():
                    yield from batch.to_pylist()
        return
    for shard in sorted(results.committed(run)):
        yield from results.read_committed(run, results.read_marker(run, shard)).to_pylist()


def _unanswered(work: Work, seen: set[int]) -> Iterator[tuple[int, str]]:
    """Row number and id of each input line that has no record."""
    source = f"{work.store.objects.uri}/{BackgroundStore.key(work.job, 'lines.parquet')}"
    for row in manifest.read(source):
        if row.row not in seen:
            yield row.row, row.id


def _store_file(work: Work, file: IO[str], kind: str, number: int) -> str:
    """Store an output file for the caller; returns its id."""
    file.flush()
    path, name = Path(file.name), _output_id(work, number)
    filename = f"{work.job.id}_{'output' if kind == 'completed' else 'error'}.jsonl"
    info = FileInfo(name, filename, "batch_output", path.stat().st_size, work.state["finalizing_at"])
    work.store.add_file(work.job.owner, info, path)
    return name


def _output_id(work: Work, number: int) -> str:
    """Id of an output file, which is that of no other claim of the job."""
    return work.store.output_id(work.job, 2 * work.state["claim"] + number)
