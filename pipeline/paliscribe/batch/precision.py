"""Resolution of `auto` precision for a run."""

from dataclasses import replace

from paliscribe.batch.generation import Run
from paliscribe.model.weights import default_branch, locate
from paliscribe.pool.deploy import not_served, served_pool
from paliscribe.pool.placement import has_gpus, replica_resources, require_feasible
from paliscribe.results.run_file import RunFile


def settle_precision(run: Run) -> RunFile:
    """Resolve `auto` precision and record it, so that a resume on other hardware does not mix precisions.

    It follows the pool: a named pool has a precision; otherwise the hardware that the pool requests decides, even if it
    is not there yet. Raises UsageError if the job's named pool is not served.
    """
    pool = run.job.pool
    gpu = pool.gpus(available=has_gpus()) > 0
    file = _settled_file(run, gpu=gpu)
    if run.pool is None and served_pool(file.model, pool.name) is None:
        if pool.name is None:
            require_feasible(replica_resources(pool, pool.gpus(available=has_gpus())))
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
