"""Scorers that compare a completion with a short text."""

from __future__ import annotations

import re
import unicodedata

from sdft_jax.data.examples import Example
from sdft_jax.data.thoughts import without_thoughts
from sdft_jax.evaluation.scorers.grade import Grade

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)}
_UNSPACED = re.compile("([\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])")
"""Characters of Thai, Lao, Chinese, Japanese and Korean, which are compared one by one."""


def problem(answer: object) -> str | None:
    """Return the problem with a reference answer, or None if it is a non-empty text or a number."""
    if answer is None:
        return "it is missing; add the field, or set data.answer to the name of another field."
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        return f"it is {answer!r}; give a non-empty string or a number."
    return None


def score_exact(completion: str, example: Example) -> bool:
    """Return True if completion and answer are equal without surrounding whitespace.

    This is the exact match of SQuAD-style tasks.
    """
    return completion.strip() == str(example.answer).strip()


def score_contains(completion: str, example: Example) -> bool:
    """Return True if the completion contains the answer verbatim (containment, as in knowledge tasks)."""
    return str(example.answer).strip() in completion


def problem_normalised(answer: object) -> str | None:
    """Return the problem with a reference answer, or None if it also has words after normalisation."""
    if (found := problem(answer)) or normalise(str(answer)):
        return found
    return f"it is {answer!r}, of which normalisation leaves no word; use eval.task=exact or contains."


def score_normalised(completion: str, example: Example) -> Grade:
    """Return CORRECT if the completion contains the answer, and PARTLY if half of the answer's words or more.

    Both are normalised first, thoughts do not count, and whole words are compared. It is containment: an
    answer that is negated or one of several guesses counts, too.
    """
    words, reference = normalise(without_thoughts(completion)), normalise(str(example.answer))
    if f" {reference} " in f" {words} ":
        return Grade.CORRECT
    wanted = set(reference.split())
    return Grade.PARTLY if 2 * len(wanted & set(words.split())) >= len(wanted) else Grade.WRONG


def normalise(text: str) -> str:
    """Return the words of a text, one space apart, as texts are compared in SQuAD and VQA.

    Letters are case-folded. Articles and punctuation are removed, except the decimal points and minus signs
    of numbers. Commas between thousands are removed, .5 becomes 0.5, and zero to ten become digits.

    >>> normalise("The **three** U.S. states' losses: −1,250.5 million (not 17-20).")
    '3 us states losses -1250.5 million not 17 20'
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<![\w.])\.(?=\d)", "0.", text)
    text = re.sub(r"(?<=\w)-|-(?!\d)", " ", text.replace("\u2212", "-"))  # all but minus signs
    text = re.sub(r"(?<!\d)\.|\.(?!\d)|['\u2018\u2019]", "", text)
    text = "".join(char if _is_kept(char) else " " for char in _UNSPACED.sub(r" \1 ", text))
    return " ".join(_DIGITS.get(word, word) for word in text.split() if word not in _ARTICLES)


def _is_kept(char: str) -> bool:
    """Return True for letters, marks, digits, decimal points and minus signs."""
    return char in ".-" or unicodedata.category(char)[0] in "LMN"


def score_choice(completion: str, example: Example) -> bool:
    """Return True if the content of the last <answer> tag is the answer, without surrounding whitespace.

    Without a tag, the whole completion is compared. Source: evaluation of the science task (SciKnowEval
    chemistry) of the SDFT paper's released code.
    """
    return tag_content(completion) == str(example.answer).strip()


def tag_content(completion: str) -> str:
    """Return the content of the last <answer> tag, closed or not, or else the whole text; stripped."""
    return completion.rpartition("<answer>")[2].partition("</answer>")[0].strip()
