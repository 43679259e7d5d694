"""Error messages of the web page: images, keys, limits, unreachable servers, interrupted streams."""

import asyncio
import threading
from pathlib import Path

import pytest
from online.browser import Page
from online.conftest import CONFIG, KEY, Endpoint
from online.scripted import Scripted, scripted

from paliscribe.errors import RequestError


def test_a_file_that_is_not_an_image(page: Page, tmp_path: Path, file: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("no picture")
    backend = Scripted()
    with scripted(backend) as address:
        page.open(address)
        page.choose(notes)
        assert page.text("error") == "notes.txt is not an image." and not page["stage"].is_displayed()
        page.begin()
        assert page.text("error") == "Choose a picture first." and not backend.prompts
        assert page.run("return document.activeElement.id") == "zone"
        page.choose(file)
        assert page.text("error") == "" and page["stage"].is_displayed()
        page.choose(notes)  # the previous picture stays
        assert page.text("error") == "notes.txt is not an image." and page.text("name") == "scene.png"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x89PNG\r\n\x1a\nbroken", "no image format is recognised in these bytes"),
        (b"", "the object has no bytes"),
        (b"\0" * (CONFIG.images.max_bytes + 1), "the image has 1,000,001 bytes; the limit is 1,000,000"),
        (b"\0" * CONFIG.max_body, "the request body exceeds the limit of 3,000,000 bytes"),
    ],
    ids=["broken", "empty", "large image", "large body"],
)
def test_an_image_that_the_server_rejects(
    page: Page, endpoint: Endpoint, tmp_path: Path, data: bytes, words: str
) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    page.open(endpoint.address, KEY)
    page.choose(path)
    assert page.text("name") == "This browser cannot show broken.png. The server may be able to read it."
    page.ask()
    assert page.text("error") == words and page.text("status") == "" and page.text("text") == ""


def test_a_key_is_requested_and_kept_in_session_storage_only(page: Page, endpoint: Endpoint, file: Path) -> None:
    page.open(endpoint.address)
    assert page["sign-in"].is_displayed() and page["key"].get_attribute("type") == "password"
    assert page.run("return document.activeElement.id") == "key" and page.text("key-words") == ""
    page["key"].send_keys("a-wrong-key-of-some-length\n")
    page.wait(lambda: page.text("key-words"))
    assert page.text("key-words") == "Key rejected: API key required: Authorization: Bearer KEY"
    assert page.run("return sessionStorage.length") == 0
    page["key"].clear()
    page["key"].send_keys("clé d'un ami\n")
    page.wait(lambda: page.text("key-words") == "A key must be printable ASCII without spaces.")
    page["key"].clear()
    page["key"].send_keys(f"{KEY}\n")
    page.wait(lambda: page.models() == ["demo"])
    assert not page["sign-in"].is_displayed()
    page.choose(file)
    page.ask()
    assert page.text("text") and page.text("error") == ""
    assert page.run("return Object.values(sessionStorage)") == [KEY]
    assert page.run("return [localStorage.length, document.cookie, location.href]") == [0, "", f"{endpoint.address}/"]
    assert KEY not in page.run("return document.documentElement.outerHTML") and page["key"].get_attribute("value") == ""
    page.driver.refresh()
    page.wait(lambda: page.models() == ["demo"])  # still signed in
    page["forget"].click()
    page.wait(lambda: page.run("return document.readyState") == "complete" and page["key"].is_displayed())
    assert page.run("return sessionStorage.length") == 0


def test_a_revoked_key_is_requested_again(
    page: Page, endpoint: Endpoint, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.open(endpoint.address, KEY)
    page.choose(file)
    with monkeypatch.context() as patch:
        patch.setattr(endpoint.keys, "_tenants", {"0" * 64: ""})
        page.ask()
        assert page.text("key-words").startswith("Key rejected") and page["sign-in"].is_displayed()
    page["key"].send_keys(f"{KEY}\n")
    page.wait(lambda: not page["sign-in"].is_displayed())
    page.ask()
    assert page.text("text")


def test_a_full_queue(page: Page, endpoint: Endpoint, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page.open(endpoint.address, KEY)
    page.choose(file)
    with monkeypatch.context() as patch:
        patch.setattr(endpoint.engine._scheduler._queues[0], "limit", 0)
        page.ask()
        assert "the engine's queue is full" in page.text("error") and "(try again in 1 s)" in page.text("error")
    page.ask()
    assert page.text("text") and page.text("error") == ""


def test_an_unreachable_server(page: Page, file: Path) -> None:
    with scripted(Scripted()) as address:
        page.open(address)
        page.choose(file)
        page.ask()
        assert page.text("text") == "fine"
    page.ask()
    assert page.text("error").startswith("The server is unreachable.") and page.text("text") == ""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RequestError(503, "replica_lost", "the replica was lost mid-stream; retry"),
            "The answer was interrupted: the replica was lost mid-stream; retry",
        ),
        (RuntimeError("a bug"), "The answer was interrupted: internal error in the gateway"),
        (asyncio.CancelledError(), "The answer was interrupted: connection to the server lost."),
    ],
)
def test_an_interrupted_stream(page: Page, file: Path, error: BaseException, words: str) -> None:
    gate = threading.Event()
    with scripted(Scripted(["a purple", gate, error])) as address:
        page.open(address)
        page.choose(file)
        page.begin()
        page.wait(lambda: page.text("text") == "a purple")
        gate.set()
        page.wait_for_end()
        assert page.text("error").startswith(words) and page.text("text") == "a purple" and page.text("status") == ""


def test_an_answer_can_be_stopped(page: Page, file: Path) -> None:
    backend = Scripted(["a purple", threading.Event()])
    with scripted(backend) as address:
        page.open(address)
        page.choose(file)
        page.begin()
        page.wait(lambda: page.text("text") == "a purple")
        page.begin()  # ignored while a request is in flight
        page["stop"].click()
        page.wait(lambda: page.text("status") == "Stopped.")
        assert backend.ended.wait(10) and len(backend.prompts) == 1
        assert page.text("error") == "" and page.text("text") == "a purple"


def test_another_image_cancels_the_request(page: Page, file: Path, picture: bytes) -> None:
    backend = Scripted(["a purple", threading.Event()])
    with scripted(backend) as address:
        page.open(address)
        page.choose(file)
        page.begin()
        page.wait(lambda: page.text("text") == "a purple")
        page.drop(picture, "other.png")
        page.wait(lambda: page.text("name") == "other.png")
        assert page.text("text") == "" and backend.ended.wait(10)


@pytest.mark.parametrize(("task", "field"), [("answer", "question"), ("detect", "things"), ("free", "free")])
def test_an_empty_field_is_not_submitted(page: Page, file: Path, task: str, field: str) -> None:
    backend = Scripted()
    with scripted(backend) as address:
        page.open(address)
        page.choose(file)
        page.fill(task)
        page.begin()
        assert page.run("return document.activeElement.id") == field and page[field].get_property("validationMessage")
        page[field].send_keys("; ;" if task == "detect" else "what?")
        if task == "detect":
            page.begin()
            assert page[field].get_property("validationMessage") and not backend.prompts
            page[field].send_keys("cat")
        page.ask()
        assert len(backend.prompts) == 1


def test_malformed_and_empty_answers(page: Page, file: Path) -> None:
    with scripted(Scripted(["<loc0100><loc0200> cat ; <loc0100><loc0200><loc0900><loc1000> dog"])) as address:
        page.open(address)
        page.choose(file)
        page.fill("detect", things="cat ; dog")
        page.ask()
        assert page.text("error") == "Part of the answer is malformed; the rest is shown."
        assert "item 1: 2 <loc> tokens where 4 should be" in page.text("raw-facts")
        assert page.texts("#found b") == ["dog"] and page.text("text") == "Found dog."
    with scripted(Scripted([])) as address:
        page.open(address)
        page.choose(file)
        page.fill("detect", things="cat")
        page.ask()
        assert page.text("text") == "Nothing found." and page.text("error") == ""
