"""The commands of docs/operations.md in their order, on one Ray head that they start, under calls all the while."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from ports import free_ports

from paliscribe.demo.collection import write_collection

pytestmark = [pytest.mark.cluster, pytest.mark.long]
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operations.md").read_text()
LIMIT = 900  # seconds until a page that hangs is given up; it takes four to eight minutes on two cores
DONE = "done-with-it"
CALLERS = 3


def commands() -> list[tuple[str, list[str]]]:
    """Every command of the page with the lines that it shows below it."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def written(settings: str) -> Iterator[tuple[str, str]]:
    """The files that the page speaks of: `infra/serve.yaml`, copies of it with other models, and a job file."""
    yield "infra/serve.yaml", settings
    for name, models in re.findall(r"```yaml\n# models of (\S+)\n(.*?)```", PAGE, re.DOTALL):
        changed = yaml.safe_load(settings)
        changed["applications"][0]["args"]["models"] = yaml.safe_load(models)
        yield name, yaml.safe_dump(changed)
    for name, text in re.findall(r"```yaml\n# (job\.yaml)\n(.*?)```", PAGE, re.DOTALL):
        yield name, text


class Shell:
    """One bash, command by command."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.timer = threading.Timer(LIMIT, self.process.kill)
        self.timer.start()

    def run(self, command: str) -> list[str]:
        """Run a command; its output. Fails where the command does."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{command}\necho; echo {DONE} $?\n")
        self.process.stdin.flush()
        lines: list[str] = []
        for line in self.process.stdout:
            if line.startswith(DONE):
                assert line.split()[1] == "0", (command, lines)
                return [kept for kept in lines if kept]
            lines.append(line.rstrip("\n"))
        raise AssertionError(f"not done within {LIMIT} s: {command} {lines}")

    def close(self) -> None:
        self.timer.cancel()
        children = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.process.kill()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self.process.communicate()
        psutil.wait_procs(children, timeout=30)


class Callers:
    """Calls, several at a time, until told to stop; what came of each is counted."""

    def __init__(self, url: str, picture: bytes) -> None:
        self.outcomes: Counter[str] = Counter()
        self._url, self._picture, self._stop = url, picture, threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _call(self) -> None:
        while not self._stop.wait(0.2):
            form = {"files": {"image": self._picture}, "data": {"task": "caption en"}}
            try:
                reply = httpx.post(f"{self._url}/v1/annotate/upload", timeout=90, **form)  # type: ignore[arg-type]
                self.outcomes[f"{reply.status_code}" if reply.status_code == 200 else reply.text] += 1
            except httpx.TransportError as error:
                self.outcomes[repr(error)] += 1


def test_the_commands_of_the_page(tmp_path: Path) -> None:
    ray_folder = tempfile.mkdtemp(prefix="ray-")  # sockets in it: the path must be short
    gcs, dashboard, metrics, http, agent = map(str, free_ports(5))
    table = {
        "=6379": f"={gcs}",
        "=8265": f"={dashboard}",
        ":8265": f":{dashboard}",
        "=8080": f"={metrics}",
        ":8080": f":{metrics}",
        ":8000": f":{http}",
        "ray start --head": f"ray start --head --dashboard-agent-listen-port={agent} --num-cpus=4",
        "/tmp/ray/": f"{ray_folder}/ray/",
    }

    def substituted(text: str) -> str:
        for written_word, own in table.items():
            text = text.replace(written_word, own)
        return text

    for name, text in written((ROOT / "infra/serve.yaml").read_text().replace("port: 8000", f"port: {http}")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    write_collection(tmp_path / "collection", 1, seed=0)
    shutil.copy(tmp_path / "collection/images/scene-00000.jpg", tmp_path)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PALISCRIBE"))}
    environment |= {"HOME": str(tmp_path), "RAY_TMPDIR": ray_folder, "OMP_NUM_THREADS": "1"}
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "3"  # the head's own actors keep a node from being idle
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    shell = Shell(tmp_path, environment)
    callers = Callers(f"http://127.0.0.1:{http}", (tmp_path / "scene-00000.jpg").read_bytes())
    started: list[psutil.Process] = []
    try:
        for command, shown in commands():
            if command == "serve deploy both.yaml":
                callers.start()
            if command == "serve shutdown --yes":
                callers.stop()
                started = psutil.Process(shell.process.pid).children(recursive=True)
            said = shell.run(substituted(command))
            assert said == shown or not shown, command
        assert set(callers.outcomes) == {"200"} and callers.outcomes["200"] > 50, callers.outcomes
        gone, left = psutil.wait_procs(started, timeout=60)
        assert len(gone) > 5 and not left, "processes are left after the page's own stop"
    finally:
        callers.stop()
        shell.close()
        shutil.rmtree(ray_folder, ignore_errors=True)


def test_the_page_stops_what_it_starts() -> None:
    words = [command for command, _ in commands()]
    assert words[-1].startswith("kill $HEAD") and not any(word.startswith("ray stop") for word in words)
