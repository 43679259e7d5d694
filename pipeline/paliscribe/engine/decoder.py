"""The rows of a decode step: which request is in which slot, and which tokens were sampled for it.

On a GPU tokens are read one step late: the host reads the tokens of step t while step t + 1 runs, so neither waits for
the other. The end of a request is noticed one step late; the extra token sampled for it is dropped.
"""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paliscribe.engine.generation import Generation
from paliscribe.engine.sampling import pick
from paliscribe.model.kv_cache import Slots, round_up
from paliscribe.model.paligemma import Model, to_device

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A sampled token, read by the host."""

    generation: Generation
    token: int
    logprob: float


@dataclass(slots=True)
class _Unread:
    """Sampled tokens that the host has not read yet."""

    generations: list[tuple[Generation, int] | None]  # with their attempt; None: an empty row
    tokens: Tensor
    logprobs: Tensor
    ready: "torch.cuda.Event | None"
    step: int  # the step that sampled them


class Decoder:
    """Prefills requests into slots and decodes all of them together."""

    def __init__(self, model: Model, slots: int, capacity: int, *, late: bool | None = None) -> None:
        self.model = model
        on_gpu = model.device.type == "cuda"
        self._late = on_gpu if late is None else late
        self._step = 0  # incremented by each `read`
        self._counts = model.shapes.rows.padded_counts(slots)
        self.slots = Slots(
            model.config, self._counts[-1], capacity, model.chunk, dtype=model.dtype, device=model.device
        )
        self._rows: list[Generation | None] = [None] * self._counts[-1]
        self._unread: deque[_Unread] = deque()
        self._graphs = None
        self.rows_decoded = self.rows_live = 0  # summed over all steps; occupancy = rows_live / rows_decoded
        if on_gpu:
            from paliscribe.engine.graphs import DecodeGraphs

            self._graphs = DecodeGraphs(model, self.slots)

    def warm_up(self) -> None:
        """On a GPU, run every part in each of its sizes and record all decode steps, so that no request pays for it.

        Call it in the thread that decodes: libraries keep handles and plans per thread. The largest graphs are recorded
        first; smaller ones then reuse their memory pool.
        """
        if self._graphs is None:
            return
        model, shapes = self.model, self.model.shapes
        for count in reversed(shapes.images.sizes):
            pixels = torch.zeros(count, model.image_size, model.image_size, 3, dtype=torch.uint8)
            features = model.embed_images(pixels)
        for tokens in reversed(shapes.tokens.sizes):
            rows = range(max(1, min(tokens // (model.image_tokens + 1), len(self._rows))))
            pick(
                model.prefill(features[:1].expand(len(rows), -1, -1), [[0]] * len(rows), self.slots, rows),
                [None] * len(rows),
            )
        steps = [(count, length) for count in self._counts for length in self.lengths]
        steps.sort(key=lambda step: step[0] * step[1], reverse=True)
        for done, (count, length) in enumerate(steps):
            if done % 16 == 0:
                log.info("decode steps recorded: %d of %d", done, len(steps))
            self._graphs.record(count, length)

    @property
    def lengths(self) -> list[int]:
        """Context lengths that a decode step may attend to, in tokens, ascending."""
        if not self.model.shapes.any_length:
            return [self.slots.capacity]
        shortest = round_up(self.model.image_tokens + 1, self.slots.chunk)
        return list(range(shortest, self.slots.capacity + 1, self.slots.chunk))

    @property
    def live(self) -> list[Generation]:
        """Requests that hold a slot."""
        return [generation for generation in self._rows if generation is not None]

    @property
    def busy(self) -> bool:
        """Whether any request is decoding or any sampled token is unread."""
        return bool(self._unread) or any(self._rows)

    def prefill(self, features: Tensor, generations: Sequence[Generation]) -> None:
        """Assign slots to g requests and sample their first tokens. `features`: [g, image_tokens, hidden]."""
        rows = [row for row, held in enumerate(self._rows) if held is None][: len(generations)]
        logits = self.model.prefill(features, [g.prompt for g in generations], self.slots, rows)
        tokens, logprobs = pick(logits, [g.draw() for g in generations])
        sent = self._copy_to_host(generations, tokens, logprobs)
        self.slots.tokens[to_device(rows, tokens.device)] = tokens
        for generation, row in zip(generations, rows, strict=True):
            self._rows[row] = generation
            generation.row, generation.held = row, self.model.image_tokens + len(generation.prompt)
        self._enqueue(sent)

    def decode(self) -> None:
        """Sample the next token of every request that holds a slot."""
        if not any(self._rows):
            return
        count = self._compact()
        rows = self._rows[:count]
        positions = [0 if g is None else g.held for g in rows]
        length = next(length for length in self.lengths if length > max(positions))
        self.slots.zero_unwritten(count, length)
        if self._graphs is not None:
            logits = self._graphs.decode_step(positions, length)
        else:
            logits = self.model.decode_step(self.slots, to_device(positions, self.model.device), length)
        tokens, logprobs = pick(logits, [None if g is None else g.draw() for g in rows])
        sent = self._copy_to_host(rows, tokens, logprobs)  # the last call that can raise; state changes after it
        self.slots.tokens[:count] = tokens
        for generation in rows:
            if generation is not None:
                generation.held += 1
        self.rows_decoded += count
        self.rows_live += count - rows.count(None)
        self._enqueue(sent)

    def read(self) -> list[Chosen]:
        """Tokens sampled since the last call, in order. When reading late: only those of earlier steps."""
        chosen = []
        late = self._late and any(self._rows)
        while self._unread and not (late and self._unread[0].step == self._step):
            unread = self._unread.popleft()
            if unread.ready is not None:
                unread.ready.synchronize()
            tokens, logprobs = unread.tokens.tolist(), unread.logprobs.tolist()
            for entry, token, logprob in zip(unread.generations, tokens, logprobs, strict=True):
                if entry is not None and entry[0].attempt == entry[1]:
                    chosen.append(Chosen(entry[0], token, logprob))
        self._step += 1
        return chosen

    def release(self, generation: Generation) -> None:
        """Free a request's slot, if it still holds one."""
        if generation.row is not None:
            self._rows[generation.row] = None
            generation.row = None

    def _copy_to_host(self, generations: Sequence[Generation | None], tokens: Tensor, logprobs: Tensor) -> _Unread:
        """Start copying sampled tokens to the host."""
        ready = None
        if tokens.device.type == "cuda":
            tokens, logprobs = tokens.to("cpu", non_blocking=True), logprobs.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        entries = [None if g is None else (g, g.attempt) for g in generations]
        return _Unread(entries, tokens, logprobs, ready, self._step)

    def _enqueue(self, sent: _Unread) -> None:
        """Queue tokens to be read; free the slots of requests that have reached max_tokens."""
        self._unread.append(sent)
        for entry in sent.generations:
            if entry is not None:
                entry[0].launched += 1
                if entry[0].launched >= entry[0].request.max_tokens:
                    self.release(entry[0])

    def _compact(self) -> int:
        """Move requests to lower rows if that makes the step smaller; returns the number of rows."""
        live = len(self._rows) - self._rows.count(None)
        wanted = next(count for count in self._counts if count >= live)
        for row in range(wanted, len(self._rows)):
            generation = self._rows[row]
            if generation is not None:
                target = self._rows.index(None)
                self.slots.move(row, target)
                self._rows[target], self._rows[row], generation.row = generation, None, target
        return wanted
