"""Requests that no replica survives, among many: `python -m bench.poison --requests 20000 --poisons 200`.

Replicas are processes with the calls, the watch and the isolation of real ones, and an engine without a model: so one
starts in milliseconds. They are forked and called through sockets instead of by Serve. The poison is real: a
segmentation fault, a step that sleeps, one that holds the interpreter too, and memory that grows until the process is
killed, here above a limit as by the kernel.
"""

import argparse
import asyncio
import contextlib
import ctypes
import faulthandler
import json
import logging
import os
import pickle
import random
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paliscribe.errors import ReplicaError
from paliscribe.pool.company import Company
from paliscribe.pool.isolation import isolate
from paliscribe.pool.replica import Replica
from paliscribe.pool.watch import watch
from paliscribe.records import Prediction, Request

KINDS = ("crash", "hang", "hold", "memory")  # prompts of poisoned requests
CALL = 64  # requests
CALLS_AT_ONCE = 12
MEMORY = 128 * 2**20  # bytes by which a replica may grow until it is killed
PAGE = os.sysconf("SC_PAGE_SIZE")


def request(number: int, prompt: str = "caption en") -> Request:
    """A request without a picture to speak of."""
    return Request(str(number), prompt, np.zeros((1, 1, 3), np.uint8), str(number), 16)


def expected(asked: Request) -> Prediction:
    """The answer to a good request: the same alone and in company."""
    number = int(asked.id)
    return Prediction(asked.id, f"scene {number}", (number % 251, number % 241), (-0.5,), "stop")


class ScriptedEngine:
    """An engine whose steps last a moment, unless a request ends it."""

    def __init__(self) -> None:
        self.alive = True
        self._begun: dict[object, float] = {}
        self._pending: set[asyncio.Future[list[Prediction]]] = set()

    def step_seconds(self) -> float:
        """See `Engine`."""
        return time.monotonic() - min(self._begun.values(), default=time.monotonic())

    def fail(self, why: str) -> None:
        """See `Engine`."""
        self.alive = False
        for future in list(self._pending):
            future.get_loop().call_soon_threadsafe(future.cancel, why)

    async def predict(self, engine: object, requests: Sequence[Request]) -> list[Prediction]:
        """As `paliscribe.engine.aio.predict`."""
        if not self.alive:
            raise ReplicaError("the engine is not running")
        future = asyncio.ensure_future(asyncio.to_thread(self._step, list(requests)))
        self._pending.add(future)
        try:
            return await future
        except asyncio.CancelledError as error:
            raise ReplicaError(f"the engine stopped: {error}") from None
        finally:
            self._pending.discard(future)

    def _step(self, requests: list[Request]) -> list[Prediction]:
        key = object()
        self._begun[key] = time.monotonic()
        time.sleep(0.005)
        for prompt in {each.prompt for each in requests} & set(KINDS):
            poisoned(prompt)
        del self._begun[key]
        return [expected(each) for each in requests]


def poisoned(kind: str) -> None:
    """End this process, or make it useless."""
    if kind == "crash":
        ctypes.string_at(0)
    elif kind == "hold":
        ctypes.PyDLL(None).sleep(10**6)  # as a native call that does not release the interpreter
    elif kind == "hang":
        time.sleep(10**6)
    held = []
    while True:
        held.append(bytearray(b"\1" * 2**23))
        time.sleep(0.01)


class Silent:
    """Metrics that nobody reads."""

    def answered(self, requests: Sequence[Request], predictions: Sequence[Prediction]) -> None:
        """See `ReplicaMetrics`."""


class LightReplica(Replica):
    """A replica with a scripted engine."""

    def __init__(self, limit: float, name: str) -> None:
        self._name, self._metrics, self._company = name, Silent(), Company()  # type: ignore[assignment]
        self.engine = self._aio = ScriptedEngine()  # type: ignore[assignment]
        watch(self.engine, limit)


class Process:
    """A replica in a process of its own, and the calls that it has."""

    def __init__(self, limit: float, name: str) -> None:
        here, there = socket.socketpair()
        self.calls: dict[int, asyncio.Queue[Any]] = {}
        self.alive, self._here, self.first = True, here, 0
        self.pid = os.fork()
        if not self.pid:
            here.close()
            faulthandler.disable()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # stacks of hung steps
            asyncio._set_running_loop(None)
            asyncio.set_event_loop(None)
            try:
                asyncio.run(answer_calls(there, LightReplica(limit, name)))
            finally:
                os._exit(0)
        there.close()

    async def read(self) -> int:
        """Pass parts of answers on until the process has ended. Returns its status."""
        reader, self._writer = await asyncio.open_connection(sock=self._here)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                call, part = await received(reader)
                if (parts := self.calls.get(call)) is not None:
                    parts.put_nowait(part)
        self.alive = False
        self._writer.close()
        for waiting in self.calls.values():
            waiting.put_nowait(ReplicaError("its process ended"))
        return (await asyncio.to_thread(os.waitpid, self.pid, 0))[1]

    async def ask(self, number: int, method: str, *arguments: Any) -> AsyncIterator[Any]:
        """The parts of an answer. Raises ReplicaError if the process ends."""
        parts = self.calls[number] = asyncio.Queue()
        try:
            await send(self._writer, (number, method, arguments))
            while (part := await parts.get()) is not None:
                if isinstance(part, Exception):
                    raise part
                yield part
        except ConnectionError:
            raise ReplicaError("its process has ended") from None
        finally:
            del self.calls[number]


async def send(writer: asyncio.StreamWriter, message: object) -> None:
    """Write a message."""
    body = pickle.dumps(message)
    writer.write(struct.pack("!I", len(body)) + body)
    await writer.drain()


async def received(reader: asyncio.StreamReader) -> Any:
    """Read a message."""
    [size] = struct.unpack("!I", await reader.readexactly(4))
    return pickle.loads(await reader.readexactly(size))


async def answer_calls(connection: socket.socket, replica: Replica) -> None:
    """The replica's side."""
    reader, writer = await asyncio.open_connection(sock=connection)
    tasks = set()

    async def answer(number: int, method: str, arguments: Sequence[Any]) -> None:
        try:
            if method == "predict":
                await send(writer, (number, await replica.predict(*arguments)))
            else:
                async for part in replica.predict_apart(*arguments):
                    await send(writer, (number, part))
            await send(writer, (number, None))
        except ReplicaError as error:
            await send(writer, (number, error))

    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            task = asyncio.create_task(answer(*await received(reader)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


class LightPool:
    """Replicas that are replaced when they end."""

    def __init__(self, limit: float) -> None:
        self._limit, self._numbers = limit, iter(range(10**9))
        self.processes: dict[int, Process] = {}
        self.lost, self.sent = Counter[str](), 0

    async def keep(self, place: int) -> None:
        """Keep one replica up."""
        while True:
            process = self.processes[place] = Process(self._limit, f"replica-{next(self._numbers)}")
            status = await process.read()
            self.lost[signal.Signals(status & 127).name if status & 127 else f"exit {status >> 8}"] += 1

    async def kill_large(self) -> None:
        """Kill replicas that take too much memory, as the kernel does."""
        while True:
            for process in list(self.processes.values()):
                if process.alive:
                    with contextlib.suppress(OSError):
                        now = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * PAGE
                        process.first = process.first or now
                        if now > process.first + MEMORY:
                            os.kill(process.pid, signal.SIGKILL)
            await asyncio.sleep(0.02)

    async def ask(self, requests: Sequence[Request], method: str, *arguments: Any) -> AsyncIterator[Any]:
        """A call of the replica that has the fewest."""
        while not (up := [p for p in self.processes.values() if p.alive and hasattr(p, "_writer")]):
            await asyncio.sleep(0.01)
        self.sent += len(requests)
        chosen = min(up, key=lambda process: len(process.calls))
        async for part in chosen.ask(next(self._numbers), method, requests, *arguments):
            yield part

    async def predict(self, requests: list[Request]) -> list[Prediction]:
        """As `PendingCall.result`."""
        try:
            [answers] = [part async for part in self.ask(requests, "predict")]
            return list(answers)
        except ReplicaError:
            return await isolate(requests, lambda some, size: self.ask(some, "predict_apart", size))


async def measured(requests: Sequence[Request], replicas: int, limit: float) -> dict[str, Any]:
    """Answer the requests in calls. Returns figures, `answers` among them."""
    pool, begun = LightPool(limit), time.monotonic()
    keepers = [asyncio.create_task(pool.keep(place)) for place in range(replicas)]
    keepers.append(asyncio.create_task(pool.kill_large()))
    free, answers = asyncio.Semaphore(CALLS_AT_ONCE), dict[str, Prediction]()

    async def call(some: list[Request]) -> None:
        async with free:
            answers.update((answer.id, answer) for answer in await pool.predict(some))

    all_calls = asyncio.gather(*(call(list(requests[at : at + CALL])) for at in range(0, len(requests), CALL)))
    tasks: list[asyncio.Future[Any]] = [all_calls, *keepers]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()  # raises the error of a keeper too
    seconds = time.monotonic() - begun
    for keeper in keepers:
        keeper.cancel()
    for process in pool.processes.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    return {"answers": answers, "lost": dict(pool.lost), "sent": pool.sent, "seconds": round(seconds, 1)}


def made(count: int, poisons: int, seed: int) -> list[Request]:
    """Requests, with as many of each kind of poison at seeded places."""
    requests = [request(number) for number in range(count)]
    for index, place in enumerate(random.Random(seed).sample(range(count), poisons)):
        requests[place].prompt = KINDS[index % len(KINDS)]
    return requests


def verdict(requests: Sequence[Request], figures: dict[str, Any]) -> dict[str, Any]:
    """The figures, and what is wrong with the answers."""
    answers = figures.pop("answers")
    poisons = {each.id for each in requests if each.prompt in KINDS}
    failed = {name for name, answer in answers.items() if answer.error_kind is not None}
    return figures | {
        "requests": len(requests),
        "poisons": len(poisons),
        "dead letters": len(failed),
        "innocent ones": len(failed - poisons),
        "wrong or missing": sum(answers.get(each.id) != expected(each) for each in requests if each.id not in poisons),
        "replicas lost": sum(figures["lost"].values()),
        "replicas lost per poison": round(sum(figures["lost"].values()) / max(1, len(poisons)), 2),
        "sent per request": round(figures["sent"] / len(requests), 2),
    }


def main() -> None:
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--poisons", type=int, default=200)
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--limit", type=float, default=2.0, help="seconds of a step")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    logging.getLogger("paliscribe").setLevel(logging.ERROR)
    requests = made(given.requests, given.poisons, given.seed)
    figures = asyncio.run(measured(requests, given.replicas, given.limit))
    print(json.dumps(verdict(requests, figures), indent=2))


if __name__ == "__main__":
    main()
