"""Files and background jobs that callers of an endpoint keep in the object store.

A background job is a run requested over HTTP: an OpenAI batch, or a paliscribe job file. Each caller, a tenant or a key
without one, has a folder. A tenant also has the folders of keys that had none before: it adopts them.
Concurrent writers never overwrite each other: an object is written once, or replaces the version that was read:

    CALLER/files/file-.../content, meta.json     meta.json is the marker and is written last
    CALLER/files/file-.../expires                only of a file that expires by itself; written first
    CALLER/orders/ID/order.json                  the request; written once, on creation
    CALLER/orders/ID/state.json                  the status; written by the driver that claimed the job last
    CALLER/orders/ID/_run/lease.json             the lease of the job's driver
    CALLER/orders/ID/cancel.json                 the cancel request; written once
    open/CALLER/ID                               index of unfinished jobs, so that a scan need not read every job
    adopted/CALLER                               the tenant that has adopted this folder; written once
    TENANT/adopted/CALLER                        index of the folders that a tenant has adopted
    _janitor/_run/lease.json                     the lease of what deletes expired files and jobs

ID is batch_... or job_.... Readers merge the three objects of a job. `orders` and `order.json` are stored names: do not
rename them.
"""

import json
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from paliscribe.online.keys import TENANT_ID
from paliscribe.storage import StorageError, Store, open_store

Kind = Literal["batch", "job"]
ID_PATTERN = re.compile(r"(file-|batch_|job_)[0-9a-f]{20,40}")
OPEN, ADOPTED = "open", "adopted"  # reserved; never a caller id
TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})  # final statuses


@dataclass(frozen=True, slots=True)
class FileInfo:
    """Metadata of a stored file.

    `created_at`, `expires_at`: seconds since 1970; `expires_at` is what the caller asked for, if anything. `size`:
    bytes.
    """

    id: str
    filename: str
    purpose: str
    size: int
    created_at: int
    expires_at: int | None = None

    def until(self, expire_after: int | None) -> int | None:
        """When the file expires; None: never. `expire_after`: the endpoint's setting, in seconds."""
        ends = [self.expires_at] if self.expires_at is not None else []
        return min([*ends, self.created_at + expire_after] if expire_after is not None else ends, default=None)


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


def made_at(name: str) -> float:
    """When an id was made, in seconds since 1970: for a batch's output file when the batch was."""
    return int(name.partition("-" if name.startswith("file-") else "_")[2][:12], 16) / 1000


class BackgroundStore:
    """Files and background jobs in an object store. Thread-safe. Every method raises StorageError."""

    def __init__(self, objects: Store) -> None:
        self.objects = objects

    # Files

    def add_file(self, owner: str, info: FileInfo, content: Path) -> None:
        """Store a file. It does not exist until its `meta.json` is written."""
        folder, values = f"{owner}/files/{info.id}", asdict(info)
        if info.expires_at is None:
            del values["expires_at"]  # unknown to older versions
        else:
            self.objects.put(f"{folder}/expires", b"")
        self.objects.put_file(f"{folder}/content", content)
        self.objects.put(f"{folder}/meta.json", json.dumps(values).encode())

    def file(self, owner: str, name: str) -> FileInfo | None:
        """Metadata of a file, or None if this caller has no such file."""
        found = self._find(owner, "files", name, "meta.json")
        return None if found is None else FileInfo(**found[1])

    def open_file(self, owner: str, name: str) -> BinaryIO:
        """Open an existing file for reading."""
        found = self._find(owner, "files", name, "meta.json")
        return self.objects.open(f"{found[0] if found else owner}/files/{name}/content")

    def files(self, owner: str) -> list[str]:
        """Ids of a caller's files, oldest first."""
        return self._ids(owner, "files", "meta.json")

    def delete_file(self, owner: str, name: str) -> None:
        """Delete a file, its marker first."""
        found = self._find(owner, "files", name, "meta.json")
        for part in ("meta.json", "content", "expires"):
            self.objects.delete(f"{found[0] if found else owner}/files/{name}/{part}")

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
        found = self._find(owner, "orders", name, "order.json")
        return None if found is None else BackgroundJob(**found[1])

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

    # Tenants

    def adopt(self, tenant: str, folder: str) -> None:
        """Make a key's folder, if there is one, also that of its tenant. The first tenant keeps it."""
        if next(iter(self.objects.list(f"{folder}/")), None) is None:
            return
        key = f"{ADOPTED}/{folder}"
        if self.objects.put_if_absent(key, tenant.encode()) or self.objects.get(key) == tenant.encode():
            self.objects.put_if_absent(f"{tenant}/{ADOPTED}/{folder}", b"")

    def folders(self, owner: str) -> Iterator[str]:
        """The folders of a caller: its own, then those that it has adopted."""
        yield owner
        if owner.startswith(TENANT_ID):
            yield from (found.key.rpartition("/")[2] for found in self.objects.list(f"{owner}/{ADOPTED}/"))

    def _ids(self, owner: str, kind: str, marker: str) -> list[str]:
        names: list[str] = []
        for folder in self.folders(owner):
            start, end = f"{folder}/{kind}/", f"/{marker}"
            keys = (found.key for found in self.objects.list(start))
            names += [
                key.removeprefix(start).removesuffix(end) for key in keys if key.count("/") == 3 and key.endswith(end)
            ]
        return sorted(names)

    def _find(self, owner: str, kind: str, name: str, part: str) -> tuple[str, dict[str, Any]] | None:
        """The folder among a caller's that has an object, and what that says."""
        if not ID_PATTERN.fullmatch(name):
            return None
        for folder in self.folders(owner):
            if (found := self._read(folder, kind, name, part)) is not None:
                return folder, found
        return None

    def _read(self, owner: str, kind: str, name: str, part: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self.objects.get(f"{owner}/{kind}/{name}/{part}"))
        except StorageError as error:
            if error.kind == "missing":
                return None
            raise
        return found


def _open_key(job: BackgroundJob) -> str:
    return f"{OPEN}/{job.owner}/{job.id}"
