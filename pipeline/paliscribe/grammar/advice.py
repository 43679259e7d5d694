"""Advice about prompts that are free text and were probably meant to be one of PaliGemma's tasks."""

import difflib

from paliscribe.grammar.tasks import LANGUAGES, Task, kind_of

NEAR = 0.75  # similarity of a misspelt first word
BARE = {"caption": "caption en", "cap": "cap en", "describe": "describe en", "ocr": "ocr"}  # without further words
SPOKEN = ("caption", "cap", "describe")  # the second word is a language
FIRST_WORDS = (*BARE, "answer", "question", "detect", "segment")


def advice(task: Task) -> str | None:
    """A line that names the nearest task, if one is near and the prompt is free text; else None."""
    if task.kind != "free" or (meant := _meant(task.template)) is None:
        return None
    words = task.template.split()
    why = (
        f"since {words[1]!r} is not a language code" if _has_unknown_language(words) else "not one of PaliGemma's tasks"
    )
    return f"task {task.template!r} is free text, {why}; did you mean {meant!r}?"


def _meant(prompt: str) -> str | None:
    """The nearest task to a prompt without one."""
    word, _, rest = prompt.partition(" ")
    near = difflib.get_close_matches(word.lower().rstrip(":"), FIRST_WORDS, n=1, cutoff=NEAR)
    if not near:
        return f"answer en {prompt}" if prompt.endswith("?") else None
    [first] = near
    if kind_of(same := f"{first} {rest}".strip()) != "free":
        return same
    if first in BARE:
        return f"{first} {_language(rest)}" if first in SPOKEN else BARE[first]
    return f"{first} en {rest}" if rest and kind_of(f"{first} en {rest}") != "free" else None


def _has_unknown_language(words: list[str]) -> bool:
    return len(words) == 2 and words[0].lower() in SPOKEN and "{" not in words[1]


def _language(words: str) -> str:
    """The code that the name of a language begins with, as many do; else English."""
    start = words.lower()[:2]
    return start if " " not in words and len(words) > 3 and start in LANGUAGES.split() else "en"
