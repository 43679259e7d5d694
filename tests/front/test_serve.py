"""`paliscribe serve` as users run it: a process of its own, OpenAI's client, a kill, a stop."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from front.conftest import hostile, replicas
from front.test_resume import wait_until_gone
from online.conftest import data_url, encoded
from ports import free_ports

from paliscribe.demo.answers import scene_items
from paliscribe.demo.drawing import draw
from paliscribe.demo.sampling import sample_scene
from paliscribe.demo.scenes import TEST_SEEDS

pytestmark = pytest.mark.cluster
KEY = "a-key-for-the-front-tests"
SCENE = sample_scene(TEST_SEEDS + 12)


@dataclass(frozen=True)
class Serving:
    """A running endpoint."""

    process: subprocess.Popen[str]
    client: openai.OpenAI


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    [port] = free_ports(1)
    keys = tmp_path_factory.mktemp("serve") / "keys"
    keys.write_text(KEY)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    words = ["serve", "--port", str(port), "--keys", str(keys)]
    process = subprocess.Popen(
        [sys.executable, "-m", "paliscribe", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=hostile(tmp_path_factory.mktemp("theirs")),
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == f"serving demo at http://127.0.0.1:{port} (Ctrl-C stops)\n", process.communicate()[1]
    address = f"http://127.0.0.1:{port}/v1"
    yield Serving(process, openai.OpenAI(base_url=address, api_key=KEY, max_retries=0, timeout=120))
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
        wait_until_gone(children)


def asked(**options: Any) -> Any:
    image = {"type": "image_url", "image_url": {"url": data_url(encoded(draw(SCENE)))}}
    content = [image, {"type": "text", "text": "caption en"}]
    return {"model": "demo", "messages": [{"role": "user", "content": content}], **options}


CAPTION = next(item.answer for item in scene_items(SCENE) if item.task == "caption")


def test_plain_and_streamed(serving: Serving) -> None:
    assert serving.client.chat.completions.create(**asked()).choices[0].message.content == CAPTION
    chunks = list(serving.client.chat.completions.create(**asked(stream=True)))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == CAPTION and len(chunks) > 4
    with pytest.raises(openai.AuthenticationError):
        serving.client.with_options(api_key="another").models.list()


@pytest.mark.long
def test_streams_cut_by_a_kill_end_in_words_and_plain_calls_are_answered(serving: Serving) -> None:
    driver, begun, killed = psutil.Process(serving.process.pid), threading.Event(), threading.Event()

    def plain(after: bool = False) -> str:
        """`after`: begun when the only replica is gone."""
        assert not after or killed.wait(60)
        return serving.client.chat.completions.create(**asked()).choices[0].message.content or ""

    def streamed() -> tuple[str, str]:
        """What came of an answer, and the words that ended it early."""
        text = ""
        try:
            for chunk in serving.client.chat.completions.create(**asked(stream=True)):
                text += chunk.choices[0].delta.content or ""
                if text and not begun.is_set():
                    begun.set()
                    victim.kill()
                    killed.set()
        except openai.APIError as error:
            return text, error.message
        return text, ""

    for _ in range(3):  # a kill may fall where no stream has begun
        [victim] = replicas("paliscribe:replica", driver)
        begun.clear(), killed.clear()
        with ThreadPoolExecutor(96) as threads:
            streams = [threads.submit(streamed) for _ in range(64)]
            plains = [threads.submit(plain, number % 8 == 0) for number in range(32)]
        assert [call.result() for call in plains] == [CAPTION] * 32
        ended = [call.result() for call in streams]
        for text, words in ended:
            assert text == CAPTION if not words else CAPTION.startswith(text) and "lost mid-stream" in words
        assert plain() == CAPTION and victim.pid not in [found.pid for found in replicas("paliscribe:replica", driver)]
        if any(words for _, words in ended):
            return
    pytest.fail("no stream was cut")


def readme(language: str, holding: str) -> str:
    """The block of the README in this language that holds these words."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    return next(block for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if holding in block)


def test_the_readmes_calls_answer_as_it_shows(serving: Serving, tmp_path: Path) -> None:
    from paliscribe.demo.collection import write_collection

    folder = "demo-output/64-scenes-seed-0/collection"
    write_collection(tmp_path / folder, 1, seed=0)
    address = str(serving.client.base_url).removesuffix("/v1/")
    code = readme("python", "openai.OpenAI(").replace("http://127.0.0.1:8000", address).replace('"none"', f'"{KEY}"')
    shown = [line.removeprefix("# ") for line in code.splitlines() if line.startswith("# ")]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == shown, done.stderr
    call, reply = readme("sh", "curl").split("\n", 1)
    words = shlex.split(call.removeprefix("$ ").replace("http://127.0.0.1:8000", address))
    done = subprocess.run(
        [*words, "-H", f"Authorization: Bearer {KEY}"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    [record], [expected] = json.loads(done.stdout)["annotations"], json.loads(reply)["annotations"]
    assert set(record) == set(expected)
    assert record["text"] == expected["text"] and record["boxes"][0]["label"] == "green star"


def test_it_stops_when_told_to(serving: Serving) -> None:
    children = psutil.Process(serving.process.pid).children(recursive=True)
    serving.process.send_signal(signal.SIGTERM)
    _, err = serving.process.communicate(timeout=60)
    assert serving.process.returncode == 0 and "Traceback" not in err, err
    wait_until_gone(children)
    with pytest.raises(openai.APIConnectionError):
        serving.client.models.list()
