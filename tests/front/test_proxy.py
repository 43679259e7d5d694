"""An endpoint behind Serve's own proxy: where it listens, who can read its files, and what attacks do to it."""

import contextlib
import http.server
import ipaddress
import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from front.conftest import Paliscribe
from front.heads import PLAIN
from front.test_resume import wait_until_gone
from online.attacks import ANNOTATE, CHAT, KINDS, Attack, attacks, chat_body, data_url, request
from online.conftest import encoded
from ports import free_ports

from paliscribe.demo.drawing import draw
from paliscribe.demo.sampling import sample_scene
from paliscribe.demo.scenes import TEST_SEEDS

pytestmark = [pytest.mark.cluster, pytest.mark.long]
KEY = "a-key-for-the-proxy-tests"
PICTURE = encoded(draw(sample_scene(TEST_SEEDS + 12)))
SAMPLE = 10  # one attack of ten, unless LONG
ALL = bool(os.environ.get("LONG") or os.environ.get("FULL"))
MEMORY = 2**30  # bytes that attacks may add to a process
SILENCE = 5.0  # seconds for /health; the aim is 1, on a machine without other work
SECRET = re.compile(rf"{KEY}|{Path(__file__).parents[2]}|Traceback| at 0x[0-9a-f]{{8}}|site-packages")


@dataclass
class Served:
    """A running endpoint with every feature on. `web`: a server of ours; `hits`: the paths that were asked of it."""

    process: psutil.Process
    port: int
    web: str
    folder: Path
    hits: list[str] = field(default_factory=list)

    def processes(self, name: str) -> list[psutil.Process]:
        """Its processes whose command line begins so."""
        found = self.process.children(recursive=True)
        return [each for each in found if "".join(each.cmdline()[:1]).startswith(name)]


@pytest.fixture(scope="module")
def web() -> Iterator[tuple[str, list[str]]]:
    """A server whose folder /ok/ is allowed, and whose redirects lead elsewhere."""
    hits: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            hits.append(self.path)
            ours = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
            targets = {
                "to-secret": f"{ours}/secret",
                "to-secret-encoded": "/ok/..%2fsecret",
                "to-file": "file:///etc/passwd",
                "to-loopback": "http://localhost:1/x",
                "loop": f"{ours}/ok/loop",
            }
            target = targets.get(self.path.rpartition("/")[2])
            self.send_response(302 if target else 200)
            if target:
                self.send_header("Location", target)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", hits
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def served(web: tuple[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder, [port] = tmp_path_factory.mktemp("proxy"), free_ports(1)
    images = {
        "addresses": [f"{web[0]}/ok/", "s3://bucket/prefix/"],
        "private": True,
        "timeout": 5,
        "max_bytes": 2_500_000,
    }
    settings: dict[str, Any] = {"port": port, "files": str(folder / "files"), "outputs": [str(folder / "out")]}
    settings |= {"images": images | {"max_pixels": 4_000_000}, "max_body": 5_000_000, "max_requests": 12}
    (folder / "endpoint.yaml").write_text(yaml.safe_dump(settings | {"models": [{"pool": {"threads": 1}}]}))
    process = subprocess.Popen(
        [sys.executable, "-m", "paliscribe", "serve", str(folder / "endpoint.yaml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=PLAIN | {"PALISCRIBE_API_KEYS": KEY, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "x",
                     "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1"},
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == f"serving demo at http://127.0.0.1:{port} (Ctrl-C stops)\n", process.communicate()[1]
    yield Served(psutil.Process(process.pid), port, web[0], folder, web[1])
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.communicate(timeout=90)
    wait_until_gone(children)


def test_it_listens_on_loopback(served: Served, paliscribe: Paliscribe) -> None:
    beyond = []
    for process in [served.process, *served.process.children(recursive=True)]:
        for found in process.net_connections("inet"):
            if found.status == psutil.CONN_LISTEN:
                address = ipaddress.ip_address(found.laddr.ip.removeprefix("::ffff:"))
                beyond += [] if address.is_loopback else [(process.cmdline()[0], found.laddr.port)]
    # Serve's replicas listen for each other on all interfaces, and nobody is let in without Ray's token.
    assert all(name.startswith("ray::ServeReplica:paliscribe:") for name, _ in beyond), beyond
    assert len(beyond) == len(served.processes("ray::ServeReplica:")) == 3  # gateway, replica, drivers
    [doctor] = [line for line in paliscribe("doctor").out.splitlines() if " listening " in line]
    assert all(f":{port} " in doctor for _, port in beyond)


def test_what_it_writes_is_private(served: Served) -> None:
    files = {Path(found.path) for process in served.processes("ray::") for found in process.open_files()}
    [session] = {Path(*file.parts[:4]) for file in files if file.parts[2:3] == ("ray",)}
    for path in (session, served.folder / "files", Path("~/.ray/auth_token").expanduser()):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_the_proxy_is_not_steered_and_its_log_not_forged(served: Served) -> None:
    address, bearer = f"http://127.0.0.1:{served.port}", {"Authorization": f"Bearer {KEY}"}
    assert httpx.get(f"{address}/-/routes").status_code == 401
    assert httpx.get(f"{address}/-/routes", headers=bearer).status_code == 404
    assert httpx.get(f"{address}/-/healthz").text == "success"
    forged = httpx.get(f"{address}/v1/models", headers=bearer | {"x-request-id": "-- id=forged status=200"})
    assert forged.headers.get_list("x-request-id") == ["--%20id%3Dforged%20status%3D200"]
    steered = {"x-request-timeout-seconds": "0.000001", "x-session-id": "a", "serve_multiplexed_model_id": "b"}
    reply = httpx.post(address + CHAT, json=chat_body(data_url(PICTURE)), headers=bearer | steered, timeout=60)
    assert reply.status_code == 200
    [gateway] = served.processes("ray::ServeReplica:paliscribe:gateway")
    [log] = {found.path for found in gateway.open_files() if "/logs/serve/" in found.path}
    lines = Path(log).read_text().splitlines()
    assert any("--%20id%3Dforged" in line for line in lines) and not any("id=forged" in line for line in lines)


class Watch:
    """Looks at /health and at the memory of the gateway and the proxy until it is left."""

    def __init__(self, served: Served) -> None:
        self.served, self.over = served, threading.Event()
        names = ("ray::ServeReplica:paliscribe:gateway", "ray::ProxyActor")
        self.seen = {name: served.processes(name)[0] for name in names}
        self.before = {name: process.memory_info().rss for name, process in self.seen.items()}
        self.most, self.silence = dict(self.before), 0.0

    def __enter__(self) -> "Watch":
        self.threads = [threading.Thread(target=work) for work in (self._call, self._measure)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()

    def grown(self, name: str) -> int:
        """Most bytes that a process has gained."""
        return self.most[name] - self.before[name]

    def _call(self) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{self.served.port}", timeout=60) as client:
            while not self.over.wait(0.05):
                begun = time.monotonic()
                assert client.get("/health").status_code == 200
                self.silence = max(self.silence, time.monotonic() - begun)

    def _measure(self) -> None:
        while not self.over.wait(0.02):
            for name, process in self.seen.items():
                self.most[name] = max(self.most[name], process.memory_info().rss)


def sent(served: Served, attack: Attack) -> list[tuple[int, bytes]]:
    """Carry out an attack; the status, head and body of each reply, or status 0 if the connection ends without one."""
    data = b""
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", served.port), timeout=90) as peer:
        with contextlib.suppress(ConnectionError):
            for piece in attack.pieces:
                peer.sendall(piece)
        if attack.then == "vanish":
            return []
        with contextlib.suppress(ConnectionError):
            while part := received(peer, data):
                data += part
                if attack.kind == "framing" and b"\r\n\r\n" in data:
                    peer.settimeout(0.3)  # for a second reply, on a connection that may stay open
    return list(replies(data)) or [(0, b"")]


def received(peer: socket.socket, before: bytes) -> bytes:
    """More bytes; none if the peer has ended, or is silent after a reply."""
    try:
        return peer.recv(2**16)
    except TimeoutError:
        if not before:
            raise
        return b""


def replies(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Status and whole text of each HTTP reply in what was received."""
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        found = re.match(rb"HTTP/1\.1 (\d{3})", head)
        assert found, data[:200]
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        body = rest[: int(length[1])] if length else rest
        yield int(found[1]), head + b"\r\n\r\n" + body
        data = rest[len(body) :]


def held(served: Served, attack: Attack) -> str:
    """What is wrong with the replies to an attack; empty if it held."""
    try:
        found = sent(served, attack)
    except (TimeoutError, AssertionError) as problem:
        return f"{type(problem).__name__} {problem}"
    for status, reply in found:
        head, _, body = reply.partition(b"\r\n\r\n")
        if status not in attack.answers:
            return f"{status} {body[:200]!r}"
        if SECRET.search(reply.decode("latin-1")) or len(body) > 5000:
            return f"tells {body[:500]!r}"
        if status >= 400:
            try:
                error = json.loads(body)["error"]
            except ValueError:
                return f"{status} in another shape: {body[:100]!r}"
            if set(error) != {"message", "type", "param", "code"} or head.lower().count(b"\r\nx-request-id: ") != 1:
                return f"{status} without id or field: {reply[:300]!r}"
    return ""


def test_attacks_hold(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = list(attacks(KEY, PICTURE, served.web))
    assert len(chosen) > 600 and {attack.kind for attack in chosen} == set(KINDS)
    if not ALL:
        chosen = [one for number, one in enumerate(chosen) if number % SAMPLE == 3 and one.then != "hold"]
    waiting = [attack for attack in chosen if attack.then == "hold"]
    fallen, per_kind = [], Counter(attack.kind for attack in chosen)
    served.hits.clear()
    good = request("POST", ANNOTATE, json.dumps({"images": [data_url(PICTURE)], "tasks": ["ocr"]}).encode(), key=KEY)
    with Watch(served) as watch, ThreadPoolExecutor(len(waiting) or 1) as threads:
        beside = [(attack, threads.submit(held, served, attack)) for attack in waiting]
        slowest = (0.0, "")
        for attack in chosen:
            if attack.then != "hold":
                begun = time.monotonic()
                if said := held(served, attack):
                    fallen.append(f"{attack.kind} {attack.name}: {said}")
                slowest = max(slowest, (time.monotonic() - begun, f"{attack.kind} {attack.name}"))
        fallen += [f"{attack.kind} {attack.name}: {said}" for attack, work in beside if (said := work.result())]
        assert [status for status, _ in sent(served, Attack("good", "", (good,)))] == [200]
    with capsys.disabled():
        grown = ", ".join(f"{name.rpartition(':')[2]} +{watch.grown(name) / 2**20:.0f} MiB" for name in watch.seen)
        print(f"\n{len(chosen)} attacks {dict(per_kind)}: {len(fallen)} fell; {grown}; /health at most "
              f"{watch.silence:.2f} s; slowest {slowest[1]} {slowest[0]:.1f} s")  # fmt: skip
    assert not fallen, "\n".join(fallen)
    assert all(path.startswith("/ok/") for path in served.hits), served.hits
    assert all(watch.grown(name) < MEMORY for name in watch.seen) and watch.silence < SILENCE
