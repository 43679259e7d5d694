"""The precision that a run settles on."""

from dataclasses import replace

from paliscribe.batch.generation import Run
from paliscribe.config import ModelSpec
from paliscribe.model.weights import default_branch, locate
from paliscribe.pool.deploy import not_served, served_pool
from paliscribe.pool.placement import asked, has_gpus, refuse_what_cannot_come
from paliscribe.results.run_file import RunFile


def in_settled_precision(spec: ModelSpec, file: RunFile | None) -> ModelSpec:
    """The model that is asked for, in the precision that the run has settled on, if it has."""
    if file is None or spec.precision != "auto":
        return spec
    return spec.model_copy(update={"precision": file.model.precision})


def settle_precision(run: Run) -> RunFile:
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
