"""Files over HTTP, in the shape of OpenAI's Files API: the input and output files of batches."""

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
from paliscribe.online.background.store import ID_PATTERN, BackgroundStore, FileInfo, made_at, new_id
from paliscribe.online.shape import replace_surrogates

CHUNK = 2**20  # bytes
EXPIRES = "expires_after"  # field of a form: [anchor] and [seconds]
MAX_FILENAME = 255  # characters; longer names are cut
Limit = Annotated[int, Query(ge=1, le=100, description="Most entries to return.")]
After = Annotated[str | None, Query(description="Id of the entry after which to continue the list.")]


def routes(store: BackgroundStore | None, expire_after: int | None) -> APIRouter:  # long: the handlers of one router
    """The routes for files. Without `store` each raises RequestError 404. `expire_after`: the endpoint's setting."""
    router = APIRouter()

    @router.post("/v1/files", summary="Upload a file of lines for a batch")
    async def create(
        request: Request,
        file: Annotated[UploadFile, File(description="JSON Lines: one chat completion a line.")],
        purpose: Annotated[str, Form(description="`batch`.")],
        anchor: Annotated[str | None, Form(alias=f"{EXPIRES}[anchor]", description="`created_at`.")] = None,
        seconds: Annotated[int | None, Form(alias=f"{EXPIRES}[seconds]", ge=3600, le=2_592_000)] = None,
    ) -> dict[str, Any]:
        background, known = require(store), {"file", "purpose", f"{EXPIRES}[anchor]", f"{EXPIRES}[seconds]"}
        if unknown := sorted(set((await request.form()).keys()) - known):
            raise RequestError(400, "unsupported_parameter", f"{unknown[0]} is not supported", unknown[0])
        if purpose != "batch":
            raise RequestError(400, "invalid_request", "purpose must be batch", "purpose")
        if (anchor, seconds) != (None, None) and (anchor != "created_at" or seconds is None):
            words = f"{EXPIRES} needs the anchor created_at and a number of seconds"
            raise RequestError(400, "invalid_request", words, EXPIRES)
        now = int(time.time())
        name = replace_surrogates(file.filename or "")[:MAX_FILENAME]
        info = FileInfo(new_id("file-"), name, purpose, file.size or 0, now, now + seconds if seconds else None)
        with tempfile.NamedTemporaryFile(prefix="paliscribe-") as copy:
            while part := await file.read(CHUNK):
                copy.write(part)
            copy.flush()
            await asyncio.to_thread(background.add_file, owner(request), info, Path(copy.name))
        return _file(info, expire_after)

    @router.get("/v1/files", summary="List the caller's files")
    async def index(
        request: Request,
        purpose: str | None = None,
        limit: Limit = 100,
        after: After = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> dict[str, Any]:
        def found() -> dict[str, Any]:
            background, who = require(store), owner(request)
            names = background.files(who)
            infos = (
                background.file(who, name) for name in entries_after(names if order == "asc" else names[::-1], after)
            )
            return list_page(
                (_file(one, expire_after) for one in infos if one is not None and purpose in (None, one.purpose)), limit
            )

        return await asyncio.to_thread(found)

    @router.get("/v1/files/{file_id}", summary="Get a file's metadata")
    async def retrieve(request: Request, file_id: str) -> dict[str, Any]:
        return _file(await file_info(store, request, file_id, expire_after), expire_after)

    @router.get("/v1/files/{file_id}/content", summary="Download a file")
    async def content(request: Request, file_id: str) -> StreamingResponse:
        info = await file_info(store, request, file_id, expire_after)
        reader = await asyncio.to_thread(require(store).open_file, owner(request), info.id)

        async def parts() -> AsyncIterator[bytes]:
            try:
                while part := await asyncio.to_thread(reader.read, CHUNK):
                    yield part
            finally:
                reader.close()

        headers = {"content-length": str(info.size), "x-content-type-options": "nosniff"}
        return StreamingResponse(parts(), media_type="application/octet-stream", headers=headers)

    @router.delete("/v1/files/{file_id}", summary="Delete a file")
    async def delete(request: Request, file_id: str) -> dict[str, Any]:
        info = await file_info(store, request, file_id, expire_after)
        await asyncio.to_thread(require(store).delete_file, owner(request), info.id)
        return {"id": info.id, "object": "file", "deleted": True}

    return router


def require(store: BackgroundStore | None) -> BackgroundStore:
    """The configured store. Raises RequestError 404 if the endpoint has none."""
    if store is None:
        words = "this endpoint has no storage for files, batches or jobs: `files` is not configured"
        raise RequestError(404, "not_configured", words)
    return store


def owner(request: Request) -> str:
    """The caller's id, which is also its folder in the store."""
    name: str = request.state.owner
    return name


async def file_info(store: BackgroundStore | None, request: Request, name: str, expire_after: int | None) -> FileInfo:
    """Metadata of one of the caller's files. Raises RequestError 404."""
    info = await asyncio.to_thread(require(store).file, owner(request), name)
    if info is None:
        raise no_longer("file", name, expire_after)
    return info


def no_longer(kind: str, name: str, expire_after: int | None) -> RequestError:
    """The error for what is not there; it says whether it may have expired. `expire_after`: the endpoint's setting."""
    words = f"there is no {kind} {name[:100]!r}"
    if expire_after is not None and ID_PATTERN.fullmatch(name) and made_at(name) + expire_after < time.time():
        since = "they are made" if kind == "file" else "they end"
        words += f" any more: here {'files' if kind == 'file' else 'batches and jobs'} expire {expire_after:,} seconds"
        words += f" after {since}"
    return RequestError(404, "not_found", words)


def entries_after(names: list[str], after: str | None) -> list[str]:
    """The entries that follow `after`; all without it. Raises RequestError if `after` is not in the list."""
    if after is None:
        return names
    if after not in names:
        raise RequestError(400, "invalid_request", f"after: there is no {after[:100]!r}", "after")
    return names[names.index(after) + 1 :]


def list_page(entries: Iterable[dict[str, Any]], limit: int) -> dict[str, Any]:
    """One page of a list in OpenAI's shape. Consumes at most `limit` + 1 entries."""
    data = list(itertools.islice(entries, limit + 1))
    more, data = len(data) > limit, data[:limit]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more}


def _file(info: FileInfo, expire_after: int | None) -> dict[str, Any]:
    return {
        "id": info.id,
        "object": "file",
        "bytes": info.size,
        "created_at": info.created_at,
        "filename": info.filename,
        "purpose": info.purpose,
        "status": "processed",
        "expires_at": info.until(expire_after),
    }
