"""The web page in headless Chromium."""

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1280,900 "
    "--use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
)
FILE = """
    const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], arguments[1], { type: arguments[2] }));
"""
DROP = (
    FILE
    + """
    const event = (kind) => new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
    document.getElementById("choose").dispatchEvent(event("dragover"));
    const marked = document.body.className;
    const opened = document.getElementById("choose").dispatchEvent(event("drop"));
    return [marked, document.body.className, opened];
"""
)
PASTE = (
    FILE
    + """
    document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
"""
)


class Page:
    """The page as a user operates it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, address: str, key: str | None = None) -> None:
        """Load the page with this key in session storage and with empty logs."""
        self.driver.get(f"{address}/health")  # the same origin, without the page
        store = "sessionStorage.clear(); if (arguments[0]) sessionStorage.setItem('paliscribe-key', arguments[0]);"
        self.driver.execute_script(store, key)
        self.requests(), self.complaints()
        self.driver.get(f"{address}/")
        self.wait(lambda: self.models() or self.text("error") or self["key"].is_displayed())

    def models(self) -> list[str]:
        """The models that the page has read."""
        return list(self.run("return [...document.querySelectorAll('#model option')].map((one) => one.textContent)"))

    def __getitem__(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def wait(self, condition: Callable[[], Any], seconds: float = 20) -> None:
        WebDriverWait(self.driver, seconds, poll_frequency=0.02).until(lambda _: condition())

    def run(self, script: str, *values: Any) -> Any:
        return self.driver.execute_script(script, *values)

    def text(self, name: str) -> str:
        return str(self.run("return document.getElementById(arguments[0]).textContent", name))

    def texts(self, selector: str) -> list[str]:
        return [str(element.text) for element in self.driver.find_elements(By.CSS_SELECTOR, selector)]

    def rectangles(self, selector: str) -> list[list[float]]:
        """Left, top, right and bottom of elements, in window pixels."""
        script = """return [...document.querySelectorAll(arguments[0])].map((element) => {
            const { left, top, right, bottom } = element.getBoundingClientRect();
            return [left, top, right, bottom]; })"""
        return list(self.run(script, selector))

    def choose(self, path: Path) -> None:
        """Select a file by the file input; returns when the page has loaded or rejected it."""
        self["file"].send_keys(str(path))
        self.wait(lambda: path.name in self.text("name") + self.text("error"))

    def drop(self, data: bytes, name: str, kind: str = "image/png") -> Any:
        return self.run(DROP, base64.b64encode(data).decode(), name, kind)

    def paste(self, data: bytes, name: str, kind: str = "image/png") -> None:
        self.run(PASTE, base64.b64encode(data).decode(), name, kind)

    def fill(self, task: str, **fields: str) -> None:
        self.driver.find_element(By.CSS_SELECTOR, f"input[name=task][value={task}]").click()
        for name, words in fields.items():
            self[name].clear()
            self[name].send_keys(words)

    def begin(self) -> None:
        self["ask"].click()

    def ask(self) -> None:
        self.begin()
        self.wait_for_end()

    def wait_for_end(self) -> None:
        self.wait(lambda: self["answer"].get_attribute("aria-busy") == "false")

    def complaints(self) -> list[str]:
        """Console errors and warnings since the last call, without those for HTTP error statuses."""
        found = [entry for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        return [entry["message"] for entry in found if "the server responded with a status of" not in entry["message"]]

    def requests(self) -> list[str]:
        """URLs requested since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]

    def command(self, name: str, **values: Any) -> Any:
        """Execute a command of the Chrome DevTools Protocol."""
        return self.driver.execute_cdp_cmd(name, values)


def chromium(folder: Path) -> Iterator[Page]:
    """The installed Chromium. Without it tests are skipped, or fail if NEED_BROWSER is set. Nothing is downloaded."""
    paths = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in paths:
        words = "needs chromium and chromedriver (Debian: chromium, chromium-driver)"
        (pytest.fail if os.environ.get("NEED_BROWSER") else pytest.skip)(words)
    options = webdriver.ChromeOptions()
    options.binary_location = str(paths[0])
    for flag in [*FLAGS.split(), f"--user-data-dir={folder}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(paths[1])))
    try:
        yield Page(driver)
    finally:
        driver.quit()
