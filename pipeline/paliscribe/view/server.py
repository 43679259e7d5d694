"""The page over a run, its data and its pictures, by HTTP for those who have the token."""

import hashlib
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from paliscribe.config import FetchConfig, ServeConfig
from paliscribe.errors import PaliscribeError, RequestError, RowError, UsageError
from paliscribe.online.browsers import check_names
from paliscribe.published import VERDICTS, Mark, Tables, delete_mark, mark_of, open_tables, put_mark
from paliscribe.results.run_file import RunFile
from paliscribe.storage import StorageError
from paliscribe.view import page, plots
from paliscribe.view.corrected import is_text, right_boxes
from paliscribe.view.items import BINS, LETTERS, Filter, Items, with_mark
from paliscribe.view.pictures import SIZES, Pictures

BODY: Final = 256 * 2**10  # bytes of a mark
PRIVATE: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class View:
    """A run to look at. `other`: the output that it is compared with. `note`: what a user should know of it."""

    tables: Tables
    items: Items
    pictures: Pictures
    other: str | None = None
    note: str = ""


def open_view(output: str, other: str | None = None, note: str = "") -> View:
    """Open a run, and another one to compare it with. Raises UsageError."""
    tables = open_tables(output, rows=False)
    second = open_tables(other, tables.connection, prefix="other_", rows=False) if other is not None else None
    try:
        file = RunFile.read(tables.store)
    except StorageError as error:
        raise UsageError(str(error)) from None
    fetch = file.job.fetch if file is not None else FetchConfig()
    return View(tables, Items(tables, second), Pictures(tables.store, fetch), other, note)


def create_app(view: View, token: str, host: str = "127.0.0.1", hosts: tuple[str, ...] = ()) -> Starlette:
    """The application. `host`, `hosts`: where it listens, and further names under which it may be called."""
    routes = _Routes(view)
    config = ServeConfig(host=host, hosts=hosts)
    cookie = f"paliscribe-{hashlib.sha256(token.encode()).hexdigest()[:12]}"

    async def guard(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            check_names(config, request.method, request.headers.get("host"), request.headers.get("origin"))
        except RequestError as error:
            words = error.message.partition(";")[0]
            return PlainTextResponse(f"{words}; open the address that `paliscribe view` printed", 403, PRIVATE)
        given = request.query_params.get("token", "")
        known = request.cookies.get(cookie, "")
        if not any(secrets.compare_digest(each.encode(), token.encode()) for each in (given, known)):
            words = "open the address that `paliscribe view` printed, with its token"
            return PlainTextResponse(words, 403, PRIVATE)
        response = await call(request)
        if given:
            response.set_cookie(cookie, token, httponly=True, samesite="strict")
        return response

    async def failed(_: Request, error: Exception) -> Response:
        status = 404 if isinstance(error, RowError) else 400 if isinstance(error, UsageError) else 502
        return JSONResponse({"error": str(error)[:400]}, status, PRIVATE)

    return Starlette(
        routes=routes.all(),
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=guard)],
        exception_handlers={PaliscribeError: failed},
    )


class _Routes:
    """The handlers. A row's number is the only name of a picture, and SQL has values of a browser as parameters."""

    def __init__(self, view: View) -> None:
        self._view = view

    def all(self) -> list[Route]:
        """The routes."""
        return [
            Route("/", self.page),
            Route("/api/run", self.run),
            Route("/api/items", self.items),
            Route("/api/counts", self.counts),
            Route("/api/row/{row:int}", self.row),
            Route("/api/mark", self.mark, methods=["PUT"]),
            Route("/picture/{row:int}", self.picture),
        ]

    def page(self, _: Request) -> Response:
        """The page."""
        return HTMLResponse(page.HTML, headers=page.HEADERS | {"Cache-Control": "no-store"})

    def run(self, _: Request) -> Response:
        """What the page says of the run."""
        view = self._view
        facts = {"output": view.tables.store.uri, "other": view.other, "finished": view.tables.finished}
        return JSONResponse(facts | {"note": view.note, "columns": view.items.columns}, headers=PRIVATE)

    def items(self, request: Request) -> Response:
        """A page of items."""
        given = request.query_params
        offset, limit = _whole(given.get("offset"), 0), _whole(given.get("limit"), 60)
        found = self._view.items.page(Filter.of(given), given.get("sort") or "manifest", offset, limit)
        return JSONResponse({"items": found}, headers=PRIVATE)

    def counts(self, request: Request) -> Response:
        """Counts and plots of the items."""
        counts = self._view.items.counts(Filter.of(request.query_params))
        return JSONResponse(counts | {"plots": _plots(counts)}, headers=PRIVATE)

    def row(self, request: Request) -> Response:
        """One row with all its items, and its columns."""
        row = _row(request)
        found = self._view.items.of_row(row)
        if not found:
            raise RowError("missing", "the run has no such row")
        store = self._view.tables.store
        found = [with_mark(each, mark_of(store, each["id"], each["task"])) for each in found]
        return JSONResponse({"items": found, "columns": self._view.items.carried(row)}, headers=PRIVATE)

    def picture(self, request: Request) -> Response:
        """A row's picture as JPEG. What the run could not read is not read here either."""
        row, size = _row(request), request.query_params.get("size", "small")
        image = self._view.items.image(row)
        if size not in SIZES or image is None:
            raise RowError("missing", "the run has no such picture")
        data = self._view.pictures.jpeg(row, image, size)
        return Response(data, media_type="image/jpeg", headers=PRIVATE | {"Cache-Control": "private, max-age=600"})

    async def mark(self, request: Request) -> Response:
        """Mark an item: {"row", "task", "verdict": accept, reject, fix or null, "text", "boxes": the right answer}.

        `boxes`: see `corrected.right_boxes`.
        """
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > BODY:
                raise UsageError("the mark is too long")
        return await run_in_threadpool(self._mark, body)

    def _mark(self, body: bytes) -> Response:
        try:
            given = json.loads(body)
            row, task, verdict, text, boxes = (given.get(name) for name in ("row", "task", "verdict", "text", "boxes"))
        except (ValueError, AttributeError, RecursionError):
            raise UsageError("the mark is not a JSON object") from None
        if verdict is not None and verdict not in VERDICTS:
            raise UsageError("unknown verdict")
        if type(row) is not int or not 0 <= row < 2**63 or not (text is None or is_text(text)):
            raise UsageError("a mark has a row, a task and a verdict")
        found = next((each for each in self._view.items.of_row(row) if each["task"] == task), None)
        if found is None:
            raise RowError("missing", "the run has no such item")
        store, mark = self._view.tables.store, None
        if boxes is not None:
            if verdict != "fix":
                raise UsageError("boxes belong to a fix")
            boxes = right_boxes(boxes, found, self._view.items.boxes(row, task))
        if verdict is None:
            delete_mark(store, found["id"], found["task"])
        else:
            now = time.time()
            mark = Mark(found["id"], found["task"], verdict, text=text or None, boxes=boxes, marked_at=now)
            put_mark(store, mark)
        self._view.items.mark(found["id"], found["task"], mark)
        return JSONResponse({"verdict": verdict}, headers=PRIVATE)


def _plots(counts: dict[str, Any]) -> list[str]:
    """Plots of the counts, as SVG. Those without values are left out."""
    shares = [number / BINS for number in range(BINS + 1)]
    lengths = [float(number * LETTERS) for number in range(BINS + 1)]
    made = []
    if any(counts["score"]):
        made.append(plots.histogram("Scores", shares, counts["score"], x="score"))
    if counts["label"]:
        made.append(plots.bars("Labels", counts["label"].items()))
    if any(counts["size"]):
        words = "square root of the share of the picture"
        made.append(plots.histogram("Sizes of boxes", shares, counts["size"], x=words, percent=True))
    if any(counts["letters"]):
        made.append(plots.histogram("Lengths of texts", lengths, counts["letters"], x="characters", more=True))
    if counts["error_kind"]:
        made.append(plots.bars("Errors", counts["error_kind"].items()))
    return made


def _row(request: Request) -> int:
    row = int(request.path_params["row"])
    if row >= 2**63:
        raise RowError("missing", "the run has no such row")
    return row


def _whole(given: str | None, default: int) -> int:
    try:
        return min(int(given), 2**40) if given else default
    except ValueError:
        raise UsageError("not a whole number") from None
