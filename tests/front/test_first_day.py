"""What a newcomer meets: refusals in one line before anything heavy is imported, plans, samples, pictures."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from front.conftest import Paliscribe
from PIL import Image
from ports import free_ports

from paliscribe.view.example import write_example

BEFORE = ("annotating into ", "checking", "drawing ", "note: no display ")  # what may stand before the refusal
HEAVY = {"torch", "ray", "transformers"}
RUN = """
import json, os, resource, sys, time
begun = time.monotonic()
from paliscribe.cli.main import main

def seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

def child(number, words, environment):
    begun = time.monotonic()
    os.environ.update(environment)
    sys.argv[1:] = words
    os.dup2(os.open(f"{number}.err", os.O_WRONLY | os.O_CREAT), 2)
    code = 0
    try:
        main()
    except SystemExit as exit_:
        code = exit_.code
    sys.stderr.flush()
    facts = {"code": code, "seconds": imports + seconds(), "modules": sorted(sys.modules)}
    facts["clock"] = startup + time.monotonic() - begun
    with open(f"{number}.json", "w") as file:
        json.dump(facts, file)

imports, startup = seconds(), time.monotonic() - begun
for number, (words, environment) in enumerate(json.load(sys.stdin)):
    if not (pid := os.fork()):
        try:
            child(number, words, environment)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
"""


@contextmanager
def listener() -> Iterator[int]:
    """A port in use, where nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield int(taken.getsockname()[1])


def in_children(
    folder: Path, commands: list[tuple[list[str], dict[str, str]]]
) -> list[tuple[dict[str, Any], list[str]]]:
    """For each command, with its environment, in a process of its own: facts, and the lines that it wrote to stderr.

    The processes are forks of one that has imported the command line, which saves a second for each.
    """
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PALISCRIBE_"))}
    subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(commands),
        env=plain | {"HOME": str(folder)},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        text=True,
        timeout=400,
        check=True,
    )
    return [
        (json.loads((folder / f"{number}.json").read_text()), (folder / f"{number}.err").read_text().splitlines())
        for number in range(len(commands))
    ]


Refusal = tuple[list[str], dict[str, str], int, str]  # command, environment, exit code, words of the line


def refusals(folder: Path, taken: int, free: int) -> list[Refusal]:
    """What is refused before a run, an endpoint or a question. Writes files that are wrong into the folder."""
    (folder / "bad.yaml").write_text("tasks: [1\n")
    (folder / "odd.yaml").write_text("maxtokens: 5\nmanifest: m.csv\n")
    (folder / "list.yaml").write_text("- demo\n")
    (folder / "job.yaml").write_text("manifest: m.csv\ntasks: [ocr]\noutput: out\n")
    (folder / "endpoint.yaml").write_text("models: [demo]\n")
    (folder / "m.csv").write_text("image,question\na.jpg,what?\n")
    (folder / "m.parquet").write_text("hello")
    (folder / "file").write_text("in the way")
    run = ["annotate", "--manifest", "m.csv", "--output", "out", "--task"]
    return [
        (["annotate", "bad.yaml"], {}, 2, "not valid YAML at line 2"),
        (["serve", "bad.yaml"], {}, 2, "not valid YAML at line 2"),
        (["submit", "bad.yaml"], {}, 2, "not valid YAML at line 2"),
        (["preview", "bad.yaml"], {}, 2, "not valid YAML at line 2"),
        (["serve", "list.yaml"], {}, 2, "no endpoint file, which is a mapping"),
        (["annotate", "nowhere.yaml"], {}, 2, "no such job file"),
        (["annotate", "odd.yaml"], {}, 2, "did you mean 'max_tokens'?"),
        (["annotate", "endpoint.yaml"], {}, 2, "an endpoint file, for `paliscribe serve`"),
        (["serve", "job.yaml"], {}, 2, "a job file, for `paliscribe annotate`"),
        (["anotate"], {}, 2, "did you mean 'annotate'?"),
        (["annotate", "--modle", "demo"], {}, 2, "did you mean '--model'?"),
        (["annotate"], {}, 2, "'manifest' is missing"),
        (["serve", "demo", "--port", str(taken)], {}, 1, f"cannot listen on 127.0.0.1:{taken}"),
        (["serve", "demo", "--keys", "nowhere"], {}, 2, f"keys {folder / 'nowhere'}: cannot be read"),
        (["serve", "demo", "--host", "0.0.0.0"], {}, 2, "requires API keys"),
        (["serve", "demo"], {"PALISCRIBE_API_KEYS": "short"}, 2, "at least 16 characters"),
        (["serve", "demo", "--files", "file/x"], {}, 2, "files file/x"),
        (["serve", "demp"], {}, 2, "did you mean 'demo'?"),
        ([*run, "ocr", "--model", "demp"], {}, 2, "did you mean 'demo'?"),
        ([*run, "ocr", "--model", "acme/nothing"], {"HF_ENDPOINT": f"http://127.0.0.1:{free}"}, 2, "cannot be reached"),
        ([*run, "ocr", "--manifest", "nowhere.jsonl"], {}, 2, "nowhere.jsonl: no such file"),
        ([*run, "ocr", "--manifest", "m.parquet"], {}, 2, "m.parquet: cannot be read"),
        ([*run, "answer en {questoin}"], {}, 2, "did you mean 'question'?"),
        ([*run, "ocr", "--partition-by", "quesion"], {}, 2, "did you mean 'question'?"),
        ([*run, "detect"], {}, 2, "say what to detect"),
        ([*run, "answer en"], {}, 2, "ask something"),
        ([*run, "ocr", "--limit", "0"], {}, 2, "'limit'"),
        ([*run, "ocr", "--output", "file/out"], {}, 2, "file/out: a part of this path is a file"),
        ([*run, "ocr", "--append"], {}, 2, "no run is here to append to"),
        (["preview", "--manifest", "nowhere.csv", "--task", "ocr"], {}, 2, "nowhere.csv: no such file"),
        (["demo", "--folder", "file/x"], {}, 2, "demo: "),
        (["ask", "nowhere.jpg", "ocr"], {}, 2, "nowhere.jpg: no such file"),
        (["ask", "a.jpg", "ocr", "--save", "out.gif"], {}, 2, "a picture is named .png"),
        (["ask", "file", "ocr", "--show"], {"DISPLAY": "", "WAYLAND_DISPLAY": ""}, 2, "no image format is recognised"),
        *_clusters(run, taken, free),
    ]


def _clusters(run: list[str], taken: int, free: int) -> list[Refusal]:
    """Clusters that are not there. A dashboard that is mute has five seconds, as docs/operations.md says."""
    join = [*run, "ocr"]
    submit = ["submit", "job.yaml", "--shared-paths", "--address"]
    return [
        (join, {"RAY_ADDRESS": f"127.0.0.1:{free}"}, 1, f"no Ray cluster at 127.0.0.1:{free}"),
        (join, {"RAY_ADDRESS": f"127.0.0.1:{taken}"}, 1, "no answer within 0.8 s"),
        (join, {"RAY_ADDRESS": "nonsense"}, 2, "expected HOST:PORT"),
        (join, {"RAY_ADDRESS": f"ray://127.0.0.1:{taken}"}, 2, "expected HOST:PORT"),
        (join, {"RAY_ADDRESS": f"127.0.0.1:{taken}", "RAY_AUTH_MODE": "tokn"}, 2, "expected 'token' or 'disabled'"),
        (["serve", "demo"], {"RAY_ADDRESS": f"127.0.0.1:{taken}"}, 1, "no answer within 0.8 s"),
        (["preview", "job.yaml"], {"RAY_ADDRESS": f"127.0.0.1:{taken}"}, 1, "no answer within 0.8 s"),
        (["retry", "out"], {"RAY_ADDRESS": f"127.0.0.1:{taken}"}, 1, "no answer within 0.8 s"),
        (["submit", "job.yaml"], {}, 2, "--shared-paths"),
        (["jobs", "list"], {}, 2, "no cluster address"),
        ([*submit, f"http://127.0.0.1:{free}"], {}, 1, "no Ray dashboard"),
        ([*submit, f"http://127.0.0.1:{taken}"], {}, 1, "no answer within 5 s"),
        ([*submit, "http://x y"], {}, 2, "not a dashboard URL"),
    ]


def refusals_of_runs(run: str, taken: int) -> list[Refusal]:
    """What commands over a finished run refuse."""
    export = ["export", run, "-f", "csv", "--to"]
    return [
        (["status", "nowhere"], {}, 2, "no run is here"),
        (["verify", "nowhere"], {}, 2, "no run is here"),
        (["retry", "nowhere"], {}, 2, "no run is here"),
        (["view", "nowhere"], {}, 2, "nothing is published here"),
        (["view"], {}, 2, "view needs the output of a run"),
        (["view", run, "--no-browser", "--port", str(taken)], {}, 1, f"cannot listen on 127.0.0.1:{taken}"),
        (["export", run, "-f", "xls", "--to", "e"], {}, 2, "--format: 'xls' is unknown"),
        (["export", "nowhere", "-f", "csv", "--to", "e"], {}, 2, "nothing is published here"),
        ([*export, run], {}, 2, "is inside the run's output"),
        ([*export, "file/x"], {}, 2, "file/x: a part of this path is a file"),
        ([*export, "e", "--task", "nope"], {}, 2, "'nope' is no task of this run"),
        ([*export, "e", "--where", "nope = 1"], {}, 2, "--where: "),
        (["import-review", run, "nowhere.json"], {}, 2, "nowhere.json: no such file"),
        (["import-review", run, "m.csv"], {}, 2, "m.csv is no JSON"),
        (["evaluate", "nowhere"], {}, 2, "nothing is published here"),
        (["evaluate", run, "--truth", "nowhere.csv", "-q"], {}, 2, "nowhere.csv: no such file"),
        (["evaluate", run, "--column", "nope"], {}, 2, "write TASK=COLUMN"),
        (["report", "nowhere", "-o", "r.html"], {}, 2, "nothing is published here"),
        (["report", run, "-o", "nowhere/r.html"], {}, 2, "--output nowhere/r.html: no folder"),
        (["query", "nowhere", "select 1"], {}, 2, "nothing is published here"),
        (["query", run, "select nope from errors"], {}, 2, "query: Binder Error"),
        (["query", run, "select 1", "-f", "xls"], {}, 2, "is not one of"),
    ]


def check_refusals(folder: Path, expected: list[Refusal], capsys: pytest.CaptureFixture[str]) -> None:
    """Each command is refused as expected, in one line and before heavy imports; print how long each took."""
    rows = []
    found = in_children(folder, [(words, environment) for words, environment, *_ in expected])
    for (words, _, code, said), (facts, lines) in zip(expected, found, strict=True):
        assert lines and all(each.startswith(BEFORE) for each in lines[:-1]), (words, lines)
        line = lines[-1]
        assert facts["code"] == code and line.startswith("paliscribe: ") and said in line, (words, lines)
        assert len(line) < 400 and not HEAVY & set(facts["modules"]), (words, line)
        used = f"{facts['seconds']:5.2f} s CPU, {facts['clock']:5.2f} s by the clock"
        rows.append(f"{used}, {len(facts['modules']):4} modules  {words[0]}: {line.partition(': ')[2][:100]}")
    with capsys.disabled():
        print("\n" + "\n".join(rows))


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.long) for part in (1, 2))])
def test_refusals_come_before_heavy_imports_in_one_line(
    part: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with listener() as taken:
        check_refusals(tmp_path, refusals(tmp_path, taken, free_ports(1)[0])[part::3], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_refusals_of_commands_over_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.csv").write_text("image\na.jpg\n")
    (tmp_path / "file").write_text("in the way")
    with listener() as taken:
        check_refusals(tmp_path, refusals_of_runs(write_example(tmp_path / "example"), taken), capsys)


def flags(collection: Path, output: Path, *more: str) -> list[str]:
    return ["annotate", "--manifest", str(collection), "--task", "ocr", "--output", str(output), "-q", *more]


def test_a_dry_run_counts_and_writes_nothing(collection: Path, tmp_path: Path, paliscribe: Paliscribe) -> None:
    plan = paliscribe(*flags(collection, tmp_path / "o", "--dry-run", "--json", "--limit", "5", "--task", "caption en"))
    assert (plan.json["state"], plan.json["rows"], plan.json["requests"]) == ("new", 5, 10)
    assert set(plan.json["columns"]) == {"objects", "question"}
    words = paliscribe(*flags(collection, tmp_path / "o", "--dry-run")).out
    assert words.startswith("24 rows x 1 task = 24 requests") and "nothing was written" in words
    assert not list(tmp_path.iterdir())
    assert paliscribe(*flags(collection, tmp_path / "o", "--dry-run", "--append")).code == 2


def test_a_free_prompt_is_answered_with_a_note(collection: Path, tmp_path: Path, paliscribe: Paliscribe) -> None:
    image = collection.parent / "images" / "scene-00000.jpg"
    said = paliscribe("ask", image, "capton en", "--save", tmp_path / "a.png")
    assert said.code == 0 and "did you mean 'caption en'?" in said.err and said.out
    with Image.open(image) as before, Image.open(tmp_path / "a.png") as after:
        assert after.width >= before.width and after.height > before.height


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "paliscribe", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert done.stderr == ""
