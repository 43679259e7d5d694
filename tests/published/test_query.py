"""SQL over a run: formats of the result, mistakes, constant memory; and the queries of the help."""

import csv
import io
import json
import os
import re
import sys
from collections.abc import Callable

import pytest
from demo_run import SCENES, DemoRun

from paliscribe.cli import main as cli
from paliscribe.cli.query import HELP
from paliscribe.errors import UsageError
from paliscribe.published import Tables, open_tables
from paliscribe.published.query import lines_of, query

ODD = """SELECT 'a;"b"\nc' AS t, 0.1::FLOAT AS f, [1.1::FLOAT] AS n, {'x': NULL} AS s, 'NaN'::DOUBLE AS nan,
    DATE '2026-01-02' AS d"""


@pytest.fixture(scope="module")
def tables(demo_run: DemoRun) -> Tables:
    return open_tables(str(demo_run.output))


@pytest.fixture
def paliscribe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["paliscribe", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_values_in_every_format(tables: Tables) -> None:
    expected = {"t": 'a;"b"\nc', "f": 0.1, "n": [1.1], "s": {"x": None}, "nan": None, "d": "2026-01-02"}
    assert json.loads("".join(lines_of(query(tables, ODD), "json"))) == [expected]
    assert [json.loads(line) for line in lines_of(query(tables, ODD), "jsonl")] == [expected]
    [head, row] = csv.reader(io.StringIO("\n".join(lines_of(query(tables, ODD), "csv"))))
    assert head == list(expected)
    assert row == ['a;"b"\nc', "0.1", "[1.1]", '{"x": null}', "", "2026-01-02"]
    shown = list(lines_of(query(tables, ODD), "table"))
    assert len(shown) == 3, "a line break in a value does not break the table"


def test_line_breaks_in_csv(tables: Tables) -> None:
    text = "\n".join(lines_of(query(tables, "SELECT 'a\nb' AS t, 'c\rd' AS u"), "csv"))
    assert list(csv.reader(io.StringIO(text, newline=""))) == [["t", "u"], ["a\nb", "c\rd"]]


def test_empty_results(tables: Tables) -> None:
    none = "SELECT id FROM annotations WHERE false"
    assert json.loads("".join(lines_of(query(tables, none), "json"))) == []
    assert list(lines_of(query(tables, none), "csv")) == ["id"]
    assert list(lines_of(query(tables, none), "table"))[-1] == "(no rows)"


def test_a_table_stops_at_its_limit(tables: Tables) -> None:
    lines = list(lines_of(query(tables, "SELECT id FROM annotations"), "table", 5))
    assert len(lines) == 2 + 5 + 1
    assert "--limit" in lines[-1]
    assert "more" not in list(lines_of(query(tables, "SELECT id FROM annotations LIMIT 5"), "table", 5))[-1]


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT nope FROM annotations", "nope"),
        ("SELECT * FROM annotation", "annotation"),
        ("SELECT 1; SELECT 2", "one SQL statement"),
        ("", "one SQL statement"),
        ("SELECT error('while\nit is read') FROM annotations", "while"),
    ],
)
def test_mistakes_are_one_line(tables: Tables, sql: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        list(lines_of(query(tables, sql), "csv"))
    assert "\n" not in str(raised.value)


def test_the_queries_of_the_help(tables: Tables) -> None:
    text = re.sub(r"\n    (?! )", " ", HELP.partition("Ten useful queries:\n")[2])
    queries = [line.strip() for line in text.splitlines() if line.strip()]
    assert len(queries) == 10
    answers = [list(lines_of(query(tables, sql), "jsonl")) for sql in queries]
    assert answers[0], "counts by task"
    assert len(answers[1]) == 20
    assert json.loads(answers[2][0])["error_kind"] == "missing"
    assert [json.loads(line)["id"] for line in answers[7]] == ["gone"]


def test_the_command(demo_run: DemoRun, paliscribe: Callable[..., tuple[int, str, str]]) -> None:
    output = str(demo_run.output)
    code, out, err = paliscribe("query", output, "SELECT count(*) AS n FROM annotations", "--format", "json")
    assert (code, json.loads(out), err) == (0, [{"n": SCENES * 4}], "")
    code, out, err = paliscribe("query", output)
    assert code == 0
    assert re.search(r"annotations\n  id +VARCHAR", out)
    code, out, err = paliscribe("query", output, "SELECT")
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        (
            "SELECT CASE WHEN range < 150_000 THEN 1 ELSE CAST('x' || range AS INT) END FROM range(200_000)",
            "Could",
        ),
        ("SELECT range, repeat('x', 300) AS x FROM range(1_000_000) ORDER BY hash(range)", "gives it more"),
    ],
)
def test_what_goes_wrong_after_the_first_rows_is_one_line(
    sql: str, words: str, demo_run: DemoRun, paliscribe: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = paliscribe("query", str(demo_run.output), sql, "--format", "csv", "--memory", "12")
    assert code == 2 and err.startswith("paliscribe: query: ") and words in err and err.count("\n") == 1
    assert len(out.splitlines()) > 100_000 or "Memory" in err


def test_memory_is_bounded_and_more_can_be_given(
    demo_run: DemoRun, paliscribe: Callable[..., tuple[int, str, str]]
) -> None:
    sql = "SELECT count(*) FROM (SELECT DISTINCT range::VARCHAR FROM range(2_000_000))"
    code, _, err = paliscribe("query", str(demo_run.output), sql, "--memory", "8")
    assert code == 2 and err.startswith("paliscribe: query: Out of Memory")
    assert err.endswith("; `--memory 4000` gives it more\n")
    assert paliscribe("query", str(demo_run.output), sql, "--memory", "400")[0] == 0
    assert paliscribe("query", str(demo_run.output), sql, "--memory", "0")[0] == 2


def test_little_memory_means_few_threads(demo_run: DemoRun, paliscribe: Callable[..., tuple[int, str, str]]) -> None:
    sql = ["query", str(demo_run.output), "SELECT current_setting('threads') AS n", "--format", "csv"]
    assert paliscribe(*sql)[1].splitlines() == ["n", "1"]
    assert paliscribe(*sql, "--memory", "400")[1].splitlines() == ["n", str(min(2, os.cpu_count() or 1))]
