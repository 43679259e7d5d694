"""What callers of an endpoint keep there: files, and orders, which are runs that were asked for over HTTP.

Each caller has a folder of his own. Everything about an order is an object that has one writer: what was asked for is
written once when it comes in, its state by the driver that works on it, and the wish to cancel it once by whoever has
it. So no two of them ever overwrite each other, and whoever asks puts the three together.

    CALLER/files/file-.../content, meta.json                    the marker, meta.json, is written last
    CALLER/orders/batch_... or job_.../order.json, state.json, cancel.json
    open/CALLER/batch_... or job_...                            while it is not over, so that few are looked through
"""

import json
import re
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from paliscribe.storage import StorageError, Store

Kind = Literal["batch", "job"]
NAME = re.compile(r"(file-|batch_|job_)[0-9a-f]{20,40}")
OPEN = "open"  # no caller is called so
OVER = frozenset({"completed", "failed", "expired", "cancelled"})  # states that nothing follows


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file. `created_at`: seconds since 1970; `size` in bytes."""

    id: str
    filename: str
    purpose: str
    size: int
    created_at: int


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for. `expires_at`: seconds since 1970, from when on it is given up; None: never."""

    id: str
    owner: str
    kind: Kind
    asked: dict[str, Any]
    created_at: int
    expires_at: int | None = None


def new_id(prefix: str) -> str:
    """A name that cannot be guessed; names of one prefix sort by the time at which they were made."""
    return f"{prefix}{time.time_ns() // 1_000_000:012x}{secrets.token_hex(12)}"


class Orders:
    """The files and orders in a store. All methods raise StorageError and may be called from any thread."""

    def __init__(self, store: Store) -> None:
        self.store = store

    # Files

    def add_file(self, owner: str, facts: FileFacts, content: Path) -> None:
        """Keep a file; what has no `meta.json` yet is not there."""
        folder = f"{owner}/files/{facts.id}"
        self.store.put_file(f"{folder}/content", content)
        self.store.put(f"{folder}/meta.json", json.dumps(asdict(facts)).encode())

    def file(self, owner: str, name: str) -> FileFacts | None:
        """A file's facts, or None if this caller has no such file."""
        found = self._read(owner, "files", name, "meta.json")
        return None if found is None else FileFacts(**found)

    def open_file(self, owner: str, name: str) -> BinaryIO:
        """Read a file that is there."""
        return self.store.open(f"{owner}/files/{name}/content")

    def files(self, owner: str) -> list[str]:
        """The names of a caller's files, oldest first."""
        return self._names(owner, "files", "meta.json")

    def delete_file(self, owner: str, name: str) -> None:
        """Remove a file, its marker first."""
        for part in ("meta.json", "content"):
            self.store.delete(f"{owner}/files/{name}/{part}")

    # Orders

    def place(self, order: Order) -> None:
        """Note what was asked for."""
        self.store.put(_open(order), b"")
        self.store.put_if_absent(self.key(order, "order.json"), json.dumps(asdict(order)).encode())

    def order(self, owner: str, name: str) -> Order | None:
        """What was asked for, or None if this caller has no such order."""
        found = self._read(owner, "orders", name, "order.json")
        return None if found is None else Order(**found)

    def orders(self, owner: str, kind: Kind) -> list[str]:
        """The names of a caller's orders of a kind, oldest first."""
        return [name for name in self._names(owner, "orders", "order.json") if name.startswith(f"{kind}_")]

    def open_orders(self) -> list[Order]:
        """The orders of all callers that are not over, the oldest first."""
        names = [found.key.split("/")[1:] for found in self.store.list(f"{OPEN}/")]
        placed = [order for owner, name in names if (order := self.order(owner, name)) is not None]
        for over in [order for order in placed if self.state(order).get("status") in OVER]:
            self.store.delete(_open(over))
            placed.remove(over)
        return sorted(placed, key=lambda order: (order.created_at, order.id))

    def state(self, order: Order) -> dict[str, Any]:
        """Where the driver says that an order stands; empty before it has said anything."""
        return self._read(order.owner, "orders", order.id, "state.json") or {}

    def set_state(self, order: Order, state: dict[str, Any]) -> None:
        """Say where an order stands; for its driver alone."""
        self.store.put(self.key(order, "state.json"), json.dumps(state).encode())
        if state["status"] in OVER:
            self.store.delete(_open(order))

    def cancel(self, order: Order) -> None:
        """Ask for an order to be given up."""
        self.store.put_if_absent(self.key(order, "cancel.json"), json.dumps({"at": int(time.time())}).encode())

    def cancelled_at(self, order: Order) -> int | None:
        """When that was asked for, if it was."""
        found = self._read(order.owner, "orders", order.id, "cancel.json")
        return None if found is None else int(found["at"])

    @staticmethod
    def key(order: Order, part: str) -> str:
        """Where a part of an order is kept."""
        return f"{order.owner}/orders/{order.id}/{part}"

    def _names(self, owner: str, kind: str, marker: str) -> list[str]:
        start, end = f"{owner}/{kind}/", f"/{marker}"
        keys = (found.key for found in self.store.list(start))
        return sorted(
            key.removeprefix(start).removesuffix(end) for key in keys if key.count("/") == 3 and key.endswith(end)
        )

    def _read(self, owner: str, kind: str, name: str, part: str) -> dict[str, Any] | None:
        if not NAME.fullmatch(name):
            return None
        try:
            found: dict[str, Any] = json.loads(self.store.get(f"{owner}/{kind}/{name}/{part}"))
        except StorageError as error:
            if error.kind == "missing":
                return None
            raise
        return found


def _open(order: Order) -> str:
    return f"{OPEN}/{order.owner}/{order.id}"
