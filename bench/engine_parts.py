"""Access to engine internals for the benchmarks: slots, and decode steps with and without CUDA graphs."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from paliscribe.engine.decoder import Decoder
from paliscribe.model.kv_cache import Slots
from paliscribe.model.paligemma import Model


@dataclass(frozen=True, slots=True)
class Step:
    """A decode step of `rows` rows that attend to `length` tokens each. `replay`: as a CUDA graph, on a GPU only."""

    rows: int
    length: int
    run: Callable[[], Any]
    replay: Callable[[], Any] | None


def make_slots(model: Model, count: int, capacity: int) -> Slots:
    """Allocate slots as an engine does, at least `count`. `capacity`: tokens per slot."""
    return Decoder(model, count, capacity).slots


def slot_bytes(model: Model, capacity: int) -> int:
    """Bytes of one slot's keys and values."""
    numbers = model.config.num_hidden_layers * 2 * model.config.num_key_value_heads * model.config.head_dim
    return int(numbers * make_slots(model, 1, capacity).capacity * model.dtype.itemsize)


def decode_steps(model: Model, count: int, capacity: int, held: int) -> list[Step]:
    """Decode steps of each row count that an engine with `count` slots uses, with `held` tokens in each slot."""
    decoder = Decoder(model, count, capacity)
    slots, graphs = decoder.slots, decoder._graphs
    length = next(length for length in decoder.lengths if length > held)
    found = []
    for rows in decoder._counts:
        positions = torch.full((rows,), held, device=model.device)
        run = functools.partial(model.decode_step, slots, positions, length)
        replay = None if graphs is None else functools.partial(graphs.decode_step, [held] * rows, length)
        found.append(Step(rows, length, run, replay))
    return found
