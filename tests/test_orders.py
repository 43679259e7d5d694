"""Files and orders: markers last, one writer an object, each caller his own."""

from pathlib import Path

import pytest

from paliscribe.online.background.store import FileFacts, Order, Orders, new_id
from paliscribe.storage import open_store


@pytest.fixture
def orders(tmp_path: Path) -> Orders:
    return Orders(open_store(str(tmp_path / "store")))


def content(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "content"
    path.write_bytes(data)
    return path


def test_a_file_is_there_once_its_marker_is(orders: Orders, tmp_path: Path) -> None:
    facts = FileFacts(new_id("file-"), "in.jsonl", "batch", 3, 17)
    orders.store.put_file(f"one/files/{facts.id}/content", content(tmp_path, b"abc"))
    assert orders.file("one", facts.id) is None and orders.files("one") == []
    orders.add_file("one", facts, content(tmp_path, b"abc"))
    assert orders.file("one", facts.id) == facts and orders.files("one") == [facts.id]
    with orders.open_file("one", facts.id) as file:
        assert file.read() == b"abc"
    orders.delete_file("one", facts.id)
    assert orders.file("one", facts.id) is None and list(orders.store.list()) == []


def test_callers_see_their_own(orders: Orders, tmp_path: Path) -> None:
    facts = FileFacts(new_id("file-"), "in.jsonl", "batch", 3, 17)
    orders.add_file("one", facts, content(tmp_path, b"abc"))
    order = Order(new_id("batch_"), "one", "batch", {}, 17)
    orders.place(order)
    assert orders.file("other", facts.id) is None and orders.files("other") == []
    assert orders.order("other", order.id) is None and orders.orders("other", "batch") == []
    assert orders.order("one", order.id) == order


@pytest.mark.parametrize("name", ["../one", "file-../../x", "", "file-", "file-ZZ", "batch_" + "a" * 60, "file-a\n"])
def test_a_name_that_is_none_leads_nowhere(orders: Orders, name: str) -> None:
    assert orders.file("one", name) is None and orders.order("one", name) is None


def test_open_orders_are_those_that_are_not_over_the_oldest_first(orders: Orders) -> None:
    placed = [Order(new_id("batch_"), f"caller-{number % 2}", "batch", {}, number) for number in range(4)]
    placed.append(Order(new_id("job_"), "caller-0", "job", {"tasks": ["ocr"]}, 9))
    for order in reversed(placed):
        orders.place(order)
    orders.set_state(placed[1], {"status": "completed"})
    orders.set_state(placed[2], {"status": "in_progress"})
    assert [order.created_at for order in orders.open_orders()] == [0, 2, 3, 9]
    assert sorted(orders.orders("caller-0", "batch")) == sorted([placed[0].id, placed[2].id])
    assert orders.orders("caller-0", "job") == [placed[4].id]


def test_the_first_wish_to_cancel_counts(orders: Orders) -> None:
    order = Order(new_id("job_"), "one", "job", {}, 17)
    orders.place(order)
    assert orders.cancelled_at(order) is None
    orders.cancel(order)
    first = orders.cancelled_at(order)
    orders.store.put(orders.key(order, "cancel.json"), b'{"at": 5}')
    orders.cancel(order)
    assert first is not None and orders.cancelled_at(order) == 5


def test_names_sort_by_time_and_are_not_repeated() -> None:
    names = [new_id("file-") for _ in range(50)]
    assert len(set(names)) == 50 and [name[:17] for name in names] == sorted(name[:17] for name in names)
