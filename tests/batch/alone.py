"""Runs without Ray: stages and a pool in this process; all else is a run's."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from batch.answers import Answers
from PIL import Image

from paliscribe.batch import parts as parts_module
from paliscribe.batch import run as run_module
from paliscribe.batch.annotate import plan_of
from paliscribe.batch.generation import Run
from paliscribe.batch.parts import Parts
from paliscribe.batch.stage import Stage
from paliscribe.config import ModelSpec
from paliscribe.engine import Engine
from paliscribe.model import paligemma
from paliscribe.records import Prediction, Request
from paliscribe.storage import Store

SIZE = 28  # pixels of an image's side, as the model is given it


class Pool:
    """Answers every request."""

    slots = 8

    def send(self, requests: Sequence[Request]) -> Answers:
        return Answers(requests)


class Answered:
    """A call that is answered already."""

    def __init__(self, predictions: list[Prediction]) -> None:
        self._predictions = predictions

    def result(self) -> list[Prediction]:
        return self._predictions


class DemoPool:
    """A pool with the demo model in this process."""

    slots = 40

    def __init__(self) -> None:
        self._engine = Engine(paligemma.load(ModelSpec().resolved(gpu=False)))

    def send(self, requests: Sequence[Request]) -> Answered:
        return Answered(self._engine.run(requests))


def annotate(run: Run, todo: npt.NDArray[np.int64], parts: Parts, pool: Any = None, size: int = SIZE) -> None:
    """In the place of `batch.annotate.annotate`. `size`: of images; 0: the model's."""
    run.file = replace(run.file, model=run.file.model.resolved(gpu=False))
    run.file.write(run.store)
    plan = plan_of(run)
    stage = Stage(replace(plan, image_size=size or plan.image_size), pool or Pool())
    stage.store = run.store
    for marker in stage.annotate(todo.tolist()):
        rows = run.frozen.rows_of(marker.shard)
        run.progress.committed(rows, marker.records, marker.statuses, marker.error_kinds)
        parts.committed(marker.shard)
        parts.wait()


@contextlib.contextmanager
def alone(monkeypatch: pytest.MonkeyPatch, store: Store | None = None, pool: Any = None) -> Iterator[None]:
    """Let runs work in this process. `store`: in the place of their output's. `pool`: None: answers at once."""
    with monkeypatch.context() as patch:
        patch.setattr("paliscribe.pool.ray_cluster.cluster", contextlib.nullcontext)
        answering = functools.partial(annotate, pool=pool, size=0 if pool else SIZE)
        patch.setattr("paliscribe.batch.annotate.annotate", answering)
        patch.setattr("paliscribe.batch.annotate.kept_pool", contextlib.nullcontext)
        patch.setattr(parts_module, "started_here", lambda: True)
        if store is not None:
            patch.setattr(run_module, "writable", lambda output: store)
        yield


def draw(path: Path, number: int) -> None:
    """Write an image of one colour."""
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (9, 9), (number % 256, number // 256, 0)).save(path)
