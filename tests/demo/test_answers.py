import re

from paliscribe.demo.answers import caption, detection, locations, scene_items
from paliscribe.demo.sampling import sample_scene
from paliscribe.demo.scenes import TEST_SEEDS, Background, Scene, Shape, ShapeKind
from paliscribe.demo.score import read_boxes

PLAIN = Background(1, 1, bytes(3), True, False)
SCENES = [sample_scene(seed) for seed in range(TEST_SEEDS, TEST_SEEDS + 150)]


def shape(color: str, kind: ShapeKind, x: float) -> Shape:
    return Shape(kind, color, (0, 0, 0), (), (x, 20, x + 50, 60))


def scene(*shapes: Shape) -> Scene:
    return Scene(0, 400, 200, PLAIN, shapes, ())


def test_captions_are_grouped_and_ordered() -> None:
    blue, red = shape("blue", "square", 0), shape("red", "circle", 100)
    assert caption(scene(blue, red, shape("blue", "square", 200))) == "a red circle and two blue squares"
    assert caption(scene(shape("orange", "star", 0))) == "an orange star"
    assert caption(scene()) == "an empty scene"


def test_locations_are_y_first_in_bins_of_the_image() -> None:
    assert locations((100, 50, 400, 200), 400, 200) == "<loc0256><loc0256><loc1023><loc1023>"


def test_detection_is_ordered_left_to_right_and_empty_for_absent_objects() -> None:
    both = scene(shape("red", "circle", 10), shape("blue", "square", 200))
    item = detection(both, ("blue square", "red circle"))
    assert item.prompt == "detect blue square ; red circle"
    assert [label for label, _ in item.boxes] == ["red circle", "blue square"]
    assert re.sub(r"<loc\d{4}>", "", item.answer) == " red circle ;  blue square"
    absent = detection(both, ("green star",))
    assert (absent.kind, absent.answer, absent.boxes) == ("absent", "", ())


def test_detection_answers_parse_to_their_boxes() -> None:
    for one in SCENES:
        for item in scene_items(one):
            if item.task == "detect":
                read = read_boxes(item.answer, one.width, one.height)
                assert [label for label, _ in read] == [label for label, _ in item.boxes]
                for (_, found), (_, box) in zip(read, item.boxes, strict=True):
                    assert max(abs(a - b) for a, b in zip(found, box, strict=True)) <= 0.5


def test_answers_agree_with_the_scene() -> None:
    for one in SCENES:
        for item in scene_items(one):
            if match := re.fullmatch(r"answer en how many (\w+)s are there\?", item.prompt):
                expected = sum(match[1] in ("shape", shape.kind) for shape in one.shapes)
                assert item.answer == str(expected)
            if match := re.fullmatch(r"answer en is there an? (\w+) (\w+)\?", item.prompt):
                there = any((shape.color, shape.kind) == match.groups() for shape in one.shapes)
                assert item.answer == ("yes" if there else "no")


def test_every_kind_of_answer_occurs_and_empty_ones_too() -> None:
    items = [item for one in SCENES for item in scene_items(one)]
    kinds = {(item.task, item.kind) for item in items}
    assert {("ocr", "none"), ("ocr", "handwriting"), ("detect", "absent"), ("answer", "shape")} <= kinds
    assert {item.answer for item in items if item.kind == "count"} >= {"0", "1", "2", "3", "4"}
    assert all((item.answer == "") == (item.kind in ("none", "absent")) for item in items)
