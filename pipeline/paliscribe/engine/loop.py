"""The engine: one thread and one model that answer batch and online requests.

`Engine.step` is one iteration: admit, prefill, decode, retire. Requests join and leave at every step (iteration-level
scheduling: Yu et al. 2022, "Orca"). Each gets the same tokens as if it ran alone.
"""

import functools
import itertools
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from weakref import ref

import torch
from torch import Tensor

from paliscribe.engine.decoder import Decoder
from paliscribe.engine.embeddings import Embeddings
from paliscribe.engine.failures import Failure, attempt, line, require_memory
from paliscribe.engine.generation import Generation, OnPiece
from paliscribe.engine.scheduler import Item, QueueFull, Scheduler
from paliscribe.engine.sizing import Sizes, engine_sizes
from paliscribe.engine.stats import EngineStats
from paliscribe.errors import ReplicaError, RequestError, clear_frames
from paliscribe.model.paligemma import Model
from paliscribe.records import BATCH, ONLINE, Prediction, Request

log = logging.getLogger(__name__)
RECOVERY_STEPS = 64  # steps without a failure after which the limit on live requests is doubled again


class Engine:
    """Answers requests; greedy in float32, token for token what `model.generate` answers one by one.

    `submit` is thread-safe, and so is `cancel` of its futures: a cancelled request leaves the queue at once, or its
    slot at the next step. Either call `start` to run the engine's own thread, or call `step` until it returns False.
    """

    def __init__(self, model: Model, sizes: Sizes | None = None, *, late: bool | None = None) -> None:
        """`sizes`: default: chosen for the device. `late`: read tokens one step late; default: on a GPU."""
        self.model, self.sizes = model, sizes or engine_sizes(model)
        self._slots = self.sizes.limits.slots
        self._decoder = Decoder(model, self._slots, self.sizes.capacity, late=late)
        self._embeddings = Embeddings(self.sizes.embedding_bytes)
        self._scheduler = Scheduler(self.sizes.limits)
        self._tickets = itertools.count()
        self._generations: dict[int, Generation] = {}  # unanswered requests by ticket
        self._cancelled: list[Generation] = []
        self._max_live, self._clean_steps = self._slots, 0
        self._steps = self._prefilled = self._padded = self._embedded = self._reused = 0
        self._busy = 0.0  # seconds
        self._work = threading.Condition()
        self._step_started: float | None = None  # time.monotonic() at the start of the current step
        self._closed = False
        self._failure: str | None = None  # why the thread died
        self._thread: threading.Thread | None = None

    def submit(self, requests: Sequence[Request], on_piece: OnPiece | None = None) -> list[Future[Prediction]]:
        """Queue one call's requests. Each future resolves to a prediction, or to an error prediction of that request.

        `max_tokens` is a limit: it is lowered to what fits into a slot beside the prompt. `on_piece` is called in the
        engine's thread with each piece of stable text. Raises RequestError (429) if the
        queue is full, and ReplicaError if the engine is closed or its thread has died.
        """
        now = time.monotonic()
        generations, items = [], []
        for request in requests:
            prompt = self.model.tokenize(request.prompt)
            room = self.sizes.capacity - self.model.image_tokens - len(prompt)
            if 0 < room < request.max_tokens:
                request = replace(request, max_tokens=room)
            generation = Generation(next(self._tickets), request, prompt, self.model.detokenize, on_piece)
            generation.prompt_tokens += self.model.image_tokens
            generations.append(generation)
            if problem := self._rejection(request, prompt):
                generation.refuse(*problem)
            else:
                items.append(self._item(generation, now))
        with self._work:
            if not self.alive:
                raise ReplicaError(f"the engine is not running: {self._failure or 'it was closed'}")
            try:
                self._scheduler.add(items)
            except QueueFull as error:
                raise RequestError(429, "overloaded", f"the engine's queue is full: {error}") from None
            for generation in generations:
                if not generation.future.done():
                    self._generations[generation.ticket] = generation
                    # A weak reference: futures must not keep the engine and its memory alive.
                    generation.future.add_done_callback(functools.partial(_on_done, ref(self), generation.ticket))
            self._work.notify()
        return [generation.future for generation in generations]

    def step(self) -> bool:
        """Run one iteration. Returns False if there was nothing to do."""
        group = self._admit()
        if not group and not self._decoder.busy:
            return False
        self._steps += 1
        self._step_started = time.monotonic()
        self._prefill(group)
        self._decode()
        self._retire()
        self._busy += time.monotonic() - self._step_started
        self._step_started = None
        return True

    def run(self, requests: Sequence[Request]) -> list[Prediction]:
        """Answer requests in the calling thread. For tools and tests; not together with `start`."""
        futures = self.submit(requests)
        while self.step():
            pass
        return [future.result() for future in futures]

    def forget_images(self) -> None:
        """Clear the embedding cache. Not together with `start`."""
        self._embeddings = Embeddings(self.sizes.embedding_bytes)

    def start(self) -> None:
        """Warm up and run in the engine's own thread. Raises the warm-up's error."""
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._loop, args=(ready,), name="engine", daemon=True)
        self._thread.start()
        ready.result()

    def close(self) -> None:
        """Stop. Queued and running requests fail with ReplicaError."""
        with self._work:
            self._closed = True
            self._work.notify_all()
        if self._thread is not None:
            self._thread.join()
        self.fail("it was closed")

    def fail(self, why: str) -> None:
        """Fail all requests with ReplicaError and take no more. From any thread: the engine's own may hang."""
        with self._work:
            self._failure = self._failure or why
            self._scheduler.drain()
            unfinished = list(self._generations.values())
            self._generations.clear()
            self._cancelled.clear()
        for generation in unfinished:
            self._decoder.release(generation)
            generation.fail(ReplicaError(f"the engine stopped: {why}"))

    @property
    def alive(self) -> bool:
        """False once the engine has failed or was closed."""
        return not self._closed and self._failure is None

    def step_seconds(self) -> float:
        """Seconds since the current step started; 0 between steps. Grows without bound if the device hangs."""
        begun = self._step_started
        return 0.0 if begun is None else time.monotonic() - begun

    def stats(self) -> EngineStats:
        """A snapshot of counters and queue sizes."""
        decoder = self._decoder
        return EngineStats(
            waiting=len(self._scheduler),
            waiting_online=self._scheduler.waiting(ONLINE),
            live=len(decoder.live),
            slots=self._slots,
            steps=self._steps,
            occupancy=decoder.rows_live / max(1, decoder.rows_decoded),
            padding=self._padded / max(1, self._prefilled),
            embedded=self._embedded,
            reused=self._reused,
            busy=self._busy,
        )

    def _admit(self) -> list[Generation]:
        """Drop cancelled and expired requests, then admit the next group."""
        with self._work:
            for generation in self._cancelled:
                self._scheduler.remove(generation.ticket)  # a failed step may have requeued it
                self._decoder.release(generation)
                self._forget(generation)
            self._cancelled.clear()
            for ticket in self._scheduler.expired(time.monotonic()):
                if (late := self._generations.get(ticket)) is not None:
                    self._scheduler.remove(ticket)
                    self._decoder.release(late)
                    late.refuse("expired", f"no answer within {late.request.timeout:g} s")
                    self._forget(late)
            live = self._decoder.live
            batch = sum(generation.request.priority == BATCH for generation in live)
            items = self._scheduler.admit(max(0, self._max_live - len(live)), batch, len(live) - batch)
            return [self._generations[item.ticket] for item in items]

    def _prefill(self, group: Sequence[Generation]) -> None:
        """Prefill a group. A failing group is bisected until the failing request is isolated."""
        groups = [group] if group else []
        while groups:
            part = groups.pop()
            failure = attempt(functools.partial(self._prefill_together, part))
            if failure is None:
                continue
            for generation in part:
                self._decoder.release(generation)
            if len(part) == 1:
                self._refuse(part[0], failure)
                continue
            middle = len(part) // 2
            if failure.memory:
                log.warning("out of memory in a prefill of %d requests: reducing prefill_tokens", len(part))
                most = middle * (self.model.image_tokens + max(len(g.prompt) for g in part))
                self._scheduler.limits = replace(self._scheduler.limits, prefill_tokens=most)
            for generation in part:
                generation.restart()
            groups += [part[middle:], part[:middle]]

    def _prefill_together(self, group: Sequence[Generation]) -> None:
        self._decoder.prefill(self._embed([g.request for g in group]), group)
        counts = [self.model.image_tokens + len(g.prompt) for g in group]
        filled = self.model.shapes.tokens.layout(counts)[1]
        self._prefilled += filled
        self._padded += filled - sum(counts)

    def _decode(self) -> None:
        """Decode one token per live request. A failing step is bisected: its newest half is requeued."""
        failure = attempt(self._decoder.decode)
        if failure is None:
            self._clean_steps += 1
            if self._clean_steps >= RECOVERY_STEPS and self._max_live < self._slots:
                self._max_live, self._clean_steps = min(self._max_live * 2, self._slots), 0
            return
        live = sorted(self._decoder.live, key=lambda g: (g.request.priority, g.ticket))
        half = live[len(live) // 2 :]
        for generation in half:
            self._decoder.release(generation)
        if len(live) == 1:
            self._refuse(live[0], failure)
        else:
            for generation in half:
                generation.restart()
            with self._work:
                self._scheduler.put_back([self._item(generation) for generation in half])
        self._max_live, self._clean_steps = max(1, len(live) // 2), 0

    def _retire(self) -> None:
        """Append the tokens read, and answer finished requests."""
        for chosen in self._decoder.read():
            generation = chosen.generation
            if generation.finish is not None or generation.future.done():
                continue
            try:
                generation.add_token(chosen.token, chosen.logprob, self.model.end_tokens)
            except Exception:  # raised by a callback: cancel only its request
                log.exception("a token callback failed")
                generation.future.cancel()
                continue
            if generation.finish is not None:
                self._decoder.release(generation)
                with self._work:
                    self._forget(generation)
                generation.answer()

    def _embed(self, requests: Sequence[Request]) -> Tensor:
        """Embeddings of a group, [g, image_tokens, hidden]; cached images are not encoded again."""
        found = {r.image_key: self._embeddings.get(r.image_key) for r in requests}
        fresh = {r.image_key: r.pixels for r in requests if found[r.image_key] is None}
        if fresh:
            passed = self.model.embed_images(self.model.upload(list(fresh.values())))
            for key, features in zip(fresh, passed, strict=True):
                found[key] = features
                self._embeddings.keep(key, features.clone())
        self._embedded += len(fresh)
        self._reused += len(requests) - len(fresh)
        return torch.stack([features for r in requests if (features := found[r.image_key]) is not None])

    def _item(self, generation: Generation, now: float | None = None) -> Item:
        request = generation.request
        deadline = None if request.timeout is None or now is None else now + request.timeout
        tokens = self.model.image_tokens + len(generation.prompt)
        return Item(generation.ticket, tokens, request.max_tokens, request.priority, deadline)

    def _rejection(self, request: Request, prompt: Sequence[int]) -> tuple[str, str] | None:
        """Error kind and message of a request that can never be answered, or None."""
        size = self.model.image_size
        if request.pixels.shape != (size, size, 3):
            return "model", f"pixels are {request.pixels.shape}, the model expects {(size, size, 3)}"
        room = self.sizes.capacity - self.model.image_tokens
        if len(prompt) >= room:
            words = f"a prompt of {len(prompt)} tokens and an answer do not fit into the {room} tokens beside the image"
            return "prompt_too_long", f"{words}; the setting is `pool.text_tokens`"
        return None

    def _refuse(self, generation: Generation, failure: Failure) -> None:
        """Answer a request that the model failed on with an error. Raises ReplicaError if the device is to blame."""
        if failure.memory:
            require_memory(self.model)
        with self._work:
            self._forget(generation)
        generation.refuse("model", failure.line)

    def _forget(self, generation: Generation) -> None:
        """Remove an answered request; the caller holds the lock."""
        self._generations.pop(generation.ticket, None)

    def _cancel(self, ticket: int) -> None:
        """Remove a cancelled request from the queue, or mark it for removal at the next step."""
        with self._work:
            generation = self._generations.get(ticket)
            if generation is None:
                return
            if self._scheduler.remove(ticket):
                self._forget(generation)
            else:
                self._cancelled.append(generation)

    def _loop(self, ready: Future[None]) -> None:
        if not self._warmed_up(ready):
            return
        try:
            while True:
                with self._work:
                    self._work.wait_for(lambda: self._closed or self._decoder.busy or len(self._scheduler) > 0)
                    if self._closed:
                        return
                self.step()
        except BaseException as error:  # any error: pending futures must not wait forever
            self.fail(str(error) if isinstance(error, ReplicaError) else line(error))
            clear_frames(error)
            raise

    def _warmed_up(self, ready: Future[None]) -> bool:
        try:
            self._decoder.warm_up()
        except BaseException as error:  # raised by `start`
            self._failure = line(error)
            ready.set_exception(error)
            return False
        ready.set_result(None)
        return True


def _on_done(engine: ref[Engine], ticket: int, future: Future[Prediction]) -> None:
    """Remove the request of a cancelled future, and notify its waiters."""
    if not future.cancelled():
        return
    future.set_running_or_notify_cancel()
    if (running := engine()) is not None:
        running._cancel(ticket)
