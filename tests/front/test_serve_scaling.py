"""An endpoint that holds nothing when idle: over HTTP from no replica to two and back, and nobody is turned away."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from front.conftest import replicas
from front.test_resume import wait_until_gone
from front.test_serve import CAPTION, asked
from ports import free_ports

pytestmark = [pytest.mark.cluster, pytest.mark.long]
POOL = {"threads": 1, "cpus_per_replica": 0.25, "min_replicas": 0, "max_replicas": 2, "rows_per_replica": 8}
SCALING = {"scale_up_after": 0, "scale_down_after": 3}


def test_the_first_call_waits_and_none_is_lost(tmp_path: Path) -> None:
    [port] = free_ports(1)
    config = tmp_path / "endpoint.yaml"
    config.write_text(json.dumps({"port": port, "timeout": 120, "models": [{"pool": POOL | SCALING}]}))
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "paliscribe", "serve", str(config)]
    serving = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    driver = psutil.Process(serving.pid)
    replies: list[httpx.Response] = []

    def call(_: int = 0) -> None:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        replies.append(httpx.post(url, json=asked(), timeout=150))

    def until(count: int, together: int) -> None:
        """Call until so many replicas are there."""
        end = time.monotonic() + 120
        with ThreadPoolExecutor(max(together, 1)) as threads:
            while len(replicas("paliscribe:replica", driver)) != count:
                assert time.monotonic() < end, count
                list(threads.map(call, range(together)))
                time.sleep(0.1)

    try:
        assert serving.stdout is not None and "serving demo" in serving.stdout.readline()
        assert not replicas("paliscribe:replica", driver)
        call()
        until(2, together=48)
        until(1, together=1)
        until(0, together=0)
        call()
        assert {reply.status_code for reply in replies} == {200}, [r.text for r in replies if r.status_code != 200][:3]
        assert {reply.json()["choices"][0]["message"]["content"] for reply in replies} == {CAPTION}
        assert all(len(reply.headers.get_list("x-request-id")) == 1 for reply in replies)
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(90) == 0
    finally:
        children = [] if serving.poll() is not None else driver.children(recursive=True)
        serving.kill()
        serving.communicate()
        wait_until_gone(children)
