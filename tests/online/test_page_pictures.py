"""Pictures and answers on the web page: examples, tabs, history, zoom, threshold, saved files, addresses, camera."""

import base64
import functools
import http.server
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from online.browser import Page
from online.conftest import CONFIG, KEY, Endpoint, EngineBackend, listen
from online.scripted import Scripted, scripted
from online.test_page import run_lines
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys as Key

from paliscribe.config import ImagesConfig
from paliscribe.online import page as files
from paliscribe.online.keys import Keys
from paliscribe.online.service import Served, Service

HEADERS = {"Authorization": f"Bearer {KEY}"}
ANSWERS = {  # of the demo to the examples, as the scenes are drawn
    "shapes.jpg": {
        "detect red triangle ; blue star": "blue star, red triangle",
        "caption en": "a purple square, a yellow square, a blue star and a red triangle",
        "answer en how many squares are there?": "2",
        "answer en what color is the star?": "blue",
    },
    "number.jpg": {
        "ocr": "3654",
        "caption en": "a yellow circle, a green triangle and some text",
        "detect circle": "circle",
        "answer en what shape is yellow?": "circle",
    },
    "handwriting.jpg": {
        "ocr": "769",
        "caption en": "an orange square, an orange star and some text",
        "detect square": "square",
        "answer en is there an orange star?": "yes",
    },
}
TWO = ["<loc0100><loc0200><loc0500><loc0600> cat ; <loc0500><loc0100><loc0900><loc0400> dog"]
CATCH = """
    window.saved = [];
    HTMLAnchorElement.prototype.click = function () {
        saved.push([this.download, this.href]);
    };
    window.blobs = new Map();
    const make = URL.createObjectURL;
    URL.createObjectURL = (blob) => { const url = make(blob); blobs.set(url, blob); return url; };
"""
READ = """
    const done = arguments[0], [name, url] = saved.pop(), reader = new FileReader();
    reader.onload = () => done([name, reader.result]);
    reader.readAsDataURL(blobs.get(url));
"""


def click(page: Page, selector: str, number: int = 0) -> None:
    page.driver.find_elements(By.CSS_SELECTOR, selector)[number].click()


def test_every_example_is_answered_right_at_one_click(page: Page, endpoint: Endpoint) -> None:
    page.open(endpoint.address, KEY)
    offered = page.run("return EXAMPLES.map((example) => [example.file, example.prompts])")
    assert dict(offered) == {name: list(found) for name, found in ANSWERS.items()}
    assert set(ANSWERS) == set(files.EXAMPLES)
    for number, (name, answers) in enumerate(ANSWERS.items()):
        click(page, "#examples button", number)
        page.wait(functools.partial(lambda name: page.text("name") == name and page.text("tabs"), name))
        page.wait_for_end()
        for place, (prompt, wanted) in enumerate(answers.items()):
            if place:
                click(page, "#suggestions button", place)
                page.wait_for_end()
            said = f"Found {wanted}." if prompt.startswith("detect") else wanted
            assert page.text("text") == said and page.text("raw-facts").startswith(f"Prompt: {prompt} · ")
            assert page.text("error") == "" and "<loc" not in page["answer"].text
        assert len(page.texts("#tabs button")) == len(answers)
        assert page.run("return [picture.shown, $('picture').naturalWidth > 500]") == [True, True]
    assert page.complaints() == []


def test_only_what_the_model_can_do_is_offered(page: Page, endpoint: Endpoint) -> None:
    page.open(endpoint.address, KEY)
    assert page.texts("#tasks span") == ["Caption", "Answer", "Read text", "Detect", "Segment", ""]
    assert "It does not know photographs." in page["about"].text
    assert not page["language"].is_displayed() and not page["model"].is_displayed()
    [model] = httpx.get(f"{endpoint.address}/v1/models", headers=HEADERS).json()["data"]
    assert (model["tasks"], model["languages"]) == (["caption", "ocr", "answer", "detect", "segment"], ["en"])
    with scripted(Scripted()) as address:  # another model
        page.open(address)
        assert page.texts("#tasks span")[-2:] == ["Segment", "Free prompt"] and page["language"].is_displayed()


def test_examples_need_no_key_and_no_others_are_read(endpoint: Endpoint) -> None:
    found = httpx.get(f"{endpoint.address}/examples/shapes.jpg")
    assert found.status_code == 200 and found.content == files.EXAMPLES["shapes.jpg"]
    for name in ("page.html", "..%2fpage.html", "shapes.jpg/", ""):
        other = httpx.get(f"{endpoint.address}/examples/{name}", headers=HEADERS)
        assert other.status_code == 404, name


def test_tabs_keep_the_answers_of_a_picture_and_the_history_its_pictures(
    page: Page, endpoint: Endpoint, picture: bytes, file: Path
) -> None:
    page.open(endpoint.address, KEY)
    page.choose(file)
    page.ask()
    caption = page.text("text")
    page.fill("detect", things="yellow star")
    page.ask()
    assert page.texts("#tabs button") == ["Caption", "Find yellow star"] and page.rectangles(".box")
    page.ask()
    assert len(page.texts("#tabs button")) == 2, "the same question has one tab"
    page["tab-1"].send_keys(Key.ARROW_RIGHT)
    assert page.run("return document.activeElement.id") == "tab-0" and page.text("text") == caption
    assert not page.rectangles(".box") and "task=caption en" in page.text("curl")
    page["tab-0"].send_keys(Key.END)
    assert page.rectangles(".box") and page["things"].get_attribute("value") == "yellow star"
    chosen = page.driver.find_element(By.CSS_SELECTOR, "#tabs [aria-selected=true]").get_attribute("id")
    assert (
        page["answer"].get_attribute("role") == "tabpanel" and page["answer"].get_attribute("aria-labelledby") == chosen
    )
    page.drop(picture, "other.png")
    page.wait(lambda: page.text("name") == "other.png")
    assert not page.texts("#tabs button") and page.text("text") == "" and not page.rectangles(".box")
    assert page.texts("#own button") == ["other.png", "scene.png"]
    click(page, "#own button", 1)
    assert page.text("name") == "scene.png" and page.text("text") == "Found yellow star." and page.rectangles(".box")
    pressed = [one.get_attribute("aria-pressed") for one in page.driver.find_elements(By.CSS_SELECTOR, "#own button")]
    assert pressed == ["false", "true"]
    page["clear"].click()
    assert not page["history"].is_displayed() and not page["stage"].is_displayed() and page["zone"].is_displayed()


def test_an_example_can_be_asked_while_another_answer_comes(page: Page, file: Path) -> None:
    backend = Scripted(["a purple", threading.Event()])
    with scripted(backend) as address:
        page.open(address)
        page.choose(file)
        page.begin()
        page.wait(lambda: page.text("text") == "a purple")
        click(page, "#examples button", 1)
        page.wait(lambda: backend.prompts == ["caption en", "ocr"])
        assert page.text("name") == "number.jpg" and page["stop"].is_displayed()
        page["stop"].click()
        page.wait(lambda: page.text("status") == "Stopped.")


def test_boxes_can_be_hidden_and_filtered_by_score(page: Page, endpoint: Endpoint, picture: bytes, file: Path) -> None:
    page.open(endpoint.address, KEY)
    page.choose(file)
    page.ask()
    assert not page["filter"].is_displayed() and not page["boxes-choice"].is_displayed()
    page.fill("detect", things="blue square ; yellow star")
    page.ask()
    scores = sorted(box["score"] for box in page.run("return picture.current.record.boxes"))
    assert len(scores) == 2 and scores[0] + 0.02 < scores[1]
    set_to = "$('threshold').value = arguments[0]; $('threshold').dispatchEvent(new Event('input', { bubbles: true }))"
    page.run(set_to, round(100 * (scores[0] + scores[1]) / 2))
    assert len(page.rectangles(".box")) == len(page.texts("#found li")) == 1
    assert page.text("threshold-value").endswith(" %, 1 hidden")
    page.run(set_to, 0)
    assert len(page.rectangles(".box")) == len(page.texts("#found li")) == 2
    page["show-boxes"].click()
    assert not page.rectangles(".box") and len(page.texts("#found li")) == 2
    page["show-boxes"].click()
    assert len(page.rectangles(".box")) == 2


def test_the_picture_can_be_enlarged_with_its_boxes(page: Page, file: Path) -> None:
    with scripted(Scripted(TWO)) as address:
        page.open(address)
        page.choose(file)
        page.fill("detect", things="cat ; dog")
        page.ask()
        [whole], before = page.rectangles("#picture"), page.rectangles(".box")
        assert page["smaller"].get_attribute("aria-disabled") == "true"
        page["larger"].click()
        page["larger"].click()
        [large], after = page.rectangles("#picture"), page.rectangles(".box")
        assert large[2] - large[0] == pytest.approx(2.25 * (whole[2] - whole[0]), rel=0.01)
        for one, other in zip(before, after, strict=True):  # within the picture at the same place
            for edge in range(4):
                low, side = whole[edge % 2], whole[2 + edge % 2] - whole[edge % 2]
                wide, broad = large[edge % 2], large[2 + edge % 2] - large[edge % 2]
                assert (other[edge] - wide) / broad == pytest.approx((one[edge] - low) / side, abs=0.01)
        assert page.text("fit") == "225 %" and page["viewport"].get_attribute("tabindex") == "0"
        assert page.run("return $('viewport').scrollWidth > $('viewport').clientWidth")
        page["viewport"].send_keys(Key.ARROW_LEFT)  # scrolled by keyboard
        page.command("Emulation.setDeviceMetricsOverride", width=1280, height=700, deviceScaleFactor=1, mobile=False)
        page.command("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
        assert page.text("fit") == "225 %", "a change of the height keeps the zoom"
        page["fit"].click()
        [again] = page.rectangles("#picture")  # the page may have scrolled
        assert [again[0], again[2], again[3] - again[1]] == pytest.approx(
            [whole[0], whole[2], whole[3] - whole[1]], abs=1
        )
        page.driver.execute_script("document.getElementById('viewport').dispatchEvent(new Event('dblclick'))")
        assert page.text("fit") == "200 %"


def test_answers_can_be_saved(page: Page, file: Path, scene: Any) -> None:
    with scripted(Scripted(TWO)) as address:
        page.open(address)
        page.run(CATCH)
        page.choose(file)
        page.fill("detect", things="cat ; dog")
        page.ask()
        page["save-json"].click()
        name, url = page.driver.execute_async_script(READ)
        record = json.loads(base64.b64decode(url.split(",")[1]))
        assert name == "scene.json" and [box["label"] for box in record["boxes"]] == ["cat", "dog"]
        assert record["prompt"] == "detect cat ; dog" and record["width"] == scene.width
        page["save-png"].click()
        page.wait(lambda: page.run("return saved.length"))
        name, url = page.driver.execute_async_script(READ)
        path = file.with_name("saved.png")
        path.write_bytes(base64.b64decode(url.split(",")[1]))
        saved, plain = (np.asarray(Image.open(each).convert("RGB")) for each in (path, file))
        assert name == "scene.png" and saved.shape == plain.shape == (scene.height, scene.width, 3)
        box = record["boxes"][0]
        edge = (round((box["y_min"] + box["y_max"]) / 2), round(box["x_min"]))
        assert tuple(saved[edge]) == (0x0B, 0x5C, 0xAD) != tuple(plain[edge])
        assert (saved[-1] == plain[-1]).all(), "the rest is the picture"


def test_a_picture_by_address_where_the_endpoint_allows_it(
    page: Page, endpoint: Endpoint, picture: bytes, tmp_path: Path
) -> None:
    page.open(endpoint.address, KEY)
    assert not page["by-address"].is_displayed()
    (tmp_path / "ok").mkdir()
    (tmp_path / "ok" / "scene.png").write_bytes(picture)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        prefix = f"http://127.0.0.1:{web.server_port}/ok/"
        config = CONFIG.model_copy(update={"images": ImagesConfig(addresses=(prefix,), private=True)})
        served = Served("demo", "r", 112, EngineBackend(endpoint.engine))
        server, thread = listen(Service(config, [served]), Keys({}))
        page.open(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
        page["by-address"].click()
        assert prefix in page.text("allowed") and page.run("return document.activeElement.id") == "address"
        page["address"].send_keys(f"{prefix}scene.png\n")
        page.wait(lambda: page.text("name") == f"{prefix}scene.png")
        assert page["picture"].is_displayed() and page.run("return $('picture').naturalWidth") > 0
        page.fill("detect", things="yellow star")
        page.ask()
        assert page.text("text") == "Found yellow star." and page.rectangles(".box")
        for lines in ("curl", "python"):
            click(page, f"input[name=lines][value={lines}]")
            assert run_lines(page.text(lines), lines, tmp_path)["text"] == page.text("raw-text")
        page["save-png"].click()
        assert page.text("error") == "The host of this picture does not let a page copy it."
        page["address"].clear()
        page["address"].send_keys("https://elsewhere.invalid/a.png\n")
        page.wait(lambda: page.text("name").startswith("This page cannot show https://elsewhere.invalid/a.png"))
        page.ask()
        assert "are not allowed" in page.text("error")
        server.should_exit = True
        thread.join(10)
        web.shutdown()


def test_a_picture_that_only_the_server_can_read_has_its_boxes_on_a_blank_of_its_shape(
    page: Page, picture: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "scene.tiff"
    Image.new("RGB", (400, 200), "white").save(path)
    with scripted(Scripted(TWO)) as address:
        page.open(address)
        page.choose(path)
        assert "cannot show scene.tiff" in page.text("name")
        page.fill("detect", things="cat ; dog")
        page.ask()
        [[left, top, right, bottom]], boxes = page.rectangles("#stage"), page.rectangles(".box")
        assert (right - left) / (bottom - top) == pytest.approx(2, rel=0.01) and len(boxes) == 2
        assert all(left <= box[0] <= box[2] <= right and top <= box[1] <= box[3] <= bottom for box in boxes)


def test_a_picture_from_the_camera(page: Page, endpoint: Endpoint) -> None:
    page.open(endpoint.address, KEY)
    page["camera"].click()
    page.wait(lambda: page.run("return $('video').videoWidth"))
    page["shoot"].click()
    page.wait(lambda: page.text("name") == "camera-1.jpg")
    assert page.run("return [$('camera-dialog').open, stream, picture.file.type]") == [False, None, "image/jpeg"]
    page.ask()
    assert page.text("text") and not page.text("error")
    page["camera"].click()
    page.wait(lambda: page.run("return stream !== null"))
    page["close-camera"].click()
    page.wait(lambda: page.run("return stream === null"))
    page.run("navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', 'NotAllowedError'))")
    page["camera"].click()
    page.wait(lambda: "does not let this page use the camera" in page.text("camera-words"))
    assert not page["shoot"].is_displayed()


def test_the_buttons_stay_where_they_are_when_the_camera_begins(page: Page, endpoint: Endpoint) -> None:
    page.open(endpoint.address, KEY)
    page.run(
        "const { mediaDevices } = navigator, real = mediaDevices.getUserMedia.bind(mediaDevices);"
        "const begun = new Promise((resolve) => { window.begin = resolve; });"
        "mediaDevices.getUserMedia = async (wanted) => { await begun; return real(wanted); };"
    )
    page["camera"].click()
    page.wait(lambda: page["close-camera"].is_displayed())
    before = page.rectangles("#camera-dialog button")
    page.run("begin()")
    page.wait(lambda: page.run("return $('video').videoWidth"))
    assert page.rectangles("#camera-dialog button") == before, "a click would miss them"


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (768, 1024), (390, 844)])
def test_the_answer_is_beside_the_picture(page: Page, endpoint: Endpoint, width: int, height: int) -> None:
    page.command("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
    page.open(endpoint.address, KEY)
    click(page, "#examples button")
    page.wait(lambda: page.text("status").startswith("score"))
    [shown], [text] = page.rectangles("#picture"), page.rectangles("#text")
    for left, top, right, bottom in (shown, text):
        assert left >= 0 and right <= width and top >= 0 and bottom <= height, "both are seen at once"
    assert text[0] > shown[2] or 0 < text[1] - shown[3] < 150
    assert page.run("return document.documentElement.scrollWidth") <= width
