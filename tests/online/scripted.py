"""An endpoint with scripted answers: slow, failing, or beyond what the demo model can produce."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

from online.conftest import CONFIG, listen

from paliscribe.grammar.masks import MaskDecoder
from paliscribe.online.keys import Keys
from paliscribe.online.service import Served, Service
from paliscribe.records import Piece, Prediction, Request


@dataclass
class Scripted:
    """A backend that streams `parts`: a text becomes a piece, an event is waited for, an exception is raised.

    `prompts`: those of the requests received. `ended`: set when a stream ends or is cancelled.
    """

    parts: Sequence[str | threading.Event | BaseException] = ("fine",)
    prompts: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    async def predict(self, requests: Sequence[Request]) -> list[Prediction]:
        raise NotImplementedError

    async def stream(self, request: Request) -> AsyncIterator[Piece | Prediction]:
        self.prompts.append(request.prompt)
        texts: list[str] = []
        try:
            for part in self.parts:
                if isinstance(part, threading.Event):
                    while not part.is_set():
                        await asyncio.sleep(0.005)
                elif isinstance(part, BaseException):
                    raise part
                else:
                    texts.append(part)
                    yield Piece(part, (1,), (-0.1,))
            ends = tuple(sum(map(len, texts[: number + 1])) for number in range(len(texts)))
            logprobs = (-0.1,) * len(texts)
            yield Prediction(request.id, "".join(texts), (1,) * len(texts), logprobs, "stop", ends=ends)
        finally:
            self.ended.set()


@contextlib.contextmanager
def scripted(backend: Scripted, masks: MaskDecoder | None = None, name: str = "scripted") -> Iterator[str]:
    """Serve a scripted backend without API keys; yields its address."""
    server, thread = listen(Service(CONFIG, [Served(name, "1", 112, backend, masks=masks)]), Keys({}))
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.force_exit = server.should_exit = True
        thread.join(10)
