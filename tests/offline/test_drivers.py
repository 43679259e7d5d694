"""What a driver makes of an order that cannot go on: nothing that is answered is lost, and nothing is done twice."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paliscribe import results
from paliscribe.config import ServeConfig
from paliscribe.errors import Stopped
from paliscribe.online.background.drivers import drive
from paliscribe.online.background.store import Order, Orders, new_id
from paliscribe.records import Record
from paliscribe.results import ModelFacts
from paliscribe.storage import open_store

ROWS = 5
NOW = 1_700_000_000


def record(row: int, failed: bool) -> Record:
    return Record(
        id=f"line-{row}",
        image="data:image/png;base64,...",
        task="{ask}",
        kind="free",
        prompt="ocr",
        status="error" if failed else "ok",
        text=None if failed else f"answer {row}",
        boxes=(),
        masks=(),
        score=None if failed else 0.5,
        prompt_tokens=None if failed else 68,
        tokens=None if failed else 2,
        finish_reason=None if failed else "stop",
        error_kind="missing" if failed else None,
        error_message="no such file" if failed else None,
        width=9,
        height=9,
        image_sha256="0",
        shard=0,
        row=row,
    )


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    return ServeConfig(files=str(tmp_path / "files"))


def begun(config: ServeConfig, *, expires_at: int | None = None, status: str = "in_progress") -> tuple[Orders, Order]:
    """A batch of five lines, of which a shard of three is committed, the last of them as a dead letter."""
    orders = Orders(open_store(str(config.files)))
    asked = {"input_file_id": "file-1", "completion_window": "24h", "metadata": None}
    order = Order(new_id("batch_"), "one", "batch", asked, NOW, expires_at)
    orders.place(order)
    rows = {name: [f"line-{row}" for row in range(ROWS)] for name in ("id", "image", "ask", "options")}
    path = Path(str(config.files)) / orders.key(order, "lines.parquet")
    pq.write_table(pa.table(rows), path)
    run = open_store(f"{config.files}/{orders.key(order, 'run')}")
    facts = ModelFacts("demo", "r1", "float32")
    records = [record(row, failed=row == 2) for row in range(3)]
    table = results.to_table(records, facts, results.schema(pa.schema([])))
    results.commit(run, results.write_shard(run, 0, "a", table))
    counts = {"total": ROWS, "completed": 0, "failed": 0}
    orders.set_state(order, {"status": status, "counts": counts, "model": "gone"})
    return orders, order


def kept(orders: Orders, name: str) -> list[dict[str, Any]]:
    with orders.open_file("one", name) as file:
        return [json.loads(line) for line in file]


def test_a_run_that_cannot_go_on_keeps_what_is_answered(config: ServeConfig) -> None:
    orders, order = begun(config)
    drive(config, {}, "paliscribe", order)
    state = orders.state(order)
    assert state["status"] == "failed" and state["counts"] == {"total": ROWS, "completed": 2, "failed": 1}
    assert [line["custom_id"] for line in kept(orders, state["output_file_id"])] == ["line-0", "line-1"]
    assert [line["custom_id"] for line in kept(orders, state["error_file_id"])] == ["line-2"]
    assert "gone" not in state["problems"][0]["message"], "callers are told nothing of our inside"
    left = [found.key for found in orders.store.list(orders.key(order, ""))]
    assert {key.rpartition("/")[2] for key in left} == {"order.json", "state.json"}
    assert orders.open_orders() == []


def test_an_order_that_is_over_is_left_alone(config: ServeConfig) -> None:
    orders, order = begun(config, status="completed")
    before = orders.state(order)
    drive(config, {}, "paliscribe", order)
    assert orders.state(order) == before


def test_a_window_that_closed_names_what_was_not_answered(config: ServeConfig) -> None:
    orders, order = begun(config, expires_at=NOW + 1)
    drive(config, {}, "paliscribe", order)
    state = orders.state(order)
    assert state["status"] == "expired" and state["counts"] == {"total": ROWS, "completed": 2, "failed": 3}
    failed = kept(orders, state["error_file_id"])
    assert [line["custom_id"] for line in failed] == ["line-2", "line-3", "line-4"]
    assert [line["error"] and line["error"]["code"] for line in failed] == [None, "batch_expired", "batch_expired"]


def test_a_wish_to_cancel_before_the_window_closed_counts(config: ServeConfig) -> None:
    orders, order = begun(config, expires_at=NOW + 100)
    orders.store.put(orders.key(order, "cancel.json"), json.dumps({"at": NOW + 50}).encode())
    drive(config, {}, "paliscribe", order)
    state = orders.state(order)
    assert state["status"] == "cancelled" and state["counts"] == {"total": ROWS, "completed": 2, "failed": 1}


def test_a_job_of_a_model_that_is_served_no_more_says_so(config: ServeConfig) -> None:
    orders = Orders(open_store(str(config.files)))
    order = Order(new_id("job_"), "one", "job", {"model": "gone"}, NOW)
    orders.place(order)
    drive(config, {}, "paliscribe", order)
    state = orders.state(order)
    assert state["status"] == "failed" and state["problems"][0]["message"] == "model gone is not served any more"


def test_being_told_to_stop_is_no_exception() -> None:
    assert not issubclass(Stopped, Exception), "a library would wrap it, or try again"
