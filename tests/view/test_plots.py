"""Plots are well-formed SVG, whatever texts they hold, and their marks are where the counts are."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest
from demo_run import SCENES, TASKS, DemoRun

from paliscribe.errors import UsageError
from paliscribe.published import Tables, open_tables
from paliscribe.view import plots
from paliscribe.view.figures import Figures, drawn

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "]]></style><script>alert(1)</script>",
    "</svg></title><!-- &lt; &#60;script&#62;",
    "javascript:alert(1)",
    "nul \0 escape \x1b surrogate \ud800 last \uffff",
    "'); DROP TABLE annotations; --",
)
ELEMENTS = {"svg", "title", "desc", "style", "text", "rect", "line", "circle", "polyline"}


def parsed(svg: str) -> ET.Element:
    """The root of a plot, of which every element and attribute is one of the plot's own."""
    root = ET.fromstring(svg)
    for element in root.iter():
        assert element.tag.removeprefix(SVG) in ELEMENTS
        assert not [name for name in element.attrib if name.startswith("on") or "href" in name or name == "style"]
    assert root.get("role") == "img"
    return root


def texts(root: ET.Element, tag: str = "text") -> list[str]:
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}{tag}")]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "draw",
    [
        lambda text: plots.histogram(text, [0, 0.5, 1], [3, 4], x=text),
        lambda text: plots.bars(text, [(text, 3), ("cat", 1)]),
        lambda text: plots.bars(text, []),
        lambda text: plots.reliability(text, [(0.25, 0.5, 10)]),
    ],
)
def test_any_text_is_text(draw: Callable[[str], str], text: str) -> None:
    root = parsed(draw(text))
    assert texts(root, "title")[0] == re.sub("[\0\x1b\ud800\uffff]", "\ufffd", text)
    assert texts(root, "style") == [plots.STYLE]


def test_a_histogram_is_drawn_to_scale() -> None:
    root = parsed(plots.histogram("Scores", [0, 0.25, 0.5, 1], [10, 40, 20], x="score"))
    found = list(root.iter(f"{SVG}rect"))
    heights = [float(bar.get("height", 0)) for bar in found]
    assert heights == pytest.approx([heights[1] / 4, heights[1], heights[1] / 2], abs=0.1)
    widths = [float(bar.get("width", 0)) for bar in found]
    assert widths[2] == pytest.approx(2 * widths[0], abs=2)
    bottoms = {round(float(bar.get("y", 0)) + float(bar.get("height", 0))) for bar in found}
    assert bottoms == {plots.HEIGHT - plots.BOTTOM}
    assert texts(root, "title") == ["Scores", "0 to 0.25: 10", "0.25 to 0.5: 40", "0.5 to 1: 20"]
    assert {"0", "10", "20", "40", "0.25", "1", "score"} <= set(texts(root))
    assert texts(root, "desc") == ["70 values, most of them 0.25 to 0.5"]


def test_whole_numbers_are_named_as_such() -> None:
    ones = parsed(plots.histogram("Boxes", [0, 1, 2, 3], [5, 0, 1], x="boxes", whole=True, more=True))
    assert texts(ones, "title")[1:] == ["0: 5", "1: 0", "2 and more: 1"] and "2+" in texts(ones)
    tens = parsed(plots.histogram("Lengths", [0, 10, 20], [5, 1], x="characters", whole=True))
    assert texts(tens, "title")[1:] == ["0 to 9: 5", "10 to 19: 1"]
    with pytest.raises(ValueError, match="2 counts need 3 edges"):
        plots.histogram("Lengths", [0, 10], [5, 1], x="characters")


@pytest.mark.parametrize("most", [1, 2, 3, 7, 10, 11, 99, 100, 101, 4999, 123_456, 10**9])
def test_ticks_reach_the_highest_bar_in_whole_numbers(most: int) -> None:
    top, ticks = plots._ticks(most)
    assert top >= most and 2 <= len(ticks) <= 6 and all(float(tick).is_integer() for tick in ticks)
    assert top < 2 * most + 1 and ticks[0] == 0 and ticks[-1] == top


def test_long_and_wide_labels_fit_beside_their_bars() -> None:
    names = ["w" * 500, "漢字" * 100, " ", "cat"]
    root = parsed(plots.bars("Labels", [(name, 1000) for name in names], others=1_234_567))
    said = texts(root)[1:]
    assert said[::2] == [f"{'w' * 21}…", f"{'漢字' * 5}…", "(empty)", "cat", "(others)"]
    assert said[-1] == "1,234,567 (100%)" and said[1] == "1,000 (0.081%)"
    for bar in root.iter(f"{SVG}rect"):
        assert plots.NAME < float(bar.get("x", 0)) < float(bar.get("x", 0)) + float(bar.get("width", 0)) < plots.WIDTH


def test_a_reliability_curve_is_on_its_diagonal_where_it_is_calibrated() -> None:
    root = parsed(plots.reliability("Calibration", [(0.1, 0.1, 5), (0.5, 0.5, 20), (0.9, 0.4, 5), (0.3, 0.3, 0)]))
    [line] = [line for line in root.iter(f"{SVG}line") if line.get("stroke-dasharray")]
    x1, y1, x2, y2 = (float(line.get(name, 0)) for name in ("x1", "y1", "x2", "y2"))
    dots = [(float(dot.get("cx", 0)), float(dot.get("cy", 0))) for dot in root.iter(f"{SVG}circle")]
    assert len(dots) == 3
    on_line = [y1 + (x - x1) / (x2 - x1) * (y2 - y1) for x, _ in dots]
    assert [y for _, y in dots][:2] == pytest.approx(on_line[:2], abs=0.2)
    assert dots[2][1] > on_line[2] + 50  # too confident: below the line


@pytest.fixture(scope="module")
def tables(demo_run: DemoRun) -> Tables:
    return open_tables(str(demo_run.output))


def test_figures_of_a_run(tables: Tables, demo_run: DemoRun) -> None:
    found = Figures(tables)
    tasks = found.tasks()
    assert sorted(task.task for task in tasks) == sorted(TASKS)
    assert {(task.records, task.errors) for task in tasks} == {(SCENES + 1, 1)}
    assert sum(task.ok for task in tasks) == demo_run.summary["ok"]
    assert all(0 < (task.score or 0) <= 1 for task in tasks)
    assert sum(found.scores().counts) == SCENES * 4
    [(boxes,)] = tables.connection.execute("SELECT sum(len(boxes)) FROM annotations").fetchall()
    labels = found.labels(top=2)
    assert sum(count for _, count in labels.counts) + labels.others == boxes == sum(found.box_sizes().counts)
    assert sum(found.box_counts().counts) == SCENES
    assert found.error_kinds().counts == [("missing", 4)]
    assert sum(found.text_lengths().counts) >= SCENES * 3


def test_figures_of_a_part(tables: Tables) -> None:
    part = Figures(tables, "task = ? AND score >= ?", ["ocr", 0.0])
    assert [task.task for task in part.tasks()] == ["ocr"]
    assert sum(part.scores().counts) == SCENES
    assert part.labels().counts == [] and sum(part.box_sizes().counts) == 0 and part.error_kinds().counts == []
    assert set(drawn(part)) == {"scores", "text-lengths"}
    nothing = Figures(tables, "false")
    assert nothing.tasks() == [] and drawn(nothing) == {}
    with pytest.raises(UsageError, match=r"^query: .*no_column"):
        Figures(tables, "no_column = 1").scores()


def test_a_long_tail_of_lengths_is_one_bar(tables: Tables) -> None:
    connection = tables.connection.cursor()
    connection.execute(
        "CREATE OR REPLACE TABLE long_annotations AS SELECT 'ocr' AS kind, NULL::STRUCT(label VARCHAR)[] AS boxes, "
        "repeat('a', CASE WHEN i = 7 THEN 100000 ELSE i % 50 END::INT) AS text FROM range(5000) AS r(i)"
    )
    long = Tables(tables.output, tables.store, connection, tables.schema, None, True, "long_")
    found = Figures(long).text_lengths()
    assert found.more and sum(found.counts) == 5000 and found.edges[-1] <= 60 and len(found.counts) <= 20


def test_plots_of_a_run_are_well_formed(tables: Tables) -> None:
    for svg in drawn(Figures(tables)).values():
        parsed(svg)
