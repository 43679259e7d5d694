"""Files of callers, in the shape of OpenAI's Files API: what batches are made of, and what comes of them."""

import asyncio
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import StreamingResponse

from paliscribe.errors import RequestError
from paliscribe.online.background.store import FileFacts, Orders, new_id
from paliscribe.online.chat import whole

CHUNK = 2**20  # bytes
LONGEST_NAME = 255  # characters of a file's name that are kept
Limit = Annotated[int, Query(ge=1, le=100, description="Most entries of the list.")]
After = Annotated[str | None, Query(description="The entry after which the list goes on.")]


def routes(orders: Orders | None) -> APIRouter:  # long: the handlers of one router
    """The calls about files; without `orders` each is refused."""
    router = APIRouter()

    @router.post("/v1/files", summary="Keep a file of lines for a batch")
    async def create(
        request: Request,
        file: Annotated[UploadFile, File(description="JSON Lines: one chat completion a line.")],
        purpose: Annotated[str, Form(description="`batch`.")],
    ) -> dict[str, Any]:
        here = kept(orders)
        if unknown := sorted(set((await request.form()).keys()) - {"file", "purpose"}):
            raise RequestError(400, "unsupported_parameter", f"{unknown[0]} is not supported", unknown[0])
        if purpose != "batch":
            raise RequestError(400, "invalid_request", "purpose must be batch", "purpose")
        name = whole(file.filename or "")[:LONGEST_NAME]
        facts = FileFacts(new_id("file-"), name, purpose, file.size or 0, int(time.time()))
        with tempfile.NamedTemporaryFile(prefix="paliscribe-") as copy:
            while part := await file.read(CHUNK):
                copy.write(part)
            copy.flush()
            await asyncio.to_thread(here.add_file, owner(request), facts, Path(copy.name))
        return _file(facts)

    @router.get("/v1/files", summary="The caller's files")
    async def index(
        request: Request,
        purpose: str | None = None,
        limit: Limit = 100,
        after: After = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> dict[str, Any]:
        def found() -> dict[str, Any]:
            here, who = kept(orders), owner(request)
            names = here.files(who)
            facts = (here.file(who, name) for name in following(names if order == "asc" else names[::-1], after))
            return listed((_file(one) for one in facts if one is not None and purpose in (None, one.purpose)), limit)

        return await asyncio.to_thread(found)

    @router.get("/v1/files/{file_id}", summary="A file's facts")
    async def retrieve(request: Request, file_id: str) -> dict[str, Any]:
        return _file(await facts_of(orders, request, file_id))

    @router.get("/v1/files/{file_id}/content", summary="A file's content")
    async def content(request: Request, file_id: str) -> StreamingResponse:
        facts = await facts_of(orders, request, file_id)
        reader = await asyncio.to_thread(kept(orders).open_file, owner(request), facts.id)

        async def parts() -> AsyncIterator[bytes]:
            try:
                while part := await asyncio.to_thread(reader.read, CHUNK):
                    yield part
            finally:
                reader.close()

        headers = {"content-length": str(facts.size), "x-content-type-options": "nosniff"}
        return StreamingResponse(parts(), media_type="application/octet-stream", headers=headers)

    @router.delete("/v1/files/{file_id}", summary="Forget a file")
    async def delete(request: Request, file_id: str) -> dict[str, Any]:
        facts = await facts_of(orders, request, file_id)
        await asyncio.to_thread(kept(orders).delete_file, owner(request), facts.id)
        return {"id": facts.id, "object": "file", "deleted": True}

    return router


def kept(orders: Orders | None) -> Orders:
    """Where this endpoint keeps files and orders. Raises RequestError 404 where it keeps none."""
    if orders is None:
        raise RequestError(404, "not_configured", "this endpoint keeps no files, batches or jobs: it has no `files`")
    return orders


def owner(request: Request) -> str:
    """The caller's folder."""
    name: str = request.state.owner
    return name


async def facts_of(orders: Orders | None, request: Request, name: str) -> FileFacts:
    """A file of the caller's. Raises RequestError 404."""
    facts = await asyncio.to_thread(kept(orders).file, owner(request), name)
    if facts is None:
        raise RequestError(404, "not_found", f"there is no file {name[:100]!r}")
    return facts


def following(names: list[str], after: str | None) -> list[str]:
    """The part of a list that follows `after`. Raises RequestError if that is not in it."""
    if after is None:
        return names
    if after not in names:
        raise RequestError(400, "invalid_request", f"after: there is no {after[:100]!r}", "after")
    return names[names.index(after) + 1 :]


def listed(entries: Iterable[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A list as OpenAI's clients page through it; no more of `entries` is looked at than that takes."""
    data = list(itertools.islice(entries, limit + 1))
    more, data = len(data) > limit, data[:limit]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more}


def _file(facts: FileFacts) -> dict[str, Any]:
    return {
        "id": facts.id,
        "object": "file",
        "bytes": facts.size,
        "created_at": facts.created_at,
        "filename": facts.filename,
        "purpose": facts.purpose,
        "status": "processed",
        "expires_at": None,
    }
