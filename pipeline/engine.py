"""The loop that answers requests: one thread, one model, two mouths (batch and online).

`Engine.step` is the story: take a group, embed its images, prefill, decode until all have ended, answer.
"""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ReplicaError
from pipeline.model import Model
from pipeline.records import FinishReason, Prediction, Request
from pipeline.scheduler import Item, Scheduler

EMBEDDINGS_KEPT = 256  # images whose embeddings outlive their group: 256 x 1 MiB at 224 px in bfloat16


@dataclass(slots=True)
class _Running:
    """A request on its way through the engine."""

    request: Request
    prompt: list[int]
    future: Future[Prediction]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None


class Engine:
    """Answers requests in groups; greedy, and in float32 token for token what `model.generate` answers one by one.

    `submit` may be called from any thread. Either call `start` and let the engine's own thread run, or call
    `step` until it returns False.
    """

    def __init__(self, model: Model, group_size: int = 32) -> None:
        self.model = model
        self._scheduler = Scheduler(group_size)
        self._tickets = itertools.count()
        self._running: dict[int, _Running] = {}
        self._embeddings: OrderedDict[str, Tensor] = OrderedDict()
        self._work = threading.Condition()
        self._closed = False
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def submit(self, requests: Sequence[Request]) -> list[Future[Prediction]]:
        """Queue requests that arrive together; each future ends in a prediction, an error of its own included.

        Raises ReplicaError if the engine is closed or its thread has died.
        """
        futures: list[Future[Prediction]] = []
        accepted: dict[int, list[Item]] = {}
        running: dict[int, _Running] = {}
        for request in requests:
            future: Future[Prediction] = Future()
            futures.append(future)
            prompt = self.model.tokenize(request.prompt)
            if problem := self._misfit(request, prompt):
                future.set_result(_failed(request, *problem))
                continue
            ticket = next(self._tickets)
            running[ticket] = _Running(request, prompt, future)
            accepted.setdefault(request.priority, []).append(Item(ticket, len(prompt), request.max_tokens))
        with self._work:
            if self._closed or self._failure is not None:
                raise ReplicaError(f"the engine is not running: {self._failure or 'it was closed'}")
            self._running.update(running)
            for priority, items in accepted.items():
                self._scheduler.add(items, priority)
            self._work.notify()
        return futures

    def cancel(self, future: Future[Prediction]) -> bool:
        """Forget a request that is still waiting. False if it is being answered or has been."""
        with self._work:
            ticket = next((t for t, running in self._running.items() if running.future is future), None)
            if ticket is None or not self._scheduler.remove(ticket):
                return False
            del self._running[ticket]
        return future.cancel()

    def step(self) -> bool:
        """Answer one group. False if nothing waits."""
        with self._work:
            group = [self._running[item.ticket] for item in self._scheduler.next_group()]
        if not group:
            return False
        self._answer(group)
        with self._work:
            done = {id(running) for running in group}
            self._running = {t: running for t, running in self._running.items() if id(running) not in done}
        return True

    def run(self, requests: Sequence[Request]) -> list[Prediction]:
        """Answer requests in the calling thread. For tools and tests; not beside `start`."""
        futures = self.submit(requests)
        while self.step():
            pass
        return [future.result() for future in futures]

    def start(self) -> None:
        """Run in a thread of the engine's own."""
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; requests that are still waiting are answered with an error."""
        with self._work:
            self._closed = True
            self._work.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._abandon("the engine was closed")

    @property
    def alive(self) -> bool:
        """Whether requests will be answered: False once the thread has died or the engine was closed."""
        return not self._closed and self._failure is None

    @property
    def queued(self) -> int:
        """Requests that wait, those being answered not counted."""
        return len(self._scheduler)

    def _loop(self) -> None:
        try:
            while True:
                with self._work:
                    self._work.wait_for(lambda: self._closed or len(self._scheduler) > 0)
                    if self._closed:
                        return
                self.step()
        except BaseException as error:  # whatever it was, nobody may wait for an answer that will not come
            with self._work:
                self._failure = error
            self._abandon(f"the engine stopped: {error}")
            raise

    def _abandon(self, message: str) -> None:
        with self._work:
            self._scheduler.drain()
            abandoned, self._running = list(self._running.values()), {}
        for running in abandoned:
            if not running.future.done():
                running.future.set_exception(ReplicaError(message))

    def _misfit(self, request: Request, prompt: list[int]) -> tuple[str, str] | None:
        needed = self.model.image_tokens + len(prompt) + request.max_tokens
        if needed > self.model.context:
            return "prompt_too_long", (
                f"the image, a prompt of {len(prompt)} tokens and an answer of {request.max_tokens} "
                f"need {needed} tokens; this model holds {self.model.context}"
            )
        if request.pixels.shape != (self.model.image_size, self.model.image_size, 3):
            return "model", f"pixels have shape {request.pixels.shape}, the model takes {self.model.image_size} a side"
        return None

    def _answer(self, group: list[_Running]) -> None:
        """Answer a group; one that fails is split in halves, so that a bad or too large one costs only itself."""
        try:
            self._generate(group)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            self._split(group, error)
        except torch.AcceleratorError as error:  # the device's context is gone: no later request can be answered
            raise ReplicaError(f"the device failed: {error}") from error
        except RuntimeError as error:
            self._split(group, error)
        else:
            for running in group:
                text = self.model.detokenize(running.tokens)
                running.future.set_result(
                    Prediction(
                        running.request.id,
                        text,
                        tuple(running.tokens),
                        tuple(running.logprobs),
                        running.finish,
                    )
                )

    def _split(self, group: list[_Running], error: RuntimeError) -> None:
        if len(group) == 1:
            message = str(error).strip().splitlines()[0]
            group[0].future.set_result(_failed(group[0].request, "model", f"{type(error).__name__}: {message}"))
            return
        middle = len(group) // 2
        self._answer(group[:middle])
        self._answer(group[middle:])

    def _generate(self, group: list[_Running]) -> None:
        for running in group:
            running.tokens, running.logprobs, running.finish = [], [], None
        features = self._embed([running.request for running in group])
        logits, state = self.model.prefill(features, [running.prompt for running in group])
        live = group
        while True:
            tokens = self._pick(logits, live)
            going_on = [i for i, running in enumerate(live) if running.finish is None]
            if not going_on:
                return
            if len(going_on) <= len(live) // 2:  # retire those that have ended, once it pays for the copy
                rows = torch.tensor(going_on, device=tokens.device)
                state.select(rows)
                tokens, live = tokens[rows], [live[i] for i in going_on]
            logits = self.model.decode_step(state, tokens)

    def _pick(self, logits: Tensor, live: list[_Running]) -> Tensor:
        """Greedy choice: float32 [g, vocab] -> int64 [g]; books token and log-probability with each request."""
        logprobs, tokens = torch.log_softmax(logits, dim=-1).max(dim=-1)
        for running, token, logprob in zip(live, tokens.tolist(), logprobs.tolist(), strict=True):
            if running.finish is not None:
                continue
            running.logprobs.append(logprob)
            if token in self.model.end_tokens:
                running.finish = "stop"
                continue
            running.tokens.append(token)
            if len(running.tokens) >= running.request.max_tokens:
                running.finish = "length"
        return tokens

    def _embed(self, requests: Sequence[Request]) -> Tensor:
        """Embeddings of a group, [g, image_tokens, hidden]; each distinct image passes the encoder once.

        They are kept for the groups after this one, since tasks of unlike length on one image run in unlike groups.
        """
        fresh = {r.image_key: r.pixels for r in requests if r.image_key not in self._embeddings}
        if fresh:
            pixels = torch.from_numpy(np.stack(list(fresh.values())))
            for key, features in zip(fresh, self.model.embed_images(pixels), strict=True):
                self._embeddings[key] = features
        group = torch.stack([self._embeddings[r.image_key] for r in requests])
        for request in requests:
            self._embeddings.move_to_end(request.image_key)
        while len(self._embeddings) > EMBEDDINGS_KEPT:
            self._embeddings.popitem(last=False)
        return group


def _failed(request: Request, kind: str, message: str) -> Prediction:
    return Prediction(request.id, "", (), (), None, kind, message)
