"""Scorers that compare a completion with a short text."""

from __future__ import annotations

from sdft_jax.data.examples import Example


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


def score_choice(completion: str, example: Example) -> bool:
    """Return True if the content of the last <answer> tag is the answer, without surrounding whitespace.

    Source: evaluation of the science task (SciKnowEval chemistry) of the SDFT paper's released code.
    """
    _, tag, rest = completion.rpartition("<answer>")
    return bool(tag) and rest.partition("</answer>")[0].strip() == str(example.answer).strip()
