"""CIDEr against its reference implementation, over captions of the same words."""

import random
from pathlib import Path

import pytest
from pycocoevalcap.cider.cider_scorer import CiderScorer

from paliscribe.evaluation import cider
from paliscribe.evaluation.cider import Frequencies, grams, tokens

TEXT = "a an the red green blue circle square star and two on under some text"


def sentence(random_: random.Random, most: int = 9) -> str:
    return " ".join(random_.choices(TEXT.split(), k=random_.randrange(most)))


def scores(truths: list[list[str]], answers: list[str], batch: int, folder: Path) -> list[float]:
    frequencies = Frequencies(folder / "grams")
    cooked = [[grams(tokens(each)) for each in row] for row in truths]
    for start in range(0, len(cooked), batch):
        frequencies.add(cooked[start : start + batch])
    frequencies.settle()
    return frequencies.scores(list(zip(cooked, (grams(tokens(each)) for each in answers), strict=True)))


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_reference(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cider, "BLOCK", 1 + 3 * seed)
    monkeypatch.setattr(cider, "PART_BYTES", 1000)
    random_ = random.Random(seed)
    rows = 40 if seed else 1  # of one row every frequency is that of all rows: 0
    truths = [[sentence(random_) for _ in range(random_.randrange(1, 6))] for _ in range(rows)]
    answers = [random_.choice([random_.choice(row), sentence(random_), ""]) for row in truths]
    truths[0] = ["red circle", "red circle"]
    reference = CiderScorer()
    for row, answer in zip(truths, answers, strict=True):
        reference += (answer, row)
    mean, each = reference.compute_score()
    found = scores(truths, answers, 7, tmp_path)
    assert found == pytest.approx(each.tolist(), abs=1e-9)
    assert sum(found) / rows == pytest.approx(mean)
    assert seed == 0 or mean > 1


def test_words_of_captions() -> None:
    assert tokens("A dog's red ball, isn't it? Cafe\u0301.") == [
        "a",
        "dog's",
        "red",
        "ball",
        "isn't",
        "it",
        "caf\u00e9",
    ]
    assert tokens("  ") == []
