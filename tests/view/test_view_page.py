"""The page over a run in a browser: filters, orders, keys, boxes, marks, and names with markup."""

from pathlib import Path
from typing import Any

import pytest
from online.browser import Page
from results.made import Job
from selenium.webdriver.common.action_chains import ActionChains
from view.conftest import TOKEN, Viewed, viewed

from paliscribe.storage import open_store

pytestmark = pytest.mark.slow
HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'


def opened(page: Page, view: Viewed, state: str = "") -> None:
    page.driver.get("about:blank")
    page.driver.get(f"{view.address}/?token={TOKEN}#{state}")
    settled(page)


def settled(page: Page) -> None:
    page.wait(lambda: page.run("return document.getElementById('wall').getAttribute('aria-busy') === 'false'"))


def ids(page: Page) -> list[Any]:
    return list(page.run("return items.map((item) => [item.id, item.task])"))


def press(page: Page, *keys: str) -> None:
    ActionChains(page.driver).send_keys(*keys).perform()


def items(view: Viewed, **filters: Any) -> list[Any]:
    found = view.client.get("/api/items", params=filters).json()["items"]
    return [[one["id"], one["task"]] for one in found]


def test_filters_orders_and_links(browser: Page, demo_view: Viewed) -> None:
    page = browser
    opened(page, demo_view)
    page.wait(lambda: page.text("total") == "100 items" and page.texts("#filters [name=kind]"))
    assert "token" not in page.driver.current_url and ids(page) == items(demo_view, limit=60)
    page.run("""const field = document.querySelector('[name=kind]'); field.value = 'detect';
        field.dispatchEvent(new Event('input', { bubbles: true }))""")
    page.wait(lambda: page.text("total") == "25 items")
    assert ids(page) == items(demo_view, kind="detect")
    page.run("document.getElementById('sort').value = 'score'; "
             "document.getElementById('sort').dispatchEvent(new Event('change'))")  # fmt: skip
    page.wait(lambda: ids(page) == items(demo_view, kind="detect", sort="score"))
    link = page.driver.current_url
    assert link.endswith("#kind=detect&sort=score")
    page.driver.back()
    page.wait(lambda: ids(page) == items(demo_view, kind="detect"))
    page.driver.get("about:blank")
    page.driver.get(link)
    settled(page)
    assert ids(page) == items(demo_view, kind="detect", sort="score")
    page.wait(lambda: page.run("return [...document.querySelectorAll('#plots img')].every((one) => one.naturalWidth)"))
    assert not page.complaints()


def test_boxes_are_at_their_pixels(browser: Page, demo_view: Viewed) -> None:
    page = browser
    opened(page, demo_view, "kind=detect&sort=boxes")
    press(page, "f")
    page.wait(
        lambda: page.run("const one = document.querySelector('#stage img'); return one?.complete && one.naturalWidth")
    )
    item = page.run("return shown()")
    [[left, top, right, bottom]] = page.rectangles("#stage img")
    scale = min((right - left) / item["width"], (bottom - top) / item["height"])  # the picture is centred in its frame
    x = left + (right - left - scale * item["width"]) / 2
    y = top + (bottom - top - scale * item["height"]) / 2
    drawn = page.rectangles("#stage .under")
    assert len(drawn) == len(item["boxes"]) > 0
    for found, box in zip(drawn, item["boxes"], strict=True):
        expected = [
            x + scale * box["x_min"],
            y + scale * box["y_min"],
            x + scale * box["x_max"],
            y + scale * box["y_max"],
        ]
        assert found == pytest.approx(expected, abs=2.5)  # half of the line
    press(page, "+")
    [[start, _, end, _]] = page.rectangles("#stage svg")
    assert end - start == pytest.approx(1.5 * (right - left), rel=0.05)


def test_keys_and_marks_survive_a_reload(browser: Page, demo_view: Viewed) -> None:
    page = browser
    opened(page, demo_view, "task=ocr&status=ok")
    wall = ids(page)
    press(page, "j", "j", "k")
    assert page.run("return current") == 1
    press(page, "a")
    page.wait(lambda: page.run("return items[1].verdict") == "accept")
    press(page, "f")
    page.wait(lambda: page.text("large-id") == wall[1][0])
    press(page, "j")
    page.wait(lambda: page.text("large-id") == wall[2][0])
    press(page, "x")
    page.wait(lambda: page.run("return items[2].verdict") == "fix" and page.texts(".right") != [])
    press(page, "f")
    page.wait(lambda: not page["large"].is_displayed())
    page.driver.refresh()
    settled(page)
    assert page.run("return items.map((item) => item.verdict)")[:4] == [None, "accept", "fix", None]
    assert page.texts(".badge.verdict") == ["accept", "fix"]
    press(page, "j", "a")
    page.wait(lambda: page.run("return items[1].verdict") is None)  # the same key again


def test_masks_and_markup(browser: Page, tmp_path: Path) -> None:
    page, output = browser, tmp_path / "<b>run"
    job, store = Job([{}] * 6, tasks=(f"detect {HOSTILE}",)), open_store(str(output))
    job.annotate(store, lambda row, task: row == 4)
    job.publish(store)
    with viewed(str(output)) as view:
        opened(page, view)
        page.wait(lambda: page.text("total") == "6 items")
        assert HOSTILE in page.text("wall") and "<b>run" in page.text("output")
        assert page.run("return document.querySelectorAll('#wall script, #wall b, #output b').length") == 0
        assert page.run("return pathOf({ rle: [2, 3, 1], height: 2, width: 3 })") == "M1 0h1v2h-1zM2 0h1v1h-1z"
        assert len(page.run("return pathOf({ rle: [0, 4000000000], height: 1, width: 4000000000 })")) < 10**6
        press(page, "f")
        page.wait(lambda: page["large"].is_displayed())
        assert page.run("return window.hit") is None
        assert not [words for words in page.complaints() if "Content Security Policy" in words]
