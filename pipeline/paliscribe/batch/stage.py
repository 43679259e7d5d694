"""The annotate stage: from a shard of the manifest to its committed records.

A stage process fetches and decodes a shard's images, calls the pool, parses the answers and commits. It keeps a few
calls in flight, so that replicas work while it fetches the next images. The limit leaves slots for online calls.
"""

import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa
from pydantic import ValidationError

from paliscribe import results
from paliscribe.config import FetchConfig, ImagesConfig, RequestOptions
from paliscribe.errors import RowError
from paliscribe.grammar.tasks import Task
from paliscribe.images.decode import Decoded, decode
from paliscribe.images.fetch import Fetcher
from paliscribe.images.untrusted import GuardedFetcher
from paliscribe.manifest import read_shard
from paliscribe.records import ManifestRow, Prediction, Record, Request
from paliscribe.results import Marker, ModelFacts
from paliscribe.results.record import load_mask_decoder, record
from paliscribe.storage import Store, open_store

CALLS_IN_FLIGHT = 2  # per stage process
SLOTS_FILLED = 2  # requests per call, in units of a replica's slots: keeps it busy, and lets it sort by length

Work = tuple[ManifestRow, tuple[Task, ...]]  # a row and its tasks


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


@dataclass(frozen=True, slots=True)
class Plan:
    """Configuration of all stage processes; small and immutable."""

    output: str
    tasks: tuple[Task, ...]
    schema: pa.Schema
    facts: ModelFacts
    image_size: int
    slots: int  # per replica
    fetch: FetchConfig
    mask_decoder: str | None = None
    guard: ImagesConfig | None = None  # limits for untrusted image addresses
    options_column: str | None = None
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


@dataclass(slots=True)
class _Call:
    items: list[_RowTask] = field(default_factory=list)
    answers: PendingAnswers | None = None


class Stage:
    """Annotates shards. One per process; not thread-safe."""

    def __init__(self, plan: Plan, pool: Sender) -> None:
        self.plan, self.pool = plan, pool
        self.store: Store = open_store(plan.output)
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
            )
        self.masks = load_mask_decoder(plan.mask_decoder)

    def annotate_shard(self, shard: int, progress: Callable[[int], None] = lambda rows: None) -> Marker:
        """Answer all requests of a shard and commit its records. `progress` gets the number of rows answered so far.

        Returns the committed marker, which may be another attempt's.
        """
        records: list[Record] = []
        replicas: set[str] = set()
        done = 0
        for call in self._in_flight(self._work(shard)):
            answers = call.answers.result() if call.answers is not None else []
            replicas.update(answer.replica for answer in answers if answer.replica)
            records.extend(self._records(call, answers, shard))
            done += len({item.row.row for item in call.items})
            progress(done)
        table = results.to_table(records, self.plan.facts, self.plan.schema)
        base = results.generation_base(self.plan.generation)
        marker = results.write_shard(self.store, shard, uuid.uuid4().hex[:8], table, base, sorted(replicas))
        return results.commit(self.store, marker, base)

    def _work(self, shard: int) -> Iterator[list[Work]]:
        """The shard's rows in calls of fixed size, which depends on the job and the pool's slots only."""
        work: list[Work] = [(row, self.plan.tasks) for row in read_shard(self.store, shard)]
        if self.plan.generation:
            work = list(self._failed(shard, work))
        size = max(1, SLOTS_FILLED * self.plan.slots // len(self.plan.tasks))
        for start in range(0, len(work), size):
            yield work[start : start + size]

    def _failed(self, shard: int, work: Iterable[Work]) -> Iterator[Work]:
        """The rows and tasks that failed in the previous generation, with rows as re-read by the retry."""
        failed = {(r["row"], r["task"]) for r in results.read_failed(self.store, shard, self.plan.generation - 1)}
        updated = results.retry_rows(self.store, self.plan.generation)
        for row, tasks in work:
            if wanted := tuple(task for task in tasks if (row.row, task.template) in failed):
                yield updated.get(row.row, row), wanted

    def _in_flight(self, calls: Iterable[list[Work]]) -> Iterator[_Call]:
        """Send calls ahead, up to CALLS_IN_FLIGHT; yields them in order."""
        pending: deque[_Call] = deque()
        for work in calls:
            call = self._prepare(work)
            requests = [request for item in call.items if (request := self._request(item)) is not None]
            if requests:
                call.answers = self.pool.send(requests)
            pending.append(call)
            if len(pending) > CALLS_IN_FLIGHT:
                yield pending.popleft()
        yield from pending

    def _prepare(self, work: Sequence[Work]) -> _Call:
        """Render prompts, then fetch and decode the rows' images."""
        call = _Call()
        addresses: dict[str, Decoded | RowError] = {}
        for row, tasks in work:
            for task in tasks:
                item = _RowTask(row, task)
                try:
                    item.prompt = task.render(row.columns)
                    item.options = _options(row, self.plan.options_column)
                    if row.image is None:
                        raise RowError("no_image", "the manifest row names no image")
                    addresses[row.image] = RowError("missing", "not fetched")
                except RowError as error:
                    item.error = error
                call.items.append(item)
        for address, data in zip(addresses, self.fetcher.fetch_many(list(addresses)), strict=True):
            addresses[address] = data if isinstance(data, RowError) else self._decode(data)
        for item in call.items:
            if item.error is None and item.row.image is not None:
                image = addresses[item.row.image]
                if isinstance(image, RowError):
                    item.error = image
                else:
                    item.image = image
        return call

    def _decode(self, data: bytes) -> Decoded | RowError:
        fetch, guard = self.plan.fetch, self.plan.guard
        most = fetch.max_pixels if guard is None else guard.max_pixels
        try:
            return decode(data, self.plan.image_size, max_pixels=most, draft=fetch.draft)
        except RowError as error:
            return error

    def _request(self, item: _RowTask) -> Request | None:
        if item.image is None or item.prompt is None:
            return None
        name = f"{item.row.row}/{item.task.template}"
        key = f"draft-{item.image.sha256}" if self.plan.fetch.draft else item.image.sha256  # runs may share a pool
        options = item.options.model_dump()
        options["max_tokens"] = item.options.max_tokens or item.task.max_tokens
        return Request(name, item.prompt, item.image.pixels, key, **options)

    def _records(self, call: _Call, predictions: Sequence[Prediction], shard: int) -> Iterator[Record]:
        answers = iter(predictions)
        for item in call.items:
            prediction = next(answers) if item.image is not None and item.prompt is not None else None
            yield record(item.row, item.task, item.prompt, item.image, prediction, item.error, shard, self.masks)


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
