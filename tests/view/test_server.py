"""The server of the page, without a browser: filters, orders, pictures, marks, and who may call it."""

import io
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from demo_run import SCENES, TASKS, DemoRun
from PIL import Image
from view.conftest import TOKEN, Viewed, viewed

from paliscribe.evaluation import Options, evaluate
from paliscribe.export import Filters, export
from paliscribe.published import mark_of
from paliscribe.results import read_summary
from paliscribe.storage import open_store
from paliscribe.view.example import RECORDS, write_example
from paliscribe.view.items import Filter, Items

HOSTILE = "<img src=x onerror=alert(1)>\"'; DROP TABLE marked; --"


def items(view: Viewed, **filters: Any) -> list[dict[str, Any]]:
    reply = view.client.get("/api/items", params={"limit": 200, **filters})
    assert reply.status_code == 200, reply.text
    return list(reply.json()["items"])


def counts(view: Viewed, **filters: Any) -> dict[str, Any]:
    return dict(view.client.get("/api/counts", params=filters).json())


def test_all_items_and_their_counts(demo_view: Viewed) -> None:
    found = items(demo_view)
    assert len(found) == counts(demo_view)["total"] == 4 * (SCENES + 1)
    assert [(one["row"], one["task"]) for one in found] == sorted((one["row"], one["task"]) for one in found)
    assert counts(demo_view)["error_kind"] == {"missing": 4} and len(counts(demo_view)["plots"]) == 5


@pytest.mark.parametrize(
    ("filters", "holds"),
    [
        ({"task": "ocr"}, lambda one: one["task"] == "ocr"),
        ({"kind": "detect"}, lambda one: one["kind"] == "detect"),
        ({"status": "error"}, lambda one: one["status"] == "error"),
        ({"error_kind": "missing"}, lambda one: one["error_kind"] == "missing"),
        ({"least": "0.9"}, lambda one: one["score"] is not None and one["score"] >= 0.9),
        ({"most": "0.9"}, lambda one: one["score"] is not None and one["score"] <= 0.9),
        ({"text": "PURPLE"}, lambda one: "purple" in (one["text"] or "").lower()),
        ({"text": "scene-00003"}, lambda one: one["id"] == "scene-00003"),
        ({"column": "objects", "value": "star"}, lambda one: one["id"] == "gone"),
    ],
)
def test_filters(demo_view: Viewed, filters: dict[str, str], holds: Any) -> None:
    everything = items(demo_view)
    found = items(demo_view, **filters)
    expected = [one for one in everything if holds(one)]
    if "column" in filters:
        expected = [one for one in found if True]
        assert {one["id"] for one in found} >= {"gone"} and len(found) < len(everything)
    assert found == expected and found
    assert counts(demo_view, **filters)["total"] == len(found)


def test_labels_and_orders(demo_view: Viewed) -> None:
    label = next(iter(counts(demo_view)["label"]))
    found = items(demo_view, label=label)
    assert found and all(label in {box["label"] for box in one["boxes"]} for one in found)
    assert counts(demo_view, label=label)["label"][label] == sum(
        box["label"] == label for one in found for box in one["boxes"]
    )
    scores = [one["score"] for one in items(demo_view, sort="score") if one["score"] is not None]
    assert scores == sorted(scores)
    numbers = [len(one["boxes"] or ()) for one in items(demo_view, sort="boxes", status="ok")]
    assert numbers == sorted(numbers, reverse=True) and numbers[0] > 0
    whole = items(demo_view, sort="score")
    assert items(demo_view, sort="score", limit=7, offset=3) == whole[3:10]


def test_the_short_columns_in_memory_are_those_of_the_files(demo_view: Viewed, demo_run: DemoRun) -> None:
    from paliscribe.published import open_tables

    unkept = Items(open_tables(str(demo_run.output)))
    for chosen in (Filter(), Filter(label="star"), Filter(text="a"), Filter(kind="detect", least=0.5)):
        given = {name: getattr(chosen, name) for name in ("label", "text", "kind", "least") if getattr(chosen, name)}
        expected = counts(demo_view, **given)
        assert unkept.counts(chosen) == {name: expected[name] for name in expected if name != "plots"}


def test_disagreement(demo_run: DemoRun, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(demo_run.output, changed)
    [path] = (changed / "annotations" / "task-ocr").glob("*.parquet")
    table = pq.read_table(path)
    texts = table["text"].to_pylist()
    place = next(number for number, text in enumerate(texts) if text)
    texts[place] = texts[place] + "XYZ"
    at = table.schema.get_field_index("text")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(texts)), path)
    with viewed(str(demo_run.output), str(changed)) as view:
        first, *others = items(view, sort="disagreement")
        assert (first["id"], first["task"]) == (table["id"][place].as_py(), "ocr") and first["disagreement"] > 0
        assert {one["disagreement"] for one in others} == {0}
        [row] = [one for one in view.client.get(f"/api/row/{first['row']}").json()["items"] if one["task"] == "ocr"]
        assert row["other"]["text"] == texts[place]


def test_pictures_by_the_number_of_their_row_only(demo_view: Viewed, demo_run: DemoRun) -> None:
    reply = demo_view.client.get("/picture/1?size=large")
    assert reply.headers["content-type"] == "image/jpeg" and reply.headers["x-content-type-options"] == "nosniff"
    with Image.open(demo_run.collection / "images" / "scene-00001.png") as original:
        assert Image.open(io.BytesIO(reply.content)).size == original.size
    gone = next(one["row"] for one in items(demo_view, status="error"))
    for path in (f"/picture/{gone}", "/picture/999999", f"/picture/{2**70}", "/picture/1?size=9999"):
        assert demo_view.client.get(path).status_code == 404
    for path in (
        "/picture/..%2f..%2fetc%2fpasswd",
        "/picture//etc/passwd",
        "/api/row/-1",
        "/picture/1/../../etc/passwd",
    ):
        assert demo_view.client.get(path).status_code in (404, 405)


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({}, ""),
        ({}, "?token=wrong"),
        ({"Host": "evil.example"}, f"?token={TOKEN}"),
        ({"Host": "localhost.evil.example"}, f"?token={TOKEN}"),
    ],
)
def test_who_may_not_look(demo_view: Viewed, headers: dict[str, str], query: str) -> None:
    for path in ("/", "/api/items", "/api/run", "/picture/1", "/nothing"):
        reply = httpx.get(f"{demo_view.address}{path}{query}", headers=headers, trust_env=False)
        assert reply.status_code == 403 and "paliscribe view" in reply.text and not reply.cookies


def test_marks(demo_view: Viewed) -> None:
    one = items(demo_view, task="ocr", status="ok")[2]
    body = {"row": one["row"], "task": "ocr", "verdict": "fix", "text": "right"}
    reply = demo_view.client.put("/api/mark", json=body, headers={"Origin": "https://evil.example"})
    assert reply.status_code == 403 and not items(demo_view, verdict="fix")
    assert demo_view.client.put("/api/mark", json=body, headers={"Origin": demo_view.address}).status_code == 200
    store = open_store(str(demo_view.output))
    assert (mark := mark_of(store, one["id"], "ocr")) and (mark.verdict, mark.text) == ("fix", "right")
    assert [each["id"] for each in items(demo_view, verdict="fix")] == [one["id"]]
    assert counts(demo_view)["verdict"] == {"fix": 1}
    with viewed(str(demo_view.output)) as again:
        assert [each["verdict"] for each in items(again, verdict="fix")] == ["fix"]
    assert demo_view.client.put("/api/mark", json=body | {"verdict": None}).status_code == 200
    assert mark_of(store, one["id"], "ocr") is None and not items(demo_view, verdict="fix")
    wrong: list[Any] = [{}, [], {**body, "verdict": "burn"}, {**body, "row": "1"}, {**body, "text": 3}]
    for bad in wrong:
        assert demo_view.client.put("/api/mark", json=bad).status_code == 400
    assert demo_view.client.put("/api/mark", json=body | {"task": "none"}).status_code == 404
    assert demo_view.client.put("/api/mark", content=b"x" * 10**6).status_code == 400


def test_corrected_boxes(demo_run: DemoRun, tmp_path: Path) -> None:
    shutil.copytree(demo_run.output, tmp_path / "run")
    store, label = open_store(str(tmp_path / "run")), "<b>é'"
    with viewed(str(tmp_path / "run")) as view:
        one = items(view, kind="detect", sort="boxes")[0]
        width = one["width"]
        drawn = {"label": f" {label} ", "x_min": 0, "y_min": 1.234, "x_max": width, "y_max": 20.5}
        body = {"row": one["row"], "task": one["task"], "verdict": "fix"}
        for boxes in ([], [drawn, {"of": 0}]):
            reply = view.client.put("/api/mark", json=body | {"boxes": boxes})
            assert reply.status_code == 200, reply.text
        right = drawn | {"label": label, "y_min": 1.23, "score": None}
        mark = mark_of(store, one["id"], one["task"])
        assert mark and mark.boxes and mark.boxes[1] == right
        [published] = [
            found["boxes"][0]
            for path in (tmp_path / "run/annotations").rglob("*.parquet")
            for found in pq.read_table(path, partitioning=None).to_pylist()
            if (found["id"], found["task"]) == (one["id"], one["task"])
        ]
        assert mark.boxes[0] == published, "it is not rounded"
        wrong: list[Any] = [
            3, {}, [3], [{}], [{"of": 99}], [{"of": -1}], [{"of": True}], [{"of": 0}, {"of": 0}], [drawn] * 1001,
            *([drawn | {"label": label}] for label in ("", " ", None, 3, "a\nb", "x" * 201)),
            *([drawn | {"x_min": x}] for x in (-1, width, width + 1, 10**400, "1", None, True)),
        ]  # fmt: skip
        for bad in wrong:
            reply = view.client.put("/api/mark", json=body | {"boxes": bad})
            assert reply.status_code == 400 and "\n" not in reply.json()["error"], bad
        for words in (
            '"boxes": [{"label": "a", "x_min": NaN}]',
            '"text": "\\ud800"',
            '"boxes": [{"label": "\\ud800"}]',
        ):
            content = json.dumps(body)[:-1] + f", {words}}}"
            assert view.client.put("/api/mark", content=content).status_code == 400
        assert view.client.put("/api/mark", json=body | {"verdict": "accept", "boxes": []}).status_code == 400
        assert view.client.put("/api/mark", json=body | {"task": "ocr", "boxes": []}).status_code == 400
    with viewed(str(tmp_path / "run")) as again:
        [found] = items(again, verdict="fix")
        assert [box["of"] for box in found["right_boxes"]] == [0, None]
        assert found["right_boxes"][1] == right | {"of": None} and found["boxes"] == one["boxes"]
        rows = again.client.get(f"/api/row/{one['row']}").json()["items"]
        assert [each["right_boxes"] for each in rows if each["task"] == one["task"]] == [found["right_boxes"]]
    evaluated = evaluate(str(tmp_path / "run"), Options("review"))["tasks"]
    assert [task["rows"]["evaluated"] for task in evaluated if task["kind"] == "detect"] == [1]
    export(str(tmp_path / "run"), "jsonl", str(tmp_path / "to"), Filters(reviewed=True))
    [line] = (tmp_path / "to/annotations.jsonl").read_text().splitlines()
    assert [box["label"] for box in json.loads(line)["boxes"]] == [published["label"], label]
    assert json.loads(line)["boxes"][1] == pytest.approx(right, abs=1e-4)


@pytest.mark.parametrize("name", [*Filter.__dataclass_fields__, "sort", "offset", "limit"])
def test_no_value_of_a_browser_is_sql(demo_view: Viewed, name: str) -> None:
    reply = demo_view.client.get("/api/items", params={name: HOSTILE})
    assert reply.status_code in (200, 400) and len(reply.text) < 60_000
    assert counts(demo_view)["total"] == 4 * (SCENES + 1)
    if name == "column":
        assert reply.json() == {"error": "unknown column"}


def test_from_object_storage(demo_run: DemoRun, bucket: str, demo_view: Viewed) -> None:
    store = open_store(f"s3://{bucket}/a run")
    for path in filter(Path.is_file, demo_run.output.rglob("*")):
        store.put(path.relative_to(demo_run.output).as_posix(), path.read_bytes())
    with viewed(f"s3://{bucket}/a run") as view:
        assert items(view, kind="detect") == items(demo_view, kind="detect")
        assert view.client.get("/picture/1").content == demo_view.client.get("/picture/1").content
        body = {"row": 1, "task": "ocr", "verdict": "accept"}
        assert view.client.put("/api/mark", json=body).status_code == 200
        assert mark_of(store, "scene-00001", "ocr") is not None


def test_the_example_is_what_the_demo_model_answers(demo_run: DemoRun, tmp_path: Path) -> None:
    """If the demo model has changed, write its run over these scenes to view/example.parquet anew."""
    recorded = {(one["id"], one["task"]): one for one in pq.read_table(RECORDS).to_pylist()}
    with viewed(write_example(tmp_path)) as view:
        shown = items(view)
        assert len(shown) == len(recorded) == (SCENES + 1) * len(TASKS)
        assert view.client.get("/picture/3").status_code == 200
    with viewed(str(demo_run.output)) as view:
        now = {(one["id"], one["task"]): one["text"] for one in items(view)}
    same = [recorded[key]["text"] == text for key, text in now.items()]
    assert now.keys() == recorded.keys() and sum(same) >= 0.9 * len(same)


def test_a_run_in_object_storage(demo_run: DemoRun, demo_view: Viewed, bucket: str) -> None:
    store = open_store(f"s3://{bucket}/a run")
    for path in filter(Path.is_file, demo_run.output.rglob("*")):
        store.put(path.relative_to(demo_run.output).as_posix(), path.read_bytes())
    with viewed(f"s3://{bucket}/a run") as view:
        assert items(view, sort="score") == items(demo_view, sort="score")
        assert counts(view, kind="detect") == counts(demo_view, kind="detect")
        assert view.client.get("/picture/3").status_code == 200
        one = items(view, task="ocr")[0]
        body = {"row": one["row"], "task": "ocr", "verdict": "reject"}
        assert view.client.put("/api/mark", json=body, headers={"Origin": view.address}).status_code == 200
        assert (mark := mark_of(store, one["id"], "ocr")) and mark.verdict == "reject"


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_the_command(number: int) -> None:
    command = [sys.executable, "-m", "paliscribe", "view", "--example", "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    place, _, token = address.partition("/?token=")
    assert httpx.get(address, trust_env=False).status_code == 200
    assert httpx.get(f"{place}/api/run", trust_env=False).status_code == 403
    assert "An example" in httpx.get(f"{place}/api/run?token={token}", trust_env=False).json()["note"]
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and not out and "Traceback" not in err


def test_refusals(tmp_path: Path) -> None:
    for arguments in (["view"], ["view", str(tmp_path)], ["view", str(tmp_path), "--example"]):
        done = subprocess.run([sys.executable, "-m", "paliscribe", *arguments], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("paliscribe: ") and done.stderr.count("\n") == 1


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    from results.made import Job

    job, store = Job([{}] * 3, tasks=("detect <script>alert(1)</script>",)), open_store(str(tmp_path))
    job.annotate(store)
    job.publish(store)
    assert read_summary(store) is not None
    with viewed(str(tmp_path)) as view:
        page = view.client.get("/")
        assert "<script>alert" not in page.text and "'unsafe" not in page.headers["content-security-policy"]
        assert items(view)[0]["task"] == "detect <script>alert(1)</script>"
        reply = view.client.get("/api/items")
        assert (
            reply.headers["content-type"] == "application/json" and reply.headers["x-content-type-options"] == "nosniff"
        )
        assert json.loads(reply.text)["items"]


def test_opening_a_run_imports_nothing_heavy(demo_run: DemoRun) -> None:
    """Each array of pyarrow that is made from Python objects imports pandas, which takes half a second."""
    code = (
        "import sys; from paliscribe.cli import drawing; from paliscribe.view.server import open_view\n"
        "view = open_view(sys.argv[1], None, ''); view.items.keep()\n"
        "print({'pandas', 'IPython', 'torch', 'ray', 'pyarrow.dataset'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(demo_run.output)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
