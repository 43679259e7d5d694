"""All that the benches know of the engine's inside: its slots, and the decode steps that it takes or replays."""

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
    """A decode step of so many rows, each of which looks at `length` tokens; `replay`: in a CUDA graph, on a GPU."""

    rows: int
    length: int
    run: Callable[[], Any]
    replay: Callable[[], Any] | None


def make_slots(model: Model, count: int, capacity: int) -> Slots:
    """As an engine makes them; a few more, perhaps."""
    return Decoder(model, count, capacity).slots


def slot_bytes(model: Model, capacity: int) -> int:
    """Keys and values of one slot."""
    numbers = model.config.num_hidden_layers * 2 * model.config.num_key_value_heads * model.config.head_dim
    return int(numbers * make_slots(model, 1, capacity).capacity * model.dtype.itemsize)


def decode_steps(model: Model, count: int, capacity: int, held: int) -> list[Step]:
    """Of all numbers of rows that an engine with so many slots decodes, with `held` tokens in each."""
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
