"""The docs are what the code says, and the README's commands do what it shows."""

import re
import shlex
from pathlib import Path

import pytest
import tables
from front.conftest import Paliscribe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LONGEST_LINE = 100  # characters, but for table rows, code and a link alone


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_generated_tables_are_current(page: Path) -> None:
    text = page.read_text()
    assert tables.filled(text) == text, "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_short(page: Path) -> None:
    text = re.sub(r"^```.*?^```$|<!-- table:.*?<!-- end -->", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    long = [line for line in text.splitlines() if len(line) > LONGEST_LINE]
    assert not [line for line in long if not re.fullmatch(r"\|.*|\W*\[[^\]]*\]\([^)]*\)\W*", line)]


def console() -> list[tuple[str, list[str]]]:
    """The README's commands with the lines that it shows below each."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def numbers_aside(lines: list[str]) -> list[str]:
    """Lines without their figures: arithmetic differs in the last place between processors."""
    return [re.sub(r"\d+(\.\d+)?", "#", line.rstrip()) for line in lines]


@pytest.mark.cluster
@pytest.mark.usefixtures("served")
def test_the_readmes_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paliscribe: Paliscribe) -> None:
    monkeypatch.chdir(tmp_path)
    commands = console()
    assert commands[0][0] == "make demo"
    for command, shown in commands:
        words = ["paliscribe", "demo", "--quiet"] if command == "make demo" else shlex.split(command)
        assert words[0] == "paliscribe"
        if command == "paliscribe demo --quiet":
            continue  # what `make demo` runs
        said = paliscribe(*words[1:])
        assert said.code == 0, said.err
        assert numbers_aside(said.out.splitlines()) == numbers_aside(shown), command


def test_help_has_examples(paliscribe: Paliscribe) -> None:
    jobs = [f"jobs {command}" for command in ("list", "status", "logs", "stop")]
    for command in ("annotate", "demo", "status", "retry", "ask", "serve", "doctor", "submit", *jobs):
        said = paliscribe(*command.split(), "--help")
        assert said.code == 0 and "Example" in said.out and f"paliscribe {command}" in said.out
