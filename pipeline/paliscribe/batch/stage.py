"""The annotate stage: from a shard of the manifest to its committed records.

A stage process fetches and decodes images, calls the pool, parses the answers and commits shards. It works across the
ends of shards: two threads fetch, decode and send the next calls while the last answers are awaited and written. The
number of calls in flight is limited, which leaves slots for online calls.
"""

import contextlib
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import pyarrow as pa
from pydantic import ValidationError

from paliscribe import results
from paliscribe.batch.ahead import ahead
from paliscribe.batch.progress import Doing
from paliscribe.batch.sharing import Answer, SharedAnswers
from paliscribe.config import FetchConfig, ImagesConfig, RequestOptions
from paliscribe.errors import RowError
from paliscribe.grammar.tasks import Task
from paliscribe.images.decode import Decoded, Limits, decode
from paliscribe.images.fetch import Fetcher
from paliscribe.images.untrusted import GuardedFetcher
from paliscribe.manifest import Shards
from paliscribe.model.masks import decoder_of
from paliscribe.records import ManifestRow, Prediction, Record, Request
from paliscribe.results import Marker, ModelFacts
from paliscribe.results.record import record
from paliscribe.storage import Store, open_store
from paliscribe.storage.http import Headers

CALLS_IN_FLIGHT = 2  # per stage process, beside the one whose answers are awaited
SLOTS_FILLED = 2  # requests per call, in units of a replica's slots: keeps it busy, and lets it sort by length
CALL_BYTES = 128 * 2**20  # of pixels in a call at most

Progress = Callable[[int, int | None], object]  # gets a shard's number of rows answered so far; None: committed


class PendingAnswers(Protocol):
    """A pending call, as `PoolClient.send` returns it."""

    def result(self) -> list[Prediction]:
        """Wait for the answers, in request order."""


class ImageFetcher(Protocol):
    """Interface of `Fetcher` and `GuardedFetcher`."""

    def fetch_many(self, uris: Sequence[str]) -> list[bytes | RowError]:
        """The bytes or the error of each address, in order."""


class Sender(Protocol):
    """Interface of `PoolClient` that a stage uses."""

    def send(self, requests: Sequence[Request]) -> PendingAnswers:
        """Start a call."""

    @property
    def slots(self) -> int:
        """Slots of a replica."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Configuration of all stage processes; small and immutable."""

    output: str
    tasks: tuple[Task, ...]
    schema: pa.Schema
    facts: ModelFacts
    image_size: int
    fetch: FetchConfig
    mask_decoder: str | None = None
    guard: ImagesConfig | None = None  # limits for untrusted image addresses
    options_column: str | None = None
    nested: tuple[str, ...] = ()  # carried columns whose lists and structs are JSON text
    deduplicate: bool = False
    generation: int = 0  # 0: all rows and tasks; g: those that failed in generation g - 1


@dataclass(slots=True)
class _RowTask:
    """One row under one task, until its record is written."""

    row: ManifestRow
    task: Task
    prompt: str | None = None
    options: RequestOptions = field(default_factory=RequestOptions)
    image: Decoded | None = None
    error: RowError | None = None
    answer: Answer = field(default_factory=Answer)

    @property
    def is_asked(self) -> bool:
        """Whether there is something to ask; else there is an error."""
        return self.image is not None and self.prompt is not None


@dataclass(slots=True)
class _Work:
    """A row of a shard, or the end of the shard: then `row` is None. `marker`: if the shard is committed already."""

    shard: int
    row: ManifestRow | None = None
    tasks: tuple[Task, ...] = ()
    marker: Marker | None = None
    items: list[_RowTask] = field(default_factory=list)  # one for each task


@dataclass(slots=True)
class _Call:
    """Rows of consecutive shards that are sent to the pool together."""

    work: list[_Work] = field(default_factory=list)
    data: dict[str, bytes | RowError] = field(default_factory=dict)  # of images, by address
    answers: PendingAnswers | None = None
    sent: list[Answer] = field(default_factory=list)  # to its requests, in order

    @property
    def items(self) -> Iterator[_RowTask]:
        """The items of all rows, in order."""
        return (item for work in self.work for item in work.items)


class Stage:
    """Annotates shards. One per process; not thread-safe."""

    def __init__(self, plan: Plan, pool: Sender) -> None:
        self.plan, self.pool, self._base = plan, pool, results.generation_base(plan.generation)
        self.store: Store = open_store(plan.output)
        self.doing = Doing()
        fetch = plan.fetch
        self.fetcher: ImageFetcher
        if plan.guard is not None:
            self.fetcher = GuardedFetcher(plan.guard, concurrency=fetch.concurrency, retries=fetch.retries)
        else:
            self.fetcher = Fetcher(
                concurrency=fetch.concurrency,
                retries=fetch.retries,
                timeout=fetch.timeout,
                max_bytes=fetch.max_bytes,
                headers=Headers.of(fetch.user_agent, fetch.headers),
            )
        self._shared = SharedAnswers()
        self.masks = decoder_of(plan.facts.model, plan.mask_decoder)

    def annotate(
        self,
        shards: Iterable[int],
        progress: Progress = lambda shard, rows: None,
        leaving: Callable[[], bool] = lambda: False,
    ) -> Generator[Marker]:
        """Annotate shards and yield the marker of each once it is committed, in order.

        If the first shards are committed already, by an attempt at this block that was lost, their markers are read.
        `leaving`: asked before each shard is begun; if true, those that were begun are finished and the rest is left.
        """
        fetched = ahead(self._fetched, self._calls(shards, leaving), 1)
        sent = ahead(self._sent, fetched, CALLS_IN_FLIGHT)
        records: list[Record] = []
        replicas: set[str] = set()
        self.doing = Doing(None, "the first images are fetched and decoded")
        with contextlib.closing(sent):
            for call in sent:
                first = call.work[0].shard
                self.doing = Doing(first, f"shard {first} waits for the answers to {len(call.sent):,} requests")
                for answered, prediction in zip(call.sent, call.answers.result() if call.answers else (), strict=True):
                    answered.prediction = prediction
                self.doing = Doing(first, f"shard {first} is written")
                for work in call.work:
                    for item in work.items:
                        answer = item.answer.prediction
                        records.append(self._record(item, answer, work.shard))
                        if answer is not None and answer.replica:
                            replicas.add(answer.replica)
                    if work.row is None:
                        yield work.marker or self._commit(work.shard, records, replicas)
                        records, replicas = [], set()
                        progress(work.shard, None)
                if records:
                    progress(call.work[-1].shard, len({found.row for found in records}))
                last = call.work[-1].shard
                self.doing = Doing(last, f"images are fetched and decoded, after the last ones of shard {last}")
        self.doing = Doing()

    def _commit(self, shard: int, records: Sequence[Record], replicas: Iterable[str]) -> Marker:
        """Commit a shard's records. Returns the effective marker, which may be another attempt's."""
        table = results.to_table(records, self.plan.facts, self.plan.schema)
        marker = results.write_shard(self.store, shard, uuid.uuid4().hex[:8], table, self._base, sorted(replicas))
        return results.commit(self.store, marker, self._base)

    @cached_property
    def _shards(self) -> Shards:
        return Shards(self.store)

    def _calls(self, shards: Iterable[int], leaving: Callable[[], bool]) -> Generator[_Call]:
        """The shards' rows in calls of fixed size, which depends on the job and the pool's slots only."""
        wanted = SLOTS_FILLED * self.pool.slots // len(self.plan.tasks)
        size = max(1, min(wanted, CALL_BYTES // (3 * self.plan.image_size**2)))
        call, rows = _Call(), 0
        for work in self._work(shards, leaving):
            if work.row is not None and rows == size:
                yield call
                call, rows = _Call(), 0
            call.work.append(work)
            rows += work.row is not None
        if call.work:
            yield call

    def _work(self, shards: Iterable[int], leaving: Callable[[], bool]) -> Iterator[_Work]:
        """The rows of shards, and the end of each; up to the first that is not begun because this process leaves."""
        again = True  # whether all shards so far had been committed
        for shard in shards:
            marker = results.find_marker(self.store, shard, self._base) if again else None
            again = marker is not None
            if marker is None:
                if leaving():
                    return
                for row, tasks in self._rows(shard):
                    yield _Work(shard, row, tasks)
            yield _Work(shard, marker=marker)

    def _rows(self, shard: int) -> Iterator[tuple[ManifestRow, tuple[Task, ...]]]:
        """A shard's rows and tasks; in a retry those that failed in the generation before, as read anew."""
        rows = self._shards.read(shard)
        if not self.plan.generation:
            yield from ((row, self.plan.tasks) for row in rows)
            return
        before = self._shards.frozen.retried_generation(shard, self.plan.generation)
        failed = {(record["row"], record["task"]) for record in results.read_failed(self.store, shard, before)}
        updated = results.retry_rows(self.store, self.plan.generation, shard)
        for row in rows:
            if wanted := tuple(task for task in self.plan.tasks if (row.row, task.template) in failed):
                yield updated.get(row.row, row), wanted

    def _fetched(self, call: _Call) -> _Call:
        """Render prompts and fetch the rows' images."""
        for work in call.work:
            if work.row is not None:
                work.items = [self._item(work.row, task) for task in work.tasks]
        images = (item.row.image for item in call.items if item.error is None)
        addresses = list(dict.fromkeys(address for address in images if address is not None))
        call.data = dict(zip(addresses, self.fetcher.fetch_many(addresses), strict=True))
        return call

    def _item(self, row: ManifestRow, task: Task) -> _RowTask:
        item = _RowTask(row, task)
        try:
            item.prompt = task.render(row.columns, self.plan.nested)
            item.task = task.of(item.prompt)
            item.options = _options(row, self.plan.options_column)
            if row.image is None:
                raise RowError("no_image", "the manifest row names no image")
        except RowError as error:
            item.error = error
        return item

    def _sent(self, call: _Call) -> _Call:
        """Decode the images and send the requests to the pool."""
        images = {at: data if isinstance(data, RowError) else self._decode(data) for at, data in call.data.items()}
        call.data = {}
        requests = []
        for item in call.items:
            if item.error is None and item.row.image is not None:
                image = images[item.row.image]
                if isinstance(image, RowError):
                    item.error = image
                else:
                    item.image = image
            if item.is_asked:
                request, is_new = self._request(item), True
                if self.plan.deduplicate:
                    item.answer, is_new = self._shared.of(request)
                if is_new:
                    requests.append(request)
                    call.sent.append(item.answer)
        if requests:
            call.answers = self.pool.send(requests)
        return call

    def _decode(self, data: bytes) -> Decoded | RowError:
        most = self.plan.fetch if self.plan.guard is None else self.plan.guard
        limits = Limits(most.decode_seconds, most.decode_memory)
        draft = self.plan.fetch.draft
        try:
            return decode(data, self.plan.image_size, max_pixels=most.max_pixels, draft=draft, limits=limits)
        except RowError as error:
            return error

    def _request(self, item: _RowTask) -> Request:
        assert item.image is not None and item.prompt is not None
        name = f"{item.row.row}/{item.task.template}"
        key = f"draft-{item.image.sha256}" if self.plan.fetch.draft else item.image.sha256  # runs may share a pool
        options = item.options.model_dump()
        options["max_tokens"] = item.options.max_tokens or item.task.max_tokens
        return Request(name, item.prompt, item.image.pixels, key, **options)

    def _record(self, item: _RowTask, prediction: Prediction | None, shard: int) -> Record:
        return record(item.row, item.task, item.prompt, item.image, prediction, item.error, shard, self.masks)


def _options(row: ManifestRow, column: str | None) -> RequestOptions:
    """A row's own request options. Raises RowError `prompt` if they are invalid."""
    given = row.columns.get(column) if column is not None else None
    if given is None:
        return RequestOptions()
    try:
        return RequestOptions.model_validate_json(str(given))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RowError("prompt", f"the row's {column!r}: {place + ': ' if place else ''}{first['msg']}") from None
