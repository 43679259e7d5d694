"""A run: freeze the manifest, annotate its shards on a pool, publish the parts. `run_batch` is the story."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray

from pipeline import manifest, results
from pipeline.cluster import cluster, translating
from pipeline.config import ImagesConfig, JobConfig, ModelSpec
from pipeline.dataset import annotated
from pipeline.driver import repeating, session
from pipeline.errors import RunError, UsageError
from pipeline.manifest import FrozenManifest
from pipeline.placement import asked, has_gpus, live_nodes, missing, refuse_what_cannot_come, stage_size
from pipeline.pool import PoolAddress, PoolClient, not_served, open_pool, served_pool
from pipeline.progress import Progress, Report
from pipeline.results import Layout, Marker, ModelFacts
from pipeline.runs import Fingerprint, RunFile, refuse_changes
from pipeline.stage import Plan, load_mask_decoder
from pipeline.storage import StorageError, Store, check_writable, open_store
from pipeline.tasks import Task, parse_tasks
from pipeline.weights import default_branch, locate

RATE_SAMPLE = 20  # requests that must be finished before their error rate can stop a run
PUBLISHING = 2  # parts that are published at a time


@dataclass(slots=True)
class Run:
    """One generation of a run at work: the whole manifest (0), or the dead letters of the one before."""

    job: JobConfig
    store: Store
    frozen: FrozenManifest
    file: RunFile
    tasks: list[Task]
    generation: int
    progress: Progress
    guard: ImagesConfig | None = None
    pool: PoolAddress | None = None

    @property
    def layout(self) -> Layout:
        """How shards fall into parts."""
        return Layout(
            self.frozen.shards, self.frozen.shard_rows, self.frozen.rows, self.job.tasks, self.job.partition_by
        )

    def shards(self, part: int) -> list[int]:
        """The shards of a part that this generation has to annotate."""
        if self.generation == 0:
            return list(self.layout.shards_of(part))
        before = results.read_part(self.store, part, self.generation - 1)
        return before.shards_with_errors if before else []


def run_batch(
    job: JobConfig,
    report: Report = lambda progress: None,
    guard: ImagesConfig | None = None,
    pool: PoolAddress | None = None,
) -> dict[str, Any]:
    """Annotate a manifest; returns the run's summary, with `shards_annotated` by this process.

    `guard`: of a run for somebody who may not have everything read that the cluster can read: bounds its images.
    `pool`: the one that answers, of the job's model in a given precision, be it up or not; default: as the job says.
    Raises UsageError before any work is begun, RunError if the run cannot go on, Stopped on SIGINT or SIGTERM.
    """
    tasks = parse_tasks(list(job.tasks), max_tokens=job.max_tokens)
    store = _writable(job.output)
    with session(store, report) as progress:
        file, frozen = _settle(job, tasks, store, progress)
        if (summary := _finished(store)) is not None:
            return summary
        return _work(Run(job, store, frozen, file, tasks, 0, progress, guard, pool))


def run_retry(output: str, report: Report = lambda progress: None) -> dict[str, Any]:
    """Annotate a finished run's dead letters again; returns its new summary. A retry that was cut short goes on.

    Raises UsageError if there is no finished run, RunError or Stopped as `run_batch` does.
    """
    store = _writable(output)
    file, frozen = RunFile.read(store), manifest.load(store)
    if file is None or frozen is None:
        raise UsageError(f"{output}: no run is here; `paliscribe annotate` begins one")
    job = file.job.model_copy(update={"output": output})
    revision = locate(_settled(job.model, file)).revision
    if revision != file.fingerprint.revision:
        raise UsageError(
            f"model {job.model.id} is at {revision} now; the run was made with {file.fingerprint.revision}"
        )
    with session(store, report) as progress:
        summary = results.read_summary(store)
        if summary is None:
            raise UsageError(f"{output}: the run is not finished; go on with the command that began it, then retry")
        generation = summary["retries"] + 1
        if not summary["errors"]:
            return _finished(store) or summary
        _begin_retry(store, frozen, job, generation, progress)
        tasks = parse_tasks(list(job.tasks), max_tokens=job.max_tokens)
        return _work(Run(job, store, frozen, file, tasks, generation, progress))


def _work(run: Run) -> dict[str, Any]:
    """Annotate what is not committed, publish what is not published, and finish."""
    base = results.generation_base(run.generation)
    finished, published = results.done(run.store, base), results.published(run.store, run.generation)
    wanted = [shard for part in range(run.layout.parts) if part not in published for shard in run.shards(part)]
    todo = [shard for shard in wanted if shard not in finished]
    run.progress.rows = run.frozen.rows
    run.progress.rows_before = run.frozen.rows - sum(map(run.frozen.rows_of, todo))
    parts = _Parts(run, published, finished)
    if todo:
        with cluster():
            run.file = _with_precision(run)
            _annotate(run, todo, parts)
    else:
        run.file.write(run.store)
    run.progress.stage = "publishing"
    parts.publish_rest()
    facts = {
        "model": run.job.model.id,
        "revision": run.file.fingerprint.revision,
        "precision": run.file.model.precision,
    }
    summary = results.finish(run.store, run.layout, facts, run.generation)
    results.sweep(run.store, run.layout)
    run.progress.stage = "finished"
    return summary | {"shards_annotated": len(todo)}


def _begin_retry(store: Store, frozen: FrozenManifest, job: JobConfig, generation: int, progress: Progress) -> None:
    """Fix what the retry works on: the dead letters' rows as the manifest has them now, or had them if it is gone."""
    failed: dict[str, int] = {}
    for part in sorted(results.published(store, generation - 1)):
        marker = results.read_part(store, part, generation - 1)
        for shard in marker.shards_with_errors if marker else []:
            failed |= {record["id"]: record["row"] for record in results.read_failed(store, shard, generation - 1)}
    names = {"image_column": job.image_column, "id_column": job.id_column}
    try:
        mended = manifest.read_mended(frozen, failed, **names)
    except UsageError as error:
        progress.stage, mended = f"rows are taken as they were frozen, since now: {error}", []
    results.begin_retry(store, generation, mended)


def _finished(store: Store) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to do, or None. Raises UsageError where a retry was cut short."""
    summary = results.read_summary(store)
    if summary is None:
        return None
    if results.retry_begun(store, summary["retries"] + 1):
        raise UsageError(f"{store.uri}: a retry was cut short here; go on with `paliscribe retry {store.uri}`")
    store.put(results.SUCCESS, b"")
    return summary | {"shards_annotated": 0}


def _writable(output: str) -> Store:
    try:
        store = open_store(output)
        check_writable(store)
    except StorageError as error:
        raise UsageError(f"output {error}") from None
    return store


def _settle(job: JobConfig, tasks: list[Task], store: Store, progress: Progress) -> tuple[RunFile, FrozenManifest]:
    """Freeze the manifest and begin a run; or, where one is, make sure that it is this one."""

    def count(rows: int) -> None:
        progress.rows = rows

    file, frozen = RunFile.read(store), manifest.load(store)
    located = locate(_settled(job.model, file))
    load_mask_decoder(job.mask_decoder)
    columns = {"image_column": job.image_column, "id_column": job.id_column}
    if file is not None and frozen is not None:
        progress.stage = "comparing the manifest with the run's"
        found = manifest.scan(job.manifest, progress=count, **columns)
        now = Fingerprint.of(job, manifest=found.digest, rows=found.rows, revision=located.revision)
        refuse_changes(store, file.fingerprint, now)
        return replace(file, job=job), frozen
    progress.stage = "freezing the manifest"
    frozen = manifest.freeze(job.manifest, store, shard_rows=job.shard_rows, progress=count, **columns)
    for task in tasks:
        if absent := [name for name in task.columns if name not in frozen.schema.names]:
            raise UsageError(f"task {task.template!r} needs a column {absent[0]!r}, which the manifest does not have")
    known = {"task", "kind", *frozen.schema.names}
    if unknown := [name for name in job.partition_by if name not in known]:
        raise UsageError(f"partition_by names {unknown[0]!r}; there is {', '.join(sorted(known))}")
    fingerprint = Fingerprint.of(job, manifest=frozen.digest, rows=frozen.rows, revision=located.revision)
    return RunFile(fingerprint, job, located.pin(job.model), located.image_size), frozen


def _settled(spec: ModelSpec, file: RunFile | None) -> ModelSpec:
    """The model that is asked for, in the precision that the run has settled on, if it has."""
    if file is None or spec.precision != "auto":
        return spec
    return spec.model_copy(update={"precision": file.model.precision})


def _with_precision(run: Run) -> RunFile:
    """Settle `auto` and record it, so that a resume elsewhere does not mix precisions.

    It follows the pool: one that is named has a precision; another one's hardware decides, be it there now or not.
    Raises UsageError if the pool that the job names is not served.
    """
    pool = run.job.pool
    gpu = pool.gpus(there=has_gpus()) > 0
    file = _settled_file(run, gpu=gpu)
    if run.pool is None and served_pool(file.model, pool.name) is None:
        if pool.name is None:
            refuse_what_cannot_come(asked(pool, pool.gpus(there=has_gpus())))
        elif served_pool((other := _settled_file(run, gpu=not gpu)).model, pool.name) is None:
            raise not_served(file.model, pool.name)
        else:
            file = other
    file.write(run.store)
    return file


def _settled_file(run: Run, *, gpu: bool) -> RunFile:
    file = replace(run.file, model=run.file.model.resolved(gpu=gpu))
    settled = run.job.model.resolved(gpu=gpu)
    if run.file.model.precision == "auto" and default_branch(settled) is not None:
        located = locate(settled)
        fingerprint = replace(file.fingerprint, revision=located.revision)
        file = replace(file, fingerprint=fingerprint, model=located.pin(settled))
    return file


def _annotate(run: Run, todo: list[int], parts: "_Parts") -> None:
    """Have shards annotated, and publish parts as they become whole."""
    job, spec = run.job, run.file.model
    with contextlib.ExitStack() as opened:
        with _waiting_for_room(run):
            pool = run.pool or opened.enter_context(open_pool(spec, job.pool, results.run_name(run.store.uri)))
        plan = Plan(
            output=run.store.uri,
            tasks=tuple(run.tasks),
            schema=results.schema(run.frozen.schema),
            facts=ModelFacts(spec.id, run.file.fingerprint.revision, spec.precision),
            image_size=run.file.image_size,
            slots=PoolClient(pool).facts().slots,
            fetch=job.fetch,
            mask_decoder=job.mask_decoder,
            guard=run.guard,
            options_column=job.options_column,
            generation=run.generation,
        )
        cpus, workers = stage_size(
            job.fetch,
            total=ray.cluster_resources().get("CPU", 0.0),
            free=ray.available_resources().get("CPU", 0.0),
            replicas=pool.replicas * job.pool.cpus_per_replica,
        )
        run.progress.stage, run.progress.annotating_since = "annotating", time.monotonic()
        with contextlib.closing(annotated(plan, pool, todo, cpus=cpus, workers=workers, progress=run.progress)) as done:
            for marker in done:
                _book(run, marker)
                parts.committed(marker.shard)
        parts.wait()


def _book(run: Run, marker: Marker) -> None:
    """Add a committed shard to the progress. Raises RunError when too much of what is finished has failed."""
    progress = run.progress
    progress.rows_committed += run.frozen.rows_of(marker.shard)
    progress.rows_open = max(0, progress.rows_open - run.frozen.rows_of(marker.shard))
    progress.requests += marker.records
    progress.statuses.update(marker.statuses)
    progress.error_kinds.update(marker.error_kinds)
    rate = progress.statuses["error"] / progress.requests if progress.requests else 0.0
    if run.generation == 0 and progress.requests >= RATE_SAMPLE and rate > run.job.max_error_rate:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in progress.error_kinds.most_common(3))
        raise RunError(
            f"{progress.statuses['error']:,} of the first {progress.requests:,} requests failed ({kinds}), more than "
            f"max_error_rate {run.job.max_error_rate:g} allows. Mend the cause, run the same command again, then "
            "`paliscribe retry`"
        )


class _Parts:
    """Publishes parts as their shards are committed."""

    def __init__(self, run: Run, published: set[int], finished: set[int]) -> None:
        self._run = run
        self._left: dict[int, set[int]] = {
            part: set(run.shards(part)) - finished for part in range(run.layout.parts) if part not in published
        }
        self._under_way: dict[int, Any] = {}

    def committed(self, shard: int) -> None:
        """Book a shard; once its part is whole, begin to publish it on the cluster."""
        part = self._run.layout.part_of(shard)
        self._left[part].discard(shard)
        if not self._left[part]:
            while len(self._under_way) >= PUBLISHING:
                self._next()
            uri, layout = self._run.store.uri, self._run.layout
            self._under_way[part] = _publish.remote(uri, layout, part, self._run.generation)

    def wait(self) -> None:
        """Wait until what is under way on the cluster is published."""
        while self._under_way:
            self._next()

    def publish_rest(self) -> None:
        """Publish here what an earlier process left whole but unpublished."""
        for part in [part for part, shards in self._left.items() if not shards]:
            results.publish_part(self._run.store, self._run.layout, part, self._run.generation)

    def _next(self) -> None:
        ready, _ = ray.wait(list(self._under_way.values()), num_returns=1)
        with translating():
            ray.get(ready[0])
        part = next(part for part, reference in self._under_way.items() if reference == ready[0])
        del self._under_way[part], self._left[part]


@ray.remote(num_cpus=0.1, max_retries=2)  # type: ignore[untyped-decorator]
def _publish(uri: str, layout: Layout, part: int, generation: int) -> None:
    results.publish_part(open_store(uri), layout, part, generation)


@contextlib.contextmanager
def _waiting_for_room(run: Run) -> Iterator[None]:
    """Say that the pool is being started, or for as long as no node could hold a replica, what is waited for."""
    pool, words = run.job.pool, f"starting the pool of {run.file.model.id}"
    wanted = asked(pool, pool.gpus(there=has_gpus()))

    def look() -> None:
        lack = missing(live_nodes(), wanted)
        run.progress.stage = words if lack is None else f"waiting for resources: {lack}"

    run.progress.stage = words
    if pool.name is not None or run.pool is not None:  # it is there already
        yield
        return
    with repeating(look):
        yield
