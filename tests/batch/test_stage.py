"""What a stage sends to the pool."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images.files import empty_scans
from PIL import Image

from paliscribe import manifest, results
from paliscribe.batch.stage import Plan, Stage
from paliscribe.config import FetchConfig, ImagesConfig
from paliscribe.grammar.tasks import parse_tasks
from paliscribe.images.decode import decode
from paliscribe.records import Prediction, Request
from paliscribe.results import ModelFacts
from paliscribe.results.commit import marker_key
from paliscribe.storage import open_store

SIZE = 28


class Pool:
    """Keeps the requests that it is sent, and answers none of them."""

    def __init__(self, slots: int = 8) -> None:
        self.calls: list[Sequence[Request]] = []
        self.slots = slots

    @property
    def sent(self) -> list[Request]:
        return [request for call in self.calls for request in call]

    def send(self, requests: Sequence[Request]) -> "Refused":
        self.calls.append(requests)
        return Refused(requests)


class Refused:
    """A call that answers none of its requests."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests

    def result(self) -> list[Prediction]:
        return [Prediction(request.id, "", (), (), None, "model", "not asked") for request in self.requests]


def test_draft_reaches_the_decoder_and_the_key(tmp_path: Path) -> None:
    grain = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(grain).save(tmp_path / "one.jpg")
    (tmp_path / "images.txt").write_text("one.jpg\n")
    output = str(tmp_path / "output")
    columns: dict[str, Any] = {"image_column": "image", "id_column": "id"}
    frozen = manifest.freeze(str(tmp_path / "images.txt"), open_store(output), shard_rows=8, **columns)
    pool, tasks = Pool(), tuple(parse_tasks(["caption en"]))
    schema, facts = results.schema(frozen.schema), ModelFacts("demo", "r1", "float32")
    data = (tmp_path / "one.jpg").read_bytes()
    for draft in (False, True):
        list(Stage(Plan(output, tasks, schema, facts, SIZE, FetchConfig(draft=draft)), pool).annotate([0]))
        open_store(output).delete(marker_key(0))
        assert np.array_equal(pool.sent[-1].pixels, decode(data, SIZE, draft=draft).pixels)
    exact, reduced = pool.sent
    assert not np.array_equal(exact.pixels, reduced.pixels)
    assert exact.image_key != reduced.image_key  # else they would share a vision pass in a pool that serves both


def staged(
    tmp_path: Path, rows: list[dict[str, object]], *, shard_rows: int = 8, slots: int = 8, **plan: object
) -> tuple[Stage, Pool, manifest.FrozenManifest]:
    """A stage for a manifest of these rows, and the pool that it sends to."""
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output, store = str(tmp_path / "output"), open_store(str(tmp_path / "output"))
    columns: dict[str, Any] = {"image_column": "image", "id_column": "id"}
    frozen = manifest.freeze(str(tmp_path / "rows.jsonl"), store, shard_rows=shard_rows, **columns)
    pool, tasks = Pool(slots), tuple(parse_tasks(["{ask}"]))
    plan.setdefault("nested", frozen.nested)
    schema, facts = results.schema(frozen.schema), ModelFacts("demo", "r1", "float32")
    made = Plan(output, tasks, schema, facts, SIZE, FetchConfig(), **plan)  # type: ignore[arg-type]
    return Stage(made, pool), pool, frozen


def made(tmp_path: Path, rows: list[dict[str, object]], **plan: object) -> tuple[Pool, list[dict[str, object]]]:
    """What a stage sends for a manifest of these rows, and the records that it commits."""
    stage, pool, _ = staged(tmp_path, rows, **plan)  # type: ignore[arg-type]
    [marker] = stage.annotate([0])
    return pool, results.read_committed(stage.store, marker).to_pylist()


def data_url(colour: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), colour).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def test_a_hostile_image_is_one_dead_letter(tmp_path: Path) -> None:
    (tmp_path / "line.pbm").write_bytes(b"P4\n68000000 1\n" + bytes(8_500_000))
    (tmp_path / "scans.jpg").write_bytes(empty_scans(7000, 400))
    rows = [
        {"id": image[:9], "image": image, "ask": "caption en"} for image in ("line.pbm", data_url("red"), "scans.jpg")
    ]
    pool, records = made(tmp_path, rows)  # type: ignore[arg-type]
    assert len(pool.sent) == 1
    assert [record["error_kind"] for record in records] == ["too_many_pixels", "model", "too_costly"]


def test_rows_have_options_of_their_own(tmp_path: Path) -> None:
    given = {"max_tokens": 3, "temperature": 0.5, "top_p": 0.5, "seed": 4, "stop": ["x"]}
    picture = data_url("red")
    rows: list[dict[str, object]] = [
        {"id": "own", "image": picture, "ask": "ocr", "options": json.dumps(given)},
        {"id": "none", "image": picture, "ask": "ocr"},
        {"id": "odd", "image": picture, "ask": "ocr", "options": '{"max_token": 3}'},
        {"id": "no json", "image": picture, "ask": "ocr", "options": "3 tokens"},
    ]
    pool, records = made(tmp_path, rows, options_column="options")
    own, none = pool.sent
    assert (own.max_tokens, own.temperature, own.top_p, own.seed, own.stop) == (3, 0.5, 0.5, 4, ("x",))
    assert (none.max_tokens, none.temperature, none.stop) == (128, 0.0, ())
    assert [record["error_kind"] for record in records] == ["model", "model", "prompt", "prompt"]
    assert "max_token" in str(records[2]["error_message"])
    assert {record["image"] for record in records} == {"data:image/png;base64,..."}


def test_prompts_of_rows_have_the_kind_of_their_words(tmp_path: Path) -> None:
    picture = data_url("red")
    asked: list[object] = ["detect cat ; dog", "Segment cat", "what is it?", ["detect cat", "dog"], [], "caption en"]
    rows: list[dict[str, object]] = [{"id": str(n), "image": picture, "ask": ask} for n, ask in enumerate(asked)]
    pool, records = made(tmp_path, rows)
    assert [record["kind"] for record in records] == ["detect", "segment", "free", "detect", "free", "caption"]
    assert {record["task"] for record in records} == {"{ask}"}
    assert [record["error_kind"] for record in records] == ["model"] * 4 + ["prompt", "model"]
    assert [request.max_tokens for request in pool.sent] == [256, 256, 128, 256, 64]
    assert pool.sent[3].prompt == "detect cat ; dog"
    assert records[3]["ask"] == '["detect cat", "dog"]', "carried as it was"


def test_a_guarded_run_reads_what_callers_may_read(tmp_path: Path, bucket: str) -> None:
    picture = data_url("blue")
    store = open_store(f"s3://{bucket}")
    for key in ("open/one.png", "closed/one.png"):
        store.put(key, base64.b64decode(picture.partition(",")[2]))
    (tmp_path / "local.png").write_bytes(base64.b64decode(picture.partition(",")[2]))
    addresses = {
        "inline": picture,
        "open": f"s3://{bucket}/open/one.png",
        "gone": f"s3://{bucket}/open/none.png",
        "closed": f"s3://{bucket}/closed/one.png",
        "local": str(tmp_path / "local.png"),
        "file": f"file://{tmp_path}/local.png",
        "metadata": "http://169.254.169.254/latest/meta-data",
    }
    rows: list[dict[str, object]] = [{"id": name, "image": at, "ask": "ocr"} for name, at in addresses.items()]
    guard = ImagesConfig(addresses=(f"s3://{bucket}/open/",))
    pool, records = made(tmp_path, rows, guard=guard)
    assert [record["error_kind"] for record in records] == [
        "model",
        "model",
        "missing",
        "forbidden",
        "bad_uri",
        "bad_uri",
        "forbidden",
    ]
    assert len(pool.sent) == 2
    small = ImagesConfig(addresses=(f"s3://{bucket}/open/",), max_pixels=80)
    _, records = made(tmp_path / "small", rows[:1], guard=small)
    assert [record["error_kind"] for record in records] == ["too_many_pixels"]


def test_calls_cross_the_ends_of_shards(tmp_path: Path) -> None:
    """A call holds rows of several shards, so that small shards fill the pool too; records go to their own shard."""
    rows: list[dict[str, object]] = [{"id": f"r{n}", "image": data_url("red"), "ask": "ocr"} for n in range(19)]
    stage, pool, frozen = staged(tmp_path, rows, shard_rows=3, slots=4)
    markers = list(stage.annotate(range(7)))
    assert [len(call) for call in pool.calls] == [8, 8, 3]
    assert [marker.rows for marker in markers] == [3] * 6 + [1]
    for marker in markers:
        found = results.read_committed(stage.store, marker).to_pylist()
        assert [record["id"] for record in found] == [f"r{3 * marker.shard + n}" for n in range(marker.rows)]
    assert frozen.rows == 19


def test_a_block_that_comes_back_goes_on_where_it_was_lost(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"id": f"r{n}", "image": data_url("red"), "ask": "ocr"} for n in range(12)]
    stage, _, _ = staged(tmp_path, rows, shard_rows=3, slots=1)
    first = stage.annotate(range(4))
    committed = [next(first), next(first)]
    first.close()
    again, pool, _ = staged(tmp_path, rows, shard_rows=3, slots=1)
    markers = list(again.annotate(range(4)))
    assert markers[:2] == committed and [marker.shard for marker in markers] == [0, 1, 2, 3]
    assert len(pool.sent) == 6, "what is committed is not asked again"


def test_rows_answered_are_told_as_they_come(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"id": f"r{n}", "image": data_url("red"), "ask": "ocr"} for n in range(5)]
    stage, _, _ = staged(tmp_path, rows, shard_rows=8, slots=1)
    told: list[tuple[int, int | None]] = []
    list(stage.annotate([0], lambda shard, rows: told.append((shard, rows))))
    assert told == [(0, 2), (0, 4), (0, None)]


@pytest.mark.parametrize(("committed", "begun"), [(0, 0), (0, 2), (3, 0), (3, 2)])
def test_a_stage_that_leaves_finishes_what_it_has_begun(tmp_path: Path, committed: int, begun: int) -> None:
    picture = data_url("red")
    rows: list[dict[str, object]] = [{"id": f"r{row}", "image": picture, "ask": "ocr"} for row in range(40)]
    stage, pool, frozen = staged(tmp_path, rows, shard_rows=4, slots=3)  # calls of six rows
    assert len(list(stage.annotate(range(committed)))) == committed
    pool.calls.clear()
    answers = iter([False] * begun)
    found = list(stage.annotate(range(frozen.shards), leaving=lambda: next(answers, True)))
    assert [marker.shard for marker in found] == list(range(committed + begun)), "those of an attempt before too"
    assert len(pool.sent) == 4 * begun, "no request is sent whose shard is not committed"
    rest = list(stage.annotate(range(committed + begun, frozen.shards)))
    assert [marker.shard for marker in rest] == list(range(committed + begun, frozen.shards))
    assert len(pool.sent) == 40 - 4 * committed, "each is computed once"
