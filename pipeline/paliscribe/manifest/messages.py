"""Names and values in messages, which stay one short line whatever a manifest holds."""

from collections.abc import Iterable

LONGEST, MOST = 60, 160  # characters of a name, and of the names in one message, at most


def cut(text: str, most: int = LONGEST) -> str:
    """Text of at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def quoted(value: object) -> str:
    """A name or a value in quotes, cut short."""
    return cut(repr(value[: LONGEST + 1] if isinstance(value, str) else value))


def listed(values: Iterable[object], count: int | None = None) -> str:
    """Names in quotes: those that fit into a message, and how many more there are. `count`: of them all."""
    names = list(values)
    words: list[str] = []
    for name in names:
        words.append(quoted(name))
        if sum(map(len, words)) > MOST:
            break
    more = (len(names) if count is None else count) - len(words)
    return ", ".join(words) + (f" and {more:,} more" if more else "")
