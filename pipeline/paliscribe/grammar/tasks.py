"""PaliGemma's task grammar: prompts out, answers in.

The kind of a task is read off its prompt; everything that depends on the kind is one entry of `KINDS`. Parsing never
raises: output that breaks the grammar is an annotation of status `invalid` that keeps the raw text and what could be
read.

Grammar of boxes and masks, from PaliGemma's authors (big_vision, `proj/paligemma`):

    detect a ; b    ->  <locY1><locX1><locY2><locX2> label ; ...
    segment a ; b   ->  <locY1><locX1><locY2><locX2><seg000>..16..<seg127> label ; ...

Places are kept as the model wrote them: those it repeats, and those whose label was not asked for, too.
"""

import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from paliscribe.errors import RowError, UsageError
from paliscribe.records import Annotation, Box, Mask

Kind = Literal["caption", "describe", "ocr", "answer", "question", "detect", "segment", "free"]

# Bins 0..1023 over the squeezed square image. The authors encode round(v * 1023) of a relative coordinate v; only
# dividing by 1023 inverts that and lets a box reach the far edge (1023 -> 1.0). Ports that divide by 1024 shrink
# every box by a thousandth, up to one pixel in a thousand.
LAST_BIN = 1023
MASK_CODES = 16
SPECIAL = re.compile(r"<(?:image|bos|eos|pad|unk|mask|(?:start|end)_of_turn|loc[0-9]{4}|seg[0-9]{3})>")
_BOX = re.compile(r"((?:<loc[0-9]{4}>)*)((?:<seg[0-9]{3}>)*)\s*([^<>]*)")
_LOC = re.compile(r"<loc([0-9]{4})>")
_SEG = re.compile(r"<seg([0-9]{3})>")
_COLUMN = re.compile(r"[^\W\d](?:[\w -]*\w)?")  # a plain name; spaces and hyphens occur in the headers of CSV files

# ISO 639-1, and the other codes of the authors' data. A closed list, because `answer the question` names no language.
LANGUAGES = (
    "aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ceb ch co cr cs cu cv cy da de dv dz ee el "
    "en eo es et eu fa ff fi fil fj fo fr fy ga gd gl gn gu gv ha haw he hi hmn ho hr ht hu hy hz ia id ie ig ii ik io "
    "is it iu iw ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms "
    "mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu quz rm rn ro ru rw sa sc sd se sg si sk "
    "sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo "
    "za zh zu"
)
_PLACEHOLDER = r"\{[^{}]+\}"  # stands for a language where one is due
_LANGUAGE = rf"(?:(?:{LANGUAGES.replace(' ', '|')})(?:-[A-Za-z]{{2,4}})?|{_PLACEHOLDER})"
_PLACE = r"(?:<loc[0-9]{4}>){4}"

Confidence = Callable[[int, int], float | None]  # of the part of a text between two places
Parse = Callable[[str, int, int, Confidence], Annotation]


@dataclass(frozen=True, slots=True)
class Task:
    """One prompt asked of every row. `template` is its name in results; `columns` are those it is filled from."""

    template: str
    kind: Kind
    columns: tuple[str, ...]
    max_tokens: int

    def render(self, columns: Mapping[str, Any]) -> str:
        """The prompt for a row. Raises RowError `prompt`: a column is missing or null, or holds a special token."""
        separator = " ; " if self.kind in ("detect", "segment") else ", "
        values = {name: _value(name, columns, separator) for name in self.columns}
        prompt = " ".join(self.template.format_map(values).split())
        if token := _special(prompt):
            raise RowError("prompt", f"the prompt holds the special token {token}, from {', '.join(values)}")
        return prompt

    def parse(self, text: str, width: int, height: int, confidence: Confidence = lambda start, end: None) -> Annotation:
        """The answer's text as an annotation; `width` and `height` in pixels of the upright original image.

        `confidence` gives each box its score, from the place in the text that wrote it.
        """
        return KINDS[self.kind].parse(text, width, height, confidence)


@dataclass(frozen=True, slots=True)
class KindEntry:
    """What a kind is known by, how long its answers may be by default (in tokens), and how they are read."""

    prefix: re.Pattern[str]
    max_tokens: int
    parse: Parse


def parse_tasks(templates: Sequence[str], *, max_tokens: int | None = None) -> list[Task]:
    """Check a run's tasks. Raises UsageError for a bad one, or for one given twice."""
    tasks = [parse_task(template, max_tokens=max_tokens) for template in templates]
    twice = sorted({repr(task.template) for task in tasks if sum(t.template == task.template for t in tasks) > 1})
    if twice:
        raise UsageError(f"a task is given twice: {', '.join(twice)}")
    return tasks


def parse_task(template: str, *, max_tokens: int | None = None) -> Task:
    """Check one task and read its kind. Raises UsageError for a template that can never be asked."""
    if len(template.strip().splitlines()) > 1:
        raise UsageError(f"task {template.strip()!r}: a task is one line, a newline ends PaliGemma's prompt")
    template = " ".join(template.split())
    if not template:
        raise UsageError("a task is empty; PaliGemma's grammar has `caption en`, `ocr`, `detect cat ; dog`, ...")
    if token := _special(template):
        raise UsageError(f"task {template!r}: {token} is no part of a prompt, leave it out")
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"task {template!r}: max_tokens is {max_tokens}, and an answer has at least 1")
    kind: Kind = next(name for name, entry in KINDS.items() if entry.prefix.match(template))
    return Task(template, kind, _columns(template), max_tokens or KINDS[kind].max_tokens)


def _special(prompt: str) -> str | None:
    """A special token that the prompt may not hold. One prompt holds some: a caption of a box, `caption <loc>x4`."""
    found = None if re.fullmatch(f"caption {_PLACE}", prompt) else SPECIAL.search(prompt)
    return found[0] if found else None


def _columns(template: str) -> tuple[str, ...]:
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"task {template!r}: {error}; write literal braces as {{{{ and }}}}") from None
    names = []
    for _, name, spec, conversion in pieces:
        if name is None:
            continue
        if spec or conversion or not _COLUMN.fullmatch(name):
            raise UsageError(f"task {template!r}: a placeholder is a plain column name such as {{question}}")
        names.append(name)
    return tuple(dict.fromkeys(names))


def _value(name: str, columns: Mapping[str, Any], separator: str) -> str:
    """A column as words: a list is joined by `separator`, a not-a-number is null."""
    value = columns.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise RowError("prompt", f"the row has no {name!r}" + ("" if name in columns else ": no such column"))
    items = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(item, bytes | Mapping | list | tuple) for item in items):
        raise RowError("prompt", f"the row's {name!r} is neither text nor a number nor a list of them")
    text = separator.join(str(item) for item in items if item is not None)
    text = " ".join(text.split())  # a newline would end PaliGemma's prompt
    if not text:
        raise RowError("prompt", f"the row has an empty {name!r}")
    return text


def _text(text: str, width: int, height: int, confidence: Confidence) -> Annotation:
    return Annotation("ok", text.strip())


def _detect(text: str, width: int, height: int, confidence: Confidence) -> Annotation:
    return _places(text, width, height, confidence, codes=0)


def _segment(text: str, width: int, height: int, confidence: Confidence) -> Annotation:
    return _places(text, width, height, confidence, codes=MASK_CODES)


def _places(text: str, width: int, height: int, confidence: Confidence, *, codes: int) -> Annotation:
    """Read boxes, and masks where `codes` is 16. Empty output is an answer: nothing was found."""
    places: list[tuple[Box, tuple[int, ...]]] = []
    problems: list[str] = []
    start = 0
    for number, piece in enumerate(text.split(";") if text.strip() else [], start=1):
        read = _place(piece.strip(), width, height, codes)
        if isinstance(read, str):
            problems.append(f"item {number}: {read}")
        else:
            begin = start + len(piece) - len(piece.lstrip())
            box = replace(read[0], score=confidence(begin, start + len(piece.rstrip())))
            places.append((box, read[1]))
        start += len(piece) + 1
    text = text.strip()
    boxes = tuple(box for box, _ in places)
    masks = tuple(Mask(box.label, box, indices, height, width) for box, indices in places if codes)
    status: Literal["ok", "invalid"] = "invalid" if problems else "ok"
    return Annotation(status, text, boxes, masks, "; ".join(problems) or None)


def _place(piece: str, width: int, height: int, codes: int) -> tuple[Box, tuple[int, ...]] | str:
    """One `<loc>x4[<seg>x16] label`, or what is wrong with it."""
    found = _BOX.fullmatch(piece)
    if found is None:
        return "tokens and words are mixed up"
    bins = [int(digits) for digits in _LOC.findall(found[1])]
    indices = tuple(int(digits) for digits in _SEG.findall(found[2]))
    label = found[3].strip()
    if len(bins) != 4:
        return f"{len(bins)} <loc> tokens where 4 should be"
    if len(indices) != codes:
        return f"{len(indices)} <seg> tokens where {codes} should be"
    if max(bins) > LAST_BIN or max(indices, default=0) > 127:
        return "a token is out of range"
    if not label:
        return "no label"
    y_min, x_min, y_max, x_max = (value / LAST_BIN for value in bins)  # y1 x1 y2 x2, relative
    if y_min > y_max or x_min > x_max:
        return "the box ends before it begins"
    return Box(label, x_min * width, y_min * height, x_max * width, y_max * height), indices


# In this order: the first prefix that matches is the kind. `free` matches everything and comes last.
KINDS: dict[Kind, KindEntry] = {
    "caption": KindEntry(re.compile(rf"cap(?:tion)? {_LANGUAGE}$|caption {_PLACE}$"), 64, _text),
    "describe": KindEntry(re.compile(rf"describe {_LANGUAGE}$"), 128, _text),
    "ocr": KindEntry(re.compile(r"ocr$"), 128, _text),
    "answer": KindEntry(re.compile(rf"answer {_LANGUAGE} \S"), 32, _text),
    "question": KindEntry(re.compile(rf"question {_LANGUAGE} \S"), 32, _text),
    "detect": KindEntry(re.compile(r"detect \S"), 256, _detect),
    "segment": KindEntry(re.compile(r"segment \S"), 256, _segment),
    "free": KindEntry(re.compile(""), 128, _text),
}
if set(KINDS) != set(get_args(Kind)):
    raise AssertionError("KINDS and Kind differ")
