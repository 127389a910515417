"""Science: SciKnowEval chemistry, multiple-choice questions that are answered by a letter.

Formats of raw rows:

- those of the SDFT repository: to train, `messages` (system prompt and question) and `output_text` (reasoning
  and <answer> tag); to evaluate, `prompt` (the same messages) and `answer`;
- those of the SDPO repository: `system`, `prompt` and `answer`;
- those of SciKnowEval itself: `question`, `choices` and `answerKey`. Rows of other levels than L3, and those
  without four choices, are not part of the task and are left out.

Only the first have a worked solution. In the others, the demonstration is the answer alone, in its tag: the
teacher then knows the letter and no reasoning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdft_jax.data.examples import Example
from sdft_jax.evaluation.scorers.letter import read_options
from sdft_jax.tasks.fields import (
    Raw,
    Row,
    invalid,
    letter_of,
    messages_of,
    tag_of,
    text_of,
    unknown,
    user_prompt,
)

LETTERS = "ABCD"
SYSTEM = """\
Given a question and four options, please select the right answer. Respond in the following format:
<reasoning>
...
</reasoning>
<answer>
...
</answer>

For the answer, only output the letter corresponding to the correct option (A, B, C, or D), and nothing \
else. Do not restate the answer text. For example, if the answer is "A", just output:
<answer>
A
</answer>"""
"""The system prompt of the released rows, for rows of SciKnowEval, which have none."""


def convert(raw: Raw, place: str) -> Row | None:
    """Return the row of a question: the letter is its answer. None if it is not part of the task."""
    if "output_text" in raw:
        demonstration = text_of(raw, "output_text", place)
        return _row(
            messages_of(raw, "messages", place), demonstration, (tag_of(demonstration), "output_text"), place
        )
    if "choices" in raw:
        return _of_sciknoweval(raw, place)
    if "answer" not in raw:
        raise unknown(raw, place, "messages and output_text, prompt and answer, or question and choices")
    prompt = messages_of(raw, "prompt", place)
    if raw.get("system"):
        prompt = [{"role": "system", "content": text_of(raw, "system", place).strip()}, *prompt]
    return _row(prompt, None, (text_of(raw, "answer", place), "answer"), place)


def _row(
    prompt: list[dict[str, str]], demonstration: str | None, answer: tuple[str | None, str], place: str
) -> Row:
    """Return the row of a prompt, a demonstration (None for the answer alone), and (answer, its field)."""
    options = read_options(Example(tuple(prompt), "", None, 0, place))
    value, name = answer
    if value is None:
        raise invalid(place, name, "has no <answer> tag", "add one with the letter of an option")
    letter = letter_of(value, options, place, name)
    return {
        "prompt": prompt,
        "demonstration": demonstration or f"<answer>\n{letter}\n</answer>",
        "answer": letter,
    }


def _of_sciknoweval(raw: Raw, place: str) -> Row | None:
    details, choices = raw.get("details"), raw["choices"]
    level = details.get("level") if isinstance(details, Mapping) else None
    texts, labels = _choices(choices, place)
    if level not in (None, "L3") or labels != list(LETTERS):
        return None
    question = text_of(raw, "question", place)
    options = "\n".join(f"{label}: {text}" for label, text in zip(labels, texts, strict=True))
    prompt = user_prompt(f"{question}\n\n{options}\nPlease reason step by step.", SYSTEM)
    return _row(prompt, None, (text_of(raw, "answerKey", place), "answerKey"), place)


def _choices(choices: Any, place: str) -> tuple[list[str], list[str]]:
    """Return the texts and the labels of the choices."""
    parts = [choices.get(key) for key in ("text", "label")] if isinstance(choices, Mapping) else [None, None]
    texts, labels = ([] if part is None else part for part in parts)
    if not all(isinstance(part, list) and all(isinstance(x, str) for x in part) for part in (texts, labels)):
        raise invalid(place, "choices", "has no lists of texts", "give its parts text and label as lists")
    if len(texts) != len(labels):
        raise invalid(place, "choices", f"has {len(texts)} texts and {len(labels)} labels", "label each text")
    return texts, labels
