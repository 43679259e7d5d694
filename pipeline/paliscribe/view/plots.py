"""Plots of counts as SVG text, to be placed in a page or shown as an image of its own.

Every text is escaped. A plot is readable without its style, which a strict content security policy may block: then it
takes the colour of the text around it. A page sets the colours with the variables `--ink`, `--line` and `--accent`.
"""

import html
import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Final

WIDTH, HEIGHT = 480, 220  # units of a plot, of which its text has 12 a line; bars set their own height
LEFT, RIGHT, TOP, BOTTOM = 52, 22, 38, 42  # margins around the axes
ROW = 22  # height of a horizontal bar and the gap below it
NAME, SHOWN = 22, 200  # columns of a label beside a bar, and of one in a tooltip; a wide letter takes two
LETTER = 7.2  # width of a column, about
FEW = 10  # bars whose counts are printed above them
STYLE: Final = (  # constant, so that a policy can allow it by its hash
    ".plot{color:var(--ink,#172121);font:12px system-ui,sans-serif;max-width:100%;height:auto}"
    ".plot .bar,.plot .dot{fill:var(--accent,#0f766e)}.plot .mark{stroke:var(--accent,#0f766e)}"
    "@media screen and (prefers-color-scheme:dark){.plot{color:var(--ink,#e7eded)}"
    ".plot .bar,.plot .dot{fill:var(--accent,#5ec8bd)}.plot .mark{stroke:var(--accent,#5ec8bd)}}"
)
COLOUR = "#2b8f86"  # of bars without the style: it stands out on light and on dark
UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML, escaped or not


def histogram(
    title: str,
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    x: str,
    more: bool = False,
    whole: bool = False,
    percent: bool = False,
) -> str:
    """Counts of values between edges, as SVG.

    `edges`: ascending, one more than `counts`. `x`: what the values are. `more`: the last bar also has what is above.
    `whole`: values are whole numbers, below the next edge. `percent`: they are shares of 1. Raises ValueError for edges
    that do not fit the counts.
    """
    if len(edges) != len(counts) + 1:
        raise ValueError(f"{len(counts)} counts need {len(counts) + 1} edges, not {len(edges)}")
    total = sum(counts)
    if not total:
        return _empty(title)
    names = [_between(*each, whole=whole, percent=percent) for each in itertools.pairwise(edges)]
    names[-1] += " and more" if more else ""
    top, ticks = _ticks(max(counts))
    low, span = edges[0], edges[-1] - edges[0]
    bottom = HEIGHT - BOTTOM
    parts = _frame(ticks, top)
    places = [LEFT + (edge - low) / span * (WIDTH - RIGHT - LEFT) for edge in edges]
    for start, end, count, name in zip(places, places[1:], counts, names, strict=False):
        height = count / top * (bottom - TOP)
        parts.append(_bar(start + 0.5, bottom - height, max(0.5, end - start - 1), height, f"{name}: {count:,}"))
        if count and len(counts) <= FEW:
            parts.append(_text((start + end) / 2, bottom - height - 4, _short(count), "middle"))
    single = whole and span == len(counts)  # each bar is one number, which stands below its middle
    shown = _percent if percent else _number
    for at in _spread(len(counts) - single):
        plus = "+" if more and at == len(counts) - single else ""
        place = (places[at] + places[at + 1]) / 2 if single else places[at]
        parts.append(_text(place, bottom + 16, shown(edges[at]) + plus, "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x, "middle"))
    most = names[max(range(len(counts)), key=counts.__getitem__)]
    return _svg(title, f"{total:,} values, most of them {most}", parts, HEIGHT)


def bars(title: str, counts: Iterable[tuple[str, int]], *, others: int = 0) -> str:
    """Horizontal bars with their counts and shares, in the order given, as SVG. `others`: of what has no bar."""
    found = [*counts, *([("(others)", others)] if others else [])]
    total = sum(count for _, count in found)
    if not total:
        return _empty(title)
    most = max(count for _, count in found)
    left = 14 + LETTER * max(NAME / 3, *(_columns(_cut(name, NAME)) for name, _ in found))
    values = [f"{count:,} ({_percent(count / total)})" for _, count in found]
    room = WIDTH - RIGHT - left - LETTER * max(map(len, values)) - 6
    parts = []
    for row, ((name, count), value) in enumerate(zip(found, values, strict=True)):
        top, width = TOP + row * ROW, max(1.0, count / most * room)
        parts.append(_bar(left, top, width, ROW - 6, f"{_cut(name, SHOWN)}: {value}"))
        parts.append(_text(left - 6, top + 12, _cut(name, NAME) if name.strip() else "(empty)", "end"))
        parts.append(_text(left + width + 6, top + 12, value))
    return _svg(title, f"{total:,} in {len(found)} groups", parts, TOP + len(found) * ROW + 8)


def reliability(title: str, points: Iterable[tuple[float, float, int]]) -> str:
    """A reliability curve as SVG: how many of the answers with a score are right.

    `points`: mean score, share of right answers (0 to 1) and number of answers, for each bin of scores.
    """
    found = [point for point in points if point[2]]
    if not found:
        return _empty(title)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(score: float, share: float) -> tuple[float, float]:
        return LEFT + score * (right - LEFT), bottom - share * (bottom - TOP)

    parts = _frame([0, 0.25, 0.5, 0.75, 1], 1, _percent)
    parts += [_text(place(value / 4, 0)[0], bottom + 16, _percent(value / 4), "middle") for value in range(5)]
    (x1, y1), (x2, y2) = place(0, 0), place(1, 1)
    parts.append(_line(x1, y1, x2, y2, 'stroke="currentColor" stroke-opacity=".5" stroke-dasharray="4 4"'))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(score, share) for score, share, _ in found))
    parts.append(f'<polyline class="mark" points="{path}" fill="none" stroke="{COLOUR}" stroke-width="2"/>')
    largest = max(count for _, _, count in found)
    for score, share, count in found:
        (x, y), radius = place(score, share), 2.5 + 4 * math.sqrt(count / largest)
        words = f"score {_percent(score)}: {_percent(share)} of {count:,} are right"
        circle = f'class="dot" fill="{COLOUR}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"'
        parts.append(f"<circle {circle}><title>{words}</title></circle>")
    parts.append(
        _text((LEFT + right) / 2, HEIGHT - 6, "score; right answers upwards, ideal is the dashed line", "middle")
    )
    return _svg(title, f"{sum(count for *_, count in found):,} answers in {len(found)} bins", parts, HEIGHT)


def escaped(text: str) -> str:
    """Text for HTML, XML and attributes in double quotes; characters that XML cannot hold are replaced."""
    return html.escape(UNWRITABLE.sub("\ufffd", text))


def _svg(title: str, words: str, parts: Sequence[str], height: float) -> str:
    size = f'viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}"'
    named = f"<title>{escaped(_cut(title, SHOWN))}</title><desc>{escaped(words)}</desc><style>{STYLE}</style>"
    heading = _text(4, 16, _cut(title, int(WIDTH / LETTER)), more=' font-weight="600"')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" role="img" {size} font-family="system-ui, sans-serif" '
        f'font-size="12" fill="currentColor">{named}{heading}{"".join(parts)}</svg>'
    )


def _empty(title: str) -> str:
    return _svg(title, "no values", [_text(WIDTH / 2, TOP + 24, "no values", "middle")], TOP + 50)


def _frame(ticks: Sequence[float], top: float, shown: Callable[[float], str] | None = None) -> list[str]:
    """The lines across a plot, with the value of each at its left."""
    parts = []
    for value in ticks:
        y = HEIGHT - BOTTOM - value / top * (HEIGHT - BOTTOM - TOP)
        faint = f'stroke="currentColor" stroke-opacity="{".2" if value else ".6"}"'
        parts.append(_line(LEFT, y, WIDTH - RIGHT, y, faint))
        parts.append(_text(LEFT - 6, y + 4, (shown or _short)(value), "end"))
    return parts


def _bar(x: float, y: float, width: float, height: float, words: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="bar" fill="{COLOUR}" {place} rx="1"><title>{escaped(words)}</title></rect>'


def _line(x1: float, y1: float, x2: float, y2: float, more: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {more}/>'


def _text(x: float, y: float, words: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escaped(words)}</text>'


def _ticks(most: float) -> tuple[float, list[float]]:
    """The top of an axis for counts up to `most`, and three to six whole values on it."""
    step = 10.0 ** math.floor(math.log10(most))
    step = max(1.0, next(step * part for part in (0.2, 0.5, 1, 2) if most / (step * part) <= 5))
    number = math.ceil(most / step)
    return number * step, [step * each for each in range(number + 1)]


def _spread(last: int) -> list[int]:
    """About five of the numbers from 0 to `last`, these two among them."""
    every = max(1, round(last / 5))
    return [*(number for number in range(0, last, every) if last - number > every / 2), last]


def _between(low: float, high: float, *, whole: bool, percent: bool) -> str:
    shown = _percent if percent else _number
    if whole:
        return shown(low) if high - low <= 1 else f"{shown(low)} to {shown(high - 1)}"
    return f"{shown(low)} to {shown(high)}"


def _short(value: float) -> str:
    """A count in few characters: 950, 12k, 1.5M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _percent(value: float) -> str:
    percent = round(100.0 * value, 9)
    if 0 < percent < 0.01:
        return "<0.01%"
    return f"{percent:.0f}%" if percent.is_integer() or percent >= 10 else f"{percent:.2g}%"


def _columns(text: str) -> int:
    return len(text) + sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)


def _cut(text: str, most: int) -> str:
    """A text of at most so many columns."""
    text = text[: most + 1]
    if _columns(text) <= most:
        return text
    while _columns(text) >= most:
        text = text[:-1]
    return f"{text}…"
