"""Files and background jobs that callers of an endpoint keep in the object store.

A background job is a run requested over HTTP: an OpenAI batch, or a paliscribe job file. Each caller has a folder.
Concurrent writers never overwrite each other: an object is written once, or replaces the version that was read:

    CALLER/files/file-.../content, meta.json     meta.json is the marker and is written last
    CALLER/orders/ID/order.json                  the request; written once, on creation
    CALLER/orders/ID/state.json                  the status; written by the driver that claimed the job last
    CALLER/orders/ID/_run/lease.json             the lease of the job's driver
    CALLER/orders/ID/cancel.json                 the cancel request; written once
    open/CALLER/ID                               index of unfinished jobs, so that a scan need not read every job

ID is batch_... or job_.... Readers merge the three objects of a job. `orders` and `order.json` are stored names: do not
rename them.
"""

import json
import re
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from paliscribe.storage import StorageError, Store, open_store

Kind = Literal["batch", "job"]
ID_PATTERN = re.compile(r"(file-|batch_|job_)[0-9a-f]{20,40}")
OPEN = "open"  # reserved; never a caller id
TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})  # final statuses


@dataclass(frozen=True, slots=True)
class FileInfo:
    """Metadata of a stored file. `created_at`: seconds since 1970; `size`: bytes."""

    id: str
    filename: str
    purpose: str
    size: int
    created_at: int


@dataclass(frozen=True, slots=True)
class BackgroundJob:
    """A request for a background job, as stored in order.json.

    `asked`: the request body. `created_at`, `expires_at`: seconds since 1970; the job expires at `expires_at`, or never
    if that is None.
    """

    id: str
    owner: str
    kind: Kind
    asked: dict[str, Any]
    created_at: int
    expires_at: int | None = None


def new_id(prefix: str) -> str:
    """An unguessable id. Ids with the same prefix sort by creation time."""
    return f"{prefix}{time.time_ns() // 1_000_000:012x}{secrets.token_hex(12)}"


class BackgroundStore:
    """Files and background jobs in an object store. Thread-safe. Every method raises StorageError."""

    def __init__(self, objects: Store) -> None:
        self.objects = objects

    # Files

    def add_file(self, owner: str, info: FileInfo, content: Path) -> None:
        """Store a file. It does not exist until its `meta.json` is written."""
        folder = f"{owner}/files/{info.id}"
        self.objects.put_file(f"{folder}/content", content)
        self.objects.put(f"{folder}/meta.json", json.dumps(asdict(info)).encode())

    def file(self, owner: str, name: str) -> FileInfo | None:
        """Metadata of a file, or None if this caller has no such file."""
        found = self._read(owner, "files", name, "meta.json")
        return None if found is None else FileInfo(**found)

    def open_file(self, owner: str, name: str) -> BinaryIO:
        """Open an existing file for reading."""
        return self.objects.open(f"{owner}/files/{name}/content")

    def files(self, owner: str) -> list[str]:
        """Ids of a caller's files, oldest first."""
        return self._ids(owner, "files", "meta.json")

    def delete_file(self, owner: str, name: str) -> None:
        """Delete a file, its marker first."""
        for part in ("meta.json", "content"):
            self.objects.delete(f"{owner}/files/{name}/{part}")

    def output_id(self, job: BackgroundJob, number: int) -> str:
        """Id of the file with this number that a batch's drivers store."""
        return f"file-{job.id.removeprefix('batch_')}{number % 2**16:04x}"

    def files_of(self, job: BackgroundJob) -> list[str]:
        """Ids of the files that a batch's drivers have stored."""
        start = f"{job.owner}/files/"
        found = self.objects.list(f"{start}file-{job.id.removeprefix('batch_')}")
        return sorted({one.key.removeprefix(start).split("/")[0] for one in found})

    # Background jobs

    def add_job(self, job: BackgroundJob) -> None:
        """Store a new background job."""
        self.objects.put(_open_key(job), b"")
        self.objects.put_if_absent(self.key(job, "order.json"), json.dumps(asdict(job)).encode())

    def job(self, owner: str, name: str) -> BackgroundJob | None:
        """A background job, or None if this caller has no such job."""
        found = self._read(owner, "orders", name, "order.json")
        return None if found is None else BackgroundJob(**found)

    def jobs(self, owner: str, kind: Kind) -> list[str]:
        """Ids of a caller's background jobs of one kind, oldest first."""
        return [name for name in self._ids(owner, "orders", "order.json") if name.startswith(f"{kind}_")]

    def open_jobs(self) -> list[BackgroundJob]:
        """Unfinished background jobs of all callers, oldest first. Removes finished ones from the index."""
        names = [found.key.split("/")[1:] for found in self.objects.list(f"{OPEN}/")]
        indexed = [job for owner, name in names if (job := self.job(owner, name)) is not None]
        for finished in [job for job in indexed if self.state(job).get("status") in TERMINAL]:
            self.objects.delete(_open_key(finished))
            indexed.remove(finished)
        return sorted(indexed, key=lambda job: (job.created_at, job.id))

    def state(self, job: BackgroundJob) -> dict[str, Any]:
        """The state last written by the job's driver; empty before the first write."""
        return self.state_version(job)[0]

    def state_version(self, job: BackgroundJob) -> tuple[dict[str, Any], str | None]:
        """The state and its ETag; empty and None before the first write."""
        try:
            body, etag = self.objects.get_with_etag(self.key(job, "state.json"))
        except StorageError as error:
            if error.kind == "missing":
                return {}, None
            raise
        state: dict[str, Any] = json.loads(body)
        return state, etag

    def set_state(self, job: BackgroundJob, state: dict[str, Any], over: str | None = None) -> bool:
        """Replace the version `over` of the job's state, or create it if that is None; False if there is another."""
        key, body = self.key(job, "state.json"), json.dumps(state).encode()
        written = self.objects.put_if_absent(key, body) if over is None else self.objects.put_if_match(key, body, over)
        if written and state.get("status") in TERMINAL:
            self.objects.delete(_open_key(job))
        return bool(written)

    def cancel(self, job: BackgroundJob) -> None:
        """Store a cancel request. The first one counts."""
        self.objects.put_if_absent(self.key(job, "cancel.json"), json.dumps({"at": int(time.time())}).encode())

    def cancelled_at(self, job: BackgroundJob) -> int | None:
        """When cancellation was requested, in seconds since 1970; None if it was not."""
        found = self._read(job.owner, "orders", job.id, "cancel.json")
        return None if found is None else int(found["at"])

    def folder(self, job: BackgroundJob) -> Store:
        """The job's own folder, which holds its lease."""
        return open_store(f"{self.objects.uri}/{job.owner}/orders/{job.id}")

    @staticmethod
    def key(job: BackgroundJob, part: str) -> str:
        """Key of one object of a background job."""
        return f"{job.owner}/orders/{job.id}/{part}"

    def _ids(self, owner: str, kind: str, marker: str) -> list[str]:
        start, end = f"{owner}/{kind}/", f"/{marker}"
        keys = (found.key for found in self.objects.list(start))
        return sorted(
            key.removeprefix(start).removesuffix(end) for key in keys if key.count("/") == 3 and key.endswith(end)
        )

    def _read(self, owner: str, kind: str, name: str, part: str) -> dict[str, Any] | None:
        if not ID_PATTERN.fullmatch(name):
            return None
        try:
            found: dict[str, Any] = json.loads(self.objects.get(f"{owner}/{kind}/{name}/{part}"))
        except StorageError as error:
            if error.kind == "missing":
                return None
            raise
        return found


def _open_key(job: BackgroundJob) -> str:
    return f"{OPEN}/{job.owner}/{job.id}"
