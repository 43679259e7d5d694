"""The annotate stage: a shard of the manifest in, its committed records out.

One process of the cluster fetches and decodes the images of a shard, calls the pool by handle, parses the answers
and commits. It holds a few calls in flight, so that replicas work while the next images are fetched, and no
more, so that online calls always find room.
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

CALLS_IN_FLIGHT = 2  # of one stage process
SLOTS_FILLED = 2  # by a call: its next requests are there when the first are answered, and it can be sorted by length

Work = tuple[ManifestRow, tuple[Task, ...]]  # a row and the tasks to ask of it


class Answering(Protocol):
    """What `PoolClient.send` gives."""

    def result(self) -> list[Prediction]:
        """Wait for the answers, in the order of the requests."""


class Fetching(Protocol):
    """What fetches images: `Fetcher`, or `GuardedFetcher`."""

    def fetch_many(self, uris: Sequence[str]) -> list[bytes | RowError]:
        """The bytes at each address, or what stopped it, in order."""


class Sender(Protocol):
    """What answers requests: `PoolClient`, or anything that sends like it."""

    def send(self, requests: Sequence[Request]) -> Answering:
        """Begin a call."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What every stage process must know; small, immutable, and shipped to all of them."""

    output: str
    tasks: tuple[Task, ...]
    schema: pa.Schema
    facts: ModelFacts
    image_size: int
    slots: int  # of a replica
    fetch: FetchConfig
    mask_decoder: str | None = None
    guard: ImagesConfig | None = None  # of addresses that callers of an endpoint have given
    options_column: str | None = None
    generation: int = 0  # 0: every row under every task; g: what ended in an error in generation g - 1


@dataclass(slots=True)
class _Asked:
    """One row under one task, until its record is made."""

    row: ManifestRow
    task: Task
    prompt: str | None = None
    options: RequestOptions = field(default_factory=RequestOptions)
    image: Decoded | None = None
    error: RowError | None = None


@dataclass(slots=True)
class _Call:
    asked: list[_Asked] = field(default_factory=list)
    answers: Answering | None = None


class Stage:
    """Annotates shards. One a process; not thread-safe."""

    def __init__(self, plan: Plan, pool: Sender) -> None:
        self.plan, self.pool = plan, pool
        self.store: Store = open_store(plan.output)
        fetch = plan.fetch
        self.fetcher: Fetching
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
        """Answer every request of a shard and commit its records; `progress` is told rows answered so far.

        Returns the marker that won, which another attempt may have written first.
        """
        records: list[Record] = []
        replicas: set[str] = set()
        done = 0
        for call in self._answered(self._work(shard)):
            answers = call.answers.result() if call.answers is not None else []
            replicas.update(answer.replica for answer in answers if answer.replica)
            records.extend(self._records(call, answers, shard))
            done += len({asked.row.row for asked in call.asked})
            progress(done)
        table = results.to_table(records, self.plan.facts, self.plan.schema)
        base = results.generation_base(self.plan.generation)
        marker = results.write_shard(self.store, shard, uuid.uuid4().hex[:8], table, base, sorted(replicas))
        return results.commit(self.store, marker, base)

    def _work(self, shard: int) -> Iterator[list[Work]]:
        """The shard's rows in calls of fixed size: what a call holds depends on the manifest and the job alone."""
        work: list[Work] = [(row, self.plan.tasks) for row in read_shard(self.store, shard)]
        if self.plan.generation:
            work = list(self._failed(shard, work))
        size = max(1, SLOTS_FILLED * self.plan.slots // len(self.plan.tasks))
        for start in range(0, len(work), size):
            yield work[start : start + size]

    def _failed(self, shard: int, work: Iterable[Work]) -> Iterator[Work]:
        """What ended in an error in the generation before, with the rows as the retry took them from the manifest."""
        failed = {(r["row"], r["task"]) for r in results.read_failed(self.store, shard, self.plan.generation - 1)}
        mended = results.retry_rows(self.store, self.plan.generation)
        for row, tasks in work:
            if wanted := tuple(task for task in tasks if (row.row, task.template) in failed):
                yield mended.get(row.row, row), wanted

    def _answered(self, calls: Iterable[list[Work]]) -> Iterator[_Call]:
        """Keep a few calls in flight while the next one is prepared; give them back in order."""
        pending: deque[_Call] = deque()
        for work in calls:
            call = self._prepare(work)
            requests = [request for asked in call.asked if (request := self._request(asked)) is not None]
            if requests:
                call.answers = self.pool.send(requests)
            pending.append(call)
            if len(pending) > CALLS_IN_FLIGHT:
                yield pending.popleft()
        yield from pending

    def _prepare(self, work: Sequence[Work]) -> _Call:
        """Render the prompts, then fetch and decode the images of those rows that have any."""
        call = _Call()
        addresses: dict[str, Decoded | RowError] = {}
        for row, tasks in work:
            for task in tasks:
                asked = _Asked(row, task)
                try:
                    asked.prompt = task.render(row.columns)
                    asked.options = _options(row, self.plan.options_column)
                    if row.image is None:
                        raise RowError("no_image", "the manifest row names no image")
                    addresses[row.image] = RowError("missing", "not fetched")
                except RowError as error:
                    asked.error = error
                call.asked.append(asked)
        for address, data in zip(addresses, self.fetcher.fetch_many(list(addresses)), strict=True):
            addresses[address] = data if isinstance(data, RowError) else self._decode(data)
        for asked in call.asked:
            if asked.error is None and asked.row.image is not None:
                image = addresses[asked.row.image]
                if isinstance(image, RowError):
                    asked.error = image
                else:
                    asked.image = image
        return call

    def _decode(self, data: bytes) -> Decoded | RowError:
        fetch, guard = self.plan.fetch, self.plan.guard
        most = fetch.max_pixels if guard is None else guard.max_pixels
        try:
            return decode(data, self.plan.image_size, max_pixels=most, draft=fetch.draft)
        except RowError as error:
            return error

    def _request(self, asked: _Asked) -> Request | None:
        if asked.image is None or asked.prompt is None:
            return None
        name = f"{asked.row.row}/{asked.task.template}"
        key = f"draft-{asked.image.sha256}" if self.plan.fetch.draft else asked.image.sha256  # runs may share a pool
        options = asked.options.model_dump()
        options["max_tokens"] = asked.options.max_tokens or asked.task.max_tokens
        return Request(name, asked.prompt, asked.image.pixels, key, **options)

    def _records(self, call: _Call, predictions: Sequence[Prediction], shard: int) -> Iterator[Record]:
        answers = iter(predictions)
        for asked in call.asked:
            prediction = next(answers) if asked.image is not None and asked.prompt is not None else None
            yield record(asked.row, asked.task, asked.prompt, asked.image, prediction, asked.error, shard, self.masks)


def _options(row: ManifestRow, column: str | None) -> RequestOptions:
    """A row's own options. Raises RowError `prompt` for what are none."""
    given = row.columns.get(column) if column is not None else None
    if given is None:
        return RequestOptions()
    try:
        return RequestOptions.model_validate_json(str(given))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RowError("prompt", f"the row's {column!r}: {place + ': ' if place else ''}{first['msg']}") from None
