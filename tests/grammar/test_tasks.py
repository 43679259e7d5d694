"""PaliGemma's grammar: prompts out, answers in. One golden file a kind."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paliscribe.errors import RowError, UsageError
from paliscribe.grammar.tasks import KINDS, parse_task, parse_tasks

GOLDEN = Path(__file__).parents[1] / "golden"


def cases() -> list[tuple[str, dict[str, Any]]]:
    return [(kind, case) for kind in KINDS for case in json.loads((GOLDEN / f"{kind}.json").read_text())]


@pytest.mark.parametrize(("kind", "case"), cases())
def test_golden(kind: str, case: dict[str, Any]) -> None:
    task = parse_task(case["task"])
    assert task.kind == kind
    assert task.render(case["columns"]) == case["prompt"]
    found = task.parse(case["text"], case["width"], case["height"])
    assert json.loads(json.dumps(asdict(found))) == case["annotation"]


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ("caption en", "caption"),
        ("cap pt-BR", "caption"),
        ("caption", "free"),
        ("caption this picture", "free"),
        ("describe en", "describe"),
        ("ocr", "ocr"),
        ("ocr this", "free"),
        ("answer en {question}", "answer"),
        ("answer what is it?", "free"),
        ("answer the question: what is it?", "free"),
        ("answer {question}", "free"),
        ("answer {language} {question}", "answer"),
        ("caption {language}", "caption"),
        ("caption fil", "caption"),
        ("caption {{en}}", "free"),
        ("describe the", "free"),
        ("caption <loc0001><loc0002><loc0003><loc0004>", "caption"),
        ("question en yes", "question"),
        ("detect {objects}", "detect"),
        ("detection of cats", "free"),
        ("segment cat", "segment"),
        ("  detect   cat ; dog ", "detect"),
        ("Detect cat", "detect"),
        ("SEGMENT cat", "segment"),
        ("Caption EN", "caption"),
        ("Answer en What is it?", "answer"),
    ],
)
def test_the_kind_is_read_off_the_prompt(prompt: str, kind: str) -> None:
    assert parse_task(prompt).kind == kind


@pytest.mark.parametrize(
    "template",
    ["", "  \n", "detect {0}", "detect {}", "detect {a.b}", "detect {a[0]}", "detect {a!r}", "detect {a:>5}",
     "detect {a", "detect a}", "<image> caption en", "detect <loc0001>", "<bos>ocr",
     "caption <loc0001><loc0002>", "caption en\nocr"],
)  # fmt: skip
def test_templates_that_can_never_be_asked(template: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_task(template)
    assert "\n" not in str(caught.value)


def test_a_limit_is_at_least_one_token() -> None:
    with pytest.raises(UsageError, match="max_tokens is 0"):
        parse_task("ocr", max_tokens=0)


def test_literal_braces_and_limits() -> None:
    task = parse_task("what is {{this}} {thing}?", max_tokens=7)
    assert task.columns == ("thing",)
    assert task.max_tokens == 7
    assert task.render({"thing": 3}) == "what is {this} 3?"
    assert parse_task("ocr").max_tokens == KINDS["ocr"].max_tokens


@pytest.mark.parametrize(
    "value", [None, float("nan"), "", "  ", [], "a <image> b", "<loc0001>", "<eos>", b"a", {}, [[]]]
)
def test_values_that_cannot_be_asked(value: object) -> None:
    with pytest.raises(RowError, match="question") as caught:
        parse_task("answer en {question}").render({"question": value})
    assert caught.value.kind == "prompt"


@pytest.mark.parametrize(
    ("template", "value", "prompt"),
    [
        ("detect {x}", ["cat", None, "dog"], "detect cat ; dog"),
        ("answer en is it {x}?", ["red", "blue"], "answer en is it red, blue?"),
        ("answer en is it {x}?", "{x} {{y}}", "answer en is it {x} {{y}}?"),
        ("caption {x}", "<loc0001><loc0002><loc0003><loc0004>", "caption <loc0001><loc0002><loc0003><loc0004>"),
    ],
)
def test_values_in_words(template: str, value: object, prompt: str) -> None:
    assert parse_task(template).render({"x": value}) == prompt


@pytest.mark.parametrize(
    ("template", "columns", "prompt", "kind"),
    [
        ("{prefix}", {"prefix": "detect cat ; dog"}, "detect cat ; dog", "detect"),
        ("{prefix}", {"prefix": "Segment cat"}, "Segment cat", "segment"),
        ("{prefix}", {"prefix": "what is it?"}, "what is it?", "free"),
        ("{verb} {things}", {"verb": "detect", "things": ["cat", "dog"]}, "detect cat ; dog", "detect"),
        ("{verb} {things}", {"verb": "find", "things": ["cat", "dog"]}, "find cat, dog", "free"),
        ("answer {question}", {"question": "en is it red?"}, "answer en is it red?", "answer"),
        ("caption {language}", {"language": "Klingon"}, "caption Klingon", "caption"),
    ],
)
def test_a_filled_prompt_has_the_kind_of_its_words(
    template: str, columns: dict[str, Any], prompt: str, kind: str
) -> None:
    task = parse_task(template)
    assert task.render(columns) == prompt
    assert (task.of(prompt).kind, task.of(prompt).max_tokens) == (kind, KINDS[kind].max_tokens)
    assert task.of(prompt).template == template and parse_task(template, max_tokens=9).of(prompt).max_tokens == 9


@pytest.mark.parametrize(
    ("value", "prompt"),
    [
        ('["red circle", "blue"]', "detect red circle ; blue"),
        ('["red circle"]', "detect red circle"),
        ("[1, null, 2.5]", "detect 1 ; 2.5"),
        ("a ; b", "detect a ; b"),
        ("[a", "detect [a"),
    ],
)
def test_lists_as_json_text(value: str, prompt: str) -> None:
    assert parse_task("detect {x}").render({"x": value}, nested={"x"}) == prompt
    assert parse_task("detect {x}").render({"x": value}) == f"detect {value}", "plain text is asked as it is"


@pytest.mark.parametrize("value", ["[]", "[null]", '{"a": 1}', '[["a"]]', '[{"a": 1}]'])
def test_nested_values_that_cannot_be_asked(value: str) -> None:
    with pytest.raises(RowError, match="'x'"):
        parse_task("detect {x}").render({"x": value}, nested={"x"})


def test_headers_with_spaces_and_hyphens_are_columns() -> None:
    assert parse_task("answer en {alt-text} {File name}").render({"alt-text": "a", "File name": "b"}) == "answer en a b"


def test_special_tokens_cannot_be_pieced_together() -> None:
    with pytest.raises(RowError, match=r"<image>, from word") as caught:
        parse_task("what is <{word}>?").render({"word": "image"})
    assert caught.value.kind == "prompt"


def test_a_missing_column_is_named() -> None:
    with pytest.raises(RowError, match="'question': no such column"):
        parse_task("answer en {question}").render({"other": 1})


def test_tasks_given_twice_are_named() -> None:
    with pytest.raises(UsageError, match="'ocr'"):
        parse_tasks(["ocr", "caption en", " ocr "])


def test_places_repeated_or_not_asked_for_are_kept() -> None:
    place = "<loc0001><loc0002><loc0003><loc0004>"
    found = parse_task("detect a").parse(f"{place} a ; {place} b ; {place} a", 9, 9)
    assert (found.status, [box.label for box in found.boxes]) == ("ok", ["a", "b", "a"])


def test_digits_of_other_scripts_are_no_tokens() -> None:
    assert parse_task("detect a").parse("<loc000\u0661><loc0002><loc0003><loc0004> a", 9, 9).status == "invalid"


PIECES = st.one_of(
    st.integers(0, 9999).map(lambda n: f"<loc{n:04d}>"),
    st.integers(0, 999).map(lambda n: f"<seg{n:03d}>"),
    st.sampled_from([" ; ", ";", " cat", "<loc12>", "<", ">", "\n", " "]),
    st.text(max_size=5),
)


@given(st.lists(PIECES, max_size=40).map("".join), st.sampled_from(["detect cat", "segment cat", "caption en"]))
def test_parsing_never_raises(text: str, prompt: str) -> None:
    found = parse_task(prompt).parse(text, 640, 480)
    assert found.text == text.strip()
    assert (found.status == "invalid") == (found.problem is not None)
    for box in found.boxes:
        assert 0 <= box.x_min <= box.x_max <= 640
        assert 0 <= box.y_min <= box.y_max <= 480
        assert box.label == box.label.strip()
    if prompt == "segment cat" and found.status == "ok":
        assert len(found.masks) == len(found.boxes)


@given(st.lists(st.tuples(*[st.integers(0, 1023)] * 4, st.sampled_from(["cat", "big dog"])), max_size=5))
def test_well_formed_boxes_are_all_read(items: list[tuple[int, int, int, int, str]]) -> None:
    ordered = [(min(a, c), min(b, d), max(a, c), max(b, d), label) for a, b, c, d, label in items]
    text = " ; ".join("".join(f"<loc{n:04d}>" for n in item[:4]) + f" {item[4]}" for item in ordered)
    found = parse_task("detect cat").parse(text, 1023, 1023)
    assert found.status == "ok"
    wanted: list[tuple[Any, ...]] = [
        (pytest.approx(a), pytest.approx(b), pytest.approx(c), pytest.approx(d), label) for a, b, c, d, label in ordered
    ]
    assert [(b.y_min, b.x_min, b.y_max, b.x_max, b.label) for b in found.boxes] == wanted
