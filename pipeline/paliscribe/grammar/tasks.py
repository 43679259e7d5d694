"""PaliGemma's task grammar: renders prompts, parses answers.

A prompt's prefix determines its kind; everything that depends on the kind is in one entry of `KINDS`. A template whose
own words have no kind, such as `{prefix}`, gets that of each filled prompt. Parsing never raises: output that violates
the grammar becomes an annotation of status `invalid`, with the raw text and the valid items.

Grammar of boxes and masks, from PaliGemma's authors (big_vision, `proj/paligemma`):

    detect a ; b    ->  <locY1><locX1><locY2><locX2> label ; ...
    segment a ; b   ->  <locY1><locX1><locY2><locX2><seg000>..16..<seg127> label ; ...

All items are kept as generated, including duplicates and labels that the prompt did not name. As in the authors' own
reader, neither ` ; ` between places nor a label is needed.
"""

import json
import math
import re
import string
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from paliscribe.errors import RowError, UsageError
from paliscribe.records import Annotation, Box, Mask

Kind = str  # a key of `KINDS`

# Bins 0..1023 over the image resized to a square. The authors encode a relative coordinate v as round(v * 1023), so
# the inverse is a division by 1023, which maps 1023 to the edge (1.0). Ports that divide by 1024 shrink every box by
# 0.1 %: one pixel in a thousand.
LAST_BIN = 1023
MASK_CODES, CODES = 16, 128  # of a mask, and values of a code
SPECIAL = re.compile(r"<(?:image|bos|eos|pad|unk|mask|(?:start|end)_of_turn|loc[0-9]{4}|seg[0-9]{3})>")
_WHOLE = re.compile(r"((?:<loc[0-9]{4}>){4})\s*((?:<seg[0-9]{3}>)*)\s*([^<>]*)")
_PART = re.compile(r"((?:<loc[0-9]{4}>)*)(?:<seg[0-9]{3}>)*\s*[^<>]*")
_LOC = re.compile(r"<loc([0-9]{4})>")
_SEG = re.compile(r"<seg([0-9]{3})>")
_COLUMN = re.compile(r"[^\W\d](?:[\w -]*\w)?")  # spaces and hyphens occur in CSV headers

# ISO 639-1, and other codes in the authors' data. A closed list, since in `answer the question` no word is a language.
LANGUAGES = (
    "aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ceb ch co cr cs cu cv cy da de dv dz ee el "
    "en eo es et eu fa ff fi fil fj fo fr fy ga gd gl gn gu gv ha haw he hi hmn ho hr ht hu hy hz ia id ie ig ii ik io "
    "is it iu iw ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms "
    "mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu quz rm rn ro ru rw sa sc sd se sg si sk "
    "sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo "
    "za zh zu"
)
_PLACEHOLDER = r"\{[^{}]+\}"  # may be in place of a language
_CODE = rf"(?:{LANGUAGES.replace(' ', '|')})(?:-[A-Za-z]{{2,4}})?"
_LANGUAGE = rf"(?:{_CODE}|{_PLACEHOLDER})"
_PLACE = r"(?:<loc[0-9]{4}>){4}"

_UNFINISHED = re.compile(rf"(?:(?P<of>detect|segment)|(?P<en>answer|question)(?: {_CODE})?)", re.IGNORECASE)
UNFINISHED = {  # first word -> how such a task is written
    "detect": "say what to detect, as in `detect cat ; dog`",
    "segment": "say what to segment, as in `segment cat`",
    "answer": "ask something, as in `answer en what is in the picture?`",
    "question": "say what the answer is, as in `question en a red bicycle`",
}

Confidence = Callable[[int, int], float | None]  # (start, end) in the text -> score
Parse = Callable[[str, int, int, Confidence], Annotation]


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt template, applied to every row.

    `template`: also the task's name in results. `columns`: names of its placeholders. `limit`: answer limit in tokens;
    None: the kind's.
    """

    template: str
    kind: Kind
    columns: tuple[str, ...]
    limit: int | None = None

    @property
    def max_tokens(self) -> int:
        """The answer limit."""
        return self.limit or KINDS[self.kind].max_tokens

    def render(self, columns: Mapping[str, Any], nested: Container[str] = ()) -> str:
        """The prompt for a row. `nested`: columns whose lists and structs are JSON text.

        Raises RowError `prompt` if a column is missing, null or contains a special token.
        """
        found = (name for name in self.columns if name in columns)
        values = {name: _read(columns[name]) if name in nested else columns[name] for name in found}
        prompt = self._filled(values, KINDS[self.kind].separator)
        if (kind := self._kind_of(prompt)) != self.kind:
            prompt = self._filled(values, KINDS[kind].separator)
        if token := _special(prompt):
            raise RowError("prompt", f"the prompt contains the special token {token}, from {', '.join(self.columns)}")
        return prompt

    def of(self, prompt: str) -> "Task":
        """The task in the kind of a prompt that it rendered."""
        return replace(self, kind=self._kind_of(prompt))

    def _filled(self, columns: Mapping[str, Any], separator: str) -> str:
        values = {name: _value(name, columns, separator) for name in self.columns}
        return " ".join(self.template.format_map(values).split())

    def _kind_of(self, prompt: str) -> Kind:
        return kind_of(prompt) if self.kind == "free" and self.columns else self.kind

    def parse(self, text: str, width: int, height: int, confidence: Confidence = lambda start, end: None) -> Annotation:
        """Parse an answer. `width`, `height`: of the original image after Exif rotation, in pixels.

        `confidence`: returns a box's score, given its start and end in `text`.
        """
        return KINDS[self.kind].parse(text, width, height, confidence)


@dataclass(frozen=True, slots=True)
class KindEntry:
    """A kind of task.

    `prefix`: matches its prompts. `max_tokens`: default answer limit. `parse`: parses its answers. `separator`: joins
    the items of a list value in a prompt.
    """

    prefix: re.Pattern[str]
    max_tokens: int
    parse: Parse
    separator: str = ", "


def parse_tasks(templates: Sequence[str], *, max_tokens: int | None = None) -> list[Task]:
    """Validate a run's tasks. Raises UsageError for invalid and duplicate tasks."""
    tasks = [parse_task(template, max_tokens=max_tokens) for template in templates]
    twice = sorted({repr(task.template) for task in tasks if sum(t.template == task.template for t in tasks) > 1})
    if twice:
        raise UsageError(f"duplicate tasks: {', '.join(twice)}")
    return tasks


def parse_task(template: str, *, max_tokens: int | None = None) -> Task:
    """Validate one task and determine its kind. Raises UsageError for an invalid template."""
    if len(template.strip().splitlines()) > 1:
        raise UsageError(f"task {template.strip()!r}: a task must be one line, since a newline ends PaliGemma's prompt")
    template = " ".join(template.split())
    if not template:
        raise UsageError("empty task; examples are `caption en`, `ocr`, `detect cat ; dog`")
    if token := _special(template):
        raise UsageError(f"task {template!r}: {token} is a special token; remove it")
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"task {template!r}: max_tokens is {max_tokens}; the minimum is 1")
    if found := _UNFINISHED.fullmatch(template):
        raise UsageError(f"task {template!r} is not finished: {UNFINISHED[(found['of'] or found['en']).lower()]}")
    return Task(template, kind_of(template), _columns(template), max_tokens)


def kind_of(prompt: str) -> Kind:
    """The kind of a prompt by its words, whatever their case."""
    return next(name for name, entry in KINDS.items() if entry.prefix.match(prompt))


def _special(prompt: str) -> str | None:
    """The first forbidden special token in a prompt. Allowed are those of a box caption, `caption <loc>x4`."""
    found = None if re.fullmatch(f"caption {_PLACE}", prompt, re.IGNORECASE) else SPECIAL.search(prompt)
    return found[0] if found else None


def _columns(template: str) -> tuple[str, ...]:
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"task {template!r}: {error}; escape literal braces as {{{{ and }}}}") from None
    names = []
    for _, name, spec, conversion in pieces:
        if name is None:
            continue
        if spec or conversion or not _COLUMN.fullmatch(name):
            raise UsageError(f"task {template!r}: a placeholder must be a plain column name such as {{question}}")
        names.append(name)
    return tuple(dict.fromkeys(names))


def _read(value: Any) -> Any:
    """The list or struct that JSON text holds; any other value as it is."""
    if isinstance(value, str) and value.startswith(("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _value(name: str, columns: Mapping[str, Any], separator: str) -> str:
    """A column's value as text: lists are joined by `separator`; NaN is null. Raises RowError `prompt`."""
    value = columns.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise RowError("prompt", f"the row has no {name!r}" + ("" if name in columns else ": no such column"))
    items = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(item, bytes | Mapping | list | tuple) for item in items):
        raise RowError("prompt", f"the row's {name!r} is not text, a number or a list of these")
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
    """Parse boxes and masks. `codes`: 16 if each box needs a mask, else 0. Empty output is valid: nothing was found."""
    boxes: list[Box] = []
    masks: list[Mask] = []
    problems: list[str] = []
    start = 0
    for number, piece in enumerate(text.split(";") if text.strip() else [], start=1):
        for found in _WHOLE.finditer(piece):
            box, indices, problem = _place(found, width, height, codes)
            if box is not None:
                box = replace(box, score=confidence(start + found.start(), start + len(piece[: found.end()].rstrip())))
                boxes.append(box)
            if box is not None and indices:
                masks.append(Mask(box.label, box, indices, height, width))
            if problem is not None:
                problems.append(f"item {number}: {problem}")
        if problem := _left_over(piece):
            problems.append(f"item {number}: {problem}")
        start += len(piece) + 1
    status: Literal["ok", "invalid"] = "invalid" if problems else "ok"
    return Annotation(status, text.strip(), tuple(boxes), tuple(masks), "; ".join(problems) or None)


def _place(found: re.Match[str], width: int, height: int, codes: int) -> tuple[Box | None, tuple[int, ...], str | None]:
    """A place's box with or without a label, its mask codes if they are valid, and what is wrong with it."""
    bins = [int(digits) for digits in _LOC.findall(found[1])]
    if max(bins) > LAST_BIN:
        return None, (), "a token is out of range"
    y_min, x_min, y_max, x_max = (value / LAST_BIN for value in bins)  # y1 x1 y2 x2, relative
    if y_min > y_max or x_min > x_max:
        return None, (), "the box ends before it begins"
    box = Box(found[3].strip(), x_min * width, y_min * height, x_max * width, y_max * height)
    indices = tuple(int(digits) for digits in _SEG.findall(found[2]))
    if len(indices) not in (codes, MASK_CODES):
        return box, (), f"{len(indices)} <seg> tokens where {codes} should be"
    if max(indices, default=0) >= CODES:
        return box, (), "a token is out of range"
    return box, indices, None


def _left_over(item: str) -> str | None:
    """What is wrong with the text of an item beside its places."""
    if not _WHOLE.search(item) and (part := _PART.fullmatch(item.strip())):
        return f"{len(_LOC.findall(part[1]))} <loc> tokens where 4 should be"
    return "tokens and words are mixed up" if _WHOLE.sub("", item).strip() or not _WHOLE.search(item) else None


def _prefix(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


# Ordered: the first prefix that matches determines the kind. `free` matches everything, so it is last.
KINDS: dict[Kind, KindEntry] = {
    "caption": KindEntry(_prefix(rf"cap(?:tion)? {_LANGUAGE}$|caption {_PLACE}$"), 64, _text),
    "describe": KindEntry(_prefix(rf"describe {_LANGUAGE}$"), 128, _text),
    "ocr": KindEntry(_prefix(r"ocr$"), 128, _text),
    "answer": KindEntry(_prefix(rf"answer {_LANGUAGE} \S"), 32, _text),
    "question": KindEntry(_prefix(rf"question {_LANGUAGE} \S"), 32, _text),
    "detect": KindEntry(_prefix(r"detect \S"), 256, _detect, " ; "),
    "segment": KindEntry(_prefix(r"segment \S"), 256, _segment, " ; "),
    "free": KindEntry(_prefix(""), 128, _text),
}
