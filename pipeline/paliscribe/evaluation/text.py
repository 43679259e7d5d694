"""Figures of texts, each of one answer against one or several true ones.

Sources: VQA accuracy and its normalisation: Antol et al. 2015 and visualqa.org/evaluation. ANLS: Biten et al. 2019,
threshold 0.5. Token F1: Rajpurkar et al. 2016 (SQuAD). All texts are compared in Unicode's form NFC.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from rapidfuzz.distance import Levenshtein

ANLS_THRESHOLD = 0.5
AGREEING, ANNOTATORS = 3, 4  # people who must agree, and answers from which VQA accuracy is defined
ARTICLES = frozenset(("a", "an", "the"))
NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(number) for number, word in enumerate(NUMBER_WORDS.split())}
NUMBERS["none"] = "0"
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Contractions whose spelling without an apostrophe is no other word; of those with several, each may be missing.
CONTRACTIONS = """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"""


def _misspelt(word: str) -> Iterator[str]:
    """The word without one of its apostrophes."""
    return (word[:at] + word[at + 1 :] for at, letter in enumerate(word) if letter == "'")


SPELLING = {wrong: word for word in CONTRACTIONS.split() for wrong in _misspelt(word)}


def plain(text: str) -> str:
    """Text in form NFC with single spaces, and none around it."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def vqa_normalised(text: str) -> str:
    """An answer in VQA's normalisation: lower case, punctuation, number words, articles, contractions."""
    text = plain(text)
    found, has_thousands = text, re.search(r"\d,\d", text) is not None
    for mark in PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if at_edge or has_thousands else " ")
    found = re.sub(r"\.(?!\d)", "", found)
    words = (NUMBERS.get(word, word) for word in found.lower().split())
    return " ".join(SPELLING.get(word, word) for word in words if word not in ARTICLES)


def exact(truths: Sequence[str], answer: str) -> float:
    """1 if the answer is one of the true ones, letter by letter but for white space."""
    return float(plain(answer) in map(plain, truths))


def exact_normalised(truths: Sequence[str], answer: str) -> float:
    """1 if the answer is one of the true ones in VQA's normalisation."""
    return float(vqa_normalised(answer) in map(vqa_normalised, truths))


def vqa_accuracy(truths: Sequence[str], answer: str) -> float:
    """VQA accuracy, 0 to 1: the mean over all choices of n - 1 of the n people of min(1, people who agree / 3).

    With fewer than four true answers three people cannot agree: then it is `exact_normalised`.
    """
    if len(truths) < ANNOTATORS:
        return exact_normalised(truths, answer)
    said = vqa_normalised(answer)
    same = [vqa_normalised(truth) == said for truth in truths]
    agree = sum(same)
    return sum(min(1.0, (agree - own) / AGREEING) for own in same) / len(truths)


def anls(truths: Sequence[str], answer: str) -> float:
    """Average normalised Levenshtein similarity, 0 to 1: that of the nearest true answer; below 0.5 it is 0."""
    said = plain(answer).lower()
    nearest = min(Levenshtein.normalized_distance(plain(truth).lower(), said) for truth in truths)
    return 1 - nearest if nearest < ANLS_THRESHOLD else 0.0


def edits(truths: Sequence[str], answer: str) -> tuple[int, int]:
    """Edits of characters between an answer and its nearest true one, and the characters of that."""
    said = plain(answer)
    pairs = ((Levenshtein.distance(truth, said), len(truth)) for truth in map(plain, truths))
    return min(pairs, key=lambda pair: (pair[0] / max(1, pair[1]), pair))


def token_f1(truths: Sequence[str], answer: str) -> float:
    """F1 of the words in common with the nearest true answer, 0 to 1."""
    said = _tokens(answer)
    return max(_f1(_tokens(truth), said) for truth in truths)


def _f1(true: Counter[str], said: Counter[str]) -> float:
    if not true or not said:
        return float(true == said)
    return 2 * (true & said).total() / (true.total() + said.total())


def _tokens(text: str) -> Counter[str]:
    """Words in SQuAD's normalisation: lower case, without ASCII punctuation and articles."""
    letters = plain(text).lower().translate(str.maketrans("", "", string.punctuation))
    return Counter(word for word in letters.split() if word not in ARTICLES)
