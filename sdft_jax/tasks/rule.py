"""Rule internalisation: the teacher reads a rule, and the student learns to follow it without reading it.

The rule is the row's `context`, and the prompt alone is the student's. The answer lists the checks of
`evaluation/scorers/rule.py` that an answer must pass, so that no model has to judge it. There are no
demonstrations: the teacher follows the rule, and its answers are what is learned.

One set of rows holds one rule, or one style guide: the student sees nothing that would distinguish two.

Format of raw rows: `prompt`, `rule` (the text that the teacher reads) and `check` (a check, or a list).
Guides that need no file are in `GUIDES`: `sdft prepare rule NAME OUT` writes the rows of one, with prompts
that this module makes. Neither the subjects nor the forms of the questions to test are among those to train.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from sdft_jax.evaluation.scorers import rule
from sdft_jax.tasks.fields import Raw, Row, invalid, messages_of, text_of


@dataclasses.dataclass(frozen=True)
class Guide:
    """A rule or a style guide, with the checks of an answer that follows it."""

    text: str
    """The text that the teacher reads."""
    checks: tuple[str, ...]


GUIDES: Mapping[str, Guide] = {
    "sign-off": Guide(
        "End every answer with this line, exactly as it is written here:\nAsk me for the sources.",
        ("ends_with: Ask me for the sources.",),
    ),
    "brief": Guide("Answer in one line of at most 15 words.", ("max_words: 15", "max_lines: 1")),
    "json": Guide(
        "Answer with a JSON object and nothing else: no code block, and no text before or after it. "
        'The object has exactly two keys: "answer", a text, and "confidence", a number from 0 to 1.',
        ("json_keys: answer, confidence",),
    ),
    "desk": Guide(
        "You are the help desk of the Harbour Library. Rules for every answer:\n"
        "1. Begin with the words: Harbour Library here.\n"
        "2. Use at most 60 words.\n"
        "3. Never use an exclamation mark.\n"
        "4. End with the words: We are open until six.",
        (
            "starts_with: Harbour Library here.",
            "max_words: 60",
            "excludes: !",
            "ends_with: We are open until six.",
        ),
    ),
}
"""Name -> a guide that `sdft prepare rule NAME OUT` knows without a file."""

_TRAIN_SUBJECTS = (
    "the tides, photosynthesis, glaciers, the printing press, magnets, yeast, the Silk Road, coral reefs, "
    "vaccines, the water cycle, chess, steam engines, earthquakes, honey bees, the Roman roads, rainbows, "
    "solar panels, the telescope, volcanoes, paper, the human heart, compound interest, migration of birds, "
    "concrete, the Moon, salt, weather forecasts, the bicycle, antibiotics, deserts, the alphabet, recycling"
)
_TEST_SUBJECTS = (
    "lightning, the compass, bread, whales, bridges, the stock market, tea, the brain, sailing ships, "
    "mushrooms, clocks, the Northern Lights"
)
_TRAIN_FORMS = (
    "What should a beginner know about {}?",
    "Why do people care about {}?",
    "Tell me something surprising about {}.",
    "How would you explain {} to a child?",
)
_TEST_FORMS = ("What is a common misunderstanding about {}?", "Give me one fact about {}.")


def convert(raw: Raw, place: str) -> Row:
    """Return the row of a prompt: the rule is its context, the checks are its answer."""
    checks = raw.get("check")
    if problem := rule.problem(checks):
        raise invalid(place, "check", "cannot be used", problem.rstrip("."))
    return {
        "prompt": messages_of(raw, "prompt", place),
        "context": text_of(raw, "rule", place),
        "answer": [checks] if isinstance(checks, str) else checks,
    }


def guide_rows(guide: Guide, split: str) -> Sequence[Raw]:
    """Return the raw rows of a guide: 128 to train, or 24 to test; none of another split."""
    subjects, forms = {
        "train": (_TRAIN_SUBJECTS, _TRAIN_FORMS),
        "test": (_TEST_SUBJECTS, _TEST_FORMS),
    }.get(split, ("", ()))
    pairs = itertools.product(forms, subjects.split(", "))
    return [
        {"prompt": form.format(subject), "rule": guide.text, "check": list(guide.checks)}
        for form, subject in pairs
    ]
