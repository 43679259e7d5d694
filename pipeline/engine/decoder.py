"""The rows of a decode step: which request is in which slot, and what the device has chosen for it.

On a GPU tokens are read one step late: while the host reads what step t chose, step t + 1 already runs, so neither
waits for the other. A request that has ended is noticed a step later, and the token it was given meanwhile is not read.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.engine.generation import Generation
from pipeline.engine.sampling import pick
from pipeline.model import Model, to_device
from pipeline.slots import LENGTH_STEP, Slots, rounded, row_counts


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token that has been read."""

    generation: Generation
    token: int
    logprob: float


@dataclass(slots=True)
class _Unread:
    """Tokens that the device has chosen or is choosing."""

    generations: list[tuple[Generation, int] | None]  # with their attempt; None: an empty row
    tokens: Tensor
    logprobs: Tensor
    ready: "torch.cuda.Event | None"


class Decoder:
    """Prefills requests into slots and decodes all of them together."""

    def __init__(self, model: Model, slots: int, capacity: int, *, late: bool | None = None) -> None:
        self.model = model
        on_gpu = model.device.type == "cuda"
        self._lag = int(on_gpu if late is None else late)
        self._counts = row_counts(slots, recorded=on_gpu)
        self.slots = Slots(model.config, self._counts[-1], capacity, dtype=model.dtype, device=model.device)
        self._rows: list[Generation | None] = [None] * self._counts[-1]
        self._unread: deque[_Unread] = deque()
        self._graphs = None
        self.rows_decoded = self.rows_live = 0  # over all steps: their quotient is the occupancy
        if on_gpu:
            from pipeline.engine.graphs import DecodeGraphs

            self._graphs = DecodeGraphs(model, self.slots)

    def warm_up(self) -> None:
        """Record the steps of short answers beforehand, so that the first requests need not wait for it."""
        first = rounded(self.model.image_tokens + 1, self.slots.capacity)
        lengths = {rounded(first + more, self.slots.capacity) for more in (0, LENGTH_STEP)}
        if self._graphs is not None:
            for count in self._counts:
                for length in lengths:
                    self._graphs.record(count, length)

    @property
    def live(self) -> list[Generation]:
        """Requests that hold a slot."""
        return [generation for generation in self._rows if generation is not None]

    @property
    def busy(self) -> bool:
        """Whether anything decodes or has not been read yet."""
        return bool(self._unread) or any(self._rows)

    def prefill(self, features: Tensor, generations: Sequence[Generation]) -> None:
        """Give each of g requests a slot, [g, image_tokens, hidden], and choose its first token."""
        rows = [row for row, held in enumerate(self._rows) if held is None][: len(generations)]
        logits = self.model.prefill(features, [g.prompt for g in generations], self.slots, rows)
        tokens, logprobs = pick(logits, [g.draw() for g in generations])
        self.slots.tokens[to_device(rows, tokens.device)] = tokens
        for generation, row in zip(generations, rows, strict=True):
            self._rows[row] = generation
            generation.row, generation.held = row, self.model.image_tokens + len(generation.prompt)
        self._launched(list(generations), tokens, logprobs)

    def decode(self) -> None:
        """Choose the next token of every request that holds a slot."""
        if not any(self._rows):
            return
        count = self._compact()
        rows = self._rows[:count]
        positions = [0 if g is None else g.held for g in rows]
        length = rounded(max(positions) + 1, self.slots.capacity)
        if self._graphs is not None:
            logits = self._graphs.decode_step(positions, length)
        else:
            logits = self.model.decode_step(self.slots, to_device(positions, self.model.device), length)
        tokens, logprobs = pick(logits, [None if g is None else g.draw() for g in rows])
        self.slots.tokens[:count] = tokens
        for generation in rows:
            if generation is not None:
                generation.held += 1
        self.rows_decoded += count
        self.rows_live += count - rows.count(None)
        self._launched(rows, tokens, logprobs)

    def read(self) -> list[Chosen]:
        """Tokens chosen since the last call, in order, but for those of the step under way."""
        chosen = []
        while len(self._unread) > (self._lag if any(self._rows) else 0):
            unread = self._unread.popleft()
            if unread.ready is not None:
                unread.ready.synchronize()
            tokens, logprobs = unread.tokens.tolist(), unread.logprobs.tolist()
            for entry, token, logprob in zip(unread.generations, tokens, logprobs, strict=True):
                if entry is not None and entry[0].attempt == entry[1]:
                    chosen.append(Chosen(entry[0], token, logprob))
        return chosen

    def release(self, generation: Generation) -> None:
        """Free a request's slot, if it still holds one."""
        if generation.row is not None:
            self._rows[generation.row] = None
            generation.row = None

    def _launched(self, generations: list[Generation | None], tokens: Tensor, logprobs: Tensor) -> None:
        """Send what was chosen on its way to the host; free the slots of those who have all their tokens."""
        ready = None
        if tokens.device.type == "cuda":
            tokens, logprobs = tokens.to("cpu", non_blocking=True), logprobs.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        entries = [None if g is None else (g, g.attempt) for g in generations]
        self._unread.append(_Unread(entries, tokens, logprobs, ready))
        for generation in generations:
            if generation is not None:
                generation.launched += 1
                if generation.launched >= generation.request.max_tokens:
                    self.release(generation)

    def _compact(self) -> int:
        """Move requests down where that makes the step smaller; how many rows it has."""
        live = len(self._rows) - self._rows.count(None)
        wanted = next(count for count in self._counts if count >= live)
        for row in range(wanted, len(self._rows)):
            generation = self._rows[row]
            if generation is not None:
                target = self._rows.index(None)
                self.slots.move(row, target, generation.held)
                self._rows[target], self._rows[row], generation.row = generation, None, target
        return wanted
