"""Figures of texts: worked examples from their published definitions."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paliscribe.evaluation import text

# VQA (Antol et al. 2015; visualqa.org/evaluation): an answer is worth min(1, people who gave it / 3), as a mean over
# the ten choices of nine people. k of ten agree: k/10 * min(1, (k-1)/3) + (10-k)/10 * min(1, k/3).
VQA_OF_TEN = {0: 0.0, 1: 0.3, 2: 0.6, 3: 0.9, 4: 1.0, 10: 1.0}


@pytest.mark.parametrize(("agree", "expected"), VQA_OF_TEN.items())
def test_vqa_accuracy_of_ten_answers(agree: int, expected: float) -> None:
    truths = ["red"] * agree + [f"other {number}" for number in range(10 - agree)]
    assert text.vqa_accuracy(truths, "Red") == pytest.approx(expected)


def test_vqa_accuracy_of_few_answers_is_equality() -> None:
    assert text.vqa_accuracy(["two"], "2.") == 1
    assert text.vqa_accuracy(["a cat", "dog"], "Dog!") == 1
    assert text.vqa_accuracy(["cat", "dog", "cow"], "horse") == 0


@pytest.mark.parametrize(
    ("said", "normalised"),
    [
        ("The Dog", "dog"),  # case and articles
        ("two dogs and none else", "2 dogs and 0 else"),  # number words
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("well", "well"),  # another word without its apostrophe
        ("3.5", "3.5"),  # a decimal point stays
        ("yes.", "yes"),
        ("1,000", "1000"),  # a comma in a number goes
        ("left/right", "left right"),  # punctuation within a word is a space
        ("red, green", "red green"),
        ("wait - what?", "wait what"),
        ("\n red\t", "red"),
        ("cafe\u0301", "caf\u00e9"),
        ("", ""),
    ],
)
def test_vqa_normalisation(said: str, normalised: str) -> None:
    assert text.vqa_normalised(said) == normalised


# ANLS (Biten et al. 2019): 1 - distance / longer length, 0 from a distance of half the length on; case does not count.
@pytest.mark.parametrize(
    ("truths", "said", "expected"),
    [
        (["EXIT"], "exit", 1.0),
        (["abcd"], "abce", 0.75),
        (["abcd"], "abef", 0.0),  # half of it is wrong: below the threshold
        (["abc", "abcdefgh"], "abcdefg", 1 - 1 / 8),  # the nearest counts
        ([""], "", 1.0),
        (["a"], "", 0.0),
    ],
)
def test_anls(truths: list[str], said: str, expected: float) -> None:
    assert text.anls(truths, said) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("truths", "said", "expected"),
    [
        (["EXIT"], "EXIT", (0, 4)),
        (["EXIT"], "exit", (4, 4)),  # case counts
        (["EXIT"], "", (4, 4)),
        ([""], "no", (2, 0)),
        (["kitten", "sitting"], "sittin", (1, 7)),
    ],
)
def test_edits_of_characters(truths: list[str], said: str, expected: tuple[int, int]) -> None:
    assert text.edits(truths, said) == expected


# SQuAD (Rajpurkar et al. 2016): F1 of the words in common.
@pytest.mark.parametrize(
    ("truths", "said", "expected"),
    [
        (["a red circle"], "The red circle.", 1.0),
        (["red circle"], "red square", 0.5),
        (["red red"], "red", 2 / 3),  # words count as often as they are there
        (["x", "red circle"], "red circle", 1.0),
        ([""], "", 1.0),
        (["red"], "", 0.0),
    ],
)
def test_token_f1(truths: list[str], said: str, expected: float) -> None:
    assert text.token_f1(truths, said) == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=12), st.text(max_size=12))
def test_every_figure_is_a_share_and_1_for_the_truth(truths: list[str], said: str) -> None:
    figures: list[Any] = [text.exact, text.exact_normalised, text.anls, text.token_f1, text.vqa_accuracy]
    for figure in figures:
        assert 0 <= figure(truths, said) <= 1
    for figure in figures[:-1]:
        assert figure(truths, truths[0]) == 1
    assert math.isclose(text.vqa_accuracy(truths[:1] * 10, truths[0]), 1)
    assert text.edits(truths, truths[0])[0] == 0
