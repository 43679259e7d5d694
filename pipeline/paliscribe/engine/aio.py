"""An engine that runs in its thread, awaited from an event loop. Whoever stops waiting frees the slot."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future

from paliscribe.engine.loop import Engine
from paliscribe.records import Piece, Prediction, Request


async def predict(engine: Engine, requests: Sequence[Request]) -> list[Prediction]:
    """Answer requests that arrive together, in their order. Raises as `Engine.submit` does."""
    futures = engine.submit(requests)
    return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))


async def stream(engine: Engine, request: Request) -> AsyncIterator[Piece | Prediction]:
    """The pieces of an answer as they become certain, then its prediction. Raises as `Engine.submit` does."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[Piece | None] = asyncio.Queue()

    def hand_over(piece: Piece) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    def end(_: Future[Prediction]) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, None)

    [future] = engine.submit([request], hand_over)
    future.add_done_callback(end)
    try:
        while (piece := await pieces.get()) is not None:
            yield piece
        yield future.result()
    finally:
        future.cancel()
