"""The web page at `/` in a browser: image input, prompts, streamed text, boxes, masks, curl, keyboard."""

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from grammar.test_masks import reference
from online.browser import Page
from online.conftest import CONFIG, KEY, Endpoint, EngineBackend, data_url, encoded, listen
from online.scripted import Scripted, scripted
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from paliscribe.demo.answers import scene_items
from paliscribe.demo.drawing import draw
from paliscribe.demo.scenes import Scene
from paliscribe.grammar.masks import MaskDecoder, decode_rle, encode_rle
from paliscribe.grammar.tasks import parse_task
from paliscribe.online.service import Served, Service

HEADERS = {"Authorization": f"Bearer {KEY}"}
WATCH = """
    window.states = [];
    const note = (changes) => changes.forEach(({ addedNodes }) => addedNodes.forEach((node) => states.push(node.data)));
    new MutationObserver(note).observe(document.getElementById("text"), { childList: true });
"""


def record(endpoint: Endpoint, picture: bytes, prompt: str, kind: str = "image/png") -> dict[str, Any]:
    body = {"images": [data_url(picture, kind)], "tasks": [prompt]}
    reply = httpx.post(f"{endpoint.address}/v1/annotate", json=body, headers=HEADERS, timeout=60)
    return dict(reply.json()["annotations"][0])


def test_the_page_needs_no_key_and_has_strict_headers(endpoint: Endpoint) -> None:
    found = httpx.get(endpoint.address)
    assert found.status_code == 200 and found.headers["content-type"] == "text/html; charset=utf-8"
    assert found.headers["x-content-type-options"] == "nosniff" and found.headers["referrer-policy"] == "no-referrer"
    policy = dict(part.split(" ", 1) for part in found.headers["content-security-policy"].split("; "))
    for tag in ("script", "style"):
        [inline] = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", found.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    rest = {name: value for name, value in policy.items() if name not in ("script-src", "style-src")}
    assert rest == {
        "default-src": "'none'",
        "img-src": "'self' data: blob:",
        "connect-src": "'self'",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


def test_a_file_is_captioned_with_streamed_text(
    page: Page, endpoint: Endpoint, scene: Scene, picture: bytes, file: Path
) -> None:
    page.open(endpoint.address, KEY)
    assert page.models() == ["demo"] and not page["sign-in"].is_displayed()
    page.choose(file)
    page.run(WATCH)
    page.ask()
    caption = next(item.answer for item in scene_items(scene) if item.task == "caption")
    states = page.run("return states")  # every text that was shown
    assert page.text("text") == states[-1] == caption == record(endpoint, picture, "caption en")["text"]
    assert len(set(states)) > 2 and all(caption.startswith(state) for state in states)
    assert "tokens" in page.text("raw-facts") and "score" in page.text("status") and not page.text("error")


def test_text_is_shown_while_the_answer_is_streaming(page: Page, file: Path) -> None:
    gate = threading.Event()
    backend = Scripted(["a purple", " circle", gate, " and a star"])
    with scripted(backend) as address:
        page.open(address)
        page.choose(file)
        page.begin()
        page.wait(lambda: page.text("text") == "a purple circle")
        assert page["answer"].get_attribute("aria-busy") == "true" and page["stop"].is_displayed()
        assert page.text("status") == "Asking …" and not backend.ended.is_set()
        gate.set()
        page.wait_for_end()
        assert page.text("text") == "a purple circle and a star" and not page["stop"].is_displayed()


def test_images_can_be_dropped_and_pasted(page: Page, endpoint: Endpoint, picture: bytes) -> None:
    page.open(endpoint.address, KEY)
    wanted = record(endpoint, picture, "caption en")["text"]
    assert page.drop(picture, "dropped.png") == ["over", "", False]  # False: the browser does not open the file
    page.wait(lambda: page.text("name") == "dropped.png")
    page.ask()
    assert page.text("text") == wanted
    page.paste(picture, "pasted.png")
    page.wait(lambda: page.text("name") == "pasted.png")
    assert page.text("text") == "" and page.run("return picture.file.size") == len(picture)
    page.ask()
    assert page.text("text") == wanted


@pytest.mark.parametrize(
    ("task", "fields", "prompt"),
    [
        ("caption", {}, "caption en"),
        ("caption", {"language": " de "}, "caption de"),
        ("answer", {"question": "what is  left of the star?"}, "answer en what is left of the star?"),
        ("answer", {"question": "was?", "language": "de"}, "answer de was?"),
        ("ocr", {}, "ocr"),
        ("detect", {"things": "cat"}, "detect cat"),
        ("detect", {"things": " red cat;dog ;; bird; "}, "detect red cat ; dog ; bird"),
        ("segment", {"things": "cat"}, "segment cat"),
        ("free", {"free": "describe en"}, "describe en"),
    ],
)
def test_every_task_has_its_prompt(page: Page, file: Path, task: str, fields: dict[str, str], prompt: str) -> None:
    backend = Scripted([""])
    with scripted(backend) as address:
        page.open(address)
        page.choose(file)
        page.fill(task, **fields)
        shown = {name for name in ("language", "question", "things", "free") if page[name].is_displayed()}
        page.ask()
        assert backend.prompts == [prompt] and page.text("raw-facts").startswith(f"Prompt: {prompt} · ")
        assert parse_task(prompt).kind == ("describe" if task == "free" else task)
        usual = {"caption": {"language"}, "answer": {"question", "language"}, "ocr": set(), "free": {"free"}}
        assert shown == usual.get(task, {"things"})


@pytest.mark.parametrize("turned", [False, True])
def test_boxes_are_drawn_at_the_records_coordinates(
    page: Page, endpoint: Endpoint, scene: Scene, tmp_path: Path, turned: bool
) -> None:
    item = next(item for item in scene_items(scene) if item.task == "detect" and item.boxes)
    image, exif = draw(scene).convert("RGB"), Image.Exif()
    if turned:  # stored rotated, with the Exif orientation that corrects it
        image, exif[0x0112] = image.transpose(Image.Transpose.ROTATE_90), 6
    path = tmp_path / "scene.jpg"
    image.save(path, quality=95, exif=exif)
    wanted = record(endpoint, path.read_bytes(), item.prompt, "image/jpeg")
    assert wanted["boxes"] and (wanted["width"], wanted["height"]) == (scene.width, scene.height)
    page.open(endpoint.address, KEY)
    page.choose(path)
    page.fill("detect", things=item.prompt.removeprefix("detect "))
    page.ask()
    for width in (1280, 360):
        page.command("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        page.run("document.getElementById('stage').scrollIntoView()")
        [[left, top, right, bottom]] = page.rectangles("#picture")
        across, down = (right - left) / wanted["width"], (bottom - top) / wanted["height"]
        assert across == pytest.approx(down, rel=0.01) and (width == 1280 or across < 1)
        found = page.rectangles(".box")
        assert len(found) == len(wanted["boxes"])
        for edges, box in zip(found, wanted["boxes"], strict=True):
            expected = [left + across * box["x_min"], top + down * box["y_min"]]
            expected += [left + across * box["x_max"], top + down * box["y_max"]]
            assert edges == pytest.approx(expected, abs=0.5)
    labels = [f"{box['label']} {100 * box['score']:.0f} %" for box in wanted["boxes"]]
    assert page.texts(".box span") == labels and [text.split("\n")[0] for text in page.texts("#found b")] == [
        box["label"] for box in wanted["boxes"]
    ]


def test_a_box_is_visible(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "white.png"
    path.write_bytes(encoded(Image.new("RGB", (300, 200), "white")))
    with scripted(Scripted(["<loc0256><loc0256><loc0767><loc0767> cat"])) as address:
        page.open(address)
        page.choose(path)
        page.fill("detect", things="cat")
        page.ask()
        page.run("document.getElementById('stage').style.margin = 0")  # centred it may lie at half a pixel
        shot = np.asarray(Image.open(io.BytesIO(page["stage"].screenshot_as_png)).convert("RGB"))
    blue = (shot == (0x0B, 0x5C, 0xAD)).all(axis=2)
    assert shot.shape == (200, 300, 3) and not blue[:25].any() and not blue[155:].any()  # the label is above it
    rows, columns = np.nonzero(blue[50:152].sum(axis=1) > 100)[0] + 50, np.nonzero(blue[60:140].all(axis=0))[0]
    assert (rows.min(), rows.max()) == (50, 149) and (columns.min(), columns.max()) == (75, 224)


@pytest.mark.parametrize(("width", "height", "scale"), [(90, 60, 1), (700, 2000, 0.8)])
def test_masks_are_drawn_over_the_image(page: Page, tmp_path: Path, width: int, height: int, scale: float) -> None:
    path = tmp_path / "white.png"
    path.write_bytes(encoded(Image.new("RGB", (width, height), "white")))
    codes = "".join(f"<seg{code:03}>" for code in range(0, 128, 8))
    text = f"<loc0100><loc0200><loc0900><loc1000>{codes} cat"
    masks = MaskDecoder.from_npz(reference()[2])
    annotation = parse_task("segment cat").parse(text, width, height)
    counts = masks.fill(annotation.masks[0]).rle
    assert counts is not None
    wanted = decode_rle(counts, height, width)
    assert 0.02 < wanted.mean() < 0.7, "the mask must differ from its box and from an empty one"
    with scripted(Scripted([text]), masks) as address:
        page.open(address)
        page.choose(path)
        page.fill("segment", things="cat")
        page.ask()
        assert not page.text("error") and len(page.rectangles(".box")) == 1
        [mask], [shown] = page.rectangles("#mask"), page.rectangles("#picture")
        assert mask == pytest.approx(shown, abs=0.5)
        script = """const { width, height } = document.getElementById("mask");
            const { data } = document.getElementById("mask").getContext("2d").getImageData(0, 0, width, height);
            const bits = Array.from({ length: width * height }, (_, i) => data[4 * i + 3] ? 1 : 0);
            return [width, height, bits.join("")]"""
        across, down, bits = page.run(script)
    assert (across, down) == (width * scale, height * scale)
    found = np.array(list(bits)).reshape(down, across) == "1"
    rows, columns = (
        ((np.arange(size) + 0.5) * whole / size).astype(int) for size, whole in ((down, height), (across, width))
    )
    assert (found == wanted[np.ix_(rows, columns)]).all()


def test_rle_is_decoded_as_in_python(page: Page) -> None:
    rng = np.random.default_rng(5)
    with scripted(Scripted()) as address:
        page.open(address)
        for height, width in ((1, 1), (7, 5), (5, 7), (31, 64)):
            mask = rng.random((height, width)) < 0.5
            found = page.run("return Array.from(decodeRle(...arguments))", list(encode_rle(mask)), height, width)
            assert (np.array(found).reshape((height, width), order="F") == mask).all()
        broken = "try { decodeRle([1, 2], 2, 2) } catch (error) { return error.message }"
        assert page.run(broken) == "A mask covers 3 pixels of 4."


def test_without_a_mask_decoder_only_boxes_are_drawn(page: Page, file: Path) -> None:
    text = "<loc0100><loc0200><loc0900><loc1000>" + "<seg001>" * 16 + " cat"
    with scripted(Scripted([text])) as address:
        page.open(address)
        page.choose(file)
        page.fill("segment", things="cat")
        page.ask()
        assert "no mask decoder" in page.text("status") and len(page.rectangles(".box")) == 1


def test_model_output_is_not_interpreted_as_html(page: Page, file: Path) -> None:
    evil = "<img src=x onerror='document.title=1'><b>bold</b>"
    with scripted(Scripted([evil]), name="<i>model</i>") as address:
        page.open(address)
        page.choose(file)
        page.fill("free", free="<u>prompt</u>")
        page.ask()
        assert page.text("text") == evil and page.models() == ["<i>model</i>"]
        assert "task=<u>prompt</u>'" in page.text("curl") and page.run("return document.title") == "Paliscribe"
        assert page.run("return document.querySelectorAll('#answer img, #answer b, main u, main i').length") == 0
        markup = "try { document.getElementById('text').innerHTML = '<b>'; return 'set' } catch { return 'blocked' }"
        assert page.run(markup) == "blocked"


@pytest.mark.parametrize("lines", ["curl", "python"])
def test_the_lines_for_curl_and_python_give_the_same_answer(
    page: Page, endpoint: Endpoint, scene: Scene, picture: bytes, tmp_path: Path, lines: str
) -> None:
    question = next(item for item in scene_items(scene) if item.task == "answer")
    everything = Served("demo", "r", 112, EngineBackend(endpoint.engine))  # free prompts too
    server, thread = listen(Service(CONFIG, [everything]), endpoint.keys)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    page.open(address, KEY)
    page.command("Browser.grantPermissions", origin=address, permissions=["clipboardReadWrite"])
    page.driver.find_element(By.CSS_SELECTOR, f"input[name=lines][value={lines}]").click()
    for name, prompt in (("scene.png", question.prompt), ('it\'s; a "cat", \\ $HOME 1.png', "@it's `no` file;type=x")):
        path = tmp_path / name
        path.write_bytes(picture)
        page.drop(picture, name)
        page.wait(partial(lambda name: page.text("name") == name, name))
        page.fill("free", free=prompt)
        page.ask()
        line = copied(page, lines)
        answer = run_lines(line, lines, tmp_path)
        assert (answer["prompt"], answer["text"]) == (prompt, page.text("raw-text"))
        assert answer["id"] == name.replace('"', "%22")  # as both encode it in a form
        assert answer["image_sha256"] == hashlib.sha256(picture).hexdigest()
    page.run("document.querySelector('#examples button').click()")
    page.wait(lambda: page.text("name") == "shapes.jpg")
    page.wait_for_end()
    found = run_lines(copied(page, lines), lines, tmp_path)  # which fetches the picture first
    assert [box["label"] for box in found["boxes"]] == ["blue star", "red triangle"]
    server.should_exit = True
    thread.join(10)


def copied(page: Page, lines: str) -> str:
    page["copy"].click()
    page.wait(lambda: page.text("copied").startswith("Copied."))
    line = str(page.run("return navigator.clipboard.readText()"))
    assert line == page.text(lines) and KEY not in line and page[lines].is_displayed()
    return line


def run_lines(line: str, lines: str, folder: Path) -> dict[str, Any]:
    """The record that pasted lines print."""
    done = subprocess.run(
        ["bash", "-c", line] if lines == "curl" else [sys.executable, "-c", line],
        cwd=folder,
        env={"KEY": KEY, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    [answer] = json.loads(done.stdout)["annotations"]
    return dict(answer)


def test_keyboard_navigation(page: Page, endpoint: Endpoint, picture: bytes, file: Path) -> None:
    page.open(endpoint.address, KEY)
    page.run(
        "window.dialogues = 0;"
        "document.getElementById('file').addEventListener('click', (event) => { dialogues++; event.preventDefault(); })"
    )

    def press(key: str) -> str:
        page.driver.switch_to.active_element.send_keys(key)
        outline = """const { activeElement: on } = document;
            const ring = getComputedStyle(on.type === "radio" ? on.nextElementSibling : on);
            return [on.id || on.value || on.localName, ring.outlineStyle, ring.outlineWidth]"""
        where, style, width = page.run(outline)
        assert (style, width) == ("solid", "3px"), f"no visible focus at {where}"
        return str(where)

    assert [press(Keys.TAB) for _ in range(3)] == ["forget", "a", "choose"]
    press(Keys.ENTER), press(Keys.SPACE)
    assert page.run("return dialogues") == 2
    page.choose(file)  # instead of the system's file dialogue
    assert [press(Keys.TAB) for _ in range(7)] == ["camera", *["button"] * 3, "clear", "button", "caption"]
    assert [press(Keys.ARROW_RIGHT) for _ in range(3)] == ["answer", "ocr", "detect"]
    assert [press(Keys.TAB) for _ in range(2)] == ["things", "ask"]
    press(Keys.SHIFT + Keys.TAB), press(Keys.SHIFT)
    assert page.run("return document.activeElement.id") == "things"
    press("yellow star")
    press(Keys.ENTER)
    page.wait_for_end()
    assert page.text("raw-text") == record(endpoint, picture, "detect yellow star")["text"]
    order = ["ask", "show-boxes", "smaller", "fit", "larger", "tab-0", "threshold", "save-png", "save-json"]
    order += ["summary", "curl"]  # of the lines, the chosen kind
    assert [press(Keys.TAB) for _ in range(len(order))] == order
    for name in ("error", "key-words"):
        assert page[name].get_attribute("role") == "alert"
    assert page["answer"].get_attribute("aria-live") == "polite" and page["status"].get_attribute("role") == "status"
    unnamed = """return [...document.querySelectorAll("input:not([hidden]), select")].filter((field) =>
        !field.labels.length).length"""
    assert page.run(unnamed) == 0


def test_only_the_endpoint_is_requested_and_the_console_is_clean(page: Page, endpoint: Endpoint, file: Path) -> None:
    page.open(endpoint.address, KEY)
    page.choose(file)
    page.ask()
    page.fill("detect", things="circle ; square")
    page.ask()
    sent = page.requests()
    assert sent.count(f"{endpoint.address}/v1/annotate") == 2 and f"{endpoint.address}/v1/models" in sent
    assert all(url.startswith((f"{endpoint.address}/", "data:", "blob:")) for url in sent)
    assert page.complaints() == []
    page.run("new Image().src = 'http://127.0.0.2:1/elsewhere.png'; document.body.setAttribute('style', 'color: red')")
    page.wait(lambda: page.driver.get_log("browser"))  # the policy is enforced, and violations are logged


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_layout_and_contrast_on_a_phone_in_light_and_dark_mode(page: Page, file: Path, scheme: str) -> None:
    page.command("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    with scripted(Scripted(["<loc0100><loc0200><loc0900><loc1000> a cat with a rather long name"])) as address:
        page.open(address)
        page.choose(file)
        page.fill("detect", things="cat")
        page.ask()
        assert page.run("return document.documentElement.scrollWidth") == 360
        names = ["ink", "quiet", "accent", "bad", "card", "ground", "tint", "bad-ground", "on-accent"]
        script = "const style = getComputedStyle(document.documentElement); return arguments[0].map((name) => "
        colors = dict(zip(names, page.run(f"{script}style.getPropertyValue(`--${{name}}`))", names), strict=True))
    assert (luminance(colors["ground"]) > 0.5) == (scheme == "light")
    pairs = [("ink", "card"), ("ink", "ground"), ("quiet", "card"), ("quiet", "ground"), ("accent", "card")]
    for one, other in [*pairs, ("accent", "tint"), ("bad", "bad-ground"), ("on-accent", "accent")]:
        dark, light = sorted((luminance(colors[one]), luminance(colors[other])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{one} on {other}"


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2) of `#rgb` or `#rrggbb`."""
    digits = color.strip().lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    channels = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
