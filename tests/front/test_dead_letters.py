"""Rows that cannot be answered: each told apart, none fatal, all retryable."""

import json
import shutil
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from front.conftest import Paliscribe, published, read_rows, task_flags, write_rows

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("served")]
TASKS = ("ocr", "answer en {question}")


class Guarded(BaseHTTPRequestHandler):
    """A server that says 403 until it is opened."""

    opened = False
    data = b""

    def do_GET(self) -> None:
        self.send_response(200 if Guarded.opened else 403)
        self.send_header("Content-Length", str(len(self.data) if Guarded.opened else 0))
        self.end_headers()
        if Guarded.opened:
            self.wfile.write(self.data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def guarded(collection: Path) -> Iterator[str]:
    Guarded.opened, Guarded.data = False, next((collection.parent / "images").iterdir()).read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/picture.jpg"
    server.shutdown()


def bomb() -> bytes:
    """A PNG of a few bytes that declares 50,000 x 50,000 pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def spoil(folder: Path, good: Path, guarded: str) -> dict[str, tuple[str | None, str]]:
    """Bad rows: id -> image, error_kind."""
    jpeg = good.read_bytes()
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "text.jpg").write_text("not a picture")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "bomb.png").write_bytes(bomb())
    return {
        "missing": (str(folder / "missing.jpg"), "missing"),
        "forbidden": (guarded, "forbidden"),
        "truncated": (str(folder / "truncated.jpg"), "corrupt"),
        "text": (str(folder / "text.jpg"), "not_an_image"),
        "empty": (str(folder / "empty.jpg"), "empty"),
        "bomb": (str(folder / "bomb.png"), "too_many_pixels"),
        "scheme": ("gopher://there/picture.jpg", "bad_uri"),
        "no-image": (None, "no_image"),
    }


def records(output: Path) -> list[dict[str, Any]]:
    return ds.dataset(output, format="parquet").to_table().to_pylist()


def test_each_fault_is_a_dead_letter_of_its_kind(
    collection: Path, guarded: str, tmp_path: Path, paliscribe: Paliscribe
) -> None:
    good = sorted((collection.parent / "images").glob("*.jpg"))[0]
    rows = [row | {"image": str(collection.parent / row["image"])} for row in read_rows(collection)]
    bad = spoil(tmp_path, good, guarded)
    rows += [
        {"id": name, "image": image, "question": "how many circles are there?"} for name, (image, _) in bad.items()
    ]
    rows.append({"id": "no-question", "image": str(good)})
    manifest, output = write_rows(tmp_path / "m.jsonl", rows), tmp_path / "o"
    flags = ["--manifest", manifest, "--output", output, "--shard-rows", "8", *task_flags(*TASKS)]
    said = paliscribe("annotate", *flags, "--json", "--quiet")
    assert said.code == 0, said.err
    found = records(output)
    assert len(found) == len(rows) * len(TASKS)
    failed = {(r["id"], r["task"]): r["error_kind"] for r in found if r["status"] == "error"}
    expected = {(name, task): kind for name, (_, kind) in bad.items() for task in TASKS}
    assert failed == expected | {("no-question", TASKS[1]): "prompt"}
    assert all(r["error_message"] and "\n" not in r["error_message"] for r in found if r["status"] == "error")
    assert said.json["errors"] == len(failed) and sum(said.json["error_kinds"].values()) == len(failed)
    assert {p.relative_to(output).parts[0] for p in output.rglob("*.parquet")} == {"annotations", "errors"}

    check_retry(manifest, output, rows, good, paliscribe)


def check_retry(manifest: Path, output: Path, rows: list[dict[str, Any]], good: Path, paliscribe: Paliscribe) -> None:
    """Fix half, retry; fix the rest, including errors in the manifest, retry: nothing else changes."""
    before = {key: body for key, body in published(output).items() if key.startswith("annotations/")}
    for name in ("missing.jpg", "truncated.jpg", "empty.jpg"):
        shutil.copy(good, manifest.parent / name)
    first = paliscribe("retry", output, "--json", "--quiet")
    assert first.code == 0, first.err
    assert first.json["errors"] == 11 and "missing" not in first.json["error_kinds"]
    for name in ("text.jpg", "bomb.png"):
        shutil.copy(good, manifest.parent / name)
    Guarded.opened = True
    for row in rows:
        row |= {"image": str(good)} if row["id"] in ("scheme", "no-image") else {}
        row.setdefault("question", "how many circles are there?")
    write_rows(manifest, rows)
    second = paliscribe("retry", output, "--json", "--quiet")
    assert second.code == 0, second.err
    assert second.json["errors"] == 0
    after = published(output)
    assert not [key for key in after if key.startswith("errors/")]
    assert {key: after[key] for key in before} == before
    found = records(output)
    assert len({(r["id"], r["task"]) for r in found}) == len(found) == len(rows) * len(TASKS)
    assert json.loads((output / "_summary.json").read_text())["ok"] == len(found)
    again = paliscribe("retry", output, "--json", "--quiet")
    assert again.code == 0 and again.json["shards_annotated"] == 0
    assert published(output) == after


def test_a_run_that_fails_wholesale_is_stopped_early(tmp_path: Path, paliscribe: Paliscribe) -> None:
    manifest = tmp_path / "list.txt"
    manifest.write_text("".join(f"nothing-{number}.jpg\n" for number in range(400)))
    flags = ["--manifest", manifest, "--output", tmp_path / "o", "--task", "ocr", "--shard-rows", "10", "--quiet"]
    said = paliscribe("annotate", *flags, "--max-error-rate", "0.2")
    assert said.code == 1
    assert len(said.err.splitlines()) == 1
    assert "requests failed (missing" in said.err and "max_error_rate 0.2" in said.err
    done = len(list((tmp_path / "o" / "_run" / "done").iterdir()))
    assert 2 <= done < 30
    assert not (tmp_path / "o" / "_SUCCESS").exists()
