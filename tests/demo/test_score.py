import pytest

from paliscribe.demo.score import (
    Matches,
    Result,
    caption_items,
    edit_distance,
    exact,
    match_boxes,
    match_items,
    missed_floors,
    overlap,
    read_boxes,
    summarise,
)

BOX = (0.0, 0.0, 10.0, 10.0)


def test_exact_ignores_surrounding_whitespace() -> None:
    assert exact("two", " two ") and not exact("two", "Two")


def test_caption_items_are_counted() -> None:
    assert caption_items("two blue squares, an orange star and some text") == {
        "blue square": 2,
        "orange star": 1,
        "some text": 1,
    }
    assert caption_items("") == {}
    found = match_items(
        caption_items("two blue squares and a red star"), caption_items("a blue square and a red circle")
    )
    assert found == Matches(hit=1, extra=1, missed=2)
    assert (found.precision, found.recall) == (1 / 2, 1 / 3) and found.f1 == pytest.approx(0.4)


def test_nothing_expected_and_nothing_found_is_perfect() -> None:
    assert Matches().f1 == Matches().precision == Matches().recall == 1.0


def test_iou() -> None:
    assert overlap(BOX, BOX) == 1.0
    assert overlap(BOX, (5.0, 0.0, 15.0, 10.0)) == pytest.approx(1 / 3)
    assert overlap(BOX, (10.0, 0.0, 20.0, 10.0)) == 0.0


def test_boxes_match_by_label_best_first_and_once() -> None:
    near, far = (1.0, 0.0, 11.0, 10.0), (50.0, 50.0, 60.0, 60.0)
    assert match_boxes([("a", BOX)], [("a", near), ("a", BOX)]) == Matches(1, 1, 0)
    assert match_boxes([("a", BOX)], [("b", BOX)]) == Matches(0, 1, 1)
    assert match_boxes([("a", BOX), ("a", far)], [("a", near)]) == Matches(1, 0, 1)
    assert match_boxes([], []) == Matches()


def test_boxes_are_parsed_to_pixels_and_malformed_ones_ignored() -> None:
    text = "<loc0000><loc1023><loc1023><loc1023> red circle ; <loc0001><loc0002> star"
    assert read_boxes(text, 200, 100) == [("red circle", (200.0, 0.0, 200.0, 100.0))]
    text = f"<loc0000><loc1023><loc1023><loc1023>{'<seg007>' * 16} circle"
    assert read_boxes(text, 200, 100) == [("circle", (200.0, 0.0, 200.0, 100.0))]


def test_edit_distance() -> None:
    assert edit_distance("", "abc") == 3
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("AB", "AB") == 0


def test_the_summary_counts_each_task_and_kind() -> None:
    figures = summarise(
        [
            Result("answer", "count", "2", "2"),
            Result("answer", "color", "red", "blue"),
            Result("ocr", "number", "123", "124"),
            Result("ocr", "none", "", ""),
            Result("detect", "present", "x", "y", [("a", BOX)], [("a", BOX)]),
            Result("caption", "", "a red star", "a red star"),
            Result("segment", "present", "x", "y", [("a", BOX), ("a", BOX)], [("a", BOX)], [0.8, 0.0]),
            Result("segment", "absent", "", ""),
        ]
    )
    assert figures["answer_exact"] == 0.5 and figures["answer_n"] == 2 and figures["answer_color_exact"] == 0.0
    assert figures["ocr_cer"] == pytest.approx(1 / 3) and figures["ocr_n"] == 1
    assert figures["detect_present_n"] == 1 and "detect_exact" not in figures and "caption__n" not in figures
    assert figures["ocr_none_exact"] == figures["detect_f1"] == figures["caption_f1"] == 1.0
    assert figures["segment_iou"] == 0.4 and figures["segment_n"] == 2 and figures["segment_absent_exact"] == 1.0
    assert figures["segment_recall"] == 0.5 and "segment_exact" not in figures
    assert missed_floors(figures) == ["answer_exact", "ocr_exact", "segment_iou"]


def test_a_missing_figure_is_below_its_floor() -> None:
    assert len(missed_floors({})) == 5
