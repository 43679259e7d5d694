"""The page over a run in a browser: filters, orders, keys, boxes, marks, and names with markup."""

from pathlib import Path
from typing import Any

import pytest
from online.browser import Page
from results.made import Job
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.keys import Keys
from view.conftest import TOKEN, Viewed, viewed

from paliscribe.published import mark_of
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


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw with the pointer from one pixel of the original to another one."""
    script = """const at = document.querySelector('#stage svg').getScreenCTM();
        return arguments[0].map(([x, y]) => [at.a * x + at.e, at.d * y + at.f])"""
    (left, top), (right, bottom) = page.run(script, [start, end])
    actions = ActionBuilder(page.driver, duration=20)
    pointer: Any = actions.pointer_action
    pointer.move_to_location(round(left), round(top)).pointer_down()
    pointer.move_to_location(round((left + right) / 2), round(bottom))
    pointer.move_to_location(round(right), round(bottom)).pointer_up()
    actions.perform()


def test_boxes_are_corrected(browser: Page, demo_view: Viewed) -> None:
    page, store = browser, open_store(str(demo_view.output))
    opened(page, demo_view, "kind=detect&sort=boxes")
    press(page, "f")
    page.wait(lambda: page.run("return document.querySelector('#stage img')?.complete"))
    item = page.run("return shown()")

    def stored() -> list[dict[str, Any]] | None:
        found = mark_of(store, item["id"], item["task"])
        return None if found is None or found.boxes is None else list(found.boxes)

    def corners() -> list[list[float]]:
        return [[box[name] for name in ("x_min", "y_min", "x_max", "y_max")] for box in stored() or []]

    press(page, "x")
    page.wait(lambda: page.texts(".editor"))
    count = len(item["boxes"])
    page.driver.find_element("css selector", ".next input").clear()
    page.driver.find_element("css selector", ".next input").send_keys(HOSTILE)
    page.run("document.activeElement.blur()")
    press(page, "+")
    width, height = item["width"], item["height"]
    drag(page, (0.4 * width, 0.45 * height), (0.6 * width, 0.55 * height))
    page.wait(lambda: len(stored() or ()) == count + 1)
    expected = [0.4 * width, 0.45 * height, 0.6 * width, 0.55 * height]
    assert corners()[-1] == pytest.approx(expected, abs=1.5) and (stored() or [])[-1]["label"] == HOSTILE
    page.wait(lambda: page.run("return document.querySelectorAll('#stage .drawn').length") == 1)
    press(page, "0")
    drag(page, (0.6 * width, 0.55 * height), (0.7 * width, 1.01 * height))  # by a corner, beyond the picture
    page.wait(lambda: corners()[-1][3] == height)
    assert corners()[-1] == pytest.approx([*expected[:2], 0.7 * width, height], abs=2)
    page.wait(lambda: page.run("return shown().right_boxes.at(-1).y_max") == height)
    label = page.driver.find_elements("css selector", ".answer.current li input")[-1]
    label.send_keys(Keys.CONTROL, "a")
    label.send_keys("a name", Keys.ENTER)
    page.wait(lambda: (stored() or [])[-1]["label"] == "a name")
    page.driver.find_element("css selector", ".remove").send_keys(Keys.DELETE)
    page.wait(lambda: len(stored() or ()) == count)
    opened(page, demo_view, "kind=detect&sort=boxes")
    assert [box["label"] for box in page.run("return items[0].right_boxes")] == [box["label"] for box in stored() or []]
    assert page.run("return document.querySelectorAll('#wall .drawn').length") == 1
    press(page, "f")
    page.wait(lambda: page.texts(".editor"))
    page.driver.find_element("css selector", "[data-at$=' reset']").click()
    page.wait(lambda: stored() is None)
    page.wait(lambda: page.run("return document.querySelectorAll('#stage .box').length") == count)
    press(page, "x")
    page.wait(lambda: mark_of(store, item["id"], item["task"]) is None)
    assert page.run("return window.hit") is None and not page.complaints()


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
