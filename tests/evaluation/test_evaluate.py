"""The whole evaluation of a run: the demo's, and small ones with odd truth."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_run import SCENES, DemoRun
from results.made import Job

from bench.made_run import make
from paliscribe.cli import main as cli
from paliscribe.errors import UsageError
from paliscribe.evaluation import Options, evaluate, joined, read_evaluation, read_maps
from paliscribe.evaluation.truth import choose
from paliscribe.grammar.masks import encode_rle
from paliscribe.published import Mark, put_mark
from paliscribe.records import Box, Mask, Record
from paliscribe.storage import open_store

CAPTIONS = "caption en"


@pytest.fixture(scope="module")
def run(demo_run: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A copy of the demo's run that can be written to."""
    place = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(demo_run.output, place)
    return str(place)


@pytest.fixture
def truth_of(tmp_path: Path) -> Callable[..., str]:
    """Writes rows as a truth file; returns its address."""

    def write(*rows: Any, name: str = "truth.jsonl") -> str:
        place = tmp_path / name
        texts = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        place.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        return str(place)

    return write


def made(folder: Path, rows: int = 6) -> str:
    """A run without a model: `text N é` under each row, every third answer invalid, row 4 a dead letter."""
    job, store = Job([{} for _ in range(rows)]), open_store(str(folder))
    job.annotate(store, lambda row, task: row == 4)
    job.publish(store)
    return str(folder)


def by_kind(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in found["tasks"]}


def value(task: dict[str, Any], name: str) -> float:
    return float(task["figures"][name]["value"])  # of six digits


def test_the_demo_against_its_truth(run: str, demo_run: DemoRun) -> None:
    found = evaluate(run, Options(str(demo_run.collection / "truth.jsonl"), fit=True))
    tasks = by_kind(found)
    assert {kind: each["column"] for kind, each in tasks.items()} == {
        kind: kind for kind in ("answer", "caption", "ocr", "detect")
    }
    for each in tasks.values():
        assert each["rows"]["evaluated"] == SCENES
        assert each["rows"]["without_truth"] == 1, "the row whose image is missing has none"
        for figure in each["figures"].values():
            assert figure["value"] is None or figure["low"] <= figure["value"] <= figure["high"]
    assert value(tasks["answer"], "vqa_accuracy") > 0.8
    assert value(tasks["caption"], "cider") > 5
    assert value(tasks["ocr"], "cer") < 0.3
    assert 0.5 < value(tasks["detect"], "AP") < value(tasks["detect"], "AP50")
    assert tasks["detect"]["calibration"]["level"] == "box"
    store = open_store(run)
    assert read_evaluation(store) == json.loads(json.dumps(found))
    maps = read_maps(store)
    assert set(maps) == {(each["task"], each["kind"]) for each in found["tasks"]}
    assert 0 <= maps[CAPTIONS, "caption"]([0.3])[0] <= 1


@pytest.mark.parametrize(("limit", "most"), [("PART_ROWS", 5), ("PART_BYTES", 500)])
def test_parts_change_nothing(
    limit: str, most: int, run: str, demo_run: DemoRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(str(demo_run.collection / "truth.jsonl"))
    whole = by_kind(evaluate(run, options))
    monkeypatch.setattr(joined, limit, most)
    for kind, each in by_kind(evaluate(run, options)).items():
        assert each["rows"] == whole[kind]["rows"] and each["calibration"] == whole[kind]["calibration"]
        values, before = ({name: it["value"] for name, it in x["figures"].items()} for x in (each, whole[kind]))
        # Boxes of equal scores are in another order, on which AP depends.
        assert values == pytest.approx(before, abs=0.01 if kind == "detect" else 1e-6)


def test_large_truth_needs_no_more_memory(tmp_path: Path, truth_of: Callable[..., str]) -> None:
    """Fails if rows are grouped or joined without regard to their size."""
    make(open_store(str(tmp_path / "run")), rows := 3000)
    truth = truth_of(*({"id": f"id-{row}", "ocr": "much text " * 2000} for row in range(rows)))
    [task] = evaluate(str(tmp_path / "run"), Options(truth, memory=64))["tasks"]
    assert task["rows"]["evaluated"] == rows and value(task, "cer") > 0.99


def test_too_little_memory_is_one_line(run: str, demo_run: DemoRun) -> None:
    with pytest.raises(UsageError, match=r"evaluate: Out of Memory Error: .*; `--memory 4000` gives it more"):
        evaluate(run, Options(str(demo_run.collection / "truth.jsonl"), memory=2))


def test_no_room_for_temporary_files_is_one_line(run: str, demo_run: DemoRun) -> None:
    limited = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)); from paliscribe.cli.main import main;"
        "main()"
    )
    words = ["evaluate", run, "--truth", str(demo_run.collection / "truth.jsonl"), "--quiet"]
    done = subprocess.run([sys.executable, "-c", limited, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "file too large; set TMPDIR to a folder with more room" in done.stderr


def test_dead_letters_and_invalid_answers_count_as_wrong(tmp_path: Path, truth_of: Callable[..., str]) -> None:
    truth = truth_of(*({"id": f"id-{row}", "caption": "" if row == 4 else f"text {row} e\u0301"} for row in range(6)))
    [task] = evaluate(made(tmp_path / "run"), Options(truth))["tasks"]
    assert task["rows"]["evaluated"] == 6
    assert (task["rows"]["ok"], task["rows"]["invalid"], task["rows"]["errors"]) == (3, 2, 1)
    assert value(task, "exact") == pytest.approx(3 / 6), (
        "in another Unicode form; nothing said by a dead letter is no answer"
    )
    assert value(task, "invalid_rate") == pytest.approx(2 / 6, abs=1e-6)
    assert value(task, "error_rate") == pytest.approx(1 / 6, abs=1e-6)


def test_rows_on_one_side_and_ids_that_repeat(tmp_path: Path, truth_of: Callable[..., str]) -> None:
    truth = truth_of(
        {"id": "id-0", "caption": "wrong"},
        {"id": "id-0", "caption": ["text 0 é", "another"]},
        {"id": "id-1", "caption": None},
        '{"id": "id-3", "caption": NaN}',
        {"id": "elsewhere", "caption": "x"},
        {"caption": "no id"},
        {"id": "id-2", "caption": {"bytes": 1}},
    )
    found = evaluate(made(tmp_path / "run"), Options(truth))
    [task] = found["tasks"]
    assert task["rows"] == {
        "evaluated": 1,
        "ok": 1,
        "invalid": 0,
        "errors": 0,
        "without_truth": 4,
        "without_record": 1,
        "repeated_ids": 1,
        "unreadable": 1,
    }
    assert value(task, "exact") == 1, "each of several true answers counts"
    assert "1 rows of the truth have no id" in found["notes"]
    assert "id-2" in task["notes"][0]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("t.csv", 'id,answers,suffix\nid-0,"[""a"",""text 0 é""]",x\n'),
        ("t.tsv", "id\tanswer\nid-0\ttext 0 é\n"),
        ("t.jsonl", '{"id": "id-0", "answers": [{"answer": "text 0 é", "answer_id": 1}, {"answer": "b"}]}\n'),
        ("t.jsonl", '{"image": "id-0", "answer": "text 0 é"}\n'),
    ],
)
def test_spellings_of_true_answers(tmp_path: Path, name: str, body: str) -> None:
    (tmp_path / name).write_text(body, encoding="utf-8")
    [task] = evaluate(made(tmp_path / "run"), Options(str(tmp_path / name)))["tasks"]
    assert (task["kind"], value(task, "exact")) == ("answer", 1)


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([], {}, "no rows"),
        ([{"id": "id-0", "other": 1}], {}, "no column for .*columns: 'other'.*--column"),
        ([{"id": "id-0", "caption": "x"}], {"columns": {"caption": "cap"}}, "no column 'cap'.*'caption'"),
        ([{"id": "id-0", "caption": "x"}], {"columns": {"captions": "caption"}}, "is no task.*'caption en'"),
        ([{"key": "id-0", "caption": "x"}], {}, "no column 'id'.*--id-column"),
        ([{"id": "img-0", "caption": "x"}], {}, "no id is one of the run's: the run has 'id-0', the truth 'img-0'"),
        ([{"id": "id-0", "caption": None}], {}, "no row has a true answer"),
        ([{"id": "id-0", "caption": {"a": 1}}], {}, "cannot be read"),
    ],
)
def test_refusals_are_one_line(
    tmp_path: Path, truth_of: Callable[..., str], rows: list[Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        evaluate(made(tmp_path / "run"), Options(truth_of(*rows), **options))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400
    assert not (tmp_path / "run/_evaluation").exists()


def test_a_run_that_carries_its_truth(tmp_path: Path, truth_of: Callable[..., str]) -> None:
    run = made(tmp_path / "run")
    with pytest.raises(UsageError, match="run's own manifest has no column"):
        evaluate(run, Options())
    with pytest.raises(UsageError, match="not-there"):
        evaluate(run, Options(str(tmp_path / "not-there.jsonl")))
    with pytest.raises(UsageError, match="nothing is published"):
        evaluate(str(tmp_path), Options(truth_of({"id": "id-0", "caption": "x"})))


def test_columns_that_the_run_carries(run: str) -> None:
    [task] = evaluate(run, Options(columns={"ocr": "question"}))["tasks"]
    assert (task["kind"], task["column"], task["rows"]["evaluated"]) == ("ocr", "question", SCENES + 1)
    assert value(task, "error_rate") == pytest.approx(1 / (SCENES + 1), abs=1e-6)


@pytest.mark.parametrize(
    ("names", "task", "kind", "column"),
    [
        (["truth_boxes", "truth_captions"], "detect cat ; dog", "detect", "truth_boxes"),
        (["truth_boxes", "truth_captions"], "caption en", "caption", "truth_captions"),
        (["objects", "boxes"], "detect {objects}", "detect", "boxes"),  # what fills the prompt is not its truth
        (["prefix", "suffix"], "{prefix}", "free", "suffix"),
        (["Caption", "caption en", "text"], "caption en", "caption", "caption en"),
        (["Caption", "text"], "caption en", "caption", "Caption"),
    ],
)
def test_the_column_of_a_task(names: list[str], task: str, kind: str, column: str) -> None:
    assert choose(names, [(task, kind)], {}, "truth") == {task: column}


def test_marks_of_reviewers_as_truth(demo_run: DemoRun, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(demo_run.output, run)
    store = open_store(str(run))
    with pytest.raises(UsageError, match="no annotation has a review mark"):
        evaluate(str(run), Options("review"))
    put_mark(store, Mark("scene-00000", CAPTIONS, "accept"))
    put_mark(store, Mark("scene-00001", CAPTIONS, "fix", text="something else"))
    put_mark(store, Mark("scene-00002", CAPTIONS, "reject"))
    put_mark(store, Mark("scene-00003", "detect {objects}", "accept"))
    put_mark(store, Mark("scene-00004", "detect {objects}", "reject"))
    tasks = by_kind(evaluate(str(run), Options("review")))
    assert tasks["caption"]["rows"]["evaluated"] == 3
    assert value(tasks["caption"], "exact") == pytest.approx(1 / 3, abs=1e-6)
    assert tasks["detect"]["rows"]["evaluated"] == 1, "what is right instead is not known"


class Mixed(Job):
    """A run whose rows have prompts of two kinds."""

    def shard(self, shard: int, failing: Any = lambda row, task: False) -> list[Record]:
        kinds = ("caption", "detect")
        boxes = (Box("dog", 1, 1, 5, 5, 0.5),)
        records = (replace(each, status="ok", kind=kinds[each.row % 2]) for each in super().shard(shard, failing))
        return [replace(each, boxes=boxes, width=9, height=9) if each.row % 2 else each for each in records]


def test_marks_of_a_task_with_several_kinds(tmp_path: Path) -> None:
    job, store = Mixed([{} for _ in range(6)], tasks=("{prefix}",)), open_store(str(tmp_path / "run"))
    job.annotate(store)
    job.publish(store)
    put_mark(store, Mark("id-0", "{prefix}", "accept"))
    put_mark(store, Mark("id-1", "{prefix}", "accept"))
    put_mark(store, Mark("id-2", "{prefix}", "fix", text="another"))
    put_mark(store, Mark("gone", "{prefix}", "accept"))
    tasks = by_kind(evaluate(store.uri, Options("review")))
    assert tasks["caption"]["rows"]["evaluated"] == 2 and value(tasks["caption"], "exact") == 0.5
    assert tasks["detect"]["rows"]["evaluated"] == 1 and value(tasks["detect"], "AP") == 1


def test_two_runs(demo_run: DemoRun, run: str, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    other = tmp_path / "other"
    shutil.copytree(demo_run.output, other)
    [file] = (other / "annotations").glob("task-caption*/*.parquet")
    table = pq.read_table(file)
    texts = table["text"].to_pylist()
    changed = [f"{text} and more" if number < 9 else text for number, text in enumerate(texts)]
    pq.write_table(table.set_column(table.column_names.index("text"), table.schema.field("text"), [changed]), file)
    found = evaluate(run, Options(str(demo_run.collection / "truth.jsonl"), against=str(other)))
    tasks = by_kind(found)
    captions = tasks["caption"]["against"]
    assert (captions["rows"], captions["changed"]) == (SCENES, 9)
    assert captions["agreement"] == pytest.approx(15 / SCENES)
    assert captions["mcnemar"] == {
        "of": "exact_normalised",
        "better": 0,
        "worse": 9,
        "p": pytest.approx(2 / 2**9, abs=1e-6),
    }
    assert captions["differences"]["exact"]["value"] == pytest.approx(-9 / SCENES, abs=1e-6)
    assert captions["differences"]["exact"]["p"] < 0.01
    assert captions["changed_rows"][0]["after"]["text"].endswith("and more")
    same = tasks["detect"]["against"]
    assert same["changed"] == 0
    assert same["differences"]["AP"] == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


class Segmented(Job):
    """A run that segments: a square of 4 pixels in pictures of 10 x 10, which is one pixel off in every second row."""

    def shard(self, shard: int, failing: Any = lambda row, task: False) -> list[Record]:
        records = []
        for record in super().shard(shard, failing):
            at = 2 + record.row % 2
            box = Box("dog", at, 1, at + 4, 5, 0.5)
            mask = Mask("dog", box, (0,) * 16, 10, 10, _square(at))
            records.append(replace(record, status="ok", boxes=(box,), masks=(mask,), width=10, height=10))
        return records


def _square(at: int) -> tuple[int, ...]:
    """The run lengths of a square of 4 pixels from column `at` and row 1 on."""
    pixels = np.zeros((10, 10), np.bool_)
    pixels[1:5, at : at + 4] = True
    return encode_rle(pixels)


def test_boxes_and_masks_of_a_run_that_segments(tmp_path: Path, truth_of: Callable[..., str]) -> None:
    job, store = Segmented([{} for _ in range(6)], tasks=("segment dog",)), open_store(str(tmp_path / "run"))
    job.annotate(store)
    job.publish(store)
    polygon = {"label": "Dog", "bbox": [2, 1, 4, 4], "segmentation": [[2, 1, 6, 1, 6, 5, 2, 5]]}
    other = {"label": "cat", "bbox": [0, 0, 1, 1], "segmentation": [[0, 0, 1, 0, 1, 1]]}
    truth = truth_of(*({"id": f"id-{row}", "segment": [polygon, other]} for row in range(6)))
    found = evaluate(str(tmp_path / "run"), Options(truth, fit=True))
    assert [each["of"] for each in found["tasks"]] == ["boxes", "masks"]
    for each in found["tasks"]:
        assert value(each, "AP50") == 1, "a shift of one pixel leaves an IoU of 12/20"
        # of equal scores every second one is right: precision 1, 2/3, 3/5 for 17 of the 101 recalls each
        assert value(each, "AP75") == pytest.approx(17 * (1 + 2 / 3 + 3 / 5) / 101, abs=1e-6)
        assert [label["label"] for label in each["labels"]] == ["dog"], "the prompt asks for no cat"
    assert read_maps(store)["segment dog", "segment"].level == "box"


def test_an_output_in_object_storage(demo_run: DemoRun, bucket: str) -> None:
    store = open_store(f"s3://{bucket}/run")
    for path in filter(Path.is_file, demo_run.output.rglob("*")):
        store.put(path.relative_to(demo_run.output).as_posix(), path.read_bytes())
    truth = open_store(f"s3://{bucket}/truth")
    truth.put("truth.jsonl", (demo_run.collection / "truth.jsonl").read_bytes())
    found = evaluate(store.uri, Options(f"{truth.uri}/truth.jsonl"))
    assert len(found["tasks"]) == 4
    assert read_evaluation(store) is not None


def test_the_command(
    run: str, demo_run: DemoRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def paliscribe(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["paliscribe", "evaluate", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    truth = str(demo_run.collection / "truth.jsonl")
    code, out, err = paliscribe(run, "--truth", truth, "--against", run, "--fit")
    assert code == 0
    for words in ("vqa_accuracy", "AP75", "cider", "McNemar", "0 of 24 rows changed", "calibration.json"):
        assert words in out
    code, out, err = paliscribe(run, "--truth", truth, "--json", "--quiet", "--column", "caption en=caption")
    assert (code, err) == (0, "")
    assert {each["kind"] for each in json.loads(out)["tasks"]} == {"answer", "caption", "ocr", "detect"}
    for wrong in (["--column", "caption"], ["--truth", "nowhere.csv"]):
        code, out, err = paliscribe(run, "-q", *wrong)
        assert (code, out, err.count("\n")) == (2, "", 1)
