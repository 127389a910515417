"""Medical: open questions of HuatuoGPT-o1 with short verifiable answers.

Formats of raw rows:

- those of the TRSD repository (12,288 rows to train, 1,000 to evaluate): to train, `messages` and
  `output_text`; to evaluate, `prompt` (messages) and `answer`;
- those of HuatuoGPT-o1 itself: to train, `Question` and `Response` (medical-o1-reasoning-SFT); to evaluate,
  `Open-ended Verifiable Question` and `Ground-True Answer` (medical-o1-verifiable-problem).

As in the SDFT paper, section 4.5, the demonstration of a HuatuoGPT-o1 row is its final response, without the
reasoning in `Complex_CoT`. Rows to train have no reference answer.
"""

from __future__ import annotations

from sdft_jax.tasks.fields import Raw, Row, messages_of, text_of, unknown, user_prompt

QUESTION, ANSWER = "Open-ended Verifiable Question", "Ground-True Answer"


def convert(raw: Raw, place: str) -> Row:
    """Return the row of a question, with a demonstration to train or an answer to evaluate."""
    if "output_text" in raw:
        prompt = messages_of(raw, "messages", place)
        return {"prompt": prompt, "demonstration": text_of(raw, "output_text", place)}
    if "Response" in raw:
        prompt = user_prompt(text_of(raw, "Question", place))
        return {"prompt": prompt, "demonstration": text_of(raw, "Response", place)}
    if ANSWER in raw:
        return {"prompt": user_prompt(text_of(raw, QUESTION, place)), "answer": text_of(raw, ANSWER, place)}
    if "answer" in raw:
        return {"prompt": messages_of(raw, "prompt", place), "answer": text_of(raw, "answer", place)}
    raise unknown(
        raw,
        place,
        f"messages and output_text, prompt and answer, Question and Response, or {QUESTION} and {ANSWER}",
    )
