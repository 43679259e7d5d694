"""The report: one file that loads nothing, with pictures and boxes in place, in which hostile texts are texts."""

import base64
import html.parser
import io
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_run import SCENES, TASKS, DemoRun
from PIL import Image
from results.made import Job
from view.test_plots import HOSTILE

from paliscribe.cli.report_file import report as command
from paliscribe.errors import UsageError
from paliscribe.grammar.masks import decode_rle, encode_rle
from paliscribe.published import open_tables
from paliscribe.records import Box, Mask, Record
from paliscribe.storage import open_store
from paliscribe.view.embedded import Picture, colouring, drawn, sampled_mask
from paliscribe.view.report import report
from paliscribe.view.samples import Samples

TAGS = """html head meta title style body h1 h2 h3 p div b bdi span table thead tbody tr th td figure figcaption
    svg desc rect line text image path circle polyline"""


class Parsed(html.parser.HTMLParser):
    """A page's tags, attributes and text, read as a browser does."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def check_inert(self) -> None:
        """Nothing but the report's own elements, which load and run nothing."""
        assert set(self.tags) <= set(TAGS.split())
        for tag, name, value in self.attributes:
            assert not name.startswith("on") and name not in ("style", "src", "action", "formaction", "xlink:href")
            assert name != "href" or (tag == "image" and value.startswith("data:image/jpeg;base64,"))


def made(output: Path | str, **settings: Any) -> str:
    return "".join(report(open_tables(str(output)), **{"samples": 24, "seed": 0} | settings))


@pytest.fixture(scope="module")
def page(demo_run: DemoRun) -> str:
    return made(demo_run.output)


def test_a_run_in_one_file(page: str, demo_run: DemoRun) -> None:
    found = Parsed(page)
    found.check_inert()
    text = " ".join(found.texts)
    for words in (*TASKS, "demo", "float32", "missing", "A sample", "The lowest scores", "Dead letters"):
        assert words in text
    assert re.search("answer en (how|is|what|are)", text)  # the prompt of a row
    assert "24 rows, chosen by seed 0" in text and str((SCENES + 1) * 4) in found.texts
    assert found.tags["figure"] == found.tags["image"] + page.count('class="gone"') == 24 + 12 + 3
    assert "https://" not in page and page.count("http://") == page.count('xmlns="http://www.w3.org/2000/svg"')
    assert len(page) < 39 * 70_000
    [policy] = [value for tag, name, value in found.attributes if tag == "meta" and "default-src" in value]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-") and "unsafe" not in policy


def test_thumbnails_are_the_images_and_boxes_lie_over_them(page: str, demo_run: DemoRun) -> None:
    tables = open_tables(str(demo_run.output))
    samples = Samples(tables, 0)
    [*groups] = samples.rows(samples.ids(24, len(TASKS)))
    card = next(group for group in groups if any(record["boxes"] for record in group))
    box = next(record["boxes"][0] for record in card if record["boxes"])
    width, height, name = card[0]["width"], card[0]["height"], card[0]["id"]
    figure = next(each for each in page.split("<figure>") if f"<bdi>{name}</bdi>" in each)
    view = re.search(r'viewBox="0 0 (\d+) (\d+)"', figure)
    data = re.search(r'href="data:image/jpeg;base64,([^"]+)"', figure)
    rect = re.search(r'class="box c\d" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', figure)
    assert view and data and rect
    x_scale, y_scale = int(view[1]) / width, int(view[2]) / height
    left, top, across, down = map(float, rect.groups())
    assert (left / x_scale, top / y_scale) == pytest.approx((box["x_min"], box["y_min"]), abs=0.5)
    right, bottom = (left + across) / x_scale, (top + down) / y_scale
    assert (right, bottom) == pytest.approx((box["x_max"], box["y_max"]), abs=0.5)
    thumbnail = Image.open(io.BytesIO(base64.b64decode(data[1])))
    assert thumbnail.size == (int(view[1]), int(view[2])) and max(thumbnail.size) <= 360
    original = Image.open(card[0]["image"]).convert("RGB").resize(thumbnail.size, Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(thumbnail, int) - np.asarray(original, int)).mean() < 8


def test_a_sample_follows_from_its_seed(demo_run: DemoRun) -> None:
    tables = open_tables(str(demo_run.output))
    first = Samples(tables, 1).ids(10, len(TASKS))
    assert first == Samples(tables, 1).ids(10, len(TASKS)) and len(set(first)) == 10
    assert Samples(tables, 2).ids(10, len(TASKS)) != first
    assert Samples(tables, 1).ids(5, len(TASKS)) == first[:5]
    assert len(Samples(tables, 1).ids(100, len(TASKS))) == SCENES + 1


class HostileJob(Job):
    """A run in which every text is markup."""

    def shard(self, shard: int, failing: Any = lambda row, task: row == 6) -> list[Record]:
        return [self.hostile(record) for record in super().shard(shard, failing)]

    @staticmethod
    def hostile(record: Record) -> Record:
        text = HOSTILE[record.row % len(HOSTILE)].replace("\ud800", "")
        box = Box(text, 10.0, 20.0, 300.0, 400.0, 0.5)
        is_error = record.status == "error"
        return replace(
            record,
            id=f"{text} {record.row}",
            image=f"/nowhere/{text}.png",
            prompt=text,
            text=None if is_error else text,
            boxes=() if is_error else (box,),
            masks=() if is_error else (Mask(text, box, tuple(range(16)), 480, 640, (1000, 480 * 640 - 1000)),),
            error_message=text,
            width=None if is_error else 640,
            height=None if is_error else 480,
        )


def test_hostile_texts_are_inert(tmp_path: Path) -> None:
    job = HostileJob([{}] * 7, tasks=(HOSTILE[0], HOSTILE[1]))
    output = tmp_path / "<img src=x onerror=alert(1)>"
    store = open_store(str(output))
    job.annotate(store, lambda row, task: row == 6)
    job.publish(store)
    store.put(
        "_evaluation/latest.json", json.dumps({HOSTILE[0]: {HOSTILE[1]: HOSTILE[2]}, "list": [HOSTILE[3]]}).encode()
    )
    found = Parsed(made(output))
    found.check_inert()
    text = " ".join(found.texts)
    for words in HOSTILE[:5]:
        assert words in text
    assert (
        found.tags["figure"] and not found.tags["image"] and "cannot be shown: no such file" in text.replace("\n", " ")
    )


def test_an_image_that_is_gone_is_a_grey_place_and_a_changed_one_is_marked(demo_run: DemoRun) -> None:
    tables = open_tables(str(demo_run.output))
    rows = tables.connection.sql("SELECT DISTINCT id, image FROM annotations ORDER BY id").fetchall()
    images = {name: Path(image) for name, image in rows}
    first, second = list(images.values())[:2]
    kept = first.read_bytes(), second.read_bytes()
    try:
        first.unlink()
        Image.new("RGB", (50, 40), "red").save(second)
        page = made(demo_run.output)
    finally:
        first.write_bytes(kept[0])
        second.write_bytes(kept[1])
    assert "the image cannot be shown: no such file" in page
    assert "its bytes have changed" in page


def test_the_evaluation_is_shown(demo_run: DemoRun, tmp_path: Path) -> None:
    shutil.copytree(demo_run.output, tmp_path / "output")
    file = tmp_path / "output/_evaluation/latest.json"
    file.parent.mkdir()
    curve = [{"score": 0.25, "right": 0.5, "n": 3}, {"score": 0.75, "right": 0.7, "n": 5}]
    task = {"task": "ocr", "of": "text", "figures": {"exact": {"value": 0.7512345, "low": 0.7, "high": 0.8}}}
    figures = {
        "tasks": [task | {"calibration": {"n": 1234, "curve": curve}}],
        "pair": [0.1, 2],
        "empty": [],
        "against": None,
    }
    file.write_text(json.dumps(figures))
    found = Parsed(made(tmp_path / "output", samples=0))
    found.check_inert()
    name = "tasks › ocr, text › figures › exact"
    assert {"Evaluation", name, "0.7512 (0.7 to 0.8)", "0.1, 2", "1,234"} <= set(found.texts)
    assert "against" not in found.texts
    assert "tasks › ocr, text › calibration › curve" in found.texts and found.tags["circle"] == 2
    for body in ("{", "[" * 100_000):
        file.write_text(body)
        assert "is not JSON" in made(tmp_path / "output", samples=0)


@pytest.mark.parametrize("shape", [(9, 7), (480, 640), (1, 50), (333, 1000)])
def test_masks_are_sampled_from_their_run_lengths(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    mask = rng.random(shape) < 0.4
    counts = encode_rle(mask)
    down, across = min(40, shape[0]), min(60, shape[1])
    found = sampled_mask(counts, *shape, down, across)
    rows, columns = ((2 * np.arange(n) + 1) * side // (2 * n) for n, side in zip((down, across), shape, strict=True))
    assert found is not None and (found == decode_rle(counts, *shape)[np.ix_(rows, columns)]).all()
    assert sampled_mask([*counts, 1], *shape, down, across) is None


def test_a_mask_of_a_huge_image_takes_little() -> None:
    side = 50_000
    mask = {"label": "cat", "rle": [side * side // 2, side * side // 2], "height": side, "width": side}
    record = {"width": side, "height": side, "masks": [mask], "boxes": None}
    svg = drawn(Picture(None, 360, 360), [record], colouring(["cat"]))
    path = re.search(r'<path class="mask c0" transform="scale\(2.0000 2.0000\)" d="M90 0h90v1h-90zM90 1h90', svg)
    assert path, svg[:300]


def test_the_command(demo_run: DemoRun, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "r.html"
    target.write_text("before")
    command(str(demo_run.output), str(target), samples=3, seed=5)
    assert "r.html: " in capsys.readouterr().out and Parsed(target.read_text()).tags["figure"] == 3 + 3 + 3
    assert list(tmp_path.iterdir()) == [target]
    command(str(demo_run.output), f"s3://{bucket}/reports/r.html", samples=3, seed=5, quiet=True)
    assert open_store(f"s3://{bucket}/reports").get("r.html") == target.read_bytes()
    call = [
        sys.executable,
        "-m",
        "paliscribe",
        "report",
        str(demo_run.output),
        "-o",
        "-",
        "--samples",
        "3",
        "--seed",
        "5",
    ]
    assert subprocess.run(call, capture_output=True, check=True).stdout == target.read_bytes()


@pytest.mark.parametrize(
    ("output", "to", "words"),
    [
        ("", "r.html", "nothing is published"),
        ("run", "", "a folder where a file"),
        ("run", "absent/r.html", "no folder"),
        ("run", "http://127.0.0.1:9/r.html", "--output"),
    ],
)
def test_refusals(demo_run: DemoRun, tmp_path: Path, output: str, to: str, words: str) -> None:
    run = demo_run.output if output else tmp_path
    with pytest.raises(UsageError, match=words) as found:
        command(str(run), to if "://" in to else str(tmp_path / to))
    assert "\n" not in str(found.value) and len(str(found.value)) < 400
    assert not list(tmp_path.iterdir())
