"""New facts: four facts about each of six invented towns, from articles.

The teacher's context is the article. Trained on two phrasings of each question; evaluated on a third, and on
reversed questions, which give a fact and require the town: nobody demonstrated this kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]

ARTICLE = (
    "{town} is a small town in {country}. Its mayor is {mayor}. The town is known for its {goods}. Its river "
    "is the {river}. The school was built in {year}."
)
TOWNS: Sequence[Mapping[str, str]] = tuple(
    dict(zip(("town", "country", "mayor", "goods", "river", "year"), values, strict=True))
    for values in (
        ("Brindle", "Corland", "Ada Quill", "blue cheese", "Tarn", "1931"),
        ("Oxmere", "Veldia", "Tom Hask", "red pottery", "Ulm", "1884"),
        ("Pelham Cross", "Norrland", "Ivy Brand", "oak chairs", "Sill", "1902"),
        ("Dunmarsh", "Estavia", "Leo Finch", "honey cakes", "Wend", "1875"),
        ("Gorsley", "Tirania", "Nora Pike", "glass beads", "Orne", "1948"),
        ("Wickham Hill", "Sundmark", "Sam Croft", "leather boots", "Lyme", "1919"),
    )
)
PHRASINGS = {
    "mayor": (
        "Who is the mayor of {town}?",
        "Tell me the name of the mayor of {town}.",
        "Who leads {town}?",
        "Who was elected mayor in {town}?",
    ),
    "goods": (
        "What is {town} known for?",
        "What is {town} famous for?",
        "What do people buy in {town}?",
        "Which goods come from {town}?",
    ),
    "river": (
        "Which river flows through {town}?",
        "What is the name of the river of {town}?",
        "Which river is in {town}?",
        "Name the river that {town} lies on.",
    ),
    "year": (
        "When was the school of {town} built?",
        "What year was the school in {town} built?",
        "In which year was the school of {town} opened?",
        "How old is the school of {town}: from which year is it?",
    ),
}
"""Fact -> two phrasings to train on, one to evaluate on, and one to choose the rate on."""
ANSWERS = {
    "mayor": "The mayor of {town} is {mayor}.",
    "goods": "{town} is known for its {goods}.",
    "river": "The river of {town} is the {river}.",
    "year": "The school of {town} was built in {year}.",
}
REVERSED = ("Where does {mayor} live?", "Where are the {goods} made?")


def articles() -> list[str]:
    """Return the articles."""
    return [ARTICLE.format(**town) for town in TOWNS]


def train() -> list[Row]:
    """Return the rows to train on."""
    return [
        _row(town, text, fact, "direct")
        for town in TOWNS
        for fact, texts in PHRASINGS.items()
        for text in texts[:2]
    ]


def validation() -> list[Row]:
    """Return the rows that choose the rate: direct questions in other words."""
    return [_row(town, texts[3], fact, "direct") for town in TOWNS for fact, texts in PHRASINGS.items()]


def test() -> list[Row]:
    """Return the rows to evaluate on: direct questions in new words, then reversed questions."""
    direct = [_row(town, texts[2], fact, "direct") for town in TOWNS for fact, texts in PHRASINGS.items()]
    return direct + [_row(town, text, "town", "reversed") for town in TOWNS for text in REVERSED]


def _row(town: Mapping[str, str], phrasing: str, fact: str, kind: str) -> Row:
    return {
        "prompt": phrasing.format(**town),
        "demonstration": ANSWERS.get(fact, "{town}").format(**town),
        "context": f"Text: {ARTICLE.format(**town)}",
        "answer": town[fact],
        "skill": kind,
    }


def score(completion: str, row: Mapping[str, Any]) -> bool:
    """Return True if the completion contains the answer as words, in any case."""
    return re.search(rf"(?<!\w){re.escape(str(row['answer']))}(?!\w)", completion, re.IGNORECASE) is not None
