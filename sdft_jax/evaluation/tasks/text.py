"""Scorers against an answer that is a short text."""

from __future__ import annotations

from sdft_jax.data.examples import Example


def complaint(answer: object) -> str | None:
    """An answer must be a non-empty text or a number."""
    if answer is None:
        return "it has none; add the field, or name the right one as data.answer=FIELD."
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        return f"it is {answer!r}; give a non-empty string or a number."
    return None


def score_exact(completion: str, example: Example) -> bool:
    """Equality, white space around either aside. Source: exact match, as SQuAD-style tasks use it."""
    return completion.strip() == str(example.answer).strip()


def score_contains(completion: str, example: Example) -> bool:
    """The answer occurs in the completion, as it is written. Source: containment, as in knowledge tasks."""
    return str(example.answer).strip() in completion


def score_choice(completion: str, example: Example) -> bool:
    """What the last <answer> holds, stripped, is exactly the letter.

    Source: evaluation of the science task (SciKnowEval chemistry) of the SDFT paper's released code.
    """
    _, tag, rest = completion.rpartition("<answer>")
    return bool(tag) and rest.partition("</answer>")[0].strip() == str(example.answer).strip()
