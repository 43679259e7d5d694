"""What CONTRIBUTING says of adding a format, a kind, a scheme, an export and a route is true: each is done here."""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import pytest
from demo_run import DemoRun
from fastapi import APIRouter
from fastapi.testclient import TestClient

from paliscribe import export, manifest, storage
from paliscribe.config import ServeConfig
from paliscribe.errors import RequestError, UsageError
from paliscribe.export import registry
from paliscribe.export.base import Format, Run
from paliscribe.export.pictures import Picture
from paliscribe.export.target import Target
from paliscribe.grammar import tasks
from paliscribe.images.fetch import Fetcher
from paliscribe.manifest import formats
from paliscribe.online.app import create_app
from paliscribe.online.keys import Keys
from paliscribe.online.service import Service
from paliscribe.records import Annotation
from paliscribe.storage.base import ObjectInfo, Scheme, StorageError

CONTRIBUTING = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("what", ["A manifest format", "A kind of task", "A storage scheme", "An export", "A route"])
def test_contributing_tells_how(what: str) -> None:
    assert f"- **{what}**" in CONTRIBUTING


def test_a_format(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def pipes(source: formats.Source) -> Iterator[formats.Row]:
        with source.lines() as lines:
            names = next(lines).strip().split("|")
            for line in lines:
                yield dict(zip(names, line.strip().split("|"), strict=True))

    monkeypatch.setitem(formats.FORMATS, ".psv", lambda source: formats.in_blocks(pipes(source)))
    path = tmp_path / "m.psv"
    path.write_text("id|image|question\n1|a.jpg|what?\n")
    [row] = manifest.read(str(path))
    assert (row.id, row.image, row.columns) == ("1", f"{tmp_path}/a.jpg", {"question": "what?"})
    path.write_text("id|image\n1\n")
    with pytest.raises(UsageError, match=r"m\.psv: cannot be read"):
        list(manifest.read(str(path)))


def test_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(text: str, width: int, height: int, confidence: tasks.Confidence) -> Annotation:
        return Annotation("ok", text) if text.isdigit() else Annotation("invalid", text, problem="not a number")

    entry = tasks.KindEntry(re.compile(r"count \S"), 8, count, " ; ")
    monkeypatch.setattr(tasks, "KINDS", {"count": entry, **tasks.KINDS})
    task = tasks.parse_task("count {things}")
    assert (task.kind, task.max_tokens, task.render({"things": ["cat", "dog"]})) == ("count", 8, "count cat ; dog")
    assert task.parse("3", 10, 10).status == "ok" and task.parse("many", 10, 10).problem == "not a number"


class Memory:
    """A store in this process."""

    objects: ClassVar[dict[str, bytes]] = {}

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        return self.get_with_etag(key)[0]

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        body = read(f"{self.uri}/{key}", 1 << 30, 1, 1.0)
        return body, str(hash(body))

    def open(self, key: str) -> BinaryIO:
        return io.BytesIO(self.get(key))

    def get_range(self, key: str, start: int, size: int, version: str | None = None) -> bytes:
        return self.get(key)[start : start + size]

    def put(self, key: str, data: bytes) -> str:
        self.objects[f"{self.uri}/{key}"] = data
        return str(hash(data))

    def put_file(self, key: str, path: Path) -> str:
        return self.put(key, path.read_bytes())

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return not self.exists(key) and bool(self.put(key, data))

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        return self.put(key, data) if self.exists(key) and self.get_with_etag(key)[1] == etag else None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for name in sorted(self.objects):
            if name.startswith(f"{self.uri}/{prefix}"):
                yield ObjectInfo(name.removeprefix(f"{self.uri}/"), len(self.objects[name]), "", 0.0)

    def version(self, key: str, *, settled: bool = True) -> str | None:
        return None

    def exists(self, key: str) -> bool:
        return f"{self.uri}/{key}" in self.objects

    def delete(self, key: str) -> None:
        self.objects.pop(f"{self.uri}/{key}", None)

    def delete_many(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.delete(key)


def read(uri: str, max_bytes: int, connections: int, timeout: float) -> bytes:
    if uri not in Memory.objects:
        raise StorageError("missing", uri, "no such object")
    return Memory.objects[uri]


def test_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memory, "objects", {})
    monkeypatch.setitem(storage.SCHEMES, "mem", Scheme("mem://", Memory, read))
    store = storage.open_store("mem://here/run")
    storage.check_writable(store)
    store.put("m.jsonl", json.dumps({"image": "a.png"}).encode())
    [row] = manifest.read("mem://here/run/m.jsonl")
    assert row.image == "mem://here/run/a.png"
    frozen = manifest.freeze("mem://here/run/m.jsonl", store, shard_rows=4)
    assert manifest.load(store) == frozen and manifest.Shards(store).read(0) == [row]
    store.put("a.png", b"pixels")
    assert Fetcher().fetch(row.image) == b"pixels"
    with pytest.raises(StorageError, match=r"known are local paths, s3://, http\(s\)://, mem://"):
        storage.open_store("gs://bucket")


def test_an_export(monkeypatch: pytest.MonkeyPatch, demo_run: DemoRun, tmp_path: Path) -> None:
    class Ids:
        def __init__(self, target: Target, run: Run) -> None:
            self.lines = target.lines("ids.txt")

        def add(self, picture: Picture) -> None:
            self.lines.write(f"{picture.id} {len(picture.regions())} {picture.place}\n")

        def close(self) -> None:
            self.lines.close()

    monkeypatch.setitem(export.FORMATS, "ids", Format("the ids", "anybody", Ids, boxes=True))
    made = export.export(str(demo_run.output), "ids", str(tmp_path / "to"), images=True)
    lines = (tmp_path / "to/ids.txt").read_text().splitlines()
    assert len(lines) == made["pictures"] and "| `ids` | the ids |" in registry.describe()
    assert all((tmp_path / "to" / line.split()[2]).is_file() for line in lines)


def test_a_route() -> None:
    router = APIRouter()

    @router.get("/v1/echo/{word}")
    async def echo(word: str) -> dict[str, Any]:
        if word == "bad":
            raise RequestError(400, "invalid_request", "word: not that one", "word")
        return {"word": word}

    app = create_app(Service(ServeConfig(), []), Keys({hashlib.sha256(b"key").hexdigest(): ""}))
    app.include_router(router)
    client = TestClient(app)
    assert client.get("/v1/echo/a").status_code == 401
    client.headers["authorization"] = "Bearer key"
    assert client.get("/v1/echo/a").json() == {"word": "a"}
    assert client.get("/v1/echo/bad").json()["error"]["param"] == "word"
