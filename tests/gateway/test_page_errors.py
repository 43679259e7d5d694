"""What goes wrong on the page is said in words: pictures, keys, limits, servers and streams."""

import asyncio
import threading
from pathlib import Path

import pytest
from gateway.browser import Page
from gateway.conftest import CONFIG, KEY, Endpoint
from gateway.scripted import Scripted, scripted

from paliscribe.errors import RequestError


def test_a_file_that_is_no_image(page: Page, tmp_path: Path, file: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("no picture")
    backend = Scripted()
    with scripted(backend) as address:
        page.open(address)
        page.choose(notes)
        assert page.text("error") == "notes.txt is not an image." and not page["stage"].is_displayed()
        page.begin()
        assert page.text("error") == "Choose a picture first." and not backend.asked
        assert page.run("return document.activeElement.id") == "choose"
        page.choose(file)
        assert page.text("error") == "" and page["stage"].is_displayed()
        page.choose(notes)  # the picture before it stays
        assert page.text("error") == "notes.txt is not an image." and page.text("name") == "scene.png"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x89PNG\r\n\x1a\nbroken", "no image format is recognised in these bytes"),
        (b"", "the object has no bytes"),
        (b"\0" * (CONFIG.images.max_bytes + 1), "the image has 1,000,001 bytes; at most 1,000,000 are taken"),
        (b"\0" * CONFIG.max_body, "the body has more than the 3,000,000 bytes that are taken"),
    ],
    ids=["broken", "empty", "large image", "large body"],
)
def test_a_picture_that_the_server_refuses(
    page: Page, endpoint: Endpoint, tmp_path: Path, data: bytes, words: str
) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    page.open(endpoint.address, KEY)
    page.choose(path)
    assert page.text("name") == "This browser cannot show broken.png. The server may be able to read it."
    page.ask()
    assert page.text("error") == words and page.text("status") == "" and page.text("text") == ""


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(page: Page, endpoint: Endpoint, file: Path) -> None:
    page.open(endpoint.address)
    assert page["sign-in"].is_displayed() and page["key"].get_attribute("type") == "password"
    assert page.run("return document.activeElement.id") == "key" and page.text("key-words") == ""
    page["key"].send_keys("a-wrong-key-of-some-length\n")
    page.wait(lambda: page.text("key-words"))
    assert page.text("key-words") == "The key was refused: an API key is needed: Authorization: Bearer KEY"
    assert page.run("return sessionStorage.length") == 0
    page["key"].clear()
    page["key"].send_keys("clé d'un ami\n")
    page.wait(lambda: page.text("key-words") == "A key has neither spaces nor letters beyond ASCII.")
    page["key"].clear()
    page["key"].send_keys(f"{KEY}\n")
    page.wait(lambda: page.texts("#model option") == ["demo"])
    assert not page["sign-in"].is_displayed()
    page.choose(file)
    page.ask()
    assert page.text("text") and page.text("error") == ""
    assert page.run("return Object.values(sessionStorage)") == [KEY]
    assert page.run("return [localStorage.length, document.cookie, location.href]") == [0, "", f"{endpoint.address}/"]
    assert KEY not in page.run("return document.documentElement.outerHTML") and page["key"].get_attribute("value") == ""
    page.driver.refresh()
    page.wait(lambda: page.texts("#model option") == ["demo"])  # it is still known
    page["forget"].click()
    page.wait(lambda: page.run("return document.readyState") == "complete" and page["key"].is_displayed())
    assert page.run("return sessionStorage.length") == 0


def test_a_key_that_is_withdrawn_is_asked_for_again(
    page: Page, endpoint: Endpoint, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.open(endpoint.address, KEY)
    page.choose(file)
    with monkeypatch.context() as patch:
        patch.setattr(endpoint.keys, "_hashes", ("0" * 64,))
        page.ask()
        assert page.text("key-words").startswith("The key was refused") and page["sign-in"].is_displayed()
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


def test_a_server_that_is_gone(page: Page, file: Path) -> None:
    with scripted(Scripted()) as address:
        page.open(address)
        page.choose(file)
        page.ask()
        assert page.text("text") == "fine"
    page.ask()
    assert page.text("error").startswith("The server cannot be reached.") and page.text("text") == ""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RequestError(503, "replica_lost", "the replica was lost in mid-answer; ask again"),
            "The answer broke off: the replica was lost in mid-answer; ask again",
        ),
        (RuntimeError("a bug"), "The answer broke off: the gateway failed on this call"),
        (asyncio.CancelledError(), "The answer broke off: the connection to the server was lost."),
    ],
)
def test_a_stream_that_breaks_in_the_middle(page: Page, file: Path, error: BaseException, words: str) -> None:
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
        page.begin()  # while one is under way another is not sent
        page["stop"].click()
        page.wait(lambda: page.text("status") == "Stopped.")
        assert backend.left.wait(10) and len(backend.asked) == 1
        assert page.text("error") == "" and page.text("text") == "a purple"


def test_another_picture_ends_the_answer_about_the_last(page: Page, file: Path, picture: bytes) -> None:
    backend = Scripted(["a purple", threading.Event()])
    with scripted(backend) as address:
        page.open(address)
        page.choose(file)
        page.begin()
        page.wait(lambda: page.text("text") == "a purple")
        page.drop(picture, "other.png")
        page.wait(lambda: page.text("name") == "other.png")
        assert page.text("text") == "" and backend.left.wait(10)


@pytest.mark.parametrize(("task", "field"), [("answer", "question"), ("detect", "things"), ("free", "free")])
def test_an_empty_field_is_not_sent(page: Page, file: Path, task: str, field: str) -> None:
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
            assert page[field].get_property("validationMessage") and not backend.asked
            page[field].send_keys("cat")
        page.ask()
        assert len(backend.asked) == 1


def test_malformed_and_shortened_answers(page: Page, file: Path) -> None:
    with scripted(Scripted(["<loc0100><loc0200> cat ; <loc0100><loc0200><loc0900><loc1000> dog"])) as address:
        page.open(address)
        page.choose(file)
        page.fill("detect", things="cat ; dog")
        page.ask()
        assert page.text("error") == "The answer is malformed: item 1: 2 <loc> tokens where 4 should be."
        assert page.texts("#found b") == ["dog"]
    with scripted(Scripted([])) as address:
        page.open(address)
        page.choose(file)
        page.fill("detect", things="cat")
        page.ask()
        assert page.text("status").startswith("nothing found") and page.text("error") == ""
