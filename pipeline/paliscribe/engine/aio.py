"""asyncio interface of a running engine. Cancelling the await or closing the stream frees the slot."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future

from paliscribe.engine.loop import Engine
from paliscribe.records import Piece, Prediction, Request


async def predict(engine: Engine, requests: Sequence[Request]) -> list[Prediction]:
    """Answer one call's requests, in order. Raises as `Engine.submit` does."""
    futures = engine.submit(requests)
    return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))


async def stream(engine: Engine, request: Request) -> AsyncIterator[Piece | Prediction]:
    """Stream an answer's pieces, then its prediction. Raises as `Engine.submit` does."""
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
