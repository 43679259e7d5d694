"""The annotation of a run's shards on a pool, from the driver's side."""

import contextlib
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import ray

from paliscribe import results
from paliscribe.batch.dataset import annotate_shards
from paliscribe.batch.generation import Run
from paliscribe.batch.hearing import hearing
from paliscribe.batch.metrics import exported
from paliscribe.batch.parts import Parts
from paliscribe.batch.precision import settle_precision
from paliscribe.batch.progress import Progress, Timeline
from paliscribe.batch.session import repeating
from paliscribe.batch.stage import Plan
from paliscribe.batch.stalling import watching
from paliscribe.errors import RunError
from paliscribe.pool.address import PoolAddress
from paliscribe.pool.client import PoolClient
from paliscribe.pool.deploy import is_ready, open_pool
from paliscribe.pool.placement import (
    Resources,
    has_gpus,
    live_nodes,
    missing_resources,
    replica_resources,
    stage_size,
)
from paliscribe.results import Marker, ModelFacts

RATE_SAMPLE = 20  # minimum number of finished requests before max_error_rate can stop a run


def plan_of(run: Run) -> Plan:
    """The configuration of a run's stage processes; its precision is settled."""
    job, spec = run.job, run.file.model
    return Plan(
        output=run.store.uri,
        tasks=tuple(run.tasks),
        schema=results.schema(run.frozen.schema),
        facts=ModelFacts(spec.id, run.file.fingerprint.revision, spec.precision),
        image_size=run.file.image_size,
        fetch=job.fetch,
        mask_decoder=job.mask_decoder,
        guard=run.guard,
        options_column=job.options_column,
        nested=run.frozen.nested,
        deduplicate=job.deduplicate,
        generation=run.generation,
    )


def annotate(run: Run, todo: npt.NDArray[np.int64], parts: Parts) -> None:
    """Annotate shards on a pool, and publish parts as they are completed. Stage processes start while the pool does.

    Raises RunError if the pool does not come up or too many requests fail, UsageError if a named pool is not served. A
    run that stalls is ended by `Progress.end`.
    """
    run.file = settle_precision(run)
    job, spec = run.job, run.file.model
    run.progress.stage = f"starting the pool of {spec.id}"
    plan = plan_of(run)
    free = ray.available_resources().get("CPU", 0.0)  # a pool that is begun takes its share only later
    with contextlib.ExitStack() as opened:
        opened.enter_context(hearing(run.progress))
        pool = run.pool or opened.enter_context(open_pool(spec, job.pool, results.run_name(run.store.uri)))
        held = pool.replicas * job.pool.cpus_per_replica
        cpus, workers = stage_size(
            job.fetch,
            total=ray.cluster_resources().get("CPU", 0.0),
            free=free - (held if pool.is_temporary else 0.0),
            replicas=held,
        )
        opened.enter_context(exported(run))
        wanted = replica_resources(job.pool, job.pool.gpus(available=has_gpus()))
        opened.enter_context(_reporting_startup(run, pool, wanted))
        opened.enter_context(watching(run.progress, job.stall_timeout, pool, spec.id, wanted, cpus))
        shards = annotate_shards(plan, pool, todo, cpus=cpus, workers=workers, progress=run.progress)
        for marker in opened.enter_context(contextlib.closing(shards)):
            _add_committed(run, marker)
            parts.committed(marker.shard)
        if run.progress.timeline is not None:
            _measure(run.progress.timeline, run, pool)
        parts.wait()


@contextlib.contextmanager
def kept_pool(run: Run) -> Iterator[None]:
    """Open the pool of a run for several runs of its job, in the block. Raises as `annotate`."""
    run.file = settle_precision(run)
    with open_pool(run.file.model, run.job.pool, results.run_name(run.store.uri)) as run.pool:
        yield


def _measure(timeline: Timeline, run: Run, pool: PoolAddress) -> None:
    """Note the size of the pool and of the cluster."""
    timeline.replicas = pool.replicas
    timeline.slots = pool.replicas * PoolClient(pool).slots
    timeline.gpus = pool.replicas * run.job.pool.gpus(available=has_gpus())
    timeline.cores = ray.cluster_resources().get("CPU", 1.0)


def _add_committed(run: Run, marker: Marker) -> None:
    """Add a committed shard to the progress. Raises RunError if the error rate exceeds max_error_rate."""
    progress = run.progress
    progress.committed(run.frozen.rows_of(marker.shard), marker.records, marker.statuses, marker.error_kinds)
    rate = progress.statuses["error"] / progress.requests if progress.requests else 0.0
    if run.generation == 0 and progress.requests >= RATE_SAMPLE and rate > run.job.max_error_rate:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in progress.error_kinds.most_common(3))
        raise RunError(
            f"{progress.statuses['error']:,} of the first {progress.requests:,} requests failed ({kinds}), more than "
            f"max_error_rate {run.job.max_error_rate:g} allows. Fix the cause, run the same command again, then "
            "`paliscribe retry`"
        )


def _set_annotating(progress: Progress) -> None:
    if progress.annotating_since is None:
        progress.stage, progress.annotating_since = "annotating", time.monotonic()


@contextlib.contextmanager
def _reporting_startup(run: Run, pool: PoolAddress, wanted: Resources) -> Iterator[None]:
    """Report until the pool is ready: that it starts or, while no node can hold a replica, the missing resources."""
    progress, words = run.progress, run.progress.stage

    def look() -> None:
        with contextlib.suppress(Exception):  # the stage processes look too, and say what is wrong
            if progress.annotating_since is not None:
                return
            if is_ready(pool):
                _set_annotating(progress)
            else:
                lack = missing_resources(live_nodes(), wanted)
                progress.stage = words if lack is None else f"waiting for resources: {lack}"

    look()
    with repeating(look):
        yield
