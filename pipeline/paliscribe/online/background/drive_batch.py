"""A batch under its driver: lines in, a run, files of lines out."""

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
from paliscribe.images.untrusted import Pictures
from paliscribe.online.background import lines
from paliscribe.online.background.store import FileFacts, Orders
from paliscribe.online.background.work import Work
from paliscribe.storage import Store, open_store

LINES_A_SHARD = 64  # what a cancelled batch loses at most, for each stage process


def drive_batch(work: Work) -> None:
    """validating -> in_progress -> finalizing -> completed, expired or cancelled; or failed."""
    if work.state.get("status", "validating") == "validating":
        if (why := work.given_up) is not None:
            work.say(why)
            return
        work.say("validating")
        found = _validated(work)
        if found.problems:
            work.say("failed", problems=found.problems)
            return
        counts = {"total": len(found.rows), "completed": 0, "failed": 0}
        work.say("in_progress", counts=counts, model=found.model)
    if work.state["status"] == "in_progress":
        if work.given_up is None:
            spec, pool = work.model(work.state["model"])
            work.before = _committed(open_store(work.output))
            job = JobConfig(
                manifest=f"{work.orders.store.uri}/{Orders.key(work.order, 'lines.parquet')}",
                tasks=("{ask}",),
                output=work.output,
                model=spec,
                options_column="options",
                partition_by=(),
                shard_rows=LINES_A_SHARD,
                max_error_rate=1.0,
            )
            run_batch(job, work.progress, work.config.images, pool)
        work.say("finalizing")
    finalize(work)


def _committed(run: Store) -> Counter[str]:
    """Statuses of the records that a run has committed."""
    statuses: Counter[str] = Counter()
    for shard in results.done(run):
        statuses.update(results.read_marker(run, shard).statuses)
    return statuses


def _validated(work: Work) -> lines.Lines:
    """Check the lines, and write those that can be asked as a manifest."""
    owner, name = work.order.owner, work.order.asked["input_file_id"]
    if work.orders.file(owner, name) is None:
        problem = {"code": "file_not_found", "message": "the input file is gone", "param": None, "line": None}
        return lines.Lines(problems=[problem])
    with work.orders.open_file(owner, name) as file:
        config = work.config
        found = lines.read_lines(file, list(work.models), Pictures(config.images), config.max_prompt)
    if found.problems:
        return found
    columns = {"id": "id", "image": "image", "ask": "ask", "options": "options"}
    table = {column: [getattr(row, part) for row in found.rows] for column, part in columns.items()}
    with tempfile.NamedTemporaryFile(prefix="paliscribe-") as copy:
        pq.write_table(pa.table(table), copy.name, compression="zstd")
        work.orders.store.put_file(Orders.key(work.order, "lines.parquet"), Path(copy.name))
    return found


def finalize(work: Work, failed: str | None = None) -> None:
    """Write the files of answers and of errors from what is committed, then say how it ended.

    `failed`: why the run cannot go on. Nothing that is answered is lost with it.
    """
    run = open_store(work.output)
    now = work.state.setdefault("finalizing_at", int(time.time()))
    counts, seen = Counter[str](), set[int]()
    ended = "completed" if results.read_summary(run) is not None else None if failed else work.given_up
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="paliscribe-")) for _ in range(2)]
        for record in _records(run):
            answered, line = lines.answer(work.order.id, record, work.state["model"], now)
            files[0 if answered else 1].write(f"{line}\n")
            counts["completed" if answered else "failed"] += 1
            seen.add(record["row"])
        if ended == "expired":
            for line in lines.expired(work.order.id, _unanswered(work, seen)):
                files[1].write(f"{line}\n")
                counts["failed"] += 1
        names = [
            _keep(work, file, kind, number) if counts[kind] else None
            for number, (kind, file) in enumerate(zip(("completed", "failed"), files, strict=True))
        ]
    done = {name: counts[name] for name in ("completed", "failed")}
    made = {"counts": work.state["counts"] | done, "output_file_id": names[0], "error_file_id": names[1]}
    if ended is not None:
        work.say(ended, **made)
    else:
        work.fail(failed or "it ended without being finished, expired or cancelled", **made)
    work.tidy()


def _records(run: Store) -> Iterator[dict[str, Any]]:
    """What of a run is answered: of a finished one the published files, else what its shards have committed."""
    summary = results.read_summary(run)
    if summary is not None:
        for key in summary["files"]:
            with run.open(key) as file:
                for batch in pq.ParquetFile(file).iter_batches():
                    yield from batch.to_pylist()
        return
    for shard in sorted(results.done(run)):
        yield from results.read_committed(run, results.read_marker(run, shard)).to_pylist()


def _unanswered(work: Work, seen: set[int]) -> Iterator[tuple[int, str]]:
    source = f"{work.orders.store.uri}/{Orders.key(work.order, 'lines.parquet')}"
    for row in manifest.read(source):
        if row.row not in seen:
            yield row.row, row.id


def _keep(work: Work, file: IO[str], kind: str, number: int) -> str:
    """Keep a file of lines for the caller: under the same name, should this be done again."""
    file.flush()
    path, name = Path(file.name), f"file-{work.order.id.removeprefix('batch_')}{number:02x}"
    words = f"{work.order.id}_{'output' if kind == 'completed' else 'error'}.jsonl"
    facts = FileFacts(name, words, "batch_output", path.stat().st_size, work.state["finalizing_at"])
    work.orders.add_file(work.order.owner, facts, path)
    return name
