"""Pieces of a report's HTML: tables, and pictures with their answers. Every text in them is escaped."""

import hashlib
import json
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from paliscribe.storage import redacted
from paliscribe.storage.inline import shortened
from paliscribe.view.embedded import Picture, drawn, label_words
from paliscribe.view.plots import escaped
from paliscribe.view.samples import Found

ANSWERS: Final = 20  # tasks of a picture that are shown
NAMED: Final = 30  # boxes that are named below a picture
NAMES: Final = ("task", "of", "label", "name")  # keys of what an item of figures calls itself
LEAVES, ITEMS, DEEP = 400, 12, 8  # figures of an evaluation, items of a list in one cell, levels


def head(title: str, css: str, styles: Iterable[str]) -> str:
    """The begin of a page that may load nothing at all. `styles`: further style elements in it."""
    hashes = " ".join(
        f"'sha256-{b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in (css, *styles)
    )
    policy = f"default-src 'none'; img-src data:; style-src {hashes}; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="referrer" content="no-referrer">\n<title>{escaped(title)}</title>\n'
        f"<style>{css}</style></head><body>\n"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str | int | float | None]]) -> str:
    """A table; numbers stand at the right."""
    first = "".join(f"<th>{escaped(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
    above = f"<thead><tr>{first}</tr></thead>" if heads else ""
    return f'<div class="wide"><table>{above}<tbody>{body}</tbody></table></div>\n'


def percent(share: float) -> str:
    """A share of 1 in words."""
    return f"{share:.2%}" if 0 < share < 0.1 else f"{share:.1%}"


def card(records: Sequence[Found], picture: Picture, colour: Callable[[str], int]) -> str:
    """A picture of records of one image, with their answers below."""
    first = records[0]
    size = f" {first['width']} × {first['height']} px" if first["width"] else ""
    lines = [f'<p><b><bdi>{escaped(_cut(first["id"], 200))}</bdi></b><span class="quiet">{size}</span></p>']
    if picture.note:
        lines.append(f'<p class="bad">{escaped(_cut(picture.note, 300))}</p>')
    lines += [_answer(record, colour) for record in records[:ANSWERS]]
    if len(records) > ANSWERS:
        lines.append(f'<p class="quiet">and {len(records) - ANSWERS:,} more tasks</p>')
    if first["image"]:
        address = _cut(redacted(shortened(first["image"])), 200)
        lines.append(f'<p class="quiet"><bdi>{escaped(address)}</bdi></p>')
    return f"<figure>{drawn(picture, records, colour)}<figcaption>{''.join(lines)}</figcaption></figure>\n"


def figures_of(value: Any) -> str:
    """Nested figures, as an evaluation writes them, as a table: the names on the way to each value, and the value."""
    leaves: list[tuple[str, str | int | float | None]] = []
    _collect(value, (), leaves)
    more = len(leaves) > LEAVES
    words = '<p class="quiet">… and more, in the file</p>' if more else ""
    return table(["figure", "value"], leaves[:LEAVES]) + words


def _answer(record: Found, colour: Callable[[str], int]) -> str:
    score = "" if record["score"] is None else f' <span class="quiet">score {record["score"]:.3f}</span>'
    status = "" if record["status"] == "ok" else f' <span class="{record["status"]}">{record["status"]}</span>'
    lines = [f"<p><b><bdi>{escaped(_cut(record['prompt'] or record['task'], 200))}</bdi></b>{status}{score}</p>"]
    boxes, count = record["boxes"] or [], record["box_count"]
    if record["status"] == "ok" and boxes:
        names = ", ".join(f"<bdi>{escaped(label_words(box))}</bdi>" for box in boxes[:NAMED])
        more = f" and {count - NAMED:,} more" if count > NAMED else ""
        lines.append(f"<p>{names}{more}</p>")
    elif record["text"] is not None:
        lines.append(f'<p class="text"><bdi>{escaped(record["text"]) or "(nothing found)"}</bdi></p>')
    if record["error_message"]:
        kind = f"{record['error_kind']}: " if record["error_kind"] else ""
        lines.append(f'<p class="bad">{escaped(kind + record["error_message"])}</p>')
    return f'<div class="answer">{"".join(lines)}</div>'


def curves_of(value: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[str, list[tuple[float, float, int]]]]:
    """The reliability curves in nested figures: the names on the way to each, and points as plots have them."""
    if _is_curve(value):
        yield _cut(" › ".join(names), 200), [(point["score"], point["right"], point["n"]) for point in value]
    elif len(names) < DEEP:
        for name, inner in _items(value):
            yield from curves_of(inner, (*names, name))


def _collect(value: Any, names: tuple[str, ...], leaves: list[tuple[str, str | int | float | None]]) -> None:
    if len(leaves) > LEAVES or value is None or _is_curve(value):
        return
    if isinstance(value, dict) and set(value) == {"value", "low", "high"}:
        figure, low, high = (_words(_leaf(value[name])) for name in ("value", "low", "high"))
        value = None if value["value"] is None else f"{figure} ({low} to {high})"
    inner = _items(value) if len(names) < DEEP else []
    for name, each in inner:
        _collect(each, (*names, name), leaves)
    if not inner and value not in (None, [], {}):
        leaves.append((_cut(" › ".join(names), 200), _leaf(value)))


def _items(value: Any) -> list[tuple[str, Any]]:
    """What a mapping, or a list of mappings or lists, has, each with its name; nothing for all else."""
    if isinstance(value, dict):
        named = NAMES if _named(value) else ()  # these are in the name already
        return [(str(name), inner) for name, inner in value.items() if name not in named]
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [(_named(item) or str(number), item) for number, item in enumerate(value, start=1)]
    return []


def _named(item: Any) -> str:
    """What an item of a list calls itself."""
    found = (item.get(key) for key in NAMES) if isinstance(item, dict) else ()
    return ", ".join(word for word in found if isinstance(word, str))


def _is_curve(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_point(item) for item in value)


def _is_point(item: Any) -> bool:
    if not isinstance(item, dict) or set(item) != {"score", "right", "n"}:
        return False
    shares = all(type(item[name]) in (int, float) and 0 <= item[name] <= 1 for name in ("score", "right"))
    return shares and type(item["n"]) is int and item["n"] >= 0


def _leaf(value: Any) -> str | int | float | None:
    if isinstance(value, list):
        words = ", ".join(_words(item) for item in value[:ITEMS])
        return f"{words}, … ({len(value):,} values)" if len(value) > ITEMS else words
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    return _cut(value if isinstance(value, str) else json.dumps(value), 300)


def _cell(value: str | int | float | None) -> str:
    if value is None or isinstance(value, str):
        return f"<td><bdi>{escaped(_cut(value or '', 300))}</bdi></td>"
    return f'<td class="number">{_words(value)}</td>'


def _words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
